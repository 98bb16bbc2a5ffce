"""People in the loop: the queue of doubtful labels, and their answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import pyarrow as pa

from reviewclf import tables
from reviewclf.data.gold import Gold, load_gold
from reviewclf.labeling.annotators import Review, Vote
from reviewclf.labeling.annotators.keywords import ANNOTATOR as KEYWORDS
from reviewclf.labeling.asking import forget_published, journaled_votes
from reviewclf.labeling.human_votes import AnsweredReviews, votes_from_answers
from reviewclf.labeling.labels import current_labels
from reviewclf.labeling.pending import votes_among
from reviewclf.labeling.review import review_queue
from reviewclf.labeling.texts import read_reviews, texts_named
from reviewclf.manifest import Manifest, digest_of
from reviewclf.settings import Settings
from reviewclf.stages.label import aggregate, costs_of_shards, publish_votes
from reviewclf.store import Snapshot, StageResult, Store
from reviewclf.tables import HUMAN
from reviewclf.taxonomy import Taxonomy
from reviewclf.text import clean_text, text_hash

# Labels among which the queue is chosen: half of them the least trusted ones, the others in turn, so that a wrong label that
# seems sure is met too.
_LOOKED_AT = 10_000


def collect(settings: Settings, selected: Manifest, annotated: Sequence[Manifest]) -> Manifest:
    """Publish the new votes, and say what people should look at before they become labels.

    Returns
    -------
    Manifest
        ``outputs["queue"]``: the most doubtful labels first; ``counts``: votes that are new, labels by decision.
    """
    store = Store(settings.store_uri)
    taxonomy = Taxonomy.load(settings.taxonomy)
    gold = load_gold(settings, taxonomy)
    base = publish_votes(store, selected, annotated)
    published = [*base.keys("votes"), *base.keys("synthetic_votes")]
    forget_published(store, votes_among(store, published, journaled_votes(store).keys()))
    inputs = {
        "votes": base.identity("votes"),
        "clean": base.identity("clean"),
        "taxonomy": digest_of(taxonomy),
        "gold": None if gold is None else gold.digest,
        "seed": settings.seed,
        "review": settings.review,
        "options": settings.aggregation,
        "new": [manifest.digest for manifest in annotated],
    }
    total = costs_of_shards(annotated)

    def work() -> StageResult:
        queue = make_queue(settings)
        return StageResult(
            outputs={"queue": store.put_table(pa.Table.from_pandas(queue, schema=tables.QUEUE_SCHEMA, preserve_index=False))},
            counts={
                "new_votes": sum(manifest.counts["votes"] for manifest in annotated),
                "without_label": sum(manifest.counts["without_label"] for manifest in annotated),
                "queue": len(queue),
            },
            details={"costs": total, "stopped": [m.details["stopped"] for m in annotated if "stopped" in m.details]},
        )

    return store.run_stage("collect", 2, inputs, work)


def make_queue(settings: Settings) -> pd.DataFrame:
    """The queue for people as of now: doubtful labels that no person has decided and that are not gold, most useful first.

    Of more than 10,000 such labels, 5,000 of the least confidence and agreement are looked at, and as many others, which are
    not the same from night to night.
    """
    store = Store(settings.store_uri)
    taxonomy = Taxonomy.load(settings.taxonomy)
    snapshot = store.snapshot()
    labels = _doubtful(store, snapshot, settings, taxonomy)
    texts, ids = _first_reviews(store, snapshot, labels["text_hash"].tolist())
    queue = review_queue(labels, texts, taxonomy.keyword_stems, seed=settings.seed).head(settings.review.rows)
    queue = queue.assign(review_id=queue["text_hash"].map(ids), text=queue["text_hash"].map(texts))
    shown: pd.DataFrame = queue[tables.QUEUE_SCHEMA.names]
    return shown


def _doubtful(store: Store, snapshot: Snapshot, settings: Settings, taxonomy: Taxonomy) -> pd.DataFrame:
    """The labels among which the queue is chosen."""
    import polars
    from polars import col

    labels = store.scan(current_labels(store, snapshot, settings, taxonomy).parts, tables.LABEL_SCHEMA)
    # Labels by stems alone are hints: there are thousands, and what they lack is a reader, not a second opinion.
    labels = labels.filter((col("method") != KEYWORDS) & (col("decision") != "dropped"))
    # Where people are evenly divided, another one has to say.
    labels = labels.filter((col("method") != HUMAN) | (col("agreement") <= 0.5))
    gold = load_gold(settings, taxonomy)
    if gold is not None:
        judged = polars.Series(gold.frame["text_hash"].tolist(), dtype=polars.String)
        labels = labels.filter(~col("text_hash").is_in(judged.implode()))
    trust = col("confidence") * col("agreement")
    # Hashes begin alike nowhere, so that those after some other hash are others each time.
    turn = digest_of(snapshot.identity("votes"))
    by_turn = [col("text_hash") < turn, col("text_hash")]
    least, others = labels.bottom_k(_LOOKED_AT // 2, by=[trust, col("text_hash")]), labels.bottom_k(_LOOKED_AT, by=by_turn)
    found = polars.concat([least, others.sort(by_turn)])
    once = found.unique("text_hash", keep="first", maintain_order=True).head(_LOOKED_AT)
    frame: pd.DataFrame = store.collect(once, tables.LABEL_SCHEMA).to_pandas()
    return frame


def _first_reviews(store: Store, snapshot: Snapshot, hashes: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Texts, and ids of their reviews, by text hash."""
    import polars

    wanted = polars.Series(list(hashes), dtype=polars.String)
    rows = store.scan(snapshot.keys("clean"), tables.CLEAN_SCHEMA).filter(polars.col("text_hash").is_in(wanted.implode()))
    schema = pa.schema([tables.CLEAN_SCHEMA.field(name) for name in ("text_hash", "text_clean", "review_id")])
    found = store.collect(rows.sort("text_hash", "review_id").unique("text_hash", keep="first", maintain_order=True), schema)
    keys, texts, ids = (found[name].to_pylist() for name in schema.names)
    return dict(zip(keys, texts, strict=True)), dict(zip(keys, ids, strict=True))


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
        _reviews_of(store, snapshot, gold, answers), gold=[] if gold is None else gold.frame["text_hash"].tolist()
    )
    made = votes_from_answers(answers, reviews, _human_votes(store, snapshot), source=source)
    imported = Manifest(
        stage="import",
        digest=digest_of([vote.model_dump() for vote in made.votes]),
        outputs={"votes": store.put_part(made.votes, tables.VOTE_SCHEMA)},
        counts={"votes": len(made.votes), "without_label": 0},
    )
    labels = snapshot.tables.get("labels")
    before: dict[str, Any] = {"labels_before": None if labels is None else labels.version}
    selected = Manifest(stage="select", digest=imported.digest, details=before)
    relabelled = aggregate(settings, selected, [imported])
    details = {
        **relabelled.details,
        "answers": len(made.votes),
        "known": made.known,
        "problems": list(made.problems),
        "notes": list(made.notes),
    }
    return relabelled.model_copy(update={"details": details})


