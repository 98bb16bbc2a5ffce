"""After a scoring: compare the night with the nights before and with the champion's training data, and say so everywhere."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from reviewclf import tables
from reviewclf.errors import DatasetError
from reviewclf.labeling.annotators.keywords import ANNOTATOR as KEYWORDS
from reviewclf.manifest import Manifest
from reviewclf.monitoring.drift import Night, detect_drift
from reviewclf.monitoring.estimate import Calibrator, estimate_f1, seen_f1
from reviewclf.monitoring.exports import log_health, write_prometheus
from reviewclf.monitoring.features import FeatureExtractor
from reviewclf.monitoring.report import HealthReport, Signal, alarm_text, headline
from reviewclf.predict import answer
from reviewclf.registry import REGISTERED_MODEL
from reviewclf.settings import Settings
from reviewclf.stages.dataset import find_dataset
from reviewclf.store import Change, Snapshot, StageResult, Store
from reviewclf.store.queries import known_rows
from reviewclf.text import redact, text_hash

if TYPE_CHECKING:
    from reviewclf.registry.tracking import Tracker

logger = logging.getLogger(__name__)

_NIGHTS = "nights"
_REMEMBERED = 400
# With more of its reviews in the champion's training set a scoring is one of history, not of a night.
_MOST_KNOWN = 0.1
# A signal that alarmed on one of so many nights before is not news.
_QUIET = 3
# A night's estimate is held against labels where at least so many came in.
_FEWEST_LABELS = 30
_SHOWN = 20
# Training reviews that are held in memory together.
_BATCH = 50_000
# Training reviews that are read, at most.
_MOST_TRAINING = 20_000
# Nights read beyond those of the reference: a window's own, and those that alarmed.
_LONGER = 14
# Of the report's fields, in the order of an estimate's.
_ENDS = ("", "_low", "_high")
# Validation rows that weigh less carry what stems say, not what somebody read.
_READ = 0.3


def monitor(settings: Settings, published: Manifest) -> Manifest:
    """Look at production after a scoring; the report goes to the store, to MLflow and to a file for Prometheus.

    Parameters
    ----------
    published : Manifest
        From :func:`reviewclf.stages.score.publish`.

    Returns
    -------
    Manifest
        ``counts``: reviews, signals, alarms, ``new_alarms`` (signals that did not alarm in the last nights); ``details``:
        verdict, alarmed signals, ``alarm`` (text for people, of the new ones), MLflow run. Where only history was scored anew
        ``skipped``, the reason, instead.
    """
    from reviewclf.registry.tracking import Tracker

    if not published.counts["fresh"]:
        reason = "only reviews that were scored before were scored again: there is no new night to look at"
        return Manifest(stage="monitor", digest=published.digest, details={"skipped": reason})
    store = Store(settings.store_uri)
    tracker = Tracker(settings.tracking_uri)

    def work() -> StageResult:
        return _examine(settings, store, tracker, published)

    manifest = store.run_stage("monitor", 1, {"published": published.digest}, work)

    def decide(base: Snapshot) -> Change:
        nights = [*_remembered(base), manifest.details["night"]]
        state: Any = {_NIGHTS: nights[-_REMEMBERED:]}
        return Change(f"health:{published.digest}", append={"health": manifest.keys("health")}, state=state)

    store.publish(decide)
    row = store.read(manifest, "health")["report"][0].as_py()
    report = HealthReport.model_validate_json(row)
    disagreements: Any = manifest.details["disagreements"]
    run_id = log_health(tracker, report, key=published.digest, counts=published.counts, disagreements=disagreements)
    write_prometheus(report, exposition_path(settings))
    logger.info("%s", headline(report))
    return manifest.model_copy(update={"details": {**manifest.details, "run_id": run_id}})


def exposition_path(settings: Settings) -> Path:
    """Where the newest report lies for node-exporter's textfile collector."""
    return settings.home.expanduser().resolve() / "metrics" / "reviewclf.prom"


# -- one look --------------------------------------------------------------------------------------------------------


class _Training(NamedTuple):
    """What the champion was trained on and said to its validation rows; see :func:`_training`.

    ``texts`` are some of the reviews; under the keys ``hashes`` are the hashes of all.
    """

    texts: list[str]
    hashes: list[str]
    validation: pd.DataFrame
    answers: pd.DataFrame


