"""What a retrain says about itself in MLflow."""

from __future__ import annotations

from typing import Any

from reviewclf.registry.runs import candidate_name, describe_retrain

COUNTS = {
    "clean": 612,
    "train_rows": 1515,
    "validation_rows": 95,
    "test_rows": 304,
    "synthetic": 0,
    "left_out_low_confidence": 1,
}


def candidate(name: str, f1: float | None) -> dict[str, Any]:
    figures = {} if f1 is None else {"weighted_f1": f1, "weighted_f1_low": f1 - 0.04, "weighted_f1_high": f1 + 0.04}
    return {"candidate": name, "validation_weighted_f1": 0.9, "seconds_per_example_p95": 0.0123, **figures}


def test_rows_are_told_before_any_candidate_is_judged() -> None:
    assert describe_retrain(COUNTS) == "**Rows**: 1,515 train, 95 validation, 304 gold. Left out: 1 low confidence."


def test_candidates_are_listed_best_first_with_interval_gate_and_version() -> None:
    verdicts = {
        "a": {"verdict": "failed", "reason": "failed: ece", "version": "3"},
        "b": {"verdict": "passed", "reason": "passed", "version": "4"},
    }
    lines = describe_retrain(COUNTS, [candidate("a", 0.8), candidate("b", 0.85)], verdicts, "b").splitlines()
    assert lines[2:] == [
        "- **b**, chosen on validation: weighted F1 on gold **0.850** (95% interval 0.810 to 0.890); agreement with votes "
        "0.900; p95 12.3 ms; gate passed, version 4",
        "- **a**: weighted F1 on gold **0.800** (95% interval 0.760 to 0.840); agreement with votes 0.900; p95 12.3 ms; "
        "gate failed: ece, version 3",
    ]


def test_without_gold_a_candidate_is_said_to_be_unjudged() -> None:
    assert "not judged on gold" in describe_retrain(COUNTS, [candidate("a", None)])


def test_runs_of_one_night_share_the_end_of_their_names() -> None:
    assert candidate_name("logreg", "6d9f8c689d2a3f993cee876e806b469a") == "logreg 6d9f8c68"
