"""The training set: who is in which split, and why anyone is left out. Pure functions over data frames.

Rules that never bend: gold is the test split and nothing else; no near-duplicate of a gold review is in train or
validation; near-duplicates of each other (a group) stay on one side; synthetic rows are for training only, and repeat
neither gold nor validation rows.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from reviewclf.data.duplicates import match_near_duplicates, near_duplicate_groups
from reviewclf.data.leaks import check_leaks
from reviewclf.data.weights import over_cap, row_weights, suspected_errors
from reviewclf.errors import DatasetError
from reviewclf.settings import AugmentationSettings, DatasetSettings

DATASET_COLUMNS = ["review_id", "text_clean", "label", "weight", "origin", "group", "split"]
LEFT_OUT_COLUMNS = ["review_id", "text_clean", "label", "origin", "reason"]

# The most trusted first.
_ORIGINS = {"human": 0, "llm": 1, "synthetic": 2}


def build_dataset(
    labelled: pd.DataFrame,
    gold: pd.DataFrame | None,
    options: DatasetSettings,
    *,
    min_confidence: float,
    seed: int,
    synthetic: AugmentationSettings | None = None,
    stems: Mapping[str, list[str]] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split labelled reviews into train and validation, gold into test.

    Synthetic rows never move real ones: real rows are split as if there were no others, then those synthetic rows train that
    repeat nothing.

    Parameters
    ----------
    labelled : DataFrame
        ``review_id``, ``text_clean``, ``text_hash``, ``label`` (nullable), ``confidence`` in [0, 1], ``origin``, ``method``
        (how the label came about) and ``hint`` (True where only keyword stems speak for it: such rows train, with a lower
        weight, but do not validate as long as there are better ones).
    gold : DataFrame or None
        From :func:`reviewclf.data.gold.check_gold`.
    options : DatasetSettings
        Shares and thresholds.
    min_confidence : float
        Labels below it are left out.
    seed : int
        Same rows and seed, same splits, whatever the order of the rows.
    synthetic : AugmentationSettings, optional
        Weight of synthetic rows, and the similarity from which one repeats a gold or a validation row.
    stems : mapping of str to list of str, optional
        Keyword stems by category, for finding label errors where `options` ask for it.

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
    synthetic = synthetic or AugmentationSettings()
    # People's labels first, so that of one text under two ids theirs stays.
    rows = labelled.assign(_rank=labelled["origin"].map(_ORIGINS).fillna(len(_ORIGINS)))
    rows = rows.sort_values(["text_hash", "_rank", "review_id"], kind="stable").drop(columns="_rank").reset_index(drop=True)
    reasons = _Reasons(len(rows))
    reasons.add(rows["text_hash"].duplicated(), "same_text_under_another_id")
    reasons.add(rows["label"].isna(), "no_label")
    reasons.add(rows["confidence"] < min_confidence, "low_confidence")
    written = (rows["origin"] == "synthetic").to_numpy()
    judged = pd.DataFrame({"text_clean": [], "text_hash": []}) if gold is None else gold
    groups = near_duplicate_groups(
        [*rows.loc[~written, "text_clean"], *judged["text_clean"]], similarity=options.near_duplicate_similarity
    )
    rows["group"] = rows["text_hash"]
    rows.loc[~written, "group"] = groups[: int((~written).sum())]
    reasons.add(rows["text_hash"].isin(set(judged["text_hash"])), "same_text_as_gold")
    # The whole group: what repeats a review that repeats gold is too near as well.
    reasons.add(rows["group"].isin(set(groups[int((~written).sum()) :])), "near_duplicate_of_gold")
    reasons.add_near(rows, written, judged["text_clean"].tolist(), synthetic.similarity, "near_duplicate_of_gold")
    # Classes that only synthetic rows speak for could not be validated.
    class_rows = rows["label"][reasons.none & ~written].value_counts()
    large = set(class_rows.index[class_rows >= options.min_class_rows])
    reasons.add(~rows["label"].isin(large), "class_too_small")

    kept = rows[reasons.none & ~written].copy()
    if kept["label"].nunique() < 2:
        raise DatasetError(
            f"nothing to train on: {len(kept)} of {len(rows)} labelled reviews can be used, with "
            f"{kept['label'].nunique()} class(es); reasons: {reasons.counts()}. "
            "Give votes (REVIEWCLF_VOTES), lower REVIEWCLF_AGGREGATION__MIN_CONFIDENCE or bring more reviews"
        )
    kept["split"] = split_groups(kept, share=options.validation_share, seed=seed)
    reasons.add_at(over_cap(kept, options.max_class_rows, seed=seed), "over_class_cap")
    kept = kept[reasons.none[kept.index]]
    kept["weight"] = row_weights(kept, hint_weight=options.hint_weight)
    if options.label_errors != "off":
        suspected = suspected_errors(kept, stems or {}, seed=seed)
        if options.label_errors == "remove":
            reasons.add_at(suspected, "suspected_label_error")
            kept = kept.drop(index=suspected)
        else:
            kept.loc[suspected, "weight"] *= options.label_error_weight
    validation = kept.loc[kept["split"] == "validation", "text_clean"].tolist()
    reasons.add_near(rows, written, validation, synthetic.similarity, "near_duplicate_of_validation")
    training = kept.loc[kept["split"] == "train", "text_clean"].tolist()
    reasons.add_near(rows, written, training, options.near_duplicate_similarity, "near_duplicate_of_real")
    made = rows[reasons.none & written].copy()
    made["group"] = near_duplicate_groups(made["text_clean"].tolist(), similarity=options.near_duplicate_similarity)
    made["split"] = "train"
    made["weight"] = made["confidence"] * synthetic.weight
    parts = [kept, made] if len(made) else [kept]
    if gold is not None and len(gold):
        parts.append(gold.assign(weight=1.0, origin="human", group=gold["text_hash"], split="test"))
    left_out = rows.assign(reason=reasons.values).loc[~reasons.none, LEFT_OUT_COLUMNS].reset_index(drop=True)
    dataset = pd.concat([part[DATASET_COLUMNS] for part in parts], ignore_index=True)
    dataset = dataset.sort_values(["split", "review_id"], kind="stable", ignore_index=True)
    # The check looks at a million texts as well; what the dataset was made of need not stay beside them.
    del rows, kept, made, parts
    check_leaks(dataset, similarity=options.near_duplicate_similarity, synthetic_similarity=synthetic.similarity)
    return dataset, left_out


class _Reasons:
    """Why rows are left out: the first reason counts."""

    def __init__(self, rows: int) -> None:
        self.values = np.full(rows, "", dtype=object)

    @property
    def none(self) -> npt.NDArray[np.bool_]:
        """Rows that nothing speaks against so far."""
        result: npt.NDArray[np.bool_] = self.values == ""
        return result

    def add(self, mask: pd.Series | npt.NDArray[np.bool_], reason: str) -> None:
        self.values[np.asarray(mask, dtype=bool) & self.none] = reason

    def add_at(self, places: Iterable[int], reason: str) -> None:
        self.values[list(places)] = reason

    def add_near(
        self, rows: pd.DataFrame, mask: npt.NDArray[np.bool_], references: Sequence[str], similarity: float, reason: str
    ) -> None:
        """Rows of `mask` that are near-duplicates of one of `references`."""
        places = np.flatnonzero(self.none & mask)
        if not len(places) or not references:
            return
        matches = match_near_duplicates(rows["text_clean"].iloc[places].tolist(), references, similarity=similarity)
        self.add_at(places[[match is not None for match in matches]], reason)

    def counts(self) -> dict[str, int]:
        return dict(Counter(self.values[~self.none].tolist()).most_common())


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
    of_group = pd.DataFrame(
        {
            "group": rows["group"].to_numpy(),
            "label": rows["label"].to_numpy(),
            "barred": (rows["hint"] | (rows["origin"] == "synthetic")).to_numpy(),
            "synthetic": (rows["origin"] == "synthetic").to_numpy(),
        }
    )
    groups = of_group.groupby("group", sort=True).agg(
        size=("label", "size"), barred=("barred", "any"), synthetic=("synthetic", "any")
    )
    # The most frequent label; of several the first by name.
    frequent = of_group.groupby(["group", "label"], sort=True).size().reset_index(name="rows")
    frequent = frequent.sort_values(["group", "rows", "label"], ascending=[True, False, True], kind="stable")
    groups["label"] = frequent.drop_duplicates("group").set_index("group")["label"]
    groups["order"] = [_seeded_hash(seed, str(group)) for group in groups.index]
    if groups["barred"].all():
        groups["barred"] = groups["synthetic"]
    validation: set[str] = set()
    for _, of_class in groups.groupby("label"):
        eligible = of_class[~of_class["barred"]].sort_values("order")
        if len(eligible) == len(of_class):
            eligible = eligible.iloc[:-1]
        target = share * of_class.loc[~of_class["barred"], "size"].sum()
        total = of_class["size"].sum()
        taken = 0
        for group, size in zip(eligible.index, eligible["size"], strict=True):
            if taken >= target:
                break
            # A group that is most of its class trains: the class could not be learned without it.
            if 2 * size <= total:
                validation.add(str(group))
                taken += size
    return np.where(rows["group"].isin(validation), "validation", "train")


def _seeded_hash(seed: int, name: str) -> str:
    return hashlib.blake2b(f"{seed}\x00{name}".encode(), digest_size=16).hexdigest()