def _examine(settings: Settings, store: Store, tracker: Tracker, published: Manifest) -> StageResult:
    base = store.snapshot()
    version = str(published.details["champion"])
    classes: Any = published.details["classes"]
    options = settings.monitoring
    rows = _night_rows(store, published.keys("night"), options.sample_rows)
    training = _training(settings, store, tracker, version, classes)
    remembered = _remembered(base)
    note = _why_not(store, rows, training, remembered)
    entry: dict[str, Any] = {
        "digest": published.digest,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "night": published.keys("night"),
        "version": version,
        "classes": classes,
        "rows": published.counts["fresh"],
        "history": bool(note),
        "all_copies": published.counts["copies"],
        **_copies(published, remembered),
        "alarmed": [],
    }
    probabilities = _matrix(rows)
    calibrator = _calibrator(training, classes, settings.seed)
    # On reviews that it was trained on, a model is surer than it has reason to be.
    estimate = None if note else estimate_f1(probabilities, calibrator, seed=settings.seed)
    errors: list[float] = []
    signals: tuple[Signal, ...] = ()
    if training is not None and not note:
        entries = [item for item in remembered if not item["history"]][-options.reference_nights - _LONGER :]
        frames = [_night_rows(store, item["night"], options.sample_rows) for item in entries]
        labels = _labels(store, base, [rows, *frames])
        extractor = FeatureExtractor(training.texts)
        past = [_night(item, frame, extractor, labels) for item, frame in zip(entries, frames, strict=True)]
        tonight, of_training = _night(entry, rows, extractor, labels), _training_night(training, extractor, version)
        signals = detect_drift(tonight, past, of_training, extractor, options)
        errors = [
            error
            for item, frame in zip(entries, frames, strict=True)
            if item["version"] == version and (error := _error(frame, labels, calibrator, classes)) is not None
        ]
    alarmed = [signal.name for signal in signals if signal.alarmed]
    entry["alarmed"] = alarmed
    recent = {name for item in remembered[-_QUIET:] if item["version"] == version for name in item["alarmed"]}
    new = [signal for signal in signals if signal.alarmed and signal.name not in recent]
    compared = published.counts.get("compared")
    report = HealthReport(
        at=datetime.fromisoformat(entry["at"]),
        model_version=version,
        n=published.counts["fresh"],
        verdict="drift" if alarmed else "healthy" if any(signal.value is not None for signal in signals) else "unknown",
        signals=signals,
        abstained_share=round(published.counts["abstained"] / published.counts["reviews"], 6),
        disagreement_share=round(published.counts["disagreed"] / compared, 6) if compared else None,
        **({} if estimate is None else {f"estimated_f1{end}": round(estimate[place], 6) for place, end in enumerate(_ENDS)}),
        estimate_error=round(float(np.mean(errors)), 6) if errors else None,
        estimate_nights=len(errors),
        challenger=None if published.details["challenger"] is None else str(published.details["challenger"]),
        note=note,
    )
    row = report.model_dump() | {"digest": published.digest, "rows": report.n, "report": report.model_dump_json()}
    return StageResult(
        outputs={"health": store.put_part([row], tables.HEALTH_SCHEMA)},
        counts={"reviews": report.n, "signals": len(signals), "alarms": len(alarmed), "new_alarms": len(new)},
        details={
            "verdict": report.verdict,
            "headline": headline(report),
            "alarmed": list(alarmed),
            "alarm": alarm_text(new),
            "night": entry,
            "disagreements": _disagreements(rows),
        },
    )


def _why_not(store: Store, rows: pd.DataFrame, training: _Training | None, remembered: Sequence[Mapping[str, Any]]) -> str:
    """Why this scoring cannot be compared with anything; empty where it can."""
    import polars

    if training is None:
        return "the store does not hold the dataset that the champion was trained on"
    texts = polars.DataFrame({"text_hash": rows["text_hash"].tolist()}, schema={"text_hash": polars.String})
    learned = set(known_rows(store, training.hashes, tables.TEXT_SCHEMA, texts)["text_hash"])
    known = float(rows["text_hash"].isin(learned).mean())
    if known > _MOST_KNOWN:
        return f"history: the champion was trained on {known:.0%} of these reviews"
    return "" if remembered else "the first scoring is one of history; from the next one on nights are compared"