def _reviews_of(store: Store, snapshot: Snapshot, gold: Gold | None, answers: pd.DataFrame) -> list[Review]:
    """The reviews that answers may be about: by a hash, by the text itself, or by an id that they give."""
    import polars

    given = {
        name: {str(value).strip() for value in answers.get(name, ()) if value} for name in ("text_hash", "review_id", "text")
    }
    hashes = given["text_hash"] | {text_hash(clean_text(text)) for text in given["text"]}
    named = texts_named(store, snapshot, gold, "review_id", given["review_id"])
    wanted = polars.Series("text_hash", sorted(hashes.union(named)), polars.String)
    return [review for batch in read_reviews(store, snapshot, gold, wanted) for review in batch]


def _human_votes(store: Store, snapshot: Snapshot) -> dict[tuple[str, str], Vote]:
    """The newest answer of each person on each text."""
    import polars

    columns = ("text_hash", "annotator", "prompt", "draw", "label", "raw")
    votes = store.scan(snapshot.keys("votes"), tables.VOTE_SCHEMA)
    human = votes.filter(polars.col("annotator").str.starts_with(f"{HUMAN}/")).sort("draw", maintain_order=True)
    newest = human.unique(["text_hash", "annotator"], keep="last", maintain_order=True)
    rows = store.collect(newest, pa.schema([tables.VOTE_SCHEMA.field(name) for name in columns])).to_pylist()
    return {(row["text_hash"], row["annotator"]): Vote.model_validate(row) for row in rows}
