"""The training set: who is in which split, and why anyone is left out. Pure functions over data frames.

Rules that never bend: gold is the test split and nothing else; no near-duplicate of a gold review is in train or
validation; near-duplicates of each other (a group) stay on one side; synthetic rows are for training only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pandas as pd

from reviewclf.duplicates import match_near_duplicates, near_duplicate_groups
from reviewclf.errors import DataContractError, DatasetError, LeakError
from reviewclf.settings import DatasetSettings
from reviewclf.text import clean_text, text_hash

DATASET_COLUMNS = ["review_id", "text_clean", "label", "weight", "origin", "group", "split"]
LEFT_OUT_COLUMNS = ["review_id", "text_clean", "label", "origin", "reason"]


def prepare_gold(gold: pd.DataFrame, categories: Sequence[str], *, name: str = "gold") -> pd.DataFrame:
    """Check and clean gold rows.

    Parameters
    ----------
    gold : DataFrame
        ``text`` and ``label``; ``review_id`` where there is one.
    categories : sequence of str
        Labels of the taxonomy.
    name : str
        File that the rows came from, for messages.

    Returns
    -------
    DataFrame
        ``review_id``, ``text_clean``, ``text_hash``, ``label``.

    Raises
    ------
    DataContractError
        A column is missing, a text is empty, or a label is not in the taxonomy; the message names file, row and value.
    """
    missing = [column for column in ("text", "label") if column not in gold.columns]
    if missing:
        raise DataContractError(
            f"{name}: gold needs the column(s) {', '.join(missing)}; found {', '.join(map(str, gold.columns))}"
        )
    gold = gold.reset_index(drop=True)
    labels = gold["label"].map(lambda value: "" if pd.isna(value) else str(value).strip())
    strange = labels[~labels.isin(list(categories))]
    if len(strange):
        raise DataContractError(
            f"{name}, row {strange.index[0] + 1}: label {strange.iloc[0]!r} is not in the taxonomy "
            f"({', '.join(categories)}); {len(strange)} such row(s)"
        )
    texts = [clean_text("" if pd.isna(text) else str(text)) for text in gold["text"]]
    empty = [row for row, text in enumerate(texts, start=1) if not text]
    if empty:
        raise DataContractError(f"{name}, row {empty[0]}: the text is empty; {len(empty)} such row(s)")
    hashes = [text_hash(text) for text in texts]
    ids = gold["review_id"].astype(str) if "review_id" in gold.columns else pd.Series(hashes)
    return pd.DataFrame({"review_id": ids.to_numpy(), "text_clean": texts, "text_hash": hashes, "label": labels.to_numpy()})


def build_dataset(
    labelled: pd.DataFrame, gold: pd.DataFrame | None, options: DatasetSettings, *, min_confidence: float, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split labelled reviews into train and validation, gold into test.

    Parameters
    ----------
    labelled : DataFrame
        One row a text: ``review_id``, ``text_clean``, ``text_hash``, ``label`` (nullable), ``confidence`` in [0, 1],
        ``origin``, ``method`` (how the label came about) and ``hint`` (True where only keyword stems speak for it: such rows
        train, with a lower weight, but do not validate as long as there are better ones).
    gold : DataFrame or None
        From :func:`prepare_gold`.
    options : DatasetSettings
        Shares and thresholds.
    min_confidence : float
        Labels below it are left out.
    seed : int
        Same rows and seed, same splits, whatever the order of the rows.

    Returns
    -------
    dataset : DataFrame
        ``DATASET_COLUMNS``, sorted by split and review_id.
    left_out : DataFrame
        ``LEFT_OUT_COLUMNS``: every labelled row that is not in `dataset`, with the reason.

    Raises
    ------
    DatasetError
        Fewer than two classes are left to train on.
    LeakError
        The result breaks a rule above (a defect of this module, caught before anything is trained).
    """
    rows = labelled.sort_values("text_hash", kind="stable").reset_index(drop=True)
    reasons = pd.Series("", index=rows.index, dtype=object)

    def leave_out(mask: pd.Series | np.ndarray, reason: str) -> None:
        reasons[np.asarray(mask, dtype=bool) & (reasons == "").to_numpy()] = reason

    leave_out(rows["label"].isna(), "no_label")
    leave_out(rows["confidence"] < min_confidence, "low_confidence")
    if gold is not None and len(gold):
        leave_out(rows["text_hash"].isin(set(gold["text_hash"])), "same_text_as_gold")
        candidates = np.flatnonzero(reasons == "")
        matches = match_near_duplicates(
            rows["text_clean"].iloc[candidates].tolist(),
            gold["text_clean"].tolist(),
            similarity=options.near_duplicate_similarity,
        )
        near = np.zeros(len(rows), dtype=bool)
        near[candidates[[match is not None for match in matches]]] = True
        leave_out(near, "near_duplicate_of_gold")
    class_rows = rows["label"][reasons == ""].value_counts()
    leave_out(rows["label"].isin(class_rows.index[class_rows < options.min_class_rows]), "class_too_small")

    kept = rows[(reasons == "").to_numpy()].reset_index(drop=True)
    if kept["label"].nunique() < 2:
        raise DatasetError(
            f"nothing to train on: {len(kept)} of {len(rows)} labelled reviews can be used, with "
            f"{kept['label'].nunique()} class(es); reasons: {reasons[reasons != ''].value_counts().to_dict()}. "
            "Give votes (REVIEWCLF_VOTES), lower REVIEWCLF_AGGREGATION__MIN_CONFIDENCE or bring more reviews"
        )
    kept["group"] = near_duplicate_groups(kept["text_clean"].tolist(), similarity=options.near_duplicate_similarity)
    kept["split"] = split_groups(kept, share=options.validation_share, seed=seed)
    # Beside labels by readers hints weigh little; where they are all there is, they are what the others are elsewhere.
    factor = 1.0 if kept["hint"].all() else options.hint_weight
    kept["weight"] = np.where(kept["hint"], kept["confidence"] * factor, kept["confidence"])
    parts = [kept[DATASET_COLUMNS]]
    if gold is not None and len(gold):
        parts.append(_test_rows(gold))
    dataset = pd.concat(parts, ignore_index=True).sort_values(["split", "review_id"], kind="stable", ignore_index=True)
    check_leaks(dataset, similarity=options.near_duplicate_similarity)
    left_out = rows.assign(reason=reasons)[(reasons != "").to_numpy()][LEFT_OUT_COLUMNS].reset_index(drop=True)
    return dataset, left_out


