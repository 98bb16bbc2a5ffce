"""People in the loop: the queue of doubtful labels, and their answers."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from reviewclf import tables
from reviewclf.data.gold import load_gold
from reviewclf.labeling.annotators import Vote
from reviewclf.labeling.annotators.keywords import ANNOTATOR as KEYWORDS
from reviewclf.labeling.asking import forget_published
from reviewclf.labeling.human_votes import AnsweredReviews, votes_from_answers
from reviewclf.labeling.review import review_queue
from reviewclf.manifest import Manifest, digest_of
from reviewclf.settings import Settings
from reviewclf.stages.label import aggregate, all_reviews, costs_of_shards, decide_labels, usable_votes, vote_identities
from reviewclf.store import Change, Snapshot, StageResult, Store
from reviewclf.tables import HUMAN
from reviewclf.taxonomy import Taxonomy


def collect(settings: Settings, selected: Manifest, annotated: Sequence[Manifest]) -> Manifest:
    """Publish the new votes, and say what people should look at before they become labels.

    Returns
    -------
    Manifest
        ``outputs["queue"]``: the most doubtful labels first; ``counts``: votes that are new, labels by decision.
    """
    store = Store(settings.store_uri)
    taxonomy = Taxonomy.load(settings.taxonomy)
    new_keys = [key for manifest in annotated for key in manifest.keys("votes")]

    def decide(base: Snapshot) -> Change:
        votes, refused = base.missing("votes", new_keys), base.missing("quarantine", selected.keys("quarantine"))
        return Change(f"votes:{digest_of([votes, refused])}", {"votes": votes, "quarantine": refused})

    base = store.publish(decide)
    forget_published(store, vote_identities(store, [*base.keys("votes"), *base.keys("synthetic_votes")]))
    queue = make_queue(settings)
    inputs = {
        "votes": base.keys("votes"),
        "taxonomy": digest_of(taxonomy),
        "review": settings.review,
        "options": settings.aggregation,
        "new": [manifest.digest for manifest in annotated],
    }
    total = costs_of_shards(annotated)
    return store.run_stage(
        "collect",
        1,
        inputs,
        lambda: StageResult(
            outputs={"queue": store.put_table(pa.Table.from_pandas(queue, schema=tables.QUEUE_SCHEMA, preserve_index=False))},
            counts={
                "new_votes": sum(manifest.counts["votes"] for manifest in annotated),
                "without_label": sum(manifest.counts["without_label"] for manifest in annotated),
                "queue": len(queue),
            },
            details={"costs": total, "stopped": [m.details["stopped"] for m in annotated if "stopped" in m.details]},
        ),
    )


def make_queue(settings: Settings) -> pd.DataFrame:
    """The queue for people as of now: doubtful labels that no person has decided and that are not gold, most useful first."""
    store = Store(settings.store_uri)
    taxonomy = Taxonomy.load(settings.taxonomy)
    snapshot = store.snapshot()
    votes = usable_votes(store, snapshot.keys("votes"), settings, taxonomy)
    labels = decide_labels(votes, settings, taxonomy)
    # Labels by stems alone are hints: there are thousands, and what they lack is a reader, not a second opinion.
    labels = labels[(labels["method"] != KEYWORDS) & (labels["decision"] != "dropped")]
    # Where people are evenly divided, another one has to say.
    labels = labels[(labels["method"] != HUMAN) | (labels["agreement"] <= 0.5)]
    gold = load_gold(settings, taxonomy)
    if gold is not None:
        labels = labels[~labels["text_hash"].isin(set(gold.frame["text_hash"]))]
    texts: dict[str, str] = {}
    ids: dict[str, str] = {}
    for part in store.iter_tables(snapshot.keys("clean"), ["review_id", "text_clean", "text_hash"]):
        for row in part.to_pylist():
            texts.setdefault(row["text_hash"], row["text_clean"])
            ids.setdefault(row["text_hash"], row["review_id"])
    queue = review_queue(labels, texts, taxonomy.keyword_stems, seed=settings.seed).head(settings.review.rows)
    queue = queue.assign(review_id=queue["text_hash"].map(ids), text=queue["text_hash"].map(texts))
    shown: pd.DataFrame = queue[tables.QUEUE_SCHEMA.names]
    return shown


def import_answers(settings: Settings, answers: pd.DataFrame, *, source: str) -> Manifest:
    """Take people's answers in as votes that win, and relabel.

    Every person has one vote on a text: the newest of their answers, by the times that the file gives, else by its order, and
    then by the order of the imports. People who disagree all keep their votes.

    Parameters
    ----------
    answers : DataFrame
        ``label`` and at least one of ``text_hash``, ``review_id`` and ``text``; see
        :class:`reviewclf.labeling.answers.Answers` for the others.
    source : str
        Name of the file; the annotator of rows that name none.

    Returns
    -------
    Manifest
        That of :func:`aggregate`; ``details``: ``answers`` (how many are new), ``known`` (how many were known before),
        ``problems`` (a line for each answer that fits no review) and ``notes`` (changes of mind, disagreements).
    """
    store = Store(settings.store_uri)
    taxonomy = Taxonomy.load(settings.taxonomy)
    snapshot = store.snapshot()
    gold = load_gold(settings, taxonomy)
    reviews = AnsweredReviews(
        all_reviews(store, snapshot, settings, taxonomy), gold=[] if gold is None else gold.frame["text_hash"].tolist()
    )
    made = votes_from_answers(answers, reviews, _human_votes(store, snapshot.keys("votes")), source=source)
    imported = Manifest(
        stage="import",
        digest=digest_of([vote.model_dump() for vote in made.votes]),
        outputs={"votes": store.put_part(made.votes, tables.VOTE_SCHEMA)},
        counts={"votes": len(made.votes), "without_label": 0},
    )
    selected = Manifest(stage="select", digest=imported.digest, outputs={"labels_before": snapshot.keys("labels")})
    relabelled = aggregate(settings, selected, [imported])
    details = {
        **relabelled.details,
        "answers": len(made.votes),
        "known": made.known,
        "problems": list(made.problems),
        "notes": list(made.notes),
    }
    return relabelled.model_copy(update={"details": details})


def _human_votes(store: Store, keys: Sequence[str]) -> dict[tuple[str, str], Vote]:
    """The newest answer of each person on each text."""
    newest: dict[tuple[str, str], Vote] = {}
    for part in store.iter_tables(keys, ["text_hash", "annotator", "prompt", "draw", "label", "raw"]):
        for row in part.filter(pc.starts_with(part["annotator"], f"{HUMAN}/")).to_pylist():
            vote = Vote.model_validate(row)
            before = newest.get((vote.text_hash, vote.annotator))
            if before is None or before.draw < vote.draw:
                newest[vote.text_hash, vote.annotator] = vote
    return newest
