"""The gate: every rule is listed, an unknown value fails, nothing passes without gold; its page reads without a network."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reviewclf.errors import GateError
from reviewclf.evaluation import Difference
from reviewclf.promotion.report import model_card, report_html
from reviewclf.promotion.rules import Evidence, GateReport, Measure, Rule, apply_rules, comparison_measure, rules_of
from reviewclf.settings import GateSettings

CLASSES = {"одежда": 200, "обувь": 20, "посуда": 19}
GOOD: dict[str, tuple[float | None, int]] = {
    "gold_rows": (300, 300),
    "weighted_f1": (0.80, 300),
    "macro_f1": (0.7, 300),
    "ece": (0.05, 300),
    "recall/одежда": (0.9, 200),
    "recall/обувь": (0.6, 20),
    "recall/посуда": (0.0, 19),
    "seconds_per_example": (0.01, 100),
    "leak_check": (1.0, 300),
    "model_mib": (12.0, 1),
    "gold_age_days": (30.0, 300),
}


def evidence(champion: str | None = None, **changes: float | None) -> Evidence:
    measures = {name: Measure(value=value, n=n) for name, (value, n) in GOOD.items()}
    measures |= {name: Measure(value=value, n=300) for name, value in changes.items()}
    return Evidence(candidate="logreg", measures=measures, champion=champion)


def verdict(given: Evidence, **limits: object) -> GateReport:
    report = apply_rules(given, rules_of(GateSettings.model_validate(limits), CLASSES))
    assert report.passed == all(rule.passed for rule in report.rules)
    return report


def failed(given: Evidence, **limits: object) -> list[str]:
    return [rule.rule for rule in verdict(given, **limits).rules if not rule.passed]


def test_good_candidate_passes() -> None:
    assert failed(evidence()) == []
    assert verdict(evidence()).reason == "passed"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weighted_f1", 0.7399),
        ("weighted_f1", None),
        ("weighted_f1", float("nan")),
        ("seconds_per_example", 5.0),
        ("seconds_per_example", None),
        ("gold_rows", 49),
        ("leak_check", 0.0),
        ("recall/обувь", 0.49),
    ],
)
def test_one_bad_value_fails_its_rule_alone(name: str, value: float | None) -> None:
    assert failed(evidence(**{name: value})) == [name]
    assert name in verdict(evidence(**{name: value})).reason


@pytest.mark.parametrize(("name", "value"), [("weighted_f1", 0.74), ("gold_rows", 50), ("recall/обувь", 0.5)])
def test_value_at_the_limit_passes(name: str, value: float) -> None:
    assert failed(evidence(**{name: value})) == []


def test_nothing_passes_without_gold_whatever_the_limits() -> None:
    note = "no gold set (REVIEWCLF_GOLD): nothing passes by itself"
    bare = Evidence(
        candidate="logreg",
        measures={
            "gold_rows": Measure(value=0, n=0, note=note),
            "seconds_per_example": Measure(value=0.01, n=100),
            "leak_check": Measure(value=1.0, n=0),
        },
    )
    report = apply_rules(bare, rules_of(GateSettings(min_weighted_f1=0.0, min_class_recall=0.0), dict.fromkeys(CLASSES, 0)))
    assert not report.passed
    assert [rule.rule for rule in report.rules if not rule.passed] == ["gold_rows", "weighted_f1"]
    assert "REVIEWCLF_GOLD" in next(rule.note for rule in report.rules if rule.rule == "gold_rows")


def test_limits_are_settings() -> None:
    assert failed(evidence(), min_weighted_f1=0.81) == ["weighted_f1"]
    assert failed(evidence(), max_seconds_per_example=0.005) == ["seconds_per_example"]
    assert failed(evidence(), min_gold_rows=301) == ["gold_rows"]


def test_calibration_size_and_age_are_off_until_they_have_a_limit() -> None:
    assert {"ece", "model_mib", "gold_age_days"} & {rule.rule for rule in rules_of(GateSettings(), CLASSES)} == set()
    assert failed(evidence(), max_ece=0.04, max_model_mib=11, max_gold_age_days=29) == ["ece", "model_mib", "gold_age_days"]
    assert failed(evidence(), max_ece=0.05, max_model_mib=12, max_gold_age_days=30) == []
    assert failed(evidence(gold_age_days=None), max_gold_age_days=1000) == ["gold_age_days"]


def test_only_classes_with_enough_gold_rows_have_a_floor() -> None:
    floors = {rule.rule: rule.limit for rule in rules_of(GateSettings(), CLASSES) if rule.rule.startswith("recall/")}
    assert floors == {"recall/одежда": 0.5, "recall/обувь": 0.5}
    own = GateSettings(min_class_recalls={"обувь": 0.7}, min_class_rows=10)
    floors = {rule.rule: rule.limit for rule in rules_of(own, CLASSES) if rule.rule.startswith("recall/")}
    assert floors == {"recall/одежда": 0.5, "recall/обувь": 0.7, "recall/посуда": 0.5}
    assert not [rule for rule in rules_of(GateSettings(min_class_recall=None), CLASSES) if rule.rule.startswith("recall/")]


def test_first_champion_needs_no_comparison_and_the_report_says_so() -> None:
    rule = next(rule for rule in verdict(evidence()).rules if rule.rule == "not_worse_than_champion")
    assert (rule.passed, rule.value, rule.note) == (True, None, "there is no champion yet")


@pytest.mark.parametrize(("share", "refused"), [(0.0999, True), (0.1, False), (1.0, False), (None, True)])
def test_candidate_is_refused_when_it_is_surely_worse_than_the_champion(share: float | None, refused: bool) -> None:
    given = evidence(champion="3", not_worse_than_champion=share)
    assert failed(given, confidence=0.9) == (["not_worse_than_champion"] if refused else [])


def test_comparison_names_the_champion_and_the_difference() -> None:
    measure = comparison_measure(Difference(value=-0.021, low=-0.04, high=0.001, p_not_worse=0.02), champion="3", n=400)
    assert (measure.value, measure.n) == (0.02, 400)
    assert measure.note == "weighted F1 -0.021 against version 3 (95% interval -0.040 to +0.001)"


def test_rules_of_ones_own_are_data() -> None:
    own = {"measure": "macro_f1", "comparison": ">=", "limit": 0.71}
    assert failed(evidence(), rules=[own]) == ["macro_f1 >= 0.71"]
    assert failed(evidence(), rules=[own | {"limit": 0.7, "rule": "every class"}]) == []


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([{"measure": "macro_f1", "comparison": "=~", "limit": 0.5}], "REVIEWCLF_GATE__RULES, rule 1: comparison"),
        ([{"measure": "macro_f1", "comparison": ">=", "limit": "much"}], "REVIEWCLF_GATE__RULES, rule 1: limit"),
        ([{"measure": "macro_f1", "comparison": ">="}], "REVIEWCLF_GATE__RULES, rule 1: limit"),
        ([{"measure": "macro_f1", "comparison": ">=", "limit": 1, "color": "red"}], "color"),
        ([{"measure": "charm", "comparison": ">=", "limit": 1}], "nobody measures 'charm'; there are ece,"),
        ([{"measure": "ece", "comparison": "<=", "limit": float("nan")}], "finite"),
        ([{"rule": "weighted_f1", "measure": "ece", "comparison": "<=", "limit": 1}], "different names"),
    ],
)
def test_bad_rule_is_a_gate_error_that_names_it(rules: list[dict[str, object]], message: str) -> None:
    with pytest.raises(GateError, match=message):
        failed(evidence(), rules=rules)


def test_floor_of_an_unknown_category_names_the_setting() -> None:
    with pytest.raises(GateError, match=r"REVIEWCLF_GATE__MIN_CLASS_RECALLS: not in the taxonomy: мебель"):
        rules_of(GateSettings(min_class_recalls={"мебель": 0.5}), CLASSES)


def test_gate_without_rules_is_an_error() -> None:
    rule = Rule(rule="a", description="", measure="ece", comparison="<=", limit=1)
    for rules in ((), (rule, rule)):
        with pytest.raises(GateError):
            apply_rules(evidence(), rules)


@given(st.floats(0, 1), st.floats(0, 1))
def test_better_model_never_does_worse(low: float, high: float) -> None:
    low, high = sorted((low, high))
    worse, better = (verdict(evidence(weighted_f1=value)).passed for value in (low, high))
    assert better or not worse


class Page(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.addresses: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [str(value) for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_page_lists_every_rule_escapes_names_and_needs_nothing_from_outside() -> None:
    report = verdict(evidence(weighted_f1=0.5)).model_copy(update={"candidate": "<script>alert(1)</script>"})
    html = report_html([report], title="Gate & report")
    assert "<script>" not in html
    page = Page(html)
    for rule in report.rules:
        assert {rule.rule, rule.description} <= set(page.text)
    assert {"0.5", ">= 0.74", "failed", "passed", "300", "no champion to compare with", "failed 1 of 7 rules"} <= set(page.text)
    assert page.addresses == []
    assert "url(" not in html
    assert "@import" not in html


def test_failed_rules_come_first_on_the_page() -> None:
    page = Page(report_html([verdict(evidence(leak_check=0.0))], title="Gate"))
    assert page.text.index("leak_check") < page.text.index("gold_rows")


def test_model_card_tells_data_figures_limits_and_use() -> None:
    report = verdict(evidence()).model_copy(update={"dataset": "abc123"})
    result = {
        "candidate": "logreg",
        "weighted_f1": 0.8,
        "weighted_f1_low": 0.75,
        "weighted_f1_high": 0.84,
        "macro_f1": 0.7,
        "accuracy": 0.8,
        "ece": 0.05,
        "validation_weighted_f1": 0.9,
        "seconds_per_example_p50": 0.001,
        "seconds_per_example_p95": 0.002,
        "per_class": [
            {"label": "одежда", "support": 200, "predicted": 210, "precision": 0.8, "recall": 0.9, "f1": 0.85},
            {"label": "обувь", "support": 20, "predicted": 15, "precision": 0.8, "recall": 0.6, "f1": 0.69},
            {"label": "посуда", "support": 5, "predicted": 5, "precision": 1.0, "recall": 1.0, "f1": 1.0},
        ],
    }
    rows = [{"label": "одежда", "origin": "llm", "split": "train", "rows": 500}]
    dataset = {"counts": {"train_rows": 500, "validation_rows": 90}, "card": {"rows": rows}}
    card = model_card(result, report, dataset=dataset, gold_rows=300, gate_report="http://mlflow/report")
    card = card.replace("\u00a0", "")
    for said in (
        "## Intended use",
        "Dataset `abc123`: 500 training, 90 validation rows",
        "| одежда | 500 |",
        "0.800** (95% interval 0.750 to 0.840)",
        "Too few gold reviews to say much about: посуда (5)",
        "Misses many reviews of: обувь (0.60)",
        "[report](http://mlflow/report)",
        "| weighted_f1 | 0.8 | >= 0.74 | passed |",
    ):
        assert said in card
    # MLflow's list of versions shows the beginning as it is written.
    assert card.startswith("logreg: category of a marketplace review. Gate: passed.")
    unjudged = {**result, "weighted_f1": None, "per_class": []}
    assert "Not judged: there were no gold reviews" in model_card(unjudged, report, dataset={}, gold_rows=0)
