"""Data checks by Great Expectations: a suite for raw rows and one for clean rows, run as checkpoints, shown as data docs.

A rule may do two things: send the rows that break it to quarantine, and stop the run when too many do (or when a rule
about the table as a whole is broken). The data docs list every run below ``<docs>/gx/uncommitted/data_docs``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

# Great Expectations reads these once, when it is imported.
os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")

import great_expectations as gx
import great_expectations.expectations as gxe
import pandas as pd
from filelock import FileLock
from great_expectations.core.run_identifier import RunIdentifier
from great_expectations.data_context.types.base import ProgressBarsConfig
from great_expectations.data_context.types.resource_identifiers import ExpectationSuiteIdentifier
from pydantic import BaseModel, ConfigDict

from reviewclf.errors import QualityError, StoreError
from reviewclf.outages import is_full, space_hint
from reviewclf.settings import QualitySettings
from reviewclf.text import cyrillic_share, is_misread, repaired

logger = logging.getLogger(__name__)

Table = Literal["raw", "clean"]

# Of Great Expectations' project; it makes them where they are missing.
_PROJECT_SETTINGS = ("great_expectations.yml", "uncommitted/config_variables.yml")

_COLUMNS: dict[Table, dict[str, str]] = {
    "raw": {
        "review_id": "str",
        "text": "str",
        "source": "str",
        "created_at": "datetime64[us]",
        "extra": "str",
        "row_number": "int64",
    },
    "clean": {
        "review_id": "str",
        "text": "str",
        "text_clean": "str",
        "text_hash": "str",
        "source": "str",
        "created_at": "datetime64[us]",
        "dt": "str",
    },
}

# Under :where() every rule is weaker than any of the pages' own, so with a network these change next to nothing.
_STYLE = """<style>
:where(:root) { color-scheme: light dark; }
:where(body) { font: 15px/1.5 system-ui, sans-serif; margin: 1.5rem; }
:where(table) { border-collapse: collapse; }
:where(th, td) { text-align: left; vertical-align: top; padding: .25rem .6rem; border-bottom: 1px solid #8885; }
:where(.text-success)::after { content: "\\2714 passed"; color: #2a8a43; white-space: nowrap; }
:where(.text-danger)::after { content: "\\2718 failed"; color: #d33; white-space: nowrap; }
:where(footer, img[alt="Great Expectations"]) { display: none; }
</style>"""

_POSITION = "position"
_CYRILLIC = "cyrillic_share"
_MISREAD = "misread"
# With more of its texts misread beyond repair a batch was written by a program that is to be mended.
_MOST_MISREAD = 0.5
_MIN_HISTORY = 3
# Shares of fewer rows say nothing about a batch: two empty ones of five are an ordinary night.
_MIN_BATCH = 20
# Nor do volumes below this, whatever their ratio.
_MIN_VOLUME = 100


class QualityRule(BaseModel):
    """One rule's outcome. Rows that break a rule that quarantines do not stop the run as long as it `passed`."""

    model_config = ConfigDict(frozen=True)

    name: str
    description: str
    quarantines: bool
    passed: bool
    observed: str
    limit: str
    failed_rows: int


class FailedRow(NamedTuple):
    """A row to quarantine: its position in the table and the rule it breaks."""

    position: int
    reason: str


class QualityReport(BaseModel):
    """What a suite found; `passed` is False when the run has to stop."""

    model_config = ConfigDict(frozen=True)

    table: Table
    passed: bool
    rows: int
    rules: tuple[QualityRule, ...]
    failed_rows: tuple[FailedRow, ...]
    docs: str | None


class _Rule(NamedTuple):
    name: str
    description: str
    expectation: Any
    limit: str
    quarantines: bool = False


def check_table(
    table: Table, frame: pd.DataFrame, limits: QualitySettings, *, history: Sequence[int], docs: Path, run_name: str
) -> QualityReport:
    """Check one table of a run.

    Parameters
    ----------
    table : {"raw", "clean"}
        Which suite.
    frame : DataFrame
        The rows, with the columns of the table's contract.
    limits : QualitySettings
        The limits.
    history : sequence of int
        Rows that the last nights brought, of those that brought any; judged where there are three.
    docs : Path
        Folder of the data docs.
    run_name : str
        Name of this run in the data docs; the same name again replaces the entry.

    Returns
    -------
    QualityReport
        An empty table passes without rules: a night without new reviews is no fault.
    """
    if frame.empty:
        return QualityReport(table=table, passed=True, rows=0, rules=(), failed_rows=(), docs=None)
    rules = _rules(table, len(frame), limits, history)
    checked = _plain_types(frame.reset_index(drop=True))
    checked[_POSITION] = range(len(checked))
    if table == "raw":
        checked[_CYRILLIC] = [cyrillic_share(repaired(text)) if isinstance(text, str) else None for text in checked["text"]]
        checked[_MISREAD] = [isinstance(text, str) and is_misread(text) for text in checked["text"]]
    results, page = _run(table, rules, checked, docs, run_name)
    outcomes: list[QualityRule] = []
    failed: dict[int, str] = {}
    for rule, result in zip(rules, results, strict=True):
        if result.exception_info.get("raised_exception"):
            raise QualityError(f"{table}: rule {rule.name} could not be checked: {result.exception_info['exception_message']}")
        details = result.result
        positions = [row[_POSITION] for row in details.get("unexpected_index_list") or []]
        if rule.quarantines:
            for position in positions:
                failed.setdefault(int(position), rule.name)
        outcomes.append(
            QualityRule(
                name=rule.name,
                description=rule.description,
                quarantines=rule.quarantines,
                passed=bool(result.success),
                observed=_observed(details),
                limit=rule.limit,
                failed_rows=int(details.get("unexpected_count") or 0),
            )
        )
    return QualityReport(
        table=table,
        passed=all(rule.passed for rule in outcomes),
        rows=len(frame),
        rules=tuple(outcomes),
        failed_rows=tuple(FailedRow(position, reason) for position, reason in sorted(failed.items())),
        docs=page,
    )


def raise_for(report: QualityReport) -> None:
    """Stop the run when the suite failed.

    Raises
    ------
    QualityError
        Names the table, every broken rule with what was observed and its limit, and the data docs page.
    """
    broken = [rule for rule in report.rules if not rule.passed]
    if broken:
        listed = "; ".join(f"{rule.name} ({rule.description}): {rule.observed}, limit {rule.limit}" for rule in broken)
        raise QualityError(
            f"table {report.table}, {report.rows} rows, was refused and nothing of it published: {listed}. "
            f"Data docs: {report.docs}. Limits are settings: REVIEWCLF_QUALITY__*"
        )


def _rules(table: Table, rows: int, limits: QualitySettings, history: Sequence[int]) -> list[_Rule]:
    columns = _COLUMNS[table]
    helpers = [_POSITION, _CYRILLIC, _MISREAD] if table == "raw" else [_POSITION]
    rules = [
        _Rule(
            "columns",
            "the columns of the contract and no others",
            gxe.ExpectTableColumnsToMatchSet(column_set=[*columns, *helpers], exact_match=True),
            ", ".join(columns),
        ),
        *(
            _Rule(
                f"type_of_{name}",
                f"{name} is {kind}",
                gxe.ExpectColumnValuesToBeInTypeList(column=name, type_list=[kind]),
                kind,
            )
            for name, kind in columns.items()
        ),
        _Rule(
            "review_id_missing",
            "every row has an id",
            gxe.ExpectColumnValuesToNotBeNull(column="review_id", mostly=0.0),
            "to quarantine",
            quarantines=True,
        ),
    ]
    if table == "raw":
        rules += _raw_rules(limits, rows)
    else:
        rules += [
            _Rule(
                "text_clean_empty",
                "something is left after cleaning",
                gxe.ExpectColumnValuesToMatchRegex(column="text_clean", regex=r"\S"),
                "every row",
            ),
            _Rule(
                "text_hash_malformed",
                "text_hash is a 128-bit digest",
                gxe.ExpectColumnValuesToMatchRegex(column="text_hash", regex=r"^[0-9a-f]{32}$"),
                "every row",
            ),
            _Rule(
                "text_hash_repeats",
                "no text stands twice",
                gxe.ExpectColumnValuesToBeUnique(column="text_hash"),
                "every row",
            ),
        ]
    if table == "raw" and len(history) >= _MIN_HISTORY and max(rows, usual := median(history)) >= _MIN_VOLUME:
        low, high = usual / limits.max_volume_ratio, usual * limits.max_volume_ratio
        rules.append(
            _Rule(
                "volume",
                f"rows against the median of the last {len(history)} nights with new ones ({usual:g})",
                gxe.ExpectTableRowCountToBeBetween(min_value=int(low), max_value=int(high) + 1),
                f"{low:.0f} to {high:.0f} rows",
            )
        )
    return rules


def _raw_rules(limits: QualitySettings, rows: int) -> list[_Rule]:
    def share(limit: float) -> float:
        return limit if rows >= _MIN_BATCH else 0.0

    return [
        _Rule(
            "text_missing",
            "every row has a text",
            gxe.ExpectColumnValuesToNotBeNull(column="text", mostly=share(1 - limits.max_null_rows)),
            f"missing in at most {limits.max_null_rows:.0%} of {_MIN_BATCH} rows or more",
            quarantines=True,
        ),
        _Rule(
            "text_blank",
            "a text is more than white space",
            gxe.ExpectColumnValuesToMatchRegex(column="text", regex=r"\S", mostly=0.0),
            "to quarantine",
            quarantines=True,
        ),
        _Rule(
            "text_too_long",
            f"at most {limits.max_text_length} characters",
            gxe.ExpectColumnValueLengthsToBeBetween(column="text", max_value=limits.max_text_length, mostly=0.0),
            "to quarantine",
            quarantines=True,
        ),
        _Rule(
            "text_misread",
            "a text was read in its own encoding, or can be read again",
            gxe.ExpectColumnValuesToBeInSet(column=_MISREAD, value_set=[False], mostly=share(1 - _MOST_MISREAD)),
            f"misread in at most {_MOST_MISREAD:.0%} of {_MIN_BATCH} rows or more",
            quarantines=True,
        ),
        _Rule(
            "not_russian",
            f"at least {limits.min_cyrillic_share:.0%} of a text's letters are Cyrillic",
            gxe.ExpectColumnValuesToBeBetween(
                column=_CYRILLIC, min_value=limits.min_cyrillic_share, mostly=share(limits.min_russian_rows)
            ),
            f"in at least {limits.min_russian_rows:.0%} of {_MIN_BATCH} rows or more",
        ),
        _Rule(
            "text_repeats",
            "share of different texts",
            gxe.ExpectColumnProportionOfUniqueValuesToBeBetween(column="text", min_value=share(1 - limits.max_duplicate_rows)),
            f"at least {1 - limits.max_duplicate_rows:.0%} of {_MIN_BATCH} rows or more",
        ),
    ]


def _run(table: Table, rules: list[_Rule], frame: pd.DataFrame, docs: Path, run_name: str) -> tuple[list[Any], str]:
    # Great Expectations keeps its project in plain files and does not expect a second writer.
    with _space_errors(docs), _locked(docs), _quiet():
        context = _project(docs)
        context.variables.progress_bars = ProgressBarsConfig(globally=False)
        source = context.data_sources.add_or_update_pandas("reviews")
        batch = source.add_dataframe_asset(table).add_batch_definition_whole_dataframe("run")
        for rule in rules:
            rule.expectation.meta = {"rule": rule.name}
            rule.expectation.description = _described(rule)
        suite = gx.ExpectationSuite(name=table, expectations=[rule.expectation for rule in rules])
        suite = context.suites.add_or_update(suite)
        validation = context.validation_definitions.add_or_update(gx.ValidationDefinition(name=table, data=batch, suite=suite))
        checkpoint = context.checkpoints.add_or_update(
            gx.Checkpoint(
                name=table,
                validation_definitions=[validation],
                result_format={"result_format": "COMPLETE", "unexpected_index_column_names": [_POSITION]},
            )
        )
        run_time = _earlier_run_time(docs, table, run_name)
        run = checkpoint.run(
            batch_parameters={"dataframe": frame},
            run_id=RunIdentifier(run_name=run_name, **({"run_time": run_time} if run_time else {})),
        )
        (identifier,) = run.run_results
        result = run.run_results[identifier]
        # The pages of this run alone: those of earlier nights stand.
        context.build_data_docs(resource_identifiers=[identifier, ExpectationSuiteIdentifier(name=table)])
        _make_readable_offline(docs / "gx" / "uncommitted" / "data_docs")
        urls = context.get_docs_sites_urls(resource_identifier=identifier)
    by_rule = {item.expectation_config.meta["rule"]: item for item in result.results}
    # The library's address is no URL where the path holds spaces or Cyrillic.
    page = Path(urls[0]["site_url"].removeprefix("file://"))
    return [by_rule[rule.name] for rule in rules], page.as_uri()


def _project(docs: Path) -> Any:
    """The project of the data docs, without what a full disk or a kill has left half-written: no run would get past it."""
    project = docs / "gx"
    for folder in ("expectations", "validation_definitions", "checkpoints", "uncommitted/validations"):
        for path in (project / folder).rglob("*.json"):
            try:
                json.loads(path.read_bytes())
            except ValueError:
                logger.warning("%s: half-written, removed", path)
                path.unlink()
    try:
        return gx.get_context(mode="file", project_root_dir=docs)
    except Exception as error:
        settings = [path for path in (project / name for name in _PROJECT_SETTINGS) if path.exists()]
        if is_full(error) or not settings:
            raise
        logger.warning("%s: cannot be used (%s), made anew", project / _PROJECT_SETTINGS[0], error)
        for path in settings:
            path.unlink()
        return gx.get_context(mode="file", project_root_dir=docs)


@contextlib.contextmanager
def _locked(docs: Path) -> Iterator[None]:
    docs.mkdir(parents=True, exist_ok=True)
    with FileLock(docs / ".lock"):
        yield


@contextlib.contextmanager
def _space_errors(docs: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not is_full(error):
            raise
        raise StoreError(f"{docs}: the data docs cannot be written: {error}{space_hint(error)}") from error


def _plain_types(frame: pd.DataFrame) -> pd.DataFrame:
    """Types that Great Expectations knows: objects instead of pandas' strings, UTC without a time zone."""
    plain = frame.astype({name: "object" for name in frame.columns if isinstance(frame[name].dtype, pd.StringDtype)})
    for name in plain.select_dtypes("datetimetz").columns:
        plain[name] = plain[name].dt.tz_convert("UTC").dt.tz_localize(None)
    return plain


def _make_readable_offline(site: Path) -> None:
    """Give the pages a style of their own: theirs, and the marks for passed and failed, come from servers elsewhere."""
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        if _STYLE not in text:
            page.write_text(text.replace("</head>", f"{_STYLE}</head>", 1), encoding="utf-8")


def _earlier_run_time(docs: Path, table: Table, run_name: str) -> str | None:
    # A run's entry is addressed by name and time; a repeated run takes the time of its first attempt, and so its place.
    attempts = sorted((docs / "gx" / "uncommitted" / "validations" / table / run_name).glob("*"))
    return attempts[0].name if attempts else None


def _described(rule: _Rule) -> str:
    consequence = "rows that break it go to quarantine" if rule.quarantines else "stops the run"
    return f"{rule.name}: {rule.description}. Limit: {rule.limit}. Otherwise: {consequence}."


def _observed(details: dict[str, Any]) -> str:
    value = details.get("observed_value")
    if isinstance(value, float):
        return f"{value:.4g}"
    if value is not None:
        return str(value)
    return f"{details.get('unexpected_count', 0)} row(s), {details.get('unexpected_percent') or 0.0:.2f}%"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("great_expectations")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
