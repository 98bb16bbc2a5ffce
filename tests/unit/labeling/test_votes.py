"""Votes become labels: no answer is never a class, doubt stays visible."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reviewclf.errors import LabelingError
from reviewclf.labeling.annotators.keywords import keyword_label
from reviewclf.labeling.votes import Method, aggregate_llm_votes
from reviewclf.settings import load_settings
from reviewclf.taxonomy import Taxonomy

CATEGORIES = ["обувь", "одежда", "нет товара"]
METHODS = get_args(Method)


def votes(*rows: tuple[str, str, str | None, float]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["text_hash", "annotator", "label", "confidence"])
    return frame.assign(prompt="p@1", draw=frame.groupby(["text_hash", "annotator"]).cumcount())


def one(*rows: tuple[str, str, str | None, float], method: Method = "posterior") -> pd.Series:
    return aggregate_llm_votes(votes(*rows), CATEGORIES, method=method).iloc[0]


@pytest.mark.parametrize("method", METHODS)
def test_unanimous_votes_win(method: Method) -> None:
    label = one(("x", "a", "обувь", 0.9), ("x", "b", "обувь", 0.8), method=method)
    assert (label["label"], label["agreement"], label["votes"], label["method"]) == ("обувь", 1.0, 2, method)
    assert 0.8 <= label["confidence"] <= 1.0


@pytest.mark.parametrize("method", METHODS)
def test_unreadable_answers_are_no_class(method: Method) -> None:
    label = one(("x", "a", None, 0.0), ("x", "b", None, 0.9), method=method)
    assert pd.isna(label["label"])
    assert (label["confidence"], label["agreement"], label["votes"]) == (0.0, 0.0, 0)


@pytest.mark.parametrize("method", METHODS)
def test_unreadable_answer_does_not_weigh_against_a_readable_one(method: Method) -> None:
    with_null = one(("x", "a", "одежда", 0.9), ("x", "b", None, 0.9), method=method)
    alone = one(("x", "a", "одежда", 0.9), method=method)
    assert with_null.equals(alone)


def test_surer_annotator_wins_a_draw_by_posterior() -> None:
    label = one(("x", "a", "обувь", 0.6), ("x", "b", "одежда", 0.9))
    assert label["label"] == "одежда"
    assert 0.5 < label["confidence"] < 0.9
    assert label["agreement"] == 0.5


def test_two_independent_annotators_are_surer_than_one() -> None:
    one_vote = one(("x", "a", "обувь", 0.8))
    two_votes = one(("x", "a", "обувь", 0.8), ("x", "b", "обувь", 0.8))
    assert one_vote["confidence"] == pytest.approx(0.8)
    assert two_votes["confidence"] > 0.95


def test_draws_of_one_annotator_count_as_one_annotator() -> None:
    many = one(*[("x", "a", "обувь", 0.8)] * 5)
    assert many["confidence"] == pytest.approx(0.8)
    assert many["votes"] == 5
    outvoted = one(*[("x", "a", "обувь", 0.8)] * 5, ("x", "b", "одежда", 0.9))
    assert outvoted["label"] == "одежда"


def test_equal_scores_go_to_the_earlier_category_whatever_the_order_of_votes() -> None:
    rows = [("x", "a", "одежда", 0.7), ("x", "b", "обувь", 0.7)]
    assert one(*rows)["label"] == one(*reversed(rows))["label"] == "обувь"


def test_rare_class_boost_lifts_a_class_by_the_notebooks_rule() -> None:
    frame = votes(("x", "a", "одежда", 0.8), ("x", "b", "обувь", 0.7))
    plain = aggregate_llm_votes(frame, CATEGORIES, method="mean_confidence")
    boosted = aggregate_llm_votes(frame, CATEGORIES, method="mean_confidence", rare_class_boost={"обувь": 1.3})
    assert (plain["label"].item(), boosted["label"].item()) == ("одежда", "обувь")


def test_label_outside_the_taxonomy_is_refused() -> None:
    with pytest.raises(LabelingError, match=r"мебель.*not in the taxonomy"):
        one(("x", "a", "мебель", 0.9))


@pytest.mark.parametrize("confidence", [-0.1, 1.1, float("nan")])
def test_confidence_outside_0_to_1_is_refused(confidence: float) -> None:
    with pytest.raises(LabelingError, match="not between 0 and 1"):
        one(("x", "a", "обувь", confidence))


def test_unknown_method_names_the_known_ones() -> None:
    with pytest.raises(LabelingError, match="posterior, majority, mean_confidence"):
        aggregate_llm_votes(votes(("x", "a", "обувь", 0.9)), CATEGORIES, method="loudest")  # type: ignore[arg-type]


any_vote = st.tuples(
    st.sampled_from("xyz"), st.sampled_from("abc"), st.sampled_from([*CATEGORIES, None]), st.floats(0, 1, width=16)
)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(st.lists(any_vote, min_size=1, max_size=30), st.sampled_from(METHODS), st.randoms(use_true_random=False))
def test_any_votes_in_any_order_give_one_honest_label_a_text(rows: list, method: Method, random: object) -> None:
    frame = votes(*rows)
    result = aggregate_llm_votes(frame, CATEGORIES, method=method)
    shuffled = frame.sample(frac=1, random_state=random.randint(0, 2**32 - 1))  # type: ignore[attr-defined]
    pd.testing.assert_frame_equal(aggregate_llm_votes(shuffled, CATEGORIES, method=method), result)
    assert result["text_hash"].tolist() == sorted(frame["text_hash"].unique())
    assert result["confidence"].between(0, 1).all()
    assert result["agreement"].between(0, 1).all()
    for row in result.to_dict("records"):
        labels = set(frame.loc[frame["text_hash"] == row["text_hash"], "label"].dropna())
        assert pd.isna(row["label"]) == (not labels)
        assert pd.isna(row["label"]) or row["label"] in labels


def _agreement(frames: Iterable[pd.Series]) -> float:
    left, right = frames
    both = left.to_frame("left").join(right.to_frame("right"), how="inner")
    return float((both["left"] == both["right"]).mean())


def test_recorded_readers_agree_as_their_readme_says(shared_data: Path) -> None:
    recorded = pd.read_csv(shared_data / "votes.csv", dtype={"review_id": str}).rename(columns={"review_id": "text_hash"})
    by_reader = {name: group.set_index("text_hash")["label"] for name, group in recorded.groupby("annotator")}
    assert _agreement([by_reader["reader-1"], by_reader["reader-2"]]) > 0.9
    labels = aggregate_llm_votes(recorded, sorted(recorded["label"].unique()))
    assert len(labels) == 839
    assert _agreement([labels.set_index("text_hash")["label"], by_reader["reader-2"]]) > 0.94


def test_dawid_skene_learns_whom_to_believe() -> None:
    rng = np.random.default_rng(7)
    names = ["обувь", "одежда", "посуда"]
    true = rng.integers(0, 3, 400)
    rows = []
    for who, right in (("good", 0.95), ("coin-1", 0.4), ("coin-2", 0.4)):
        for i, label in enumerate(true):
            said = label if rng.random() < right else rng.integers(0, 3)
            rows.append(
                {"text_hash": f"{i:03d}", "annotator": who, "prompt": "p", "draw": 0, "label": names[said], "confidence": 0.8}
            )
    votes = pd.DataFrame(rows)
    shares = {
        method: (aggregate_llm_votes(votes, names, method=method)["label"] == [names[k] for k in true]).mean()
        for method in ("majority", "dawid_skene")
    }
    assert shares["dawid_skene"] > shares["majority"] + 0.05
    estimated = aggregate_llm_votes(votes, names, method="dawid_skene")
    assert estimated["confidence"].between(0, 1).all()


def test_dawid_skene_is_not_worse_than_majority_on_real_votes(shared_data: Path) -> None:
    # Judged by reader-2, whose own votes are therefore left out.
    taxonomy = Taxonomy.load(load_settings(_env_file=None).taxonomy)
    votes = pd.read_csv(shared_data / "votes.csv", dtype={"review_id": str}).rename(columns={"review_id": "text_hash"})
    texts = pd.read_csv(shared_data / "reviews.csv", dtype=str).set_index("review_id")["text"]
    careful = votes[votes["annotator"] == "reader-2"].set_index("text_hash")["label"]
    quick = votes[votes["annotator"] == "reader-1"]
    stems = quick.assign(
        annotator="keywords", label=[keyword_label(texts[key], taxonomy) for key in quick["text_hash"]], confidence=0.6
    )
    shares = {}
    for method in ("majority", "dawid_skene"):
        decided = aggregate_llm_votes(pd.concat([quick, stems], ignore_index=True), taxonomy.names, method=method)
        shares[method] = (decided["label"] == decided["text_hash"].map(careful)).mean()
    assert shares["dawid_skene"] >= shares["majority"]


def test_dawid_skene_of_nothing_readable_has_no_labels() -> None:
    votes = pd.DataFrame([{"text_hash": "a", "annotator": "x", "prompt": "p", "draw": 0, "label": None, "confidence": 0.0}])
    (row,) = aggregate_llm_votes(votes, ["обувь", "одежда"], method="dawid_skene").to_dict("records")
    assert row["label"] is None