def _training(settings: Settings, store: Store, tracker: Tracker, version: str, classes: Sequence[str]) -> _Training | None:
    """The real reviews of the champion's dataset; its answers to validation rows are made once per version."""
    from reviewclf.registry.model import dataset_of, load_model

    try:
        dataset = find_dataset(settings, dataset_of(tracker, version) or "unknown")
    except DatasetError:
        return None
    inputs = {"dataset": dataset.digest, "most": _MOST_TRAINING}
    reviews = store.run_stage("training_reviews", 1, inputs, lambda: _training_reviews(store, dataset))
    validation = store.read(reviews, "validation").to_pandas()

    def work() -> StageResult:
        model = load_model(tracker, f"models:/{REGISTERED_MODEL}/{version}", version=version)
        said = answer(model, validation["text_clean"].tolist())
        columns = {"predicted": said.labels, "abstained": said.abstained, "probabilities": list(said.probabilities)}
        return StageResult(outputs={"answers": store.put_table(pa.table(columns))}, counts={"rows": len(validation)})

    inputs = {"dataset": dataset.digest, "version": version, "tracking": tracker.identity}
    answers = store.read(store.run_stage("validation_answers", 1, inputs, work), "answers").to_pandas()
    return _Training(
        texts=store.read(reviews, "sample")["text_clean"].to_pylist(),
        hashes=reviews.keys("hashes"),
        validation=validation,
        answers=answers.rename(columns={"predicted": "label"}).assign(confidence=[max(p) for p in answers["probabilities"]]),
    )


def _training_reviews(store: Store, dataset: Manifest) -> StageResult:
    """What is looked at of a dataset each night: the validation rows, texts to compare with, and the hashes of all texts."""
    import polars
    from polars import col

    rows = store.scan(dataset.keys("dataset"), tables.DATASET_SCHEMA)
    rows = rows.filter((col("split") != "test") & (col("origin") != "synthetic"))
    validation = rows.filter(col("split") == "validation").sort("review_id", maintain_order=True)
    kept = polars.DataFrame(schema={"text_hash": polars.String, "text_clean": polars.String})
    hashes: list[str] = []
    for batch in store.batches(rows.select("text_clean"), _BATCH):
        found = [text_hash(text) for text in batch["text_clean"]]
        hashed = batch.with_columns(text_hash=polars.Series(found, dtype=polars.String))
        kept = polars.concat([kept, hashed.select(kept.columns)]).sort("text_hash", maintain_order=True).head(_MOST_TRAINING)
        hashes += store.put_part(hashed.select("text_hash").to_arrow().cast(tables.TEXT_SCHEMA))
    return StageResult(
        outputs={
            "validation": store.put_table(store.collect(validation, tables.DATASET_SCHEMA)),
            "sample": store.put_table(kept.to_arrow()),
            "hashes": hashes,
        }
    )


def _training_night(training: _Training, extractor: FeatureExtractor, version: str) -> Night:
    read = training.validation["label"].where(training.validation["weight"] >= _READ)
    return Night(features=extractor.own, texts=training.texts, version=version, **_answer_columns(training.answers, later=read))


def _night(entry: Mapping[str, Any], rows: pd.DataFrame, extractor: FeatureExtractor, labels: Mapping[str, str]) -> Night:
    texts = rows["text_clean"].tolist()
    facts = {name: entry[name] for name in ("version", "copies", "arrivals", "alarmed")}
    columns = _answer_columns(rows, later=rows["text_hash"].map(labels))
    return Night(features=extractor.read(texts), texts=texts, **facts, **columns)


def _answer_columns(answers: pd.DataFrame, *, later: pd.Series[Any]) -> dict[str, Any]:
    """What a :class:`Night` holds of answers; `later` are the labels that came in for the same reviews."""
    agreed = (later == answers["label"]).astype(np.float64).where(later.notna())
    return {
        "labels": answers["label"].tolist(),
        "confidence": answers["confidence"].to_numpy(dtype=np.float64),
        "abstained": answers["abstained"].to_numpy(dtype=bool),
        "agreed": agreed.to_numpy(dtype=np.float64),
    }


