"""Data checks by Great Expectations: a suite for raw rows and one for clean rows, run as checkpoints, shown as data docs.

A rule may do two things: send the rows that break it to quarantine, and stop the run when too many do (or when a rule
about the table as a whole is broken). The data docs list every run below ``<docs>/gx/uncommitted/data_docs``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

# Great Expectations reads these once, when it is imported.
os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")

import great_expectations as gx
import great_expectations.expectations as gxe
import pandas as pd
import pyarrow as pa
from filelock import FileLock
from great_expectations.core.run_identifier import RunIdentifier
from great_expectations.data_context.types.base import ProgressBarsConfig
from great_expectations.data_context.types.resource_identifiers import ExpectationSuiteIdentifier
from pydantic import BaseModel, ConfigDict

from reviewclf import tables
from reviewclf.errors import QualityError, StoreError
from reviewclf.outages import is_full, space_hint
from reviewclf.settings import QualitySettings
from reviewclf.text import cyrillic_share, is_misread, repaired

logger = logging.getLogger(__name__)

# What Great Expectations calls the types of the contracts' columns.
_TYPES = {pa.string(): "str", pa.int64(): "int64"}
_TIME = "datetime64[us]"

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

    table: tables.Checked
    passed: bool
    rows: int
    rules: tuple[QualityRule, ...]
    failed_rows: tuple[FailedRow, ...]
    docs: str | None


class _Rule(NamedTuple):
    name: str
    description: str
    limit: str
    expectation: Any
    quarantines: bool = False


def check_table(
    table: tables.Checked,
    frame: pd.DataFrame,
    limits: QualitySettings,
    *,
    history: Sequence[int],
    docs: Path,
    run_name: str,
    others: int = 0,
) -> QualityReport:
    """Check one table of a run, or a part of it.

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
    others : int
        Rows of the run that are not in `frame`, where it is a part.

    Returns
    -------
    QualityReport
        An empty table passes without rules: a night without new reviews is no fault.
    """
    if frame.empty:
        return QualityReport(table=table, passed=True, rows=0, rules=(), failed_rows=(), docs=None)
    rules = [*_contract_rules(table), *(_raw_rules(limits, len(frame), others, history) if table == "raw" else _clean_rules())]
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
        found = result.result
        if rule.quarantines:
            for row in found.get("unexpected_index_list") or []:
                failed.setdefault(int(row[_POSITION]), rule.name)
        outcomes.append(
            QualityRule(
                **{name: value for name, value in rule._asdict().items() if name != "expectation"},
                passed=bool(result.success),
                observed=_observed(found),
                failed_rows=int(found.get("unexpected_count") or 0),
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


def merged(reports: Sequence[QualityReport]) -> QualityReport:
    """The reports of a table's parts, in their order, as one: a rule has passed where it has in each part.

    Parameters
    ----------
    reports : sequence of QualityReport
        At least one.
    """
    if len(reports) == 1:
        return reports[0]
    failed: list[FailedRow] = []
    rows = 0
    for report in reports:
        failed += [row._replace(position=row.position + rows) for row in report.failed_rows]
        rows += report.rows
    rules = []
    for of_parts in zip(*(report.rules for report in reports), strict=True):
        # What stands in the report is the worst: of parts that failed the first.
        shown = next((rule for rule in of_parts if not rule.passed), max(of_parts, key=lambda rule: rule.failed_rows))
        rules.append(shown.model_copy(update={"failed_rows": sum(rule.failed_rows for rule in of_parts)}))
    first_failed = next((report for report in reports if not report.passed), reports[0])
    return QualityReport(
        table=reports[0].table,
        passed=all(report.passed for report in reports),
        rows=rows,
        rules=tuple(rules),
        failed_rows=tuple(failed),
        docs=first_failed.docs,
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


# -- rules -----------------------------------------------------------------------------------------------------------


def _contract_rules(table: tables.Checked) -> Iterator[_Rule]:
    columns = {field.name: _TYPES.get(field.type, _TIME) for field in tables.SCHEMAS[table]}
    helpers = [_POSITION, _CYRILLIC, _MISREAD] if table == "raw" else [_POSITION]
    match_set = gxe.ExpectTableColumnsToMatchSet(column_set=[*columns, *helpers], exact_match=True)
    yield _Rule("columns", "the columns of the contract and no others", ", ".join(columns), match_set)
    for name, kind in columns.items():
        is_kind = gxe.ExpectColumnValuesToBeInTypeList(column=name, type_list=[kind])
        yield _Rule(f"type_of_{name}", f"{name} is {kind}", kind, is_kind)
    yield _quarantine("review_id_missing", "every row has an id", gxe.ExpectColumnValuesToNotBeNull, column="review_id")


def _raw_rules(limits: QualitySettings, rows: int, others: int, history: Sequence[int]) -> Iterator[_Rule]:
    def share(limit: float) -> float:
        return limit if rows >= _MIN_BATCH else 0.0

    of_rows = f"of {_MIN_BATCH} rows or more"
    not_null = gxe.ExpectColumnValuesToNotBeNull(column="text", mostly=share(1 - limits.max_null_rows))
    limit = f"missing in at most {limits.max_null_rows:.0%} {of_rows}"
    yield _Rule("text_missing", "every row has a text", limit, not_null, quarantines=True)
    yield _quarantine(
        "text_blank", "a text is more than white space", gxe.ExpectColumnValuesToMatchRegex, column="text", regex=r"\S"
    )
    most = limits.max_text_length
    yield _quarantine(
        "text_too_long", f"at most {most} characters", gxe.ExpectColumnValueLengthsToBeBetween, column="text", max_value=most
    )
    read_right = gxe.ExpectColumnValuesToBeInSet(column=_MISREAD, value_set=[False], mostly=share(1 - _MOST_MISREAD))
    description = "a text was read in its own encoding, or can be read again"
    yield _Rule("text_misread", description, f"misread in at most {_MOST_MISREAD:.0%} {of_rows}", read_right, quarantines=True)
    cyrillic = gxe.ExpectColumnValuesToBeBetween(
        column=_CYRILLIC, min_value=limits.min_cyrillic_share, mostly=share(limits.min_russian_rows)
    )
    description = f"at least {limits.min_cyrillic_share:.0%} of a text's letters are Cyrillic"
    yield _Rule("not_russian", description, f"in at least {limits.min_russian_rows:.0%} {of_rows}", cyrillic)
    unique = 1 - limits.max_duplicate_rows
    different = gxe.ExpectColumnProportionOfUniqueValuesToBeBetween(column="text", min_value=share(unique))
    yield _Rule("text_repeats", "share of different texts", f"at least {unique:.0%} {of_rows}", different)
    if len(history) >= _MIN_HISTORY and max(rows + others, usual := median(history)) >= _MIN_VOLUME:
        low, high = usual / limits.max_volume_ratio, usual * limits.max_volume_ratio
        description = f"rows against the median of the last {len(history)} nights with new ones ({usual:g})"
        here = [max(0, int(limit) - others) for limit in (low, high + 1)]
        between = gxe.ExpectTableRowCountToBeBetween(min_value=here[0], max_value=here[1])
        beside = f", of which {others} are in other parts" if others else ""
        yield _Rule("volume", description, f"{low:.0f} to {high:.0f} rows{beside}", between)


def _clean_rules() -> Iterator[_Rule]:
    not_blank = gxe.ExpectColumnValuesToMatchRegex(column="text_clean", regex=r"\S")
    yield _Rule("text_clean_empty", "something is left after cleaning", "every row", not_blank)
    digest = gxe.ExpectColumnValuesToMatchRegex(column="text_hash", regex=r"^[0-9a-f]{32}$")
    yield _Rule("text_hash_malformed", "text_hash is a 128-bit digest", "every row", digest)
    yield _Rule("text_hash_repeats", "no text stands twice", "every row", gxe.ExpectColumnValuesToBeUnique(column="text_hash"))


def _quarantine(name: str, description: str, kind: Any, **arguments: Any) -> _Rule:
    """A rule that never stops the run, however many rows break it."""
    return _Rule(name, description, "to quarantine", kind(mostly=0.0, **arguments), quarantines=True)


# -- Great Expectations ----------------------------------------------------------------------------------------------


def _run(table: tables.Checked, rules: list[_Rule], frame: pd.DataFrame, docs: Path, run_name: str) -> tuple[list[Any], str]:
    for rule in rules:
        consequence = "rows that break it go to quarantine" if rule.quarantines else "stops the run"
        rule.expectation.meta = {"rule": rule.name}
        rule.expectation.description = f"{rule.name}: {rule.description}. Limit: {rule.limit}. Otherwise: {consequence}."
    with _project(docs) as context:
        context.variables.progress_bars = ProgressBarsConfig(globally=False)
        asset = context.data_sources.add_pandas("reviews").add_dataframe_asset(table)
        batch = asset.add_batch_definition_whole_dataframe("run")
        suite = gx.ExpectationSuite(name=table, expectations=[rule.expectation for rule in rules])
        suite = context.suites.add_or_update(suite)
        validation = context.validation_definitions.add(gx.ValidationDefinition(name=table, data=batch, suite=suite))
        result_format = {"result_format": "COMPLETE", "unexpected_index_column_names": [_POSITION]}
        checkpoint = context.checkpoints.add(
            gx.Checkpoint(name=table, validation_definitions=[validation], result_format=result_format)
        )
        # A run's entry is addressed by name and time; a repeated run takes the time of its first attempt, and so its place.
        attempts = sorted((docs / "gx" / "uncommitted" / "validations" / table / run_name).glob("*"))
        run = checkpoint.run(
            batch_parameters={"dataframe": frame},
            run_id=RunIdentifier(run_name=run_name, **({"run_time": attempts[0].name} if attempts else {})),
        )
        ((identifier, result),) = run.run_results.items()
        # The pages of this run alone: those of earlier nights stand.
        context.build_data_docs(resource_identifiers=[identifier, ExpectationSuiteIdentifier(name=table)])
        _make_readable_offline(docs / "gx" / "uncommitted" / "data_docs")
        urls = context.get_docs_sites_urls(resource_identifier=identifier)
    by_rule = {item.expectation_config.meta["rule"]: item for item in result.results}
    # The library's address is no URL where the path holds spaces or Cyrillic.
    page = Path(urls[0]["site_url"].removeprefix("file://"))
    return [by_rule[rule.name] for rule in rules], page.as_uri()


@contextlib.contextmanager
def _project(docs: Path) -> Iterator[Any]:
    """The project of the data docs, for one writer at a time, as Great Expectations expects; it says nothing meanwhile.

    All but suites and results is made anew each time, and of these goes what a full disk or a kill has left half-written: no
    later run would get past it.
    """
    project, library = docs / "gx", logging.getLogger("great_expectations")
    level = library.level
    docs.mkdir(parents=True, exist_ok=True)
    try:
        library.setLevel(logging.ERROR)
        with FileLock(docs / ".lock"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in ("great_expectations.yml", "uncommitted/config_variables.yml"):
                (project / name).unlink(missing_ok=True)
            for name in ("validation_definitions", "checkpoints"):
                shutil.rmtree(project / name, ignore_errors=True)
            for path in [*(project / "expectations").rglob("*.json"), *(project / "uncommitted").rglob("*.json")]:
                try:
                    json.loads(path.read_bytes())
                except ValueError:
                    logger.warning("%s: half-written, removed", path)
                    path.unlink()
            yield gx.get_context(mode="file", project_root_dir=docs)
    except Exception as error:
        if not is_full(error):
            raise
        raise StoreError(f"{docs}: the data docs cannot be written: {error}{space_hint(error)}") from error
    finally:
        library.setLevel(level)


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


def _observed(details: dict[str, Any]) -> str:
    value = details.get("observed_value")
    if isinstance(value, float):
        return f"{value:.4g}"
    if value is not None:
        return str(value)
    return f"{details.get('unexpected_count', 0)} row(s), {details.get('unexpected_percent') or 0.0:.2f}%"
