"""Which reviews lack a vote that an annotator would give, without looking at all that were looked at before."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from reviewclf import tables
from reviewclf.data.gold import Gold
from reviewclf.labeling.annotators import Annotator, RecordedAnnotator, Review, VoteIdentity
from reviewclf.labeling.asking import expected_votes
from reviewclf.labeling.labels import IDENTITY
from reviewclf.labeling.texts import names_of, read_reviews, texts_named
from reviewclf.store import Snapshot, Store
from reviewclf.store.queries import known_rows, rows_since

if TYPE_CHECKING:
    from polars import Series


def texts_to_look_at(
    store: Store,
    snapshot: Snapshot,
    gold: Gold | None,
    recorded: Sequence[RecordedAnnotator],
    before: dict[str, Any],
    voted: dict[str, Any],
) -> Series | None:
    """Hashes of the texts that may lack a vote, some of which are no texts of the store any more; None: all texts.

    Whoever votes on every text looks at all again where they have changed; a file of votes names the texts that it changes.
    """
    import polars

    if before.get("annotators") != voted["annotators"]:
        return None
    since = before["snapshot"]
    queries = [store.scan(snapshot.keys("unvoted"), tables.TEXT_SCHEMA)]
    queries += [rows_since(store, snapshot, name, since, ["review_id", "text_hash"]) for name in ("clean", "duplicates")]
    new = polars.concat([query.select("text_hash") for query in queries]).unique()
    hashes = set(store.collect(new, tables.TEXT_SCHEMA)["text_hash"].to_pylist())
    if gold is not None and before["gold"] != voted["gold"]:
        hashes.update(gold.frame["text_hash"])
    if before["recorded"] != voted["recorded"]:
        for annotator in recorded:
            hashes.update(texts_named(store, snapshot, gold, annotator.by, annotator.names))
    return polars.Series("text_hash", sorted(hashes), polars.String)


def names_found(store: Store, snapshot: Snapshot, gold: Gold | None, annotator: RecordedAnnotator) -> set[str]:
    """Those of a file's names that are names of reviews of the store."""
    import polars

    names = polars.Series(annotator.names, dtype=polars.String)
    found = names_of(store, snapshot, gold, annotator.by).filter(polars.col("name").is_in(names.implode())).unique()
    return set(store.collect(found, pa.schema([("name", pa.string())]))["name"].to_pylist())


def pending_reviews(
    store: Store,
    snapshot: Snapshot,
    gold: Gold | None,
    annotators: Sequence[Annotator],
    wanted: Series | None,
    counts: dict[str, int],
) -> Iterator[Review]:
    """The reviews that lack a vote; `counts` are counted up."""
    for reviews in read_reviews(store, snapshot, gold, wanted):
        known = known_votes(store, snapshot.keys("votes"), annotators, reviews)
        pending = [review for review in reviews if not expected_votes(annotators, review) <= known]
        counts["looked_at"] += len(reviews)
        counts["pending"] += len(pending)
        yield from pending


def known_votes(
    store: Store, keys: Sequence[str], annotators: Sequence[Annotator], reviews: Sequence[Review]
) -> set[VoteIdentity]:
    """Those of the votes that annotators would give on these reviews which lie under `keys` already."""
    expected = {identity for review in reviews for identity in expected_votes(annotators, review)} if keys else set()
    return votes_among(store, keys, expected)


def votes_among(store: Store, keys: Sequence[str], identities: Collection[VoteIdentity]) -> set[VoteIdentity]:
    """Those of these votes that lie under `keys`."""
    import polars

    schema = {name: polars.Int64 if name == "draw" else polars.String for name in IDENTITY}
    rows = polars.DataFrame(list(identities), schema=schema, orient="row")
    return set(known_rows(store, keys, tables.VOTE_SCHEMA, rows).iter_rows())
