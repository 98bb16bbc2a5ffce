"""What must not be in a dataset, found and named."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from reviewclf.data.duplicates import jaccard, match_near_duplicates
from reviewclf.errors import LeakError
from reviewclf.text import comparison_form, text_hash

_NAMED = 5


def check_leaks(dataset: pd.DataFrame, *, similarity: float, synthetic_similarity: float | None = None) -> None:
    """Refuse a dataset whose splits share texts.

    Looks at the texts alone: it trusts neither groups nor hashes of the rows.

    Parameters
    ----------
    dataset : DataFrame
        ``review_id``, ``text_clean``, ``origin``, ``group``, ``split``.
    similarity : float
        Jaccard similarity of character n-grams from which two texts count as near-duplicates.
    synthetic_similarity : float, optional
        The same for a synthetic row and one that models are judged on: a paraphrase is less alike than a copy with a typo.
        Default: `similarity`.

    Raises
    ------
    LeakError
        Names the first pairs of each kind of leak, and how the two are alike: a near-duplicate of a test row in train or
        validation, a near-duplicate across train and validation, a group in two splits, a test row that no person labelled, a
        synthetic row outside train.
    """
    problems = [*_shared_texts(dataset, similarity, synthetic_similarity or similarity), *_misplaced(dataset)]
    if problems:
        raise LeakError("the dataset leaks: " + "; ".join(problems))


def _shared_texts(dataset: pd.DataFrame, similarity: float, synthetic_similarity: float) -> Iterator[str]:
    parts = {split: part.reset_index(drop=True) for split, part in dataset.groupby("split")}
    for seen_name, judged_name in (("train", "test"), ("validation", "test"), ("train", "validation")):
        if seen_name not in parts or judged_name not in parts:
            continue
        seen, judged = parts[seen_name], parts[judged_name]
        matches = match_near_duplicates(seen["text_clean"].tolist(), judged["text_clean"].tolist(), similarity=similarity)
        written = (seen["origin"] == "synthetic").to_numpy().nonzero()[0]
        if synthetic_similarity < similarity and len(written):
            closer = match_near_duplicates(
                seen["text_clean"].iloc[written].tolist(), judged["text_clean"].tolist(), similarity=synthetic_similarity
            )
            for place, match in zip(written.tolist(), closer, strict=True):
                matches[place] = matches[place] if matches[place] is not None else match
        pairs = [(row, match) for row, match in enumerate(matches) if match is not None]
        if pairs:
            named = ", ".join(_named(seen, judged, row, match) for row, match in pairs[:_NAMED])
            yield f"{len(pairs)} row(s) of {seen_name} repeat a row of {judged_name}: {named}"


def _named(seen: pd.DataFrame, judged: pd.DataFrame, row: int, match: int) -> str:
    left, right = str(seen["text_clean"].iloc[row]), str(judged["text_clean"].iloc[match])
    ids = str(seen["review_id"].iloc[row]), str(judged["review_id"].iloc[match])
    if left == right:
        how = "the same review" if ids[0] == ids[1] else "the same text under two ids"
    elif text_hash(left) == text_hash(right):
        how = "the same but for case and punctuation"
    elif comparison_form(left).replace(" ", "") == comparison_form(right).replace(" ", ""):
        how = "the same but for look-alike letters and spaces"
    else:
        how = f"near-duplicate, similarity {jaccard(left, right):.2f}"
    if seen["origin"].iloc[row] == "synthetic":
        how = f"synthetic: {how}"
    return f"{ids[0]} ~ {ids[1]} ({how})"


def _misplaced(dataset: pd.DataFrame) -> Iterator[str]:
    test = dataset[dataset["split"] == "test"]
    not_human = test[test["origin"] != "human"]
    if len(not_human):
        yield f"{len(not_human)} test row(s) not labelled by people: {', '.join(not_human['review_id'][:_NAMED])}"
    stray = dataset[(dataset["origin"] == "synthetic") & (dataset["split"] != "train")]
    if len(stray):
        yield f"{len(stray)} synthetic row(s) outside train: {', '.join(stray['review_id'][:_NAMED])}"
    # Ids are not compared: two sources may number their reviews alike.
    splits = dataset[["group", "split"]].drop_duplicates()
    twice = splits[splits["group"].duplicated(keep=False)].sort_values(["group", "split"])
    if len(twice):
        places = twice.groupby("group")["split"].agg(" and ".join)
        named = ", ".join(f"{key} in {where}" for key, where in places.head(_NAMED).items())
        yield f"{len(places)} group(s) in two splits: {named}"
