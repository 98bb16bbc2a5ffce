"""Scoring: select the reviews that the champion has to answer, score them in shards, publish the predictions."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa

from reviewclf import tables
from reviewclf.errors import DataContractError
from reviewclf.manifest import Manifest, digest_of
from reviewclf.monitoring.report import HealthReport
from reviewclf.predict import Answers, answer
from reviewclf.registry import CHALLENGER, CHAMPION, REGISTERED_MODEL
from reviewclf.settings import Settings
from reviewclf.store import Change, Snapshot, StageResult, Store
from reviewclf.store.queries import count_rows, known_rows, rows_since, unknown_parts

if TYPE_CHECKING:
    from polars import DataFrame, Series

    from reviewclf.registry.tracking import Tracker

logger = logging.getLogger(__name__)

# In the state of a snapshot: up to which snapshot's reviews all are answered by a champion; where a new one answers all of
# history, by which version.
_SCORED = "scored"
# A review that was edited is answered anew.
_REVIEW = ["review_id", "text_hash"]
_ANSWER = [*_REVIEW, "model_version"]
# Clean rows that are compared with answers at a time.
_BATCH = 50_000


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
    before: Any = snapshot.state.get(_SCORED) or {}
    version = champion if settings.scoring.rescore_on_promotion else None
    scored: dict[str, Any] = {"snapshot": snapshot.version, "version": version}
    inputs = {
        "tables": snapshot.identity("clean", "predictions", "duplicates"),
        "scored": before,
        "champion": champion,
        "challenger": challenger,
        "tracking": tracker.identity,
        "rescore": settings.scoring.rescore_on_promotion,
        "shard_rows": settings.scoring.shard_rows,
    }

    def work() -> StageResult:
        # Who answers all of history looks at all again once there is somebody new.
        since = before.get("snapshot") if version in (None, before.get("version")) else None
        counts = {"pending": 0, "fresh": 0}
        pending = _pending(store, snapshot, since, version, counts)
        keys = [key for shard in _sharded(pending, settings.scoring.shard_rows) for key in store.put_part(shard)]
        copies = store.scan(snapshot.keys("duplicates"), tables.DUPLICATE_SCHEMA)
        return StageResult(
            outputs={"pending": keys},
            # How many copies there are by now: the watch over drift counts what the night added to them.
            counts={**counts, "shards": len(keys), "copies": count_rows(store, copies)},
            details={
                "champion": champion,
                "challenger": challenger if challenger != champion else None,
                "shards": [{"shard": number, "shards": len(keys)} for number in range(len(keys))],
                "scored": scored,
            },
        )

    manifest = store.run_stage("select_unscored", 3, inputs, work)
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
            outputs={"night": [key for manifest in scored for key in manifest.keys("night")]},
            counts={"reviews": totals["reviews"], **{name: selected.counts[name] for name in ("fresh", "copies")}, **totals},
            details={
                **{role: selected.details[role] for role in (CHAMPION, CHALLENGER)},
                "classes": scored[0].details["classes"],
            },
        )

    manifest = store.run_stage("publish_predictions", 1, inputs, work)
    keys = [key for part in scored for key in part.keys("predictions")]
    change_key = f"predictions:{manifest.digest}"

    def decide(base: Snapshot) -> Change | None:
        if change_key in base.applied:
            return None
        state: Any = {_SCORED: selected.details["scored"]}
        return Change(change_key, {"predictions": unknown_parts(store, base, "predictions", keys, _ANSWER)}, state=state)

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
    reports = store.scan(store.snapshot().keys("health"), tables.HEALTH_SCHEMA).select("at", "report")
    schema = pa.schema([tables.HEALTH_SCHEMA.field(name) for name in ("at", "report")])
    rows = store.collect(reports.sort("at", descending=True, maintain_order=True).head(newest), schema)
    return [HealthReport.model_validate_json(report) for report in rows["report"].to_pylist()]


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


def _pending(
    store: Store, snapshot: Snapshot, since: int | None, version: str | None, counts: dict[str, int]
) -> Iterator[pa.Table]:
    """Clean rows since a snapshot that no champion has answered, nor `version`, if one is given; `counts` are counted up."""
    columns = [*_REVIEW, "text", "text_clean"]
    rows = rows_since(store, snapshot, "clean", since, _REVIEW).select(columns)
    for batch in store.batches(rows, _BATCH):
        found = batch.with_columns(fresh=_is_new(store, snapshot, batch, "role", CHAMPION))
        pending = found.filter("fresh" if version is None else _is_new(store, snapshot, batch, "model_version", version))
        counts["pending"] += len(pending)
        counts["fresh"] += int(pending["fresh"].sum())
        yield pending.to_arrow().cast(tables.PENDING_SCHEMA)


def _is_new(store: Store, snapshot: Snapshot, reviews: DataFrame, column: str, value: str) -> Series:
    """Of each review, whether nobody of this role or version has answered it."""
    from polars import lit

    answered = known_rows(
        store, snapshot.keys("predictions"), tables.PREDICTION_SCHEMA, reviews.select(*_REVIEW, lit(value).alias(column))
    )
    both = reviews.select(_REVIEW).join(
        answered.select(*_REVIEW, lit(value=False).alias("is_new")), on=_REVIEW, how="left", maintain_order="left"
    )
    return both["is_new"].fill_null(value=True)


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
