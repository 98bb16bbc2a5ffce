"""Labelling: select new reviews, let annotators vote on them in shards, aggregate all votes to labels."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from reviewclf import tables
from reviewclf.data.gold import load_gold
from reviewclf.labeling.annotators import RecordedAnnotator, Review, make_annotators
from reviewclf.labeling.annotators.keywords import ANNOTATOR as KEYWORDS
from reviewclf.labeling.asking import ask_all, expected_votes
from reviewclf.labeling.counts import against_gold, count_changed, count_labels, count_votes, sums
from reviewclf.labeling.labels import IDENTITY, current_labels
from reviewclf.labeling.pending import known_votes, names_found, pending_reviews, texts_to_look_at
from reviewclf.labeling.texts import names_of
from reviewclf.llm.budget import costs_of, total_costs
from reviewclf.manifest import Manifest, digest_of
from reviewclf.settings import Settings
from reviewclf.store import Change, Snapshot, StageResult, Store
from reviewclf.store.delta import digest_of_part
from reviewclf.store.queries import unknown_parts
from reviewclf.taxonomy import Taxonomy

logger = logging.getLogger(__name__)

_NAMED = 20

# In the state of a snapshot: up to which snapshot's reviews everything is voted on but what the table `unvoted` names, and by
# which annotators.
_VOTED = "voted"
# What tells refused votes from each other.
_REFUSED = ["payload", "reason", "row_number", "source"]


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
    gold = load_gold(settings, taxonomy)
    annotators = make_annotators(settings, taxonomy)
    recorded = [annotator for annotator in annotators if isinstance(annotator, RecordedAnnotator)]
    labels = snapshot.tables.get("labels")
    before: Any = snapshot.state.get(_VOTED) or {}
    voted: dict[str, Any] = {
        "annotators": [annotator.version for annotator in annotators if annotator not in recorded],
        "recorded": [annotator.version for annotator in recorded],
        "gold": None if gold is None else gold.digest,
    }
    newest = max(snapshot.identity("clean", "duplicates").values(), default=0)
    is_news = {**before, **voted} != before or newest > before["snapshot"]
    inputs = {
        "tables": snapshot.identity("clean", "duplicates", "votes", "unvoted"),
        "labels": None if labels is None else labels.version,
        "voted": before,
        "annotators": [annotator.version for annotator in annotators],
        "gold": voted["gold"],
        "votes": settings.votes,
        "shard_rows": settings.llm.shard_rows,
    }

    def work() -> StageResult:
        wanted = texts_to_look_at(store, snapshot, gold, recorded, before, voted)
        found = {annotator.by: names_found(store, snapshot, gold, annotator) for annotator in recorded}
        unmatched = [name for annotator in recorded for name in annotator.unmatched(found[annotator.by])]
        refused = [row for annotator in recorded for row in annotator.refused]
        # The sample's votes stand in until somebody gives their own.
        if settings.votes != Settings.model_fields["votes"].get_default(call_default_factory=True, validated_data={}):
            for annotator in recorded:
                some = next(store.batches(names_of(store, snapshot, gold, annotator.by).head(_NAMED), _NAMED), None)
                annotator.check_matched(found[annotator.by], [] if some is None else some["name"].to_list())
        if unmatched:
            logger.warning("%d recorded vote key(s) name no review: %s", len(unmatched), ", ".join(unmatched[:_NAMED]))
        for row in refused[:_NAMED]:
            logger.warning("%s, row %d refused: %s", settings.votes, row.row_number, row.reason)
        quarantine = [
            {**row.model_dump(), "reason": f"vote refused: {row.reason}", "source": str(settings.votes)} for row in refused
        ]
        counts = {"looked_at": 0, "pending": 0}
        keys: list[str] = []
        for shard in _sharded(pending_reviews(store, snapshot, gold, annotators, wanted, counts), settings.llm.shard_rows):
            keys += store.put_part(shard, tables.REVIEW_SCHEMA)
        shards = max(1, len(keys))
        return StageResult(
            outputs={"reviews": keys, "quarantine": store.put_part(quarantine, tables.QUARANTINE_SCHEMA)},
            counts={
                **counts,
                "recorded_votes": sum(map(len, recorded)),
                "unmatched_votes": len(unmatched),
                "refused_votes": len(refused),
            },
            details={
                "shards": [{"shard": number, "shards": shards} for number in range(shards)],
                "unmatched_votes": list(unmatched[:_NAMED]),
                # What `aggregate` compares with, so that a repeated task counts the same changes as the first attempt.
                "labels_before": inputs["labels"],
                "voted": {**voted, "snapshot": snapshot.version} if is_news else before,
            },
        )

    return store.run_stage("select", 2, inputs, work)


def _sharded(reviews: Iterator[Review], size: int) -> Iterator[list[Review]]:
    """The reviews, at most `size` together, those sorted by text hash."""
    while shard := sorted(islice(reviews, size), key=lambda review: review.text_hash):
        yield shard


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
        ``outputs``: ``votes``, and ``unvoted``, the texts that lack votes even so; ``counts``: reviews, votes, those without
        a label, and those that are still missing because the model gave no answer or the budget ended.
    """
    store = Store(settings.store_uri)
    taxonomy = Taxonomy.load(settings.taxonomy)
    annotators = make_annotators(settings, taxonomy)
    place, shards = int(shard["shard"]), int(shard["shards"])
    # Where nothing is pending there is a shard without reviews.
    keys = selected.keys("reviews")[place : place + 1]
    inputs = {
        "reviews": keys,
        "shard": [place, shards],
        "annotators": [annotator.version for annotator in annotators],
        "budget": settings.llm.model_dump(mode="json", include={"max_reviews", "max_tokens", "max_cost", "max_seconds"}),
    }

    def work() -> StageResult:
        reviews = [Review.model_validate(row) for row in store.iter_rows(keys)]
        known = known_votes(store, store.snapshot().keys("votes"), annotators, reviews)
        votes, stopped = ask_all(store, annotators, reviews, settings, known=known, shards=shards, shard=place)
        given = known | {vote.identity for vote in votes}
        missing = {review.text_hash: len(expected_votes(annotators, review) - given) for review in reviews}
        unanswered = sum(missing.values())
        unvoted = [{"text_hash": key} for key, count in missing.items() if count]
        costs = costs_of([vote.model_dump() for vote in votes], settings.llm)
        return StageResult(
            outputs={
                "votes": store.put_part(votes, tables.VOTE_SCHEMA),
                "unvoted": store.put_part(unvoted, tables.TEXT_SCHEMA),
            },
            counts={
                "reviews": len(reviews),
                "votes": len(votes),
                "without_label": sum(vote.label is None for vote in votes),
                "unanswered": unanswered,
            },
            details={"costs": costs, **({} if stopped is None else {"stopped": stopped})},
            # What no answer came to is asked again, also by a run that finds the same reviews; not what a budget ended.
            is_final=not unanswered or (stopped is not None and any(vote.tokens_in or vote.tokens_out for vote in votes)),
        )

    return store.run_stage("annotate", 3, inputs, work)


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
    gold = load_gold(settings, taxonomy)
    aggregated: list[Manifest] = []
    publish_votes(store, selected, annotated)

    def decide(base: Snapshot) -> Change:
        labels = current_labels(store, base, settings, taxonomy)
        inputs = {
            "votes": base.identity("votes"),
            "labels_before": selected.details["labels_before"],
            "taxonomy": digest_of(taxonomy),
            "options": settings.aggregation,
            "new": [manifest.digest for manifest in annotated],
            "gold": None if gold is None else gold.digest,
        }

        def work() -> StageResult:
            before: Any = selected.details["labels_before"]
            earlier = [] if before is None else store.delta.parts("labels", before)
            found = count_labels(store, labels.parts)
            return StageResult(
                counts={
                    "votes": count_votes(store, base, settings, taxonomy),
                    "new_votes": sum(manifest.counts["votes"] for manifest in annotated),
                    "labels": int(found["rows"].sum()),
                    "labels_by_stems_alone": int(found.loc[found["method"] == KEYWORDS, "rows"].sum()),
                    "changed": count_changed(store, earlier, labels.parts),
                },
                details={
                    "labels_by_class": sums(found, "label"),
                    "decisions": sums(found, "decision"),
                    "costs": costs_of_shards(annotated),
                    **({} if gold is None else against_gold(store, base, labels.parts, gold.frame, settings, taxonomy)),
                },
            )

        aggregated.append(store.run_stage("aggregate", 4, inputs, work))
        # What is published depends on votes and rules alone, so that its key must not keep it from being published again.
        key = f"labels:{digest_of([base.version, [digest_of_part(part) for part in labels.parts]])}"
        return Change(key, replace={"labels": labels.parts}, state=labels.state)

    store.publish(decide)
    _log(settings, aggregated[-1], taxonomy)
    return aggregated[-1]


