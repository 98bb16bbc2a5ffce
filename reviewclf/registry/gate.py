"""The gate: rules over measured evidence, and a report that lists every one of them. Pure."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Literal

from pydantic import BaseModel, ConfigDict

from reviewclf.errors import GateError
from reviewclf.settings import GateSettings


class Evidence(BaseModel):
    """What was measured about one candidate.

    Attributes
    ----------
    candidate : str
        Its name.
    gold_rows : int
        Reviews labelled by people that it was judged on; 0 when there is no gold set.
    weighted_f1, weighted_f1_low, weighted_f1_high : float or None
        On gold, with its bootstrap interval; None without gold.
    seconds_per_example : float or None
        95th percentile, one review at a time, on the serving path.
    leak_check_passed : bool
        Whether its dataset passed the leak check.
    """

    model_config = ConfigDict(frozen=True)

    candidate: str
    gold_rows: int
    weighted_f1: float | None = None
    weighted_f1_low: float | None = None
    weighted_f1_high: float | None = None
    seconds_per_example: float | None = None
    leak_check_passed: bool = False


class RuleResult(BaseModel):
    """One rule's verdict: ``value comparison limit`` held or did not."""

    model_config = ConfigDict(frozen=True)

    rule: str
    description: str
    value: float | None
    comparison: Literal[">=", "<"]
    limit: float
    n: int
    passed: bool
    note: str = ""


class GateReport(BaseModel):
    """All rules for one candidate; `passed` only when every one of them did."""

    model_config = ConfigDict(frozen=True)

    candidate: str
    passed: bool
    rules: tuple[RuleResult, ...]

    @property
    def reason(self) -> str:
        """One line for people: ``passed``, or which rules failed and by what."""
        failed = [
            f"{rule.rule} {'unknown' if rule.value is None else f'{rule.value:.4g}'} (needs {rule.comparison} {rule.limit:g})"
            for rule in self.rules
            if not rule.passed
        ]
        return "passed" if not failed else "failed: " + ", ".join(failed)


Rule = Callable[[Evidence, GateSettings], RuleResult]


def _gold_rows(evidence: Evidence, limits: GateSettings) -> RuleResult:
    return RuleResult(
        rule="gold_rows",
        description="reviews labelled by people to judge by",
        value=float(evidence.gold_rows),
        comparison=">=",
        limit=float(limits.min_gold_rows),
        n=evidence.gold_rows,
        passed=evidence.gold_rows >= limits.min_gold_rows,
        note="" if evidence.gold_rows else "no gold set (REVIEWCLF_GOLD): nothing passes by itself",
    )


def _weighted_f1(evidence: Evidence, limits: GateSettings) -> RuleResult:
    value = evidence.weighted_f1
    interval = ""
    if evidence.weighted_f1_low is not None and evidence.weighted_f1_high is not None:
        interval = f"95% interval {evidence.weighted_f1_low:.3f} to {evidence.weighted_f1_high:.3f}"
    return RuleResult(
        rule="weighted_f1",
        description="weighted F1 on gold",
        value=value,
        comparison=">=",
        limit=limits.min_weighted_f1,
        n=evidence.gold_rows,
        passed=value is not None and value >= limits.min_weighted_f1,
        note=interval,
    )


def _seconds_per_example(evidence: Evidence, limits: GateSettings) -> RuleResult:
    value = evidence.seconds_per_example
    return RuleResult(
        rule="seconds_per_example",
        description="95th percentile of seconds for one review on the serving path",
        value=value,
        comparison="<",
        limit=limits.max_seconds_per_example,
        n=evidence.gold_rows,
        passed=value is not None and value < limits.max_seconds_per_example,
    )


def _leak_check(evidence: Evidence, limits: GateSettings) -> RuleResult:
    return RuleResult(
        rule="leak_check",
        description="the training set shares no near-duplicate with gold (1: passed)",
        value=float(evidence.leak_check_passed),
        comparison=">=",
        limit=1.0,
        n=evidence.gold_rows,
        passed=evidence.leak_check_passed,
    )


RULES: tuple[Rule, ...] = (_gold_rows, _weighted_f1, _seconds_per_example, _leak_check)


def judge(evidence: Evidence, limits: GateSettings, *, rules: tuple[Rule, ...] = RULES) -> GateReport:
    """Apply every rule to one candidate's evidence.

    Parameters
    ----------
    evidence : Evidence
        What was measured; an unknown value fails its rule.
    limits : GateSettings
        The limits.
    rules : tuple of Rule
        Which rules apply; all of them have to pass.

    Raises
    ------
    GateError
        No rules, or two of one name: a gate like that would pass what it should not.
    """
    results = tuple(rule(evidence, limits) for rule in rules)
    names = [result.rule for result in results]
    if not results or len(set(names)) != len(names):
        raise GateError(f"the gate needs rules of different names, got {names}")
    return GateReport(candidate=evidence.candidate, passed=all(result.passed for result in results), rules=results)


def report_html(reports: list[GateReport], *, title: str) -> str:
    """The reports as one page that needs nothing from outside; light and dark."""
    sections = []
    for report in reports:
        rows = "".join(
            f"<tr class='{'pass' if rule.passed else 'fail'}'><td>{html.escape(rule.rule)}</td>"
            f"<td>{html.escape(rule.description)}</td><td>{'unknown' if rule.value is None else f'{rule.value:.4g}'}</td>"
            f"<td>{html.escape(rule.comparison)} {rule.limit:g}</td><td>{rule.n}</td>"
            f"<td>{'passed' if rule.passed else 'failed'}</td><td>{html.escape(rule.note)}</td></tr>"
            for rule in report.rules
        )
        sections.append(
            f"<h2>{html.escape(report.candidate)}: {'passed' if report.passed else 'failed'}</h2>"
            "<table><thead><tr><th>rule</th>"
            "<th>what is measured</th><th>value</th><th>limit</th><th>n</th><th>verdict</th><th>note</th></tr></thead>"
            f"<tbody>{rows}</tbody></table>"
        )
    return _PAGE.format(title=html.escape(title), body="".join(sections))


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ text-align: left; padding: .35rem .6rem; }}
tr {{ border-bottom: 1px solid color-mix(in srgb, currentColor 20%, transparent); }}
.pass td:nth-child(6) {{ color: light-dark(#0a6b2c, #6fdc8c); font-weight: 600; }}
.fail td:nth-child(6) {{ color: light-dark(#b00020, #ff8389); font-weight: 600; }}
</style></head><body><h1>{title}</h1>{body}</body></html>
"""
