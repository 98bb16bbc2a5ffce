"""Training of one candidate, and all that a retrain consists of."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reviewclf.errors import EncoderUnavailableError, EvaluationError, RegistryError, ReviewclfError, TrainingError
from reviewclf.manifest import Manifest, digest_of
from reviewclf.outages import is_away, is_full
from reviewclf.registry.runs import candidate_name, log_dataset, retrain_run, skip_candidate, tracker_of
from reviewclf.settings import Settings
from reviewclf.stages.dataset import build_dataset
from reviewclf.stages.evaluate import evaluate
from reviewclf.stages.gate import gate
from reviewclf.stages.promotion import promote
from reviewclf.store import StageResult, Store
from reviewclf.taxonomy import Taxonomy
from reviewclf.training.candidates import Candidate, load_candidates, parse_candidate
from reviewclf.training.kinds import package_of
from reviewclf.training.limits import memory_limit
from reviewclf.training.rows import TrainingJob

if TYPE_CHECKING:
    from reviewclf.registry.tracking import Tracker
    from reviewclf.training.model import TextClassifier

__all__ = ["build_dataset", "candidate_names", "evaluate", "gate", "promote", "train"]

logger = logging.getLogger(__name__)


def candidate_names(settings: Settings, *, encoders: bool | None = None) -> list[str]:
    """Names of the candidates that the settings list, in their order.

    Parameters
    ----------
    encoders : bool, optional
        True: only those that fine-tune an encoder; False: only the others; None: all.
    """
    known = load_candidates(settings.candidates)
    return [candidate.name for candidate in known if encoders is None or candidate.fine_tunes == encoders]


def train(settings: Settings, dataset: Manifest, candidate: str, *, retry: bool = False) -> Manifest:
    """Train one candidate and log it as a child run: parameters, validation metrics, environment, model.

    Parameters
    ----------
    dataset : Manifest
        From :func:`build_dataset`.
    candidate : str
        Its name in the candidates file.
    retry : bool
        Whether the caller tries again what another attempt may mend, such as memory that runs out.

    Returns
    -------
    Manifest
        ``details``: ``candidate``, ``run_id``, ``model_uri`` and the metrics on validation, which are agreement with votes
        and not accuracy. A candidate whose pretrained encoder cannot be had here, or whose training fails, has ``candidate``
        and ``skipped``, the reason, instead, and ``failed``: whether it failed; the retrain goes on with the others.
    """
    store = Store(settings.store_uri)
    tracker = tracker_of(settings)
    spec = _candidate(dataset, candidate)
    try:
        spec.check_available(settings.encoders)
        return _train_until_alive(settings, store, tracker, dataset, spec)
    except EncoderUnavailableError as error:
        return skip_candidate(tracker, dataset, spec.name, store, str(error), failed=False)
    except Exception as error:
        if not _is_candidates_own(error) or (retry and not isinstance(error, TrainingError)):
            raise
        logger.exception("%s cannot be trained", spec.name)
        return skip_candidate(tracker, dataset, spec.name, store, f"{type(error).__name__}: {error}", failed=True)


def _candidate(dataset: Manifest, name: str) -> Candidate:
    entries: Any = dataset.inputs["candidates"]
    known = {entry["name"]: entry for entry in entries}
    if name not in known:
        raise TrainingError(f"no candidate {name!r} in this retrain; there are {', '.join(known)}")
    return parse_candidate(known[name])


def _is_candidates_own(error: Exception) -> bool:
    """Whether an error says something of one candidate, and nothing of the store, MLflow or the disk, which all need."""
    if isinstance(error, ReviewclfError):
        return isinstance(error, TrainingError | EvaluationError)
    return not is_full(error) and not is_away(error)


def _train_until_alive(settings: Settings, store: Store, tracker: Tracker, dataset: Manifest, spec: Candidate) -> Manifest:
    taxonomy = Taxonomy.load(settings.taxonomy)
    for attempt in range(100):
        # A run that somebody deleted in the MLflow UI is trained anew, under the next attempt's digest.
        key = {
            "dataset": dataset.digest,
            "candidate": spec,
            "taxonomy": digest_of(taxonomy),
            "seed": settings.seed,
            "tracking": tracker.identity,
            "attempt": attempt,
        }
        work = partial(_train, settings, store, taxonomy, tracker, dataset, spec, digest_of(key))
        manifest = store.run_stage("train", 1, key, work)
        if tracker.is_alive(str(manifest.details["run_id"])):
            return manifest
    raise RegistryError(f"every run of {spec.name!r} on dataset {dataset.digest} was deleted or has failed in MLflow")


def _train(
    settings: Settings, store: Store, taxonomy: Taxonomy, tracker: Tracker, dataset: Manifest, spec: Candidate, key: str
) -> StageResult:
    from reviewclf.registry.model import log_model

    rows = store.read(dataset, "dataset").to_pandas()
    parent = retrain_run(tracker, dataset, store)
    name = candidate_name(spec.name, dataset.digest)
    with tracker.candidate_run(key, parent=parent, candidate=spec.name, name=name, description=spec.description) as run_id:
        tracker.log(run_id, params={"kind": spec.kind, "seed": settings.seed})
        log_dataset(tracker, run_id, dataset, store, rows)
        told: set[int] = set()

        def on_epoch(epoch: int, figures: Mapping[str, float]) -> None:
            told.add(epoch)
            metrics = {f"epoch/{name}": value for name, value in figures.items() if name != "epoch"}
            tracker.log(run_id, metrics=metrics, step=epoch)

        job = TrainingJob(
            rows[rows["split"] == "train"],
            rows[rows["split"] == "validation"],
            classes=taxonomy.names,
            stems=taxonomy.keyword_stems,
            seed=settings.seed,
            encoders=settings.encoders,
            checkpoints=settings.home.expanduser().resolve() / "checkpoints" / key,
            on_epoch=on_epoch,
        )
        started = time.perf_counter()
        with tracker.hardware(run_id), memory_limit(settings.training.max_memory_gib):
            classifier = spec.train(job)
        seconds = time.perf_counter() - started
        for entry in classifier.history:
            # What a killed attempt had told is told again: its run is gone.
            if int(entry["epoch"]) not in told:
                on_epoch(int(entry["epoch"]), entry)
        weighted_f1 = _log_training(tracker, run_id, spec, job, classifier, seconds)
        package = package_of(spec.kind)
        with tracker.errors("store the model"), tempfile.TemporaryDirectory() as folder:
            classifier.save(Path(folder))
            model_uri = log_model(
                tracker,
                run_id,
                Path(folder),
                packages=[*classifier.packages, *([package] if package else [])],
                example="Платье красивое, но маломерит на размер",
                metadata={"candidate": spec.name, "dataset": dataset.digest, "taxonomy": digest_of(taxonomy)},
            )
    logger.info("%s: validation weighted F1 %.3f (agreement with votes), %.1f s", spec.name, weighted_f1, seconds)
    return StageResult(
        counts={"train_rows": len(job.train), "validation_rows": len(job.validation)},
        details={
            "candidate": spec.name,
            "run_id": run_id,
            "model_uri": model_uri,
            "validation_weighted_f1": weighted_f1,
        },
    )


def _log_training(
    tracker: Tracker, run_id: str, spec: Candidate, job: TrainingJob, classifier: TextClassifier, seconds: float
) -> float:
    """Log what training ended with; returns weighted F1 on validation, 0 without rows."""
    from reviewclf.evaluation import evaluate as score
    from reviewclf.evaluation import expected_calibration_error, plot_learning_curves, plot_reliability

    figures = {"seconds": seconds, "rows": len(job.train), **classifier.figures}
    metrics = {"validation/rows": float(len(job.validation)), **{f"train/{name}": value for name, value in figures.items()}}
    weighted_f1 = 0.0
    probabilities = classifier.validation_probabilities
    if probabilities is not None and len(job.validation):
        true = job.validation["label"].tolist()
        result = score(true, classifier.answers(probabilities), job.classes)
        calibration = expected_calibration_error(true, probabilities, job.classes)
        weighted_f1 = result.weighted_f1.value
        scores = {**result.figures(), "ece": calibration.value}
        metrics |= {f"validation/{name}": value for name, value in scores.items()}
        figure = plot_reliability(calibration, f"{spec.name} against votes on validation")
        tracker.log_figure(run_id, figure, "validation/reliability.png")
    tracker.log(run_id, metrics=metrics, params=classifier.chosen)
    artifacts = {"abstain": classifier.abstain, "export": classifier.exported, "trials": classifier.trials}
    for name, content in {**artifacts, "epochs": classifier.history}.items():
        if content:
            tracker.log_json(run_id, content, f"{name}.json")
    if classifier.history:
        tracker.log_figure(run_id, plot_learning_curves(classifier.history, spec.name), "learning_curves.png")
    tracker.log_environment(run_id)
    return weighted_f1
