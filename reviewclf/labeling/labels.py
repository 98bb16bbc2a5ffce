"""From votes to labels: which votes count, what they amount to, and which labels of a store that changes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from reviewclf import tables
from reviewclf.errors import LabelingError
from reviewclf.labeling.annotators.keywords import ANNOTATOR as KEYWORDS
from reviewclf.labeling.annotators.keywords import KeywordAnnotator
from reviewclf.labeling.votes import aggregate_llm_votes
from reviewclf.manifest import digest_of
from reviewclf.settings import Settings
from reviewclf.store import Snapshot, Store
from reviewclf.store.queries import rows_since
from reviewclf.tables import HUMAN
from reviewclf.taxonomy import Taxonomy

if TYPE_CHECKING:
    from polars import DataFrame, Expr, LazyFrame, Series

# What tells votes from each other.
IDENTITY = ["text_hash", "annotator", "prompt", "draw"]

# In the state of a snapshot: by which rules the labels were made, and up to which snapshot's votes.
LABELLED = "labelled"

# Raised whenever the same votes come to other labels.
_VERSION = 1

# Methods that learn from all votes at once how far to trust each annotator; others need only the votes on a text.
_GLOBAL = frozenset(["dawid_skene"])
# Texts that are labelled at a time.
_BATCH = 50_000


class Labels(NamedTuple):
    """Labels as of all votes of a snapshot.

    Attributes
    ----------
    parts : list of str
        What the table of labels is to hold: parts that it holds already, and new ones.
    state : dict
        What a snapshot with these labels has to remember.
    """

    parts: list[str]
    state: dict[str, Any]


def current_labels(store: Store, snapshot: Snapshot, settings: Settings, taxonomy: Taxonomy) -> Labels:
    """The labels of a snapshot with its newest votes. Nothing is published.

    Texts whose votes have changed since the labels were made are labelled anew; all texts where taxonomy, stems or options have
    changed, or where the method learns from all votes at once. Parts in which no label changes stay as they are.
    """
    rules = digest_of([_VERSION, taxonomy, settings.aggregation])
    before: Any = snapshot.state.get(LABELLED) or {}
    since = before["votes"] if before.get("rules") == rules else None
    changed = _hashes(store, rows_since(store, snapshot, "votes", since, IDENTITY))
    if changed.is_empty() and since is not None:
        return Labels(snapshot.keys("labels"), {LABELLED: before})
    if settings.aggregation.method in _GLOBAL or since is None:
        changed = _hashes(store, *(store.scan(snapshot.keys(name), tables.SCHEMAS[name]) for name in ("votes", "labels")))
    size = len(changed) if settings.aggregation.method in _GLOBAL else _BATCH
    parts = _relabelled(store, snapshot, changed, max(1, size), settings, taxonomy)
    return Labels(parts, {LABELLED: {"rules": rules, "votes": snapshot.version}})


def usable_votes(votes: LazyFrame, settings: Settings, taxonomy: Taxonomy) -> LazyFrame:
    """The votes that count: each once, those of other stems than today's and of categories that are gone left out."""
    import polars
    from polars import col

    stems = KeywordAnnotator(taxonomy, confidence=settings.aggregation.keyword_confidence).version
    # Stems change with the taxonomy; what older stems said is history.
    counted = votes.filter(~col("annotator").str.starts_with(f"{KEYWORDS}@") | (col("annotator") == stems))
    is_human = col("annotator").str.starts_with(f"{HUMAN}/")
    # A person who answers again means the newer answer, even where its category is gone since.
    newest = counted.filter(is_human).sort("draw", maintain_order=True)
    newest = newest.unique(["text_hash", "annotator"], keep="last", maintain_order=True)
    both = polars.concat([counted.filter(~is_human), newest])
    return both.filter(col("label").is_null() | col("label").is_in(taxonomy.names))


def votes_on(store: Store, snapshot: Snapshot, texts: Series, settings: Settings, taxonomy: Taxonomy) -> pd.DataFrame:
    """The usable votes on some texts, of which `texts` are the hashes, sorted."""
    rows = store.scan(snapshot.keys("votes"), tables.VOTE_SCHEMA)
    once = rows.filter(_is_among(texts)).unique(IDENTITY, keep="first", maintain_order=True)
    usable = usable_votes(once, settings, taxonomy).sort(IDENTITY)
    frame: pd.DataFrame = store.collect(usable, tables.VOTE_SCHEMA).to_pandas()
    return frame


