"""What a labelling came to: how many votes and labels there are, how many changed, and how they agree with people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa

from reviewclf import tables
from reviewclf.evaluation import reliability
from reviewclf.labeling.annotators.keywords import ANNOTATOR as KEYWORDS
from reviewclf.labeling.labels import usable_votes, votes_on
from reviewclf.settings import Settings
from reviewclf.store import Snapshot, Store
from reviewclf.store.delta import digest_of_part
from reviewclf.store.queries import count_rows
from reviewclf.tables import HUMAN
from reviewclf.taxonomy import Taxonomy

if TYPE_CHECKING:
    from polars import LazyFrame


def count_votes(store: Store, base: Snapshot, settings: Settings, taxonomy: Taxonomy) -> int:
    """How many votes of a snapshot count."""
    return count_rows(store, usable_votes(store.scan(base.keys("votes"), tables.VOTE_SCHEMA), settings, taxonomy))


def count_labels(store: Store, parts: Sequence[str]) -> pd.DataFrame:
    """How many labels there are by label, method and decision."""
    import polars

    by = [tables.LABEL_SCHEMA.field(name) for name in ("label", "method", "decision")]
    found = store.scan(parts, tables.LABEL_SCHEMA).group_by("label", "method", "decision").agg(rows=polars.len())
    frame: pd.DataFrame = store.collect(found, pa.schema([*by, ("rows", pa.int64())])).to_pandas()
    return frame


def sums(counted: pd.DataFrame, column: str) -> dict[str, int]:
    """Labels by one of the columns of :func:`count_labels`, the most first."""
    found = counted.groupby(column)["rows"].sum().sort_values(ascending=False, kind="stable")
    return {str(name): int(count) for name, count in found.items()}


def count_changed(store: Store, before: Sequence[str], after: Sequence[str]) -> int:
    """Labels that are new, gone or other than before; parts that stayed are not read."""
    import polars

    held = {digest_of_part(part) for part in before} & {digest_of_part(part) for part in after}

    def other(parts: Sequence[str], label: str) -> LazyFrame:
        rows = store.scan([part for part in parts if digest_of_part(part) not in held], tables.LABEL_SCHEMA)
        return rows.select("text_hash", polars.col("label").alias(label))

    both = other(before, "label").join(other(after, "now"), on="text_hash", how="full")
    both = both.filter(polars.col("label").ne_missing(polars.col("now")))
    return count_rows(store, both)


def against_gold(
    store: Store, base: Snapshot, parts: Sequence[str], gold: pd.DataFrame, settings: Settings, taxonomy: Taxonomy
) -> dict[str, Any]:
    """How often, and how honestly, labels and annotators agree with people on gold reviews; empty without any in common."""
    import polars

    texts = polars.Series("text_hash", gold["text_hash"].tolist(), polars.String)
    of_gold = store.scan(parts, tables.LABEL_SCHEMA).filter(polars.col("text_hash").is_in(texts.implode()))
    compared = gold.merge(store.collect(of_gold, tables.LABEL_SCHEMA).to_pandas(), on="text_hash", suffixes=("_gold", ""))
    compared = compared[~compared["method"].isin([KEYWORDS, HUMAN])]
    if not len(compared):
        return {}
    right = (compared["label"] == compared["label_gold"]).to_numpy()
    calibration = reliability(right, compared["confidence"].to_numpy(dtype=float))
    votes = votes_on(store, base, texts, settings, taxonomy)
    pairs = gold.merge(votes[votes["label"].notna()], on="text_hash", suffixes=("_gold", ""))
    by_annotator = (pairs["label"] == pairs["label_gold"]).groupby(pairs["annotator"])
    return {
        "agreement_with_gold": {"share": round(float(right.mean()), 4), "n": len(compared)},
        "label_ece": round(calibration.value, 4),
        "reliability": [bin_.model_dump() for bin_ in calibration.bins],
        "annotators": {str(who): {"agreement": round(float(a.mean()), 4), "n": len(a)} for who, a in by_annotator},
    }