def split_groups(rows: pd.DataFrame, *, share: float, seed: int) -> np.ndarray:
    """``train`` or ``validation`` for each row: stratified by label, whole groups, stable from night to night.

    Groups of a class (a group's class is its most frequent label) are put in the order of a seeded hash of their name;
    the first ones validate, until `share` of the rows of the class is reached. A review thus mostly stays on its side when
    others are added. At least one group of each class trains, and groups with synthetic rows or hints always do, unless
    there is nothing else to validate on.

    Parameters
    ----------
    rows : DataFrame
        ``label``, ``group``, ``origin``, ``hint``.
    share : float
        Share of the rows to validate on, in (0, 0.5).
    seed : int
        Changes the order of the groups.

    Returns
    -------
    ndarray of str, shape (n_rows,)
    """
    groups = (
        rows.assign(barred=rows["hint"] | (rows["origin"] == "synthetic"))
        .groupby("group", sort=True)
        .agg(
            label=("label", lambda labels: labels.value_counts(sort=False).sort_index(kind="stable").idxmax()),
            size=("label", "size"),
            barred=("barred", "any"),
        )
    )
    groups["order"] = [_seeded_hash(seed, str(group)) for group in groups.index]
    if groups["barred"].all():
        groups["barred"] = groups.index.isin(rows.loc[rows["origin"] == "synthetic", "group"])
    validation: set[str] = set()
    for _, of_class in groups.groupby("label"):
        eligible = of_class[~of_class["barred"]].sort_values("order")
        if len(eligible) == len(of_class):
            eligible = eligible.iloc[:-1]
        target = share * of_class.loc[~of_class["barred"], "size"].sum()
        taken = 0
        for group, size in zip(eligible.index, eligible["size"], strict=True):
            if taken >= target:
                break
            # A group that is most of its class trains: the class could not be learned without it.
            if 2 * size <= of_class["size"].sum():
                validation.add(str(group))
                taken += size
    return np.where(rows["group"].isin(validation), "validation", "train")


def check_leaks(dataset: pd.DataFrame, *, similarity: float) -> None:
    """Refuse a dataset whose splits share texts.

    Parameters
    ----------
    dataset : DataFrame
        ``DATASET_COLUMNS``.
    similarity : float
        Jaccard similarity of character n-grams from which two texts count as near-duplicates.

    Raises
    ------
    LeakError
        Names the first rows of each kind of leak: a near-duplicate of a test row in train or validation, a
        near-duplicate across train and validation, a test row that no person labelled, a synthetic row outside train.
    """
    problems = []
    test = dataset[dataset["split"] == "test"]
    train = dataset[dataset["split"] == "train"]
    validation = dataset[dataset["split"] == "validation"]
    for seen, judged, names in (
        (train, test, ("train", "test")),
        (validation, test, ("validation", "test")),
        (train, validation, ("train", "validation")),
    ):
        matches = match_near_duplicates(seen["text_clean"].tolist(), judged["text_clean"].tolist(), similarity=similarity)
        pairs = [
            f"{seen['review_id'].iloc[row]} ~ {judged['review_id'].iloc[match]}"
            for row, match in enumerate(matches)
            if match is not None
        ]
        if pairs:
            problems.append(f"{len(pairs)} row(s) of {names[0]} repeat a row of {names[1]}: {', '.join(pairs[:5])}")
    not_human = test[test["origin"] != "human"]
    if len(not_human):
        problems.append(f"{len(not_human)} test row(s) not labelled by people: {', '.join(not_human['review_id'][:5])}")
    stray = dataset[(dataset["origin"] == "synthetic") & (dataset["split"] != "train")]
    if len(stray):
        problems.append(f"{len(stray)} synthetic row(s) outside train: {', '.join(stray['review_id'][:5])}")
    if problems:
        raise LeakError("the dataset leaks: " + "; ".join(problems))


def _test_rows(gold: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "review_id": gold["review_id"],
            "text_clean": gold["text_clean"],
            "label": gold["label"],
            "weight": 1.0,
            "origin": "human",
            "group": gold["text_hash"],
            "split": "test",
        }
    )


def _seeded_hash(seed: int, name: str) -> str:
    return hashlib.blake2b(f"{seed}\x00{name}".encode(), digest_size=16).hexdigest()