def publish_votes(store: Store, selected: Manifest, annotated: Sequence[Manifest]) -> Snapshot:
    """Add the votes that the store does not hold yet, with what is to be remembered of who has voted on what."""
    keys = [key for manifest in annotated for key in manifest.keys("votes")]
    voted: Any = selected.details.get("voted")
    shards: Any = selected.details.get("shards")
    # What a shard is missing says nothing of the reviews that are in it.
    is_whole = voted is not None and len(annotated) == len(shards)
    unvoted = [key for manifest in annotated for key in manifest.keys("unvoted")]

    def decide(base: Snapshot) -> Change:
        append = {
            "votes": unknown_parts(store, base, "votes", keys, IDENTITY),
            "quarantine": unknown_parts(store, base, "quarantine", selected.keys("quarantine"), _REFUSED),
        }
        replace: dict[str, list[str]] = {"unvoted": unvoted} if is_whole else {}
        state: dict[str, Any] = {_VOTED: voted} if is_whole else {}
        return Change(f"votes:{digest_of([base.version, append, replace, state])}", append, replace, state)

    return store.publish(decide)


def _log(settings: Settings, labelled: Manifest, taxonomy: Taxonomy) -> None:
    from reviewclf.labeling.annotators.prompted import PromptedAnnotator
    from reviewclf.labeling.summary import log_labels
    from reviewclf.registry.prompts import register_prompts
    from reviewclf.registry.tracking import Tracker

    tracker = Tracker(settings.tracking_uri)
    backend, model = settings.llm.backend, None
    # The votes of a file need not be read once more.
    if backend != "recorded" and isinstance(voter := make_annotators(settings, taxonomy)[0], PromptedAnnotator):
        register_prompts(tracker, voter.prompts)
        model = voter.annotator
    log_labels(tracker, labelled, backend=backend, model=model)


def costs_of_shards(annotated: Sequence[Manifest]) -> dict[str, float]:
    """What all shards cost together; empty when nothing did."""
    parts: Any = [manifest.details.get("costs") or {} for manifest in annotated]
    return total_costs(parts)
