"""The summary of a night."""

from __future__ import annotations

from typing import Any

from reviewclf.monitoring.night import MAX_CHARACTERS, summarize


def manifest(stage: str, counts: dict[str, int] | None = None, **details: Any) -> dict[str, Any]:
    return {"stage": stage, "digest": "d" * 32, "inputs": {}, "outputs": {}, "counts": counts or {}, "details": details}


PUBLISHED = manifest("publish", {"rows_in": 620, "known": 0, "clean": 612, "duplicates": 4, "quarantined": 4})
SELECTED = manifest("select", {"pending": 12})
COSTS = {"tokens_in": 1000, "tokens_out": 24, "seconds": 6.25, "cost": 0.5}
COLLECTED = manifest("collect", {"new_votes": 36, "without_label": 2}, costs=COSTS, stopped=["budget spent"])
LABELLED = manifest("aggregate", {"labels": 1915, "changed": 12}, agreement_with_gold={"share": 0.9, "n": 50})
BUILT = manifest("dataset", {"train_rows": 515, "validation_rows": 95})
EVALUATED = manifest(
    "evaluate",
    {"gold_rows": 120},
    candidates=[
        {"candidate": "logreg", "weighted_f1": 0.81},
        {"candidate": "linear-svc", "weighted_f1": 0.83, "weighted_f1_low": 0.79, "weighted_f1_high": 0.87},
    ],
)
CHALLENGER = {"candidate": "linear-svc", "version": "4", "run_id": "a" * 32}
GATED = manifest(
    "gate",
    verdicts={"logreg": {"reason": "failed: weighted_f1 0.81 (needs >= 0.82)"}, "linear-svc": {"reason": "passed"}},
    challenger=CHALLENGER,
)
PROMOTED = manifest("promote", promoted=True, champion="4", previous="2", candidate="linear-svc", reason="passed")


def test_a_night_is_told_from_rows_to_verdict() -> None:
    said = summarize(
        {
            "publish": [PUBLISHED],
            "select": [SELECTED],
            "collect": [COLLECTED],
            "aggregate": [LABELLED],
            "build_dataset": [BUILT],
            "train": [manifest("train", candidate="logreg"), manifest("train", candidate="e5", skipped="no encoder")],
            "evaluate": [EVALUATED],
            "gate": [GATED],
            "promote": [PROMOTED],
        }
    )
    assert said.splitlines() == [
        "**Promoted**: version 4 (linear-svc), before: version 2",
        "- Rows: 620 rows in, 612 clean, 4 duplicates, 4 quarantined",
        "- Votes: 36 new on 12 reviews, 2 of them without a category; 1,024 tokens, 6.2 s, cost 0.5; budget spent",
        "- Labels: 1,915, 12 changed; agreement with people on gold 0.900 (n=50)",
        "- Training set: 515 train, 95 validation",
        "- linear-svc: weighted F1 0.830 (0.790 to 0.870), n=120, passed",
        "- logreg: weighted F1 0.810, n=120, failed: weighted_f1 0.81 (needs >= 0.82)",
        "- e5: not judged on gold, skipped: no encoder",
    ]


def test_training_set_without_validation_rows_is_told() -> None:
    assert "515 train, 0 validation" in summarize({"build_dataset": [manifest("dataset", {"train_rows": 515})]})


def test_a_night_without_promotion_says_why() -> None:
    waits = manifest("promote", promoted=False, reason="version 4 is champion already")
    assert "version 4 is champion already" in summarize({"gate": [GATED], "promote": [waits]})
    refused = manifest("gate", verdicts={}, challenger=None)
    assert summarize({"gate": [refused]}) == "**Not promoted**: no candidate passed the gate"
    barred = manifest("gate", verdicts={}, challenger=None, barred="version 4 is no challenger: it was rolled back")
    assert summarize({"gate": [barred]}) == "**Not promoted**: version 4 is no challenger: it was rolled back"


def test_failures_come_first() -> None:
    assert summarize({"publish": [PUBLISHED]}, ["train[0]"]).splitlines()[0] == "**Failed**: train[0]"


def test_what_is_no_manifest_is_left_out() -> None:
    assert summarize({"candidates": [["logreg"]], "publish": [None]}) == ""
    assert summarize({"publish": [manifest("publish", {"rows_in": 0})]}) == "- Rows: none came in"


def test_summary_fits_into_a_note() -> None:
    many = manifest("evaluate", candidates=[{"candidate": f"candidate-{n}", "weighted_f1": 0.5} for n in range(100)])
    said = summarize({"evaluate": [many]})
    assert len(said) <= MAX_CHARACTERS
    assert said.endswith("…")