def _calibrator(training: _Training | None, classes: Sequence[str], seed: int) -> Calibrator:
    if training is None:
        return Calibrator(np.empty((0, len(classes))), np.empty(0, dtype=np.int64))
    places = _places(training.validation["label"], classes)
    return Calibrator(_matrix(training.answers[places >= 0]), places[places >= 0], seed=seed)


def _error(rows: pd.DataFrame, labels: Mapping[str, str], calibrator: Calibrator, classes: Sequence[str]) -> float | None:
    """How far a past night's estimate was from what later labels say of the same reviews; None where too few came in."""
    places = _places(rows["text_hash"].map(labels), classes)
    if (places >= 0).sum() < _FEWEST_LABELS:
        return None
    probabilities = _matrix(rows[places >= 0])
    estimate = estimate_f1(probabilities, calibrator)
    seen = seen_f1(places[places >= 0], probabilities.argmax(axis=1), len(classes))
    return None if estimate is None else abs(estimate.value - seen)


def _places(labels: pd.Series[Any], classes: Sequence[str]) -> NDArray[np.int64]:
    """Columns of the labels among `classes`; -1 for labels that are missing or of no class."""
    return pd.Index(classes).get_indexer(labels).astype(np.int64)  # type: ignore[arg-type]


# -- small parts -----------------------------------------------------------------------------------------------------


def _remembered(base: Snapshot) -> list[dict[str, Any]]:
    return list(base.state.get(_NIGHTS) or [])  # type: ignore[arg-type]


def _night_rows(store: Store, keys: Sequence[str], size: int) -> pd.DataFrame:
    """At most `size` reviews of a night, always the same: those with the smallest hashes, which know nothing of the meaning."""
    kept = tables.NIGHT_SCHEMA.empty_table()
    for part in store.iter_tables(keys):
        kept = pa.concat_tables([kept, part])
        if kept.num_rows > size:
            kept = kept.sort_by("text_hash").slice(0, size).combine_chunks()
    frame: pd.DataFrame = kept.to_pandas()
    return frame


def _matrix(rows: pd.DataFrame) -> np.ndarray:
    return np.stack(rows["probabilities"].to_list()) if len(rows) else np.empty((0, 0))


def _labels(store: Store, base: Snapshot, nights: Sequence[pd.DataFrame]) -> dict[str, str]:
    """Labels of these nights' texts that somebody read for.

    What stems alone say is no judgement on a classifier that knows them.
    """
    import polars
    from polars import col

    texts = polars.Series(sorted({text for night in nights for text in night["text_hash"]}), dtype=polars.String)
    labels = store.scan(base.keys("labels"), tables.LABEL_SCHEMA).filter(col("text_hash").is_in(texts.implode()))
    read = labels.filter((col("method") != KEYWORDS) & (col("decision") == "kept"))
    found = store.collect(read, pa.schema([tables.LABEL_SCHEMA.field(name) for name in ("text_hash", "label")]))
    return dict(zip(found["text_hash"].to_pylist(), found["label"].to_pylist(), strict=True))


def _copies(published: Manifest, remembered: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Exact copies that came in since the scoring before, and all that came in; unknown at the first one."""
    before = remembered[-1].get("all_copies") if remembered else None
    if before is None:
        return {"copies": 0, "arrivals": 0}
    copies = max(0, published.counts["copies"] - int(before))
    return {"copies": copies, "arrivals": copies + published.counts["fresh"]}


def _disagreements(rows: pd.DataFrame) -> dict[str, Any]:
    """On which categories they differ in the reviews looked at, with some of them; empty without a challenger."""
    compared = rows[rows["challenger"].notna()]
    differ = compared[compared["challenger"] != compared["label"]]
    if compared.empty:
        return {}
    pairs = Counter(zip(differ["label"], differ["challenger"], strict=True))
    shown = differ.nlargest(_SHOWN, "confidence")
    return {
        "compared": len(compared),
        "disagreed": len(differ),
        "pairs": [{"champion": one, "challenger": two, "reviews": n} for (one, two), n in pairs.most_common(_SHOWN)],
        "examples": [
            {"text": redact(text)[:200], "champion": one, "challenger": two}
            for text, one, two in zip(shown["text_clean"], shown["label"], shown["challenger"], strict=True)
        ],
    }
