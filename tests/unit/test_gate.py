"""The gate: every rule is listed, an unknown value fails, nothing passes without gold."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reviewclf.errors import GateError
from reviewclf.registry.gate import RULES, Evidence, judge, report_html
from reviewclf.settings import GateSettings

LIMITS = GateSettings()
GOOD = Evidence(
    candidate="logreg",
    gold_rows=300,
    weighted_f1=0.80,
    weighted_f1_low=0.76,
    weighted_f1_high=0.84,
    seconds_per_example=0.01,
    leak_check_passed=True,
)


def failed(evidence: Evidence, limits: GateSettings = LIMITS) -> list[str]:
    report = judge(evidence, limits)
    names = [rule.rule for rule in report.rules if not rule.passed]
    assert report.passed == (not names)
    assert len(report.rules) == len(RULES)
    return names


def test_good_candidate_passes() -> None:
    assert failed(GOOD) == []
    assert judge(GOOD, LIMITS).reason == "passed"


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"weighted_f1": 0.7399}, "weighted_f1"),
        ({"weighted_f1": None}, "weighted_f1"),
        ({"seconds_per_example": 5.0}, "seconds_per_example"),
        ({"seconds_per_example": None}, "seconds_per_example"),
        ({"gold_rows": 49}, "gold_rows"),
        ({"leak_check_passed": False}, "leak_check"),
    ],
)
def test_one_bad_value_fails_its_rule_alone(change: dict[str, float | None], rule: str) -> None:
    assert failed(GOOD.model_copy(update=change)) == [rule]
    assert rule in judge(GOOD.model_copy(update=change), LIMITS).reason


@pytest.mark.parametrize(("change", "rule"), [({"weighted_f1": 0.74}, "weighted_f1"), ({"gold_rows": 50}, "gold_rows")])
def test_value_at_the_limit_passes(change: dict[str, float], rule: str) -> None:
    assert rule not in failed(GOOD.model_copy(update=change))


def test_nothing_passes_without_gold_and_the_report_says_why() -> None:
    report = judge(Evidence(candidate="logreg", gold_rows=0, seconds_per_example=0.01, leak_check_passed=True), LIMITS)
    assert not report.passed
    assert "REVIEWCLF_GOLD" in next(rule.note for rule in report.rules if rule.rule == "gold_rows")


def test_limits_are_settings() -> None:
    assert failed(GOOD, GateSettings(min_weighted_f1=0.81)) == ["weighted_f1"]
    assert failed(GOOD, GateSettings(max_seconds_per_example=0.005)) == ["seconds_per_example"]


@given(st.floats(0, 1), st.floats(0, 1))
def test_better_model_never_does_worse(low: float, high: float) -> None:
    low, high = sorted((low, high))
    worse, better = (judge(GOOD.model_copy(update={"weighted_f1": value}), LIMITS).passed for value in (low, high))
    assert better or not worse


def test_gate_without_rules_is_an_error() -> None:
    with pytest.raises(GateError):
        judge(GOOD, LIMITS, rules=())
    with pytest.raises(GateError):
        judge(GOOD, LIMITS, rules=(RULES[0], RULES[0]))


def test_page_lists_every_rule_and_escapes_names() -> None:
    class Cells(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.text: list[str] = []

        def handle_data(self, data: str) -> None:
            self.text.append(data)

    report = judge(GOOD.model_copy(update={"candidate": "<script>alert(1)</script>", "weighted_f1": 0.5}), LIMITS)
    page = report_html([report], title="Gate & report")
    assert "<script>" not in page
    parser = Cells()
    parser.feed(page)
    for rule in report.rules:
        assert rule.rule in parser.text
    assert {"0.5", ">= 0.74", "failed", "passed", "300"} <= set(parser.text)
