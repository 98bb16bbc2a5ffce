"""Labelling: select new reviews, let annotators vote on them in shards, aggregate all votes to labels."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from reviewclf import tables
from reviewclf.data.gold import load_gold
from reviewclf.errors import ConflictError
from reviewclf.labeling.annotators import Annotator, RecordedAnnotator, Vote, make_annotators
from reviewclf.labeling.annotators.base import Review
from reviewclf.labeling.annotators.keywords import ANNOTATOR as KEYWORDS
from reviewclf.labeling.votes import aggregate_llm_votes
from reviewclf.manifest import Manifest, digest_of
from reviewclf.settings import Settings
from reviewclf.storage import Snapshot, StageResult, Store
from reviewclf.taxonomy import Taxonomy

logger = logging.getLogger(__name__)

_NAMED = 20


def select(settings: Settings) -> Manifest:
    """Find the reviews that lack a vote which an annotator would give, and split them into shards.

    Gold reviews are voted on too, so that votes can be compared with what people say; they are never trained on.

    Returns
    -------
    Manifest
        ``outputs["reviews"]``: the reviews to vote on; ``details["shards"]``: one small dict a shard, never none at all;
        ``details["unmatched_votes"]``: keys of recorded votes that name no review.
    """
    store = Store(settings.store_uri)
    snapshot = store.snapshot()
    taxonomy = Taxonomy.load(settings.taxonomy)
    annotators = make_annotators(settings, taxonomy)
    reviews = _reviews(store, snapshot, settings, taxonomy)
    inputs = {
        "reviews": digest_of([review.model_dump() for review in reviews]),
        "votes": snapshot.keys("votes"),
        "labels": snapshot.keys("labels"),
        "annotators": [annotator.version for annotator in annotators],
        "shard_rows": settings.llm.shard_rows,
    }

    def work() -> StageResult:
        known = _vote_identities(store, snapshot.keys("votes"))
        pending = [
            review
            for review in reviews
            if any((review.text_hash, *vote) not in known for annotator in annotators for vote in annotator.expected(review))
        ]
        shards = max(1, -(-len(pending) // settings.llm.shard_rows))
        recorded = [annotator for annotator in annotators if isinstance(annotator, RecordedAnnotator)]
        unmatched = [key for annotator in recorded for key in annotator.unmatched(reviews)]
        refused = [row for annotator in recorded for row in annotator.refused]
        if unmatched:
            logger.warning("%d recorded vote key(s) name no review: %s", len(unmatched), ", ".join(unmatched[:_NAMED]))
        for row in refused[:_NAMED]:
            logger.warning("%s, row %d refused: %s", settings.votes, row.row_number, row.reason)
        quarantine = pa.Table.from_pylist(
            [
                {
                    "review_id": None,
                    "row_number": row.row_number,
                    "reason": f"vote refused: {row.reason}",
                    "payload": row.payload,
                    "source": str(settings.votes),
                }
                for row in refused
            ],
            schema=tables.QUARANTINE_SCHEMA,
        )
        return StageResult(
            outputs={
                "reviews": store.put_table(_to_table(pending)),
                # What `aggregate` compares with, so that a repeated task counts the same changes as the first attempt.
                "labels_before": snapshot.keys("labels"),
                # What `annotate` need not ask again.
                "votes_before": snapshot.keys("votes"),
                **({"quarantine": store.put_table(quarantine)} if refused else {}),
            },
            counts={
                "reviews": len(reviews),
                "pending": len(pending),
                "recorded_votes": sum(map(len, recorded)),
                "unmatched_votes": len(unmatched),
                "refused_votes": len(refused),
            },
            details={
                "shards": [{"shard": number, "shards": shards} for number in range(shards)],
                "unmatched_votes": list(unmatched[:_NAMED]),
            },
        )

    return store.run_stage("select", 1, inputs, work)


def annotate(settings: Settings, selected: Manifest, shard: dict[str, Any]) -> Manifest:
    """Let every annotator vote on the reviews of one shard.

    Parameters
    ----------
    selected : Manifest
        From :func:`select`.
    shard : dict
        One entry of its ``details["shards"]``: ``shard`` of ``shards``.

    Returns
    -------
    Manifest
        ``outputs["votes"]``: the votes; ``counts``: reviews, votes, and those without a label.
    """
    store = Store(settings.store_uri)
    taxonomy = Taxonomy.load(settings.taxonomy)
    annotators = make_annotators(settings, taxonomy)
    inputs = {
        "reviews": selected.keys("reviews"),
        "shard": [shard["shard"], shard["shards"]],
        "annotators": [annotator.version for annotator in annotators],
    }

    def work() -> StageResult:
        pending = store.read_table(selected.keys("reviews"), schema=tables.REVIEW_SCHEMA).to_pylist()
        reviews = [
            Review(text_hash=row["text_hash"], text=row["text"], review_ids=tuple(row["review_ids"]))
            for row in pending
            if int(row["text_hash"][:8], 16) % shard["shards"] == shard["shard"]
        ]
        votes = _vote(annotators, reviews, known=_vote_identities(store, selected.keys("votes_before")))
        return StageResult(
            outputs={"votes": [store.put_table(votes)] if votes.num_rows else []},
            counts={"reviews": len(reviews), "votes": votes.num_rows, "without_label": votes["label"].null_count},
        )

    return store.run_stage("annotate", 1, inputs, work)


def aggregate(settings: Settings, selected: Manifest, annotated: Sequence[Manifest]) -> Manifest:
    """Publish the new votes and turn all votes into labels.

    Parameters
    ----------
    selected, annotated : Manifest
        From :func:`select` and :func:`annotate`.

    Returns
    -------
    Manifest
        ``counts["changed"]``: labels that are new or other than before, 0 when nothing changed;
        ``details["agreement_with_gold"]``: share of gold reviews whose aggregated label is that of people, with its n.
    """
    store = Store(settings.store_uri)
    taxonomy = Taxonomy.load(settings.taxonomy)
    for _ in range(10):
        base = store.snapshot()
        manifest, append, replace = _aggregate_once(store, base, settings, taxonomy, selected, annotated)
        if not append and not replace:
            return manifest
        try:
            store.commit(base, key=f"labels:{manifest.digest}", append=append, replace=replace)
        except ConflictError:
            continue
        return manifest
    raise ConflictError(f"{settings.store_uri}: other runs kept publishing first; run this stage again")


def _aggregate_once(
    store: Store,
    base: Snapshot,
    settings: Settings,
    taxonomy: Taxonomy,
    selected: Manifest,
    annotated: Sequence[Manifest],
) -> tuple[Manifest, dict[str, list[str]], dict[str, list[str]]]:
    new_keys = [key for manifest in annotated for key in manifest.keys("votes") if key not in base.keys("votes")]
    current = [annotator.version for annotator in make_annotators(settings, taxonomy)]
    gold = load_gold(settings, taxonomy)
    votes_keys = [*base.keys("votes"), *new_keys]
    inputs = {
        "votes": votes_keys,
        "labels_before": selected.keys("labels_before"),
        "taxonomy": digest_of(taxonomy),
        "method": settings.aggregation.method,
        "annotators": current,
        "gold": None if gold is None else gold.digest,
    }

    def work() -> StageResult:
        votes = store.read_table(votes_keys, schema=tables.VOTE_SCHEMA).to_pandas()
        votes = votes.drop_duplicates(["text_hash", "annotator", "prompt", "draw"], keep="first")
        by_stems = votes["annotator"].str.startswith(f"{KEYWORDS}@")
        # Stems change with the taxonomy; what older stems said is history.
        votes = votes[~by_stems | votes["annotator"].isin(current)]
        votes = votes[votes["label"].isna() | votes["label"].isin(taxonomy.names)]
        labels = aggregate_llm_votes(votes, taxonomy.names, method=settings.aggregation.method)
        labels = labels[labels["label"].notna()]
        readers = votes.loc[votes["label"].notna() & ~votes["annotator"].str.startswith(f"{KEYWORDS}@"), "text_hash"]
        labels["method"] = labels["method"].where(labels["text_hash"].isin(set(readers)), KEYWORDS)
        labels["origin"] = "llm"
        table = pa.Table.from_pandas(labels[tables.LABEL_SCHEMA.names], schema=tables.LABEL_SCHEMA, preserve_index=False)
        before = store.read_table(
            selected.keys("labels_before"), ["text_hash", "label"], schema=tables.LABEL_SCHEMA
        ).to_pandas()
        both = labels.merge(before, on="text_hash", how="outer", suffixes=("", "_before"))
        changed = int((both["label"].fillna("") != both["label_before"].fillna("")).sum())
        details: dict[str, Any] = {"labels_by_class": labels["label"].value_counts().to_dict()}
        if gold is not None:
            compared = gold.frame.merge(labels, on="text_hash", suffixes=("_gold", ""))
            compared = compared[compared["method"] != KEYWORDS]
            if len(compared):
                share = float((compared["label"] == compared["label_gold"]).mean())
                details["agreement_with_gold"] = {"share": round(share, 4), "n": len(compared)}
        return StageResult(
            outputs={"labels": store.put_table(table)},
            counts={
                "votes": len(votes),
                "new_votes": sum(part.num_rows for part in store.iter_tables(new_keys, ["text_hash"])),
                "labels": len(labels),
                "labels_by_stems_alone": int((labels["method"] == KEYWORDS).sum()),
                "changed": changed,
            },
            details=details,
        )

    manifest = store.run_stage("aggregate", 1, inputs, work)
    append = {"votes": new_keys} if new_keys else {}
    quarantine = [key for key in selected.keys("quarantine") if key not in base.keys("quarantine")]
    if quarantine:
        append["quarantine"] = quarantine
    replace = {"labels": manifest.keys("labels")} if manifest.keys("labels") != base.keys("labels") else {}
    return manifest, append, replace


def _reviews(store: Store, snapshot: Snapshot, settings: Settings, taxonomy: Taxonomy) -> list[Review]:
    """Every text of the clean table and of gold, with all ids it came under, sorted by text hash."""
    texts: dict[str, str] = {}
    ids: dict[str, list[str]] = {}
    for part in store.iter_tables(snapshot.keys("clean"), ["review_id", "text_clean", "text_hash"]):
        for row in part.to_pylist():
            texts.setdefault(row["text_hash"], row["text_clean"])
            ids.setdefault(row["text_hash"], []).append(row["review_id"])
    for part in store.iter_tables(snapshot.keys("duplicates"), ["review_id", "text_hash"]):
        for row in part.to_pylist():
            ids.setdefault(row["text_hash"], []).append(row["review_id"])
    gold = load_gold(settings, taxonomy)
    if gold is not None:
        for row in gold.frame.to_dict("records"):
            texts.setdefault(row["text_hash"], row["text_clean"])
            ids.setdefault(row["text_hash"], []).append(row["review_id"])
    return [Review(text_hash=key, text=texts[key], review_ids=tuple(dict.fromkeys(ids[key]))) for key in sorted(texts)]


def _to_table(reviews: Iterable[Review]) -> pa.Table:
    return pa.Table.from_pylist(
        [{"text_hash": r.text_hash, "text": r.text, "review_ids": list(r.review_ids)} for r in reviews],
        schema=tables.REVIEW_SCHEMA,
    )


def _vote_identities(store: Store, keys: Sequence[str]) -> set[tuple[str, str, str, int]]:
    known: set[tuple[str, str, str, int]] = set()
    columns = ["text_hash", "annotator", "prompt", "draw"]
    for part in store.iter_tables(keys, columns):
        known.update(zip(*(part[name].to_pylist() for name in columns), strict=True))
    return known


def _vote(annotators: Sequence[Annotator], reviews: Sequence[Review], *, known: set[tuple[str, str, str, int]]) -> pa.Table:
    votes: list[Vote] = []
    for annotator in annotators:
        todo = [
            review for review in reviews if any((review.text_hash, *vote) not in known for vote in annotator.expected(review))
        ]
        votes += [vote for vote in annotator.annotate(todo) if vote.identity not in known]
    rows = [vote.model_dump() for vote in sorted(votes, key=lambda vote: vote.identity)]
    return pa.Table.from_pylist(rows, schema=tables.VOTE_SCHEMA)
