"""Scoring: select the reviews that the champion has to answer, score them in shards, publish the predictions."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from reviewclf import tables
from reviewclf.errors import DataContractError
from reviewclf.manifest import Manifest, digest_of
from reviewclf.monitoring.report import HealthReport
from reviewclf.predict import Answers, answer
from reviewclf.registry import CHALLENGER, CHAMPION, REGISTERED_MODEL
from reviewclf.settings import Settings
from reviewclf.store import Change, Snapshot, StageResult, Store

if TYPE_CHECKING:
    from reviewclf.registry.tracking import Tracker

logger = logging.getLogger(__name__)


def select(settings: Settings) -> Manifest:
    """Find the clean reviews that no champion has answered yet, and cut them into shards.

    With ``scoring.rescore_on_promotion`` also those that only earlier champions have answered. The versions that answer are
    pinned here: a promotion in the middle of a run changes nothing for it.

    Returns
    -------
    Manifest
        ``outputs["pending"]``: one part a shard; ``details``: ``champion`` and ``challenger`` (null without one, or where
        ``scoring.shadow`` is off), ``shards``; where there is nothing to do, ``skipped``, the reason, instead.
    """
    from reviewclf.registry.model import aliases

    store = Store(settings.store_uri)
    snapshot = store.snapshot()
    tracker = _tracker(settings)
    versions = aliases(tracker)
    champion = versions.get(CHAMPION)
    if champion is None:
        return _skipped(f"there is no champion at {tracker.tracking_uri}: first a retrain has to pass the gate")
    challenger = versions.get(CHALLENGER) if settings.scoring.shadow else None
    inputs = {
        "clean": snapshot.keys("clean"),
        "predictions": snapshot.keys("predictions"),
        "champion": champion,
        "challenger": challenger,
        "tracking": tracker.identity,
        "rescore": settings.scoring.rescore_on_promotion,
        "shard_rows": settings.scoring.shard_rows,
    }

    def work() -> StageResult:
        by_champions, by_this = _answered(store, snapshot, champion)
        counts = {"pending": 0, "fresh": 0}

        def pending() -> Iterator[pa.Table]:
            for part in store.iter_tables(snapshot.keys("clean"), ["review_id", "text_hash", "text", "text_clean"]):
                reviews = _identity(part)
                fresh = pc.invert(pc.is_in(reviews, value_set=by_champions))
                wanted = pc.invert(pc.is_in(reviews, value_set=by_this))
                if not settings.scoring.rescore_on_promotion:
                    wanted = pc.and_(wanted, fresh)
                rows = part.append_column("fresh", fresh).filter(wanted)
                counts["pending"] += rows.num_rows
                counts["fresh"] += pc.sum(rows["fresh"], min_count=0).as_py()
                yield rows

        keys = [key for shard in _sharded(pending(), settings.scoring.shard_rows) for key in store.put_part(shard)]
        return StageResult(
            # What is in `duplicates` by now: the watch over drift counts what the night added to it.
            outputs={"pending": keys, "duplicates": snapshot.keys("duplicates")},
            counts={**counts, "shards": len(keys)},
            details={
                "champion": champion,
                "challenger": challenger if challenger != champion else None,
                "shards": [{"shard": number, "shards": len(keys)} for number in range(len(keys))],
            },
        )

    manifest = store.run_stage("select_unscored", 2, inputs, work)
    if not manifest.counts["pending"]:
        return _skipped(f"nothing to score: champion version {champion} has no new reviews to answer")
    return manifest


def score(settings: Settings, selected: Manifest, shard: dict[str, Any]) -> Manifest:
    """Let the champion, and the challenger in its shadow, answer the reviews of one shard.

    Parameters
    ----------
    selected : Manifest
        From :func:`select`.
    shard : dict
        One entry of its ``details["shards"]``: ``shard`` of ``shards``.

    Returns
    -------
    Manifest
        ``outputs``: ``predictions``, and ``night``, the fresh reviews with all probabilities; ``counts``: reviews,
        abstained, and with a challenger compared and disagreed.
    """
    from reviewclf.registry.model import load_model

    store = Store(settings.store_uri)
    tracker = _tracker(settings)
    champion, challenger = str(selected.details["champion"]), selected.details["challenger"]
    pending = selected.keys("pending")[int(shard["shard"])]
    inputs = {"pending": pending, "champion": champion, "challenger": challenger, "tracking": tracker.identity}

    def work() -> StageResult:
        rows = store.read_table([pending])
        texts = rows["text"].to_pylist()
        now = datetime.now(UTC)
        model = load_model(tracker, f"models:/{REGISTERED_MODEL}/{champion}", version=champion)
        said = answer(model, texts)
        parts = [_predictions(rows, said, champion, CHAMPION, now)]
        counts = {"reviews": len(texts), "abstained": int(said.abstained.sum())}
        shadow: list[str | None] = [None] * len(texts)
        if challenger is not None:
            other = load_model(tracker, f"models:/{REGISTERED_MODEL}/{challenger}", version=str(challenger))
            beside = answer(other, texts)
            parts.append(_predictions(rows, beside, str(challenger), CHALLENGER, now))
            shadow = list(beside.labels)
            disagreed = sum(one != two for one, two in zip(said.labels, beside.labels, strict=True))
            counts.update(compared=len(texts), disagreed=disagreed)
        more = {"text_clean": rows["text_clean"], "probabilities": list(said.probabilities), "challenger": shadow}
        night = pa.table(_columns(rows, said) | more).select(tables.NIGHT_SCHEMA.names).cast(tables.NIGHT_SCHEMA)
        return StageResult(
            outputs={
                "predictions": [store.put_table(part) for part in parts],
                "night": store.put_part(night.filter(rows["fresh"])),
            },
            counts=counts,
            details={"classes": list(said.classes)},
        )

    return store.run_stage("score", 1, inputs, work)


def publish(settings: Settings, selected: Manifest, scored: Sequence[Manifest]) -> Manifest:
    """Make the answers visible in the table `predictions`: exactly one row per review, its text and model version.

    What another run has published since the reviews were selected is left out.

    Returns
    -------
    Manifest
        ``outputs["night"]``: the fresh reviews; ``counts``: reviews, fresh, abstained and, with a challenger, compared and
        disagreed; ``details``: versions and classes.
    """
    store = Store(settings.store_uri)
    inputs = {"selected": selected.digest, "scored": [manifest.digest for manifest in scored]}
    totals: Counter[str] = Counter()
    for manifest in scored:
        totals.update(manifest.counts)

    def work() -> StageResult:
        return StageResult(
            outputs={
                "night": [key for manifest in scored for key in manifest.keys("night")],
                "duplicates": selected.keys("duplicates"),
            },
            counts={"reviews": totals["reviews"], "fresh": selected.counts["fresh"], **totals},
            details={
                **{role: selected.details[role] for role in (CHAMPION, CHALLENGER)},
                "classes": scored[0].details["classes"],
            },
        )

    manifest = store.run_stage("publish_predictions", 1, inputs, work)
    keys = [key for part in scored for key in part.keys("predictions")]
    change_key = f"predictions:{manifest.digest}"

    def decide(base: Snapshot) -> Change | None:
        is_published = change_key in base.applied
        return None if is_published else Change(change_key, {"predictions": _unpublished(store, base, keys)})

    store.publish(decide)
    return manifest


def read_predictions(settings: Settings, *, version: str | None = None, role: str | None = None) -> pd.DataFrame:
    """The published answers with their reviews, oldest first; exact copies of a review have the answer of the first one.

    Parameters
    ----------
    version, role : str, optional
        Only answers of this model version, or given as ``champion`` or ``challenger``. Without a version, a review that several
        champions have answered has the newest answer of each role. Answers to texts that were edited since are left out.

    Returns
    -------
    DataFrame
        ``review_id``, ``text_clean`` and the columns of the table `predictions`.

    Raises
    ------
    DataContractError
        There are none.
    """
    store = Store(settings.store_uri)
    snapshot = store.snapshot()
    answers = store.read(snapshot, "predictions").to_pandas()
    if version is not None:
        answers = answers[answers["model_version"] == version]
    if role is not None:
        answers = answers[answers["role"] == role]
    if version is None:
        answers = answers.drop_duplicates(["review_id", "role"], keep="last")
    if answers.empty:
        raise DataContractError(
            f"{settings.store_uri}: holds no predictions like that; the DAG reviews_score writes them once there is a champion"
        )
    clean = store.read(snapshot, "clean", ["review_id", "text_hash", "text_clean"]).to_pandas()
    answers = answers.merge(clean, on=["review_id", "text_hash"])
    copies = store.read(snapshot, "duplicates", ["review_id", "duplicate_of"]).to_pandas()
    # A row that came twice is no copy of itself.
    copies = copies[copies["review_id"] != copies["duplicate_of"]].drop_duplicates("review_id")
    again = copies.merge(answers.rename(columns={"review_id": "duplicate_of"}), on="duplicate_of").drop(columns="duplicate_of")
    columns = ["review_id", "text_clean", *tables.PREDICTION_SCHEMA.names[1:]]
    both: pd.DataFrame = pd.concat([answers[columns], again[columns]], ignore_index=True)
    return both


def latest_report(settings: Settings) -> HealthReport | None:
    """The newest look at production; None before the first scoring."""
    return next(iter(health_history(settings, newest=1)), None)


def health_history(settings: Settings, *, newest: int = 30) -> list[HealthReport]:
    """Reports of the last scorings, newest first."""
    store = Store(settings.store_uri)
    rows = store.iter_rows(store.snapshot().keys("health")[-newest:], ["report"])
    return [HealthReport.model_validate_json(row["report"]) for row in list(rows)[-newest:][::-1]]


# -- small parts -----------------------------------------------------------------------------------------------------


def _sharded(parts: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """The rows of the parts in tables of `size` rows; the last one may be shorter."""
    waiting = tables.PENDING_SCHEMA.empty_table()
    for part in parts:
        waiting = pa.concat_tables([waiting, part.select(waiting.column_names)])
        while waiting.num_rows >= size:
            yield waiting.slice(0, size)
            waiting = waiting.slice(size)
    yield waiting


def _answered(store: Store, snapshot: Snapshot, version: str) -> tuple[pa.Array, pa.Array]:
    """The reviews, with their texts, that any champion, and that this version in any role, has answered."""
    by_champions, by_this = [], []
    for part in store.iter_tables(snapshot.keys("predictions"), ["review_id", "text_hash", "model_version", "role"]):
        reviews = _identity(part)
        by_champions.append(reviews.filter(pc.equal(part["role"], CHAMPION)))
        by_this.append(reviews.filter(pc.equal(part["model_version"], version)))
    return _joined(by_champions), _joined(by_this)


def _identity(part: pa.Table, *others: str) -> pa.ChunkedArray:
    """Review, text and other columns as one: a review that was edited is answered anew."""
    return pc.binary_join_element_wise(*(part[name] for name in ("review_id", "text_hash", *others)), "\n")


def _joined(columns: list[pa.ChunkedArray]) -> pa.Array:
    return pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.string()).combine_chunks()


def _unpublished(store: Store, base: Snapshot, keys: Sequence[str]) -> list[str]:
    """Parts with those rows of `keys` whose review, text and version `base` does not hold; usually the same parts."""
    columns = ["review_id", "text_hash", "model_version"]
    published = (_identity(part, "model_version") for part in store.iter_tables(base.keys("predictions"), columns))
    known = _joined(list(published))
    new = []
    for key, part in zip(keys, store.iter_tables(keys), strict=True):
        rows = part.filter(pc.invert(pc.is_in(_identity(part, "model_version"), value_set=known)))
        new += [key] if rows.num_rows == part.num_rows else store.put_part(rows)
    return new


def _predictions(rows: pa.Table, answers: Answers, version: str, role: str, now: datetime) -> pa.Table:
    of_all = {"model_version": version, "role": role, "scored_at": now}
    repeated = {name: [value] * rows.num_rows for name, value in of_all.items()}
    return pa.table(_columns(rows, answers) | repeated, schema=tables.PREDICTION_SCHEMA)


def _columns(rows: pa.Table, answers: Answers) -> dict[str, Any]:
    said = {"label": answers.labels, "confidence": answers.confidence, "abstained": answers.abstained}
    return {"review_id": rows["review_id"], "text_hash": rows["text_hash"], **said}


def _skipped(reason: str) -> Manifest:
    """Not a stage of the store: the next call may find something to do."""
    logger.info("%s", reason)
    details: dict[str, Any] = {"skipped": reason, "shards": []}
    return Manifest(stage="select_unscored", digest=digest_of(details), details=details)


def _tracker(settings: Settings) -> Tracker:
    from reviewclf.registry.tracking import Tracker

    return Tracker(settings.tracking_uri)
