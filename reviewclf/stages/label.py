"""Labelling: select new reviews, let annotators vote on them in shards, aggregate all votes to labels."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from reviewclf import tables
from reviewclf.data.gold import load_gold
from reviewclf.errors import LabelingError
from reviewclf.evaluation import reliability
from reviewclf.labeling.annotators import KeywordAnnotator, RecordedAnnotator, Review, VoteIdentity, make_annotators
from reviewclf.labeling.annotators.keywords import ANNOTATOR as KEYWORDS
from reviewclf.labeling.asking import ask_all, expected_votes
from reviewclf.labeling.votes import aggregate_llm_votes
from reviewclf.llm.budget import costs_of, total_costs
from reviewclf.manifest import Manifest, digest_of
from reviewclf.settings import Settings
from reviewclf.store import Change, Snapshot, StageResult, Store
from reviewclf.store.delta import digest_of_part
from reviewclf.tables import HUMAN
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
    reviews = all_reviews(store, snapshot, settings, taxonomy)
    inputs = {
        "reviews": digest_of([review.model_dump() for review in reviews]),
        "votes": snapshot.keys("votes"),
        "labels": snapshot.keys("labels"),
        "annotators": [annotator.version for annotator in annotators],
        "shard_rows": settings.llm.shard_rows,
    }

    def work() -> StageResult:
        known = vote_identities(store, snapshot.keys("votes"))
        pending = [review for review in reviews if not expected_votes(annotators, review) <= known]
        shards = max(1, -(-len(pending) // settings.llm.shard_rows))
        recorded = [annotator for annotator in annotators if isinstance(annotator, RecordedAnnotator)]
        unmatched = [key for annotator in recorded for key in annotator.unmatched(reviews)]
        refused = [row for annotator in recorded for row in annotator.refused]
        # The sample's votes stand in until somebody gives their own.
        if settings.votes != Settings.model_fields["votes"].get_default(call_default_factory=True, validated_data={}):
            for annotator in recorded:
                annotator.check_matched(reviews)
        if unmatched:
            logger.warning("%d recorded vote key(s) name no review: %s", len(unmatched), ", ".join(unmatched[:_NAMED]))
        for row in refused[:_NAMED]:
            logger.warning("%s, row %d refused: %s", settings.votes, row.row_number, row.reason)
        quarantine = [
            {**row.model_dump(), "reason": f"vote refused: {row.reason}", "source": str(settings.votes)} for row in refused
        ]
        return StageResult(
            outputs={
                "reviews": store.put_part(pending, tables.REVIEW_SCHEMA),
                # What `aggregate` compares with, so that a repeated task counts the same changes as the first attempt.
                "labels_before": snapshot.keys("labels"),
                # What `annotate` need not ask again.
                "votes_before": snapshot.keys("votes"),
                "quarantine": store.put_part(quarantine, tables.QUARANTINE_SCHEMA),
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
        ``outputs["votes"]``: the votes; ``counts``: reviews, votes, those without a label, and those that are still missing
        because the model gave no answer or the budget ended.
    """
    store = Store(settings.store_uri)
    taxonomy = Taxonomy.load(settings.taxonomy)
    annotators = make_annotators(settings, taxonomy)
    inputs = {
        "reviews": selected.keys("reviews"),
        "shard": [shard["shard"], shard["shards"]],
        "annotators": [annotator.version for annotator in annotators],
        "budget": settings.llm.model_dump(mode="json", include={"max_reviews", "max_tokens", "max_cost", "max_seconds"}),
    }

    def work() -> StageResult:
        place, shards = int(shard["shard"]), int(shard["shards"])
        pending = (Review.model_validate(row) for row in store.iter_rows(selected.keys("reviews")))
        reviews = [review for review in pending if int(review.text_hash[:8], 16) % shards == place]
        published = dict.fromkeys([*selected.keys("votes_before"), *store.snapshot().keys("votes")])
        known = vote_identities(store, list(published))
        votes, stopped = ask_all(store, annotators, reviews, settings, known=known, shards=shards, shard=place)
        given = known | {vote.identity for vote in votes}
        unanswered = sum(len(expected_votes(annotators, review) - given) for review in reviews)
        costs = costs_of([vote.model_dump() for vote in votes], settings.llm)
        return StageResult(
            outputs={"votes": store.put_part(votes, tables.VOTE_SCHEMA)},
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

    return store.run_stage("annotate", 2, inputs, work)


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

    def decide(base: Snapshot) -> Change:
        new = base.missing("votes", [key for manifest in annotated for key in manifest.keys("votes")])
        keys = [*base.keys("votes"), *new]
        inputs = {
            "votes": [digest_of_part(key) for key in keys],
            "labels_before": selected.keys("labels_before"),
            "taxonomy": digest_of(taxonomy),
            "options": settings.aggregation,
            "new": [manifest.digest for manifest in annotated],
            "gold": None if gold is None else gold.digest,
        }

        def work() -> StageResult:
            votes = usable_votes(store, keys, settings, taxonomy)
            labels = decide_labels(votes, settings, taxonomy)
            table = pa.Table.from_pandas(labels[tables.LABEL_SCHEMA.names], schema=tables.LABEL_SCHEMA, preserve_index=False)
            before = store.read(selected, "labels_before", ["text_hash", "label"]).to_pandas()
            both = labels.merge(before, on="text_hash", how="outer", suffixes=("", "_before"))
            return StageResult(
                outputs={"labels": store.put_table(table)},
                counts={
                    "votes": len(votes),
                    "new_votes": sum(manifest.counts["votes"] for manifest in annotated),
                    "labels": len(labels),
                    "labels_by_stems_alone": int((labels["method"] == KEYWORDS).sum()),
                    "changed": int((both["label"].fillna("") != both["label_before"].fillna("")).sum()),
                },
                details={
                    "labels_by_class": labels["label"].value_counts().to_dict(),
                    "decisions": labels["decision"].value_counts().to_dict(),
                    "costs": costs_of_shards(annotated),
                    **({} if gold is None else _against_gold(gold.frame, labels, votes)),
                },
            )

        manifest = store.run_stage("aggregate", 3, inputs, work)
        aggregated.append(manifest)
        append = {"votes": new, "quarantine": base.missing("quarantine", selected.keys("quarantine"))}
        return Change(f"labels:{manifest.digest}", append, {"labels": manifest.keys("labels")})

    store.publish(decide)
    _log(settings, aggregated[-1], taxonomy)
    return aggregated[-1]


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


def all_reviews(store: Store, snapshot: Snapshot, settings: Settings, taxonomy: Taxonomy) -> list[Review]:
    """Every text of the clean table and of gold, with all ids it came under, sorted by text hash."""
    texts: dict[str, str] = {}
    ids: dict[str, list[str]] = {}
    for row in store.iter_rows(snapshot.keys("clean"), ["review_id", "text_clean", "text_hash"]):
        texts.setdefault(row["text_hash"], row["text_clean"])
        ids.setdefault(row["text_hash"], []).append(row["review_id"])
    for row in store.iter_rows(snapshot.keys("duplicates"), ["review_id", "text_hash"]):
        ids.setdefault(row["text_hash"], []).append(row["review_id"])
    gold = load_gold(settings, taxonomy)
    if gold is not None:
        for key, text, review_id in gold.frame[["text_hash", "text_clean", "review_id"]].itertuples(index=False):
            texts.setdefault(key, text)
            ids.setdefault(key, []).append(review_id)
    return [Review(text_hash=key, text=texts[key], review_ids=tuple(dict.fromkeys(ids[key]))) for key in sorted(texts)]


def vote_identities(store: Store, keys: Sequence[str]) -> set[VoteIdentity]:
    """Which votes lie under `keys`."""
    known: set[VoteIdentity] = set()
    columns = ["text_hash", "annotator", "prompt", "draw"]
    for part in store.iter_tables(keys, columns):
        known.update(zip(*(part[name].to_pylist() for name in columns), strict=True))
    return known


def usable_votes(store: Store, keys: Sequence[str], settings: Settings, taxonomy: Taxonomy) -> pd.DataFrame:
    """All votes that count: each once, those of other stems than today's and of categories that are gone left out."""
    stems = KeywordAnnotator(taxonomy, confidence=settings.aggregation.keyword_confidence).version
    votes = store.read_table(keys, schema=tables.VOTE_SCHEMA).to_pandas()
    votes = votes.drop_duplicates(["text_hash", "annotator", "prompt", "draw"], keep="first")
    by_stems = votes["annotator"].str.startswith(f"{KEYWORDS}@")
    # Stems change with the taxonomy; what older stems said is history.
    votes = votes[~by_stems | (votes["annotator"] == stems)]
    # A person who answers again means the newer answer, even where its category is gone since.
    human = votes["annotator"].str.startswith(f"{HUMAN}/")
    newest = votes[human].sort_values("draw", kind="stable").drop_duplicates(["text_hash", "annotator"], keep="last")
    counted = pd.concat([votes[~human], newest], ignore_index=True)
    usable: pd.DataFrame = counted[counted["label"].isna() | counted["label"].isin(taxonomy.names)].reset_index(drop=True)
    return usable


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


def _against_gold(gold: pd.DataFrame, labels: pd.DataFrame, votes: pd.DataFrame) -> dict[str, Any]:
    """How often, and how honestly, labels and annotators agree with people on gold reviews; empty without any in common."""
    compared = gold.merge(labels, on="text_hash", suffixes=("_gold", ""))
    compared = compared[~compared["method"].isin([KEYWORDS, HUMAN])]
    if not len(compared):
        return {}
    right = (compared["label"] == compared["label_gold"]).to_numpy()
    calibration = reliability(right, compared["confidence"].to_numpy(dtype=float))
    pairs = gold.merge(votes[votes["label"].notna()], on="text_hash", suffixes=("_gold", ""))
    by_annotator = (pairs["label"] == pairs["label_gold"]).groupby(pairs["annotator"])
    return {
        "agreement_with_gold": {"share": round(float(right.mean()), 4), "n": len(compared)},
        "label_ece": round(calibration.value, 4),
        "reliability": [bin_.model_dump() for bin_ in calibration.bins],
        "annotators": {str(who): {"agreement": round(float(a.mean()), 4), "n": len(a)} for who, a in by_annotator},
    }


def costs_of_shards(annotated: Sequence[Manifest]) -> dict[str, float]:
    """What all shards cost together; empty when nothing did."""
    parts: Any = [manifest.details.get("costs") or {} for manifest in annotated]
    return total_costs(parts)