def decide_labels(votes: pd.DataFrame, settings: Settings, taxonomy: Taxonomy) -> pd.DataFrame:
    """One label a text; where people have answered, theirs."""
    options = settings.aggregation
    is_human = votes["annotator"].str.startswith(f"{HUMAN}/")
    unknown = sorted(set(options.rare_class_boost) - set(taxonomy.names))
    if unknown:
        raise LabelingError(f"REVIEWCLF_AGGREGATION__RARE_CLASS_BOOST: not in the taxonomy: {', '.join(unknown)}")
    boost = options.rare_class_boost
    labels = aggregate_llm_votes(votes[~is_human], taxonomy.names, method=options.method, rare_class_boost=boost)
    readers = votes.loc[votes["label"].notna() & ~votes["annotator"].str.startswith(f"{KEYWORDS}@"), "text_hash"]
    labels["method"] = labels["method"].where(labels["text_hash"].isin(set(readers)), KEYWORDS)
    labels["origin"] = "llm"
    if is_human.any():
        people = aggregate_llm_votes(votes[is_human], taxonomy.names, method="majority").assign(method=HUMAN, origin=HUMAN)
        labels = pd.concat([labels[~labels["text_hash"].isin(set(people["text_hash"]))], people], ignore_index=True)
    labels = labels[labels["label"].notna()].sort_values("text_hash", kind="stable").reset_index(drop=True)
    confidence = labels["confidence"]
    doubtful = np.where(confidence < options.drop_confidence, "dropped", "review")
    labels["decision"] = np.where(confidence >= options.min_confidence, "kept", doubtful)
    return labels


def _is_among(texts: Series) -> Expr:
    """Whether a row is on one of these texts; by their bounds first, which are cheaper to compare with."""
    from polars import col, lit

    return col("text_hash").is_between(lit(texts.min()), lit(texts.max())) & col("text_hash").is_in(texts.implode())


def _hashes(store: Store, *rows: LazyFrame) -> Series:
    """Distinct text hashes, sorted."""
    import polars

    texts = polars.concat([some.select("text_hash") for some in rows])
    return polars.DataFrame(store.collect(texts.unique(), tables.TEXT_SCHEMA))["text_hash"].sort()


def _relabelled(
    store: Store, snapshot: Snapshot, texts: Series, size: int, settings: Settings, taxonomy: Taxonomy
) -> list[str]:
    """Parts of the table of labels in which these texts have the labels that their votes say today."""
    import polars

    keys = snapshot.keys("labels")
    added: list[str] = []
    gone: list[DataFrame] = [polars.DataFrame(schema={"text_hash": polars.String, "part": polars.String})]
    for batch in (texts.slice(start, size) for start in range(0, len(texts), size)):
        labels = decide_labels(votes_on(store, snapshot, batch, settings, taxonomy), settings, taxonomy)
        new = polars.DataFrame(pa.Table.from_pandas(labels, schema=tables.LABEL_SCHEMA, preserve_index=False))
        held = store.scan(keys, tables.LABEL_SCHEMA, part="part").filter(_is_among(batch))
        columns = tables.LABEL_SCHEMA.names
        old = polars.DataFrame(store.collect(held, tables.LABEL_SCHEMA.append(pa.field("part", pa.string()))))
        same = {"on": columns, "how": "anti", "nulls_equal": True}
        gone.append(old.join(new, **same).select("text_hash", "part"))
        added += store.put_part(new.join(old, **same, maintain_order="left").to_arrow().cast(tables.LABEL_SCHEMA))
    return [*_without(store, keys, polars.concat(gone)), *added]


def _without(store: Store, keys: list[str], gone: DataFrame) -> Iterator[str]:
    """Parts `keys` without the labels of some texts; `gone` says of each text in which part its label is."""
    touched = set(gone["part"])
    for key in keys:
        if key not in touched:
            yield key
            continue
        rows = store.scan([key], tables.LABEL_SCHEMA).join(gone.lazy(), on="text_hash", how="anti", maintain_order="left")
        yield from store.put_part(store.collect(rows, tables.LABEL_SCHEMA))
