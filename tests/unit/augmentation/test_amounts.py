"""How many synthetic rows a class gets: those that help on real rows, none where none do."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from reviewclf.augmentation.amounts import Choice, cheapest, choose_amounts, curve_table, in_order, recall_on
from reviewclf.settings import AugmentationSettings, load_settings
from reviewclf.text import text_hash
from reviewclf.training.candidates import load_candidates, parse_candidate
from reviewclf.training.linear import LinearCandidate

CLASSES = ["обувь", "одежда", "зонты"]
CANDIDATE = parse_candidate(
    {
        "name": "words",
        "kind": "linear",
        "params": {
            "estimator": "logistic_regression",
            "C": 10,
            "class_weight_power": 0,
            "calibration": "none",
            "word": {"ngram_range": [1, 1], "min_df": 1, "max_features": 1000},
        },
    }
)
ENDS = [
    "в дождь",
    "на даче",
    "в метро",
    "у мамы",
    "летом",
    "осенью",
    "за день",
    "в отпуске",
    "на работе",
    "у моря",
    "утром",
    "зимой",
]


def frame(texts: dict[str, list[str]], **columns: Any) -> pd.DataFrame:
    rows = pd.DataFrame(
        [(text, label) for label, of_label in texts.items() for text in of_label], columns=["text_clean", "label"]
    )
    rows["text_hash"] = rows["text_clean"].map(text_hash)
    return rows.assign(**{"group": rows["text_hash"], "weight": 1.0, "hint": False, **columns})


# Each thin row has a word of its own: without synthetic rows nothing tells it from the big classes.
THINGS = ["трость", "купол", "спица", "тент", "навес", "полог"]
REAL = {
    "обувь": [f"ботинки {end} вышли хуже, чем думали" for end in ENDS],
    "одежда": [f"пальто {end} вышли хуже, чем думали" for end in ENDS],
    "зонты": [f"{thing} {ENDS[n]} вышли хуже, чем думали" for n, thing in enumerate(THINGS)],
}
HELPFUL = [f"{thing} {word}" for word in ("хорошая", "слабая", "сломалась") for thing in THINGS]
HARMFUL = [f"{thing} {end} вышли хуже, чем думали!" for thing in ("ботинки", "пальто") for end in ENDS]


def choose(synthetic: list[str], examples: list[str] | None = None, **options: Any) -> Choice:
    rows = frame({"зонты": synthetic})
    rows["examples"] = pd.Series([examples or [] for _ in range(len(rows))], index=rows.index, dtype=object)
    settings = AugmentationSettings.model_validate({"folds": 3, "amounts": [1.0, 3.0], **options})
    (choice,) = choose_amounts(frame(REAL), rows, CANDIDATE, classes=CLASSES, stems={}, options=settings, seed=1)
    return choice


def test_rows_that_help_are_used() -> None:
    choice = choose(HELPFUL)
    assert choice.rows in (6, 18)
    assert (choice.id, choice.category) == (2, "зонты")
    figures = {figure.rows: figure for figure in choice.curve}
    assert list(figures) == [0, 6, 18]
    assert figures[choice.rows].recall > figures[0].recall
    assert figures[choice.rows].certainty >= 0.8
    for figure in choice.curve:
        assert figure.recall_low <= figure.recall <= figure.recall_high
        assert figure.n == 6
    assert "| used |" in curve_table([choice])


def test_rows_that_harm_are_not_used_and_it_is_said_why() -> None:
    choice = choose(HARMFUL)
    assert (choice.rows, choice.amount) == (0, 0.0)
    assert choice.reason.startswith("none is used: ")
    assert choice.curve[-1].weighted_f1 < choice.curve[0].weighted_f1


def test_certainty_asked_for_decides() -> None:
    assert choose(HELPFUL[:3], amounts=[1.0], min_certainty=1.0).rows == 0


def test_rows_whose_writer_saw_what_is_held_out_prove_nothing() -> None:
    seen = [text_hash(text) for text in REAL["зонты"]]
    choice = choose(HELPFUL, examples=seen)
    assert {figure.recall for figure in choice.curve} == {choice.curve[0].recall}
    assert choice.rows == 0


def test_hints_train_and_are_not_scored() -> None:
    real = frame(REAL)
    real["hint"] = real["text_clean"].str.startswith(("трость", "купол"))
    rows = frame({"зонты": HELPFUL})
    rows["examples"] = pd.Series([[] for _ in range(len(rows))], dtype=object)
    options = AugmentationSettings(folds=3, amounts=[1.0])
    (choice,) = choose_amounts(real, rows, CANDIDATE, classes=CLASSES, stems={}, options=options, seed=1)
    assert choice.curve[0].n == 4


def test_same_seed_same_choice() -> None:
    assert choose(HELPFUL) == choose(list(reversed(HELPFUL)))


def test_smaller_amount_is_part_of_a_larger_one() -> None:
    rows = frame({"зонты": HELPFUL})
    first = in_order(rows, 3)["text_clean"].tolist()
    assert first == in_order(rows.sample(frac=1, random_state=1), 3)["text_clean"].tolist()
    assert first != in_order(rows, 4)["text_clean"].tolist()


def test_recall_on_judged_rows_comes_with_interval_and_difference() -> None:
    true = ["зонты"] * 8 + ["обувь"] * 8
    better = ["зонты"] * 8 + ["обувь"] * 8
    worse = ["зонты"] * 4 + ["обувь"] * 12
    figures = recall_on(true, better, worse, "зонты")
    assert (figures["n"], figures["with"], figures["without"], figures["difference"]) == (8, 1.0, 0.5, 0.5)
    assert figures["difference_low"] <= 0.5 <= figures["difference_high"]
    assert figures["difference_low"] > 0
    assert recall_on(true, better, better, "зонты")["difference_high"] == 0.0
    assert recall_on(true, better, worse, "одежда") == {}


def test_cheapest_candidate_is_the_first_linear_one() -> None:
    bundled = load_candidates(load_settings(_env_file=None).candidates)
    assert cheapest(bundled).name == "logreg"
    fallback = cheapest([candidate for candidate in bundled if candidate.kind == "encoder"])
    assert isinstance(fallback, LinearCandidate)


@pytest.mark.parametrize("amounts", [[0.1], [100.0]])
def test_amounts_that_make_no_row_or_more_than_there_are_are_cut(amounts: list[float]) -> None:
    rows = [figure.rows for figure in choose(HELPFUL, amounts=amounts).curve]
    assert rows in ([0, 1], [0, 18])
