"""The dataset card, and how two datasets differ."""

from __future__ import annotations

import pandas as pd

from reviewclf.data.card import diff_datasets
from reviewclf.manifest import Manifest

COLUMNS = ["review_id", "text_clean", "label", "weight", "origin", "group", "split"]


def dataset(*rows: tuple[str, str, str, float]) -> pd.DataFrame:
    return pd.DataFrame([(*row, "llm", row[0], "train") for row in rows], columns=COLUMNS)


def diff(old: pd.DataFrame, new: pd.DataFrame) -> list[str]:
    return diff_datasets(Manifest(stage="dataset", digest="a"), Manifest(stage="dataset", digest="b"), old, new)


def test_diff_names_what_came_went_and_changed() -> None:
    old = dataset(("1", "а", "обувь", 1.0), ("2", "б", "обувь", 1.0))
    lines = diff(old, dataset(("1", "а", "одежда", 0.5), ("3", "в", "обувь", 1.0)))
    assert lines == [
        "a → b",
        "rows обувь, llm, train: 2 → 1 (-1)",
        "rows одежда, llm, train: 0 → 1 (+1)",
        "1 row(s) came: 3",
        "1 row(s) went: 2",
        "1 row(s) changed label: 1 обувь → одежда",
        "1 row(s) changed weight: 1 1.0 → 0.5",
    ]


def test_review_with_another_text_under_the_same_id_went_and_came() -> None:
    lines = diff(dataset(("1", "а", "обувь", 1.0)), dataset(("1", "б", "обувь", 1.0)))
    assert lines[1:] == ["1 row(s) came: 1", "1 row(s) went: 1"]


def test_many_changes_are_counted_and_the_first_named() -> None:
    (line,) = diff(dataset(*((str(n), f"т{n}", "обувь", 1.0) for n in range(30))), dataset(("0", "т0", "обувь", 1.0)))[2:]
    assert line.startswith("29 row(s) went: 1, 10, ")
    assert line.endswith(" …")
