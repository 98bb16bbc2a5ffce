"""The texts of a store as annotators are shown them, with all ids they came under, in batches."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from reviewclf import tables
from reviewclf.data.gold import Gold
from reviewclf.labeling.annotators import Review
from reviewclf.labeling.annotators.recorded import Name
from reviewclf.store import Snapshot, Store

if TYPE_CHECKING:
    from polars import LazyFrame, Series

# Reviews that are held in memory together.
_BATCH = 50_000


def read_reviews(store: Store, snapshot: Snapshot, gold: Gold | None, wanted: Series | None = None) -> Iterator[list[Review]]:
    """Texts of the clean table and of gold, each with all ids it came under, a batch at a time.

    Parameters
    ----------
    gold : Gold or None
        Its texts come last, those that are clean texts too among these.
    wanted : Series of str, optional
        Hashes of the texts to read; default: all.
    """
    import polars

    rows = store.scan(snapshot.keys("clean"), tables.CLEAN_SCHEMA).select("text_hash", "text_clean", "review_id")
    if wanted is not None:
        rows = rows.filter(polars.col("text_hash").is_in(wanted.implode()))
    texts, ids = _of_gold(gold, wanted)
    for batch in store.batches(rows, _BATCH):
        names: dict[str, list[str]] = {}
        for key, _, review_id in batch.iter_rows():
            names.setdefault(key, []).append(review_id)
        _add_copies(store, snapshot, names)
        shown = dict(batch.select("text_hash", "text_clean").unique("text_hash", keep="first", maintain_order=True).iter_rows())
        for key in shown:
            texts.pop(key, None)
        yield [_review(key, text, [*names[key], *ids.get(key, ())]) for key, text in shown.items()]
    if texts:
        names = {key: [] for key in texts}
        _add_copies(store, snapshot, names)
        yield [_review(key, text, [*names[key], *ids[key]]) for key, text in texts.items()]


def names_of(store: Store, snapshot: Snapshot, gold: Gold | None, by: Name) -> LazyFrame:
    """All text hashes or review ids of a store and of gold, some several times, as one column ``name``."""
    import polars

    of = {"text_hash": ["clean"], "review_id": ["clean", "duplicates"]}[by]
    found = [store.scan(snapshot.keys(table), tables.SCHEMAS[table]).select(name=by) for table in of]
    if gold is not None:
        found.append(polars.LazyFrame({"name": gold.frame[by].tolist()}, schema={"name": polars.String}))
    return polars.concat(found)


def texts_named(store: Store, snapshot: Snapshot, gold: Gold | None, by: Name, names: Collection[str]) -> Series:
    """Hashes of the texts that are called so; given hashes come back whether the store has such texts or not."""
    import polars

    if by == "text_hash":
        return polars.Series("text_hash", sorted(names), polars.String)
    wanted = polars.Series(sorted(names), dtype=polars.String)
    columns = ["text_hash", "review_id"]
    rows = [store.scan(snapshot.keys(table), tables.SCHEMAS[table]).select(columns) for table in ("clean", "duplicates")]
    if gold is not None:
        rows.append(polars.LazyFrame({name: gold.frame[name].tolist() for name in columns}))
    found = polars.concat(rows).filter(polars.col("review_id").is_in(wanted.implode())).select("text_hash").unique()
    hashes = store.collect(found, tables.TEXT_SCHEMA)["text_hash"].to_pylist()
    return polars.Series("text_hash", hashes, polars.String)


def _of_gold(gold: Gold | None, wanted: Series | None) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Texts and ids of gold by text hash."""
    texts: dict[str, str] = {}
    ids: dict[str, list[str]] = {}
    if gold is not None:
        frame = gold.frame if wanted is None else gold.frame[gold.frame["text_hash"].isin(set(wanted))]
        for key, text, review_id in frame[["text_hash", "text_clean", "review_id"]].itertuples(index=False):
            texts.setdefault(key, text)
            ids.setdefault(key, []).append(review_id)
    return dict(sorted(texts.items())), ids


def _add_copies(store: Store, snapshot: Snapshot, names: dict[str, list[str]]) -> None:
    """Add the ids of exact copies to those of the texts."""
    import polars

    keys = polars.Series(list(names), dtype=polars.String)
    copies = store.scan(snapshot.keys("duplicates"), tables.DUPLICATE_SCHEMA).select("text_hash", "review_id")
    for batch in store.batches(copies.filter(polars.col("text_hash").is_in(keys.implode())), _BATCH):
        for key, review_id in batch.iter_rows():
            names[key].append(review_id)


def _review(key: str, text: str, ids: Sequence[str]) -> Review:
    return Review(text_hash=key, text=text, review_ids=tuple(dict.fromkeys(ids)))
