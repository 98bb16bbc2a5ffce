"""Retraining: dataset, candidates, evaluation on gold, gate, promotion."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from reviewclf import tables
from reviewclf.augmentation.amounts import cheapest, curve_table, recall_on
from reviewclf.data.card import card_markdown
from reviewclf.data.gold import Gold, load_gold
from reviewclf.errors import EncoderUnavailableError, RegistryError, TrainingError
from reviewclf.manifest import Manifest, digest_of
from reviewclf.registry.gate import Evidence, GateReport, judge, report_html
from reviewclf.settings import Settings
from reviewclf.stages.dataset import build, choices_of, filter_table
from reviewclf.storage import StageResult, Store
from reviewclf.taxonomy import Taxonomy
from reviewclf.training import check_available, train_candidate
from reviewclf.training.candidates import Candidate, load_candidates, parse_candidate
from reviewclf.training.limits import memory_limit

if TYPE_CHECKING:
    from reviewclf.registry.tracking import Tracker

logger = logging.getLogger(__name__)

_LATENCY_TEXTS = 200


def candidate_names(settings: Settings, *, encoders: bool | None = None) -> list[str]:
    """Names of the candidates that the settings list, in their order.

    Parameters
    ----------
    encoders : bool, optional
        True: only those that fine-tune an encoder; False: only the others; None: all.
    """
    known = load_candidates(settings.candidates)
    return [candidate.name for candidate in known if encoders is None or (candidate.kind == "encoder") == encoders]


def build_dataset(settings: Settings, synthesized: Sequence[Manifest] = ()) -> Manifest:
    """Build the training set (:func:`reviewclf.stages.dataset.build`) and open the retrain's MLflow run.

    Parameters
    ----------
    synthesized : sequence of Manifest
        From :func:`reviewclf.stages.dataset.synthesize`, one a thin class.
    """
    manifest = build(settings, synthesized)
    _retrain_run(_tracker(settings), manifest, Store(settings.store_uri))
    return manifest


def train(settings: Settings, dataset: Manifest, candidate: str) -> Manifest:
    """Train one candidate and log it as a child run: parameters, validation metrics, environment, model.

    Parameters
    ----------
    dataset : Manifest
        From :func:`build_dataset`.
    candidate : str
        Its name in the candidates file.

    Returns
    -------
    Manifest
        ``details``: ``candidate``, ``run_id``, ``model_uri`` and the metrics on validation, which are agreement with votes
        and not accuracy. A candidate whose pretrained encoder cannot be had here has ``candidate`` and ``skipped``, the
        reason, instead; the retrain goes on with the others.
    """
    store = Store(settings.store_uri)
    taxonomy = Taxonomy.load(settings.taxonomy)
    tracker = _tracker(settings)
    spec = _candidate(dataset, candidate)
    inputs = {
        "dataset": dataset.digest,
        "candidate": spec,
        "taxonomy": digest_of(taxonomy),
        "seed": settings.seed,
        "tracking": tracker.identity,
    }
    try:
        check_available(spec, settings.encoders)
    except EncoderUnavailableError as error:
        return _skip(tracker, dataset, spec, store, str(error))
    for attempt in range(100):
        # A run that somebody deleted in the MLflow UI is trained anew, under the next attempt's digest.
        key = {**inputs, "attempt": attempt}
        manifest = store.run_stage(
            "train", 1, key, partial(_train, settings, store, taxonomy, tracker, dataset, spec, digest_of(key))
        )
        if tracker.is_alive(str(manifest.details["run_id"])):
            return manifest
    raise RegistryError(f"every run of {candidate!r} on dataset {dataset.digest} was deleted or has failed in MLflow")


def evaluate(settings: Settings, dataset: Manifest, trained: Sequence[Manifest]) -> Manifest:
    """Score every candidate on gold, on the serving path, and log the figures to its run.

    Without gold only the seconds per example are measured: agreement with votes is no substitute.

    Returns
    -------
    Manifest
        ``details["candidates"]``: for each, its run, model, metrics with intervals and seconds per example.
    """
    store = Store(settings.store_uri)
    taxonomy = Taxonomy.load(settings.taxonomy)
    tracker = _tracker(settings)
    gold = load_gold(settings, taxonomy)
    skipped = [manifest for manifest in trained if "skipped" in manifest.details]
    trained = [manifest for manifest in trained if "skipped" not in manifest.details]
    if not trained:
        reasons = "; ".join(f"{manifest.details['candidate']}: {manifest.details['skipped']}" for manifest in skipped)
        raise TrainingError(f"no candidate could be trained here ({reasons})")
    inputs = {
        "dataset": dataset.digest,
        "trained": [manifest.digest for manifest in trained],
        "gold": None if gold is None else gold.digest,
    }

    def work() -> StageResult:
        results = [_evaluate_one(store, taxonomy, tracker, gold, dataset, manifest) for manifest in trained]
        effect = {} if gold is None else _effect_on_gold(settings, store, taxonomy, tracker, gold, dataset)
        return StageResult(
            counts={"candidates": len(results), "gold_rows": 0 if gold is None else len(gold.frame)},
            details={
                "dataset": dataset.digest,
                "leak_check": dataset.details.get("leak_check"),
                "candidates": results,
                "augmentation_on_gold": effect,
            },
        )

    return store.run_stage("evaluate", 2, inputs, work)


def gate(settings: Settings, evaluated: Manifest) -> Manifest:
    """Hold every candidate against the gate, register all of them, and point `challenger` at the best that passed.

    The best is the one with the highest weighted F1 on validation: choosing by gold would make gold's own figure too
    good to be true.

    Returns
    -------
    Manifest
        ``details``: ``verdicts`` by candidate, and ``challenger`` (candidate, version, run) or null.
    """
    from reviewclf.registry.model import register
    from reviewclf.registry.promotion import challenge

    store = Store(settings.store_uri)
    tracker = _tracker(settings)
    inputs = {"evaluated": evaluated.digest, "limits": settings.gate}

    def work() -> StageResult:
        results: list[dict[str, Any]] = list(evaluated.details["candidates"])  # type: ignore[arg-type]
        reports: list[GateReport] = []
        verdicts: dict[str, Any] = {}
        for result in results:
            report = judge(
                Evidence(
                    candidate=result["candidate"],
                    gold_rows=evaluated.counts["gold_rows"],
                    weighted_f1=result.get("weighted_f1"),
                    weighted_f1_low=result.get("weighted_f1_low"),
                    weighted_f1_high=result.get("weighted_f1_high"),
                    seconds_per_example=result["seconds_per_example_p95"],
                    leak_check_passed=evaluated.details.get("leak_check") == "passed",
                ),
                settings.gate,
            )
            reports.append(report)
            verdict = "passed" if report.passed else "failed"
            tags = {"reviewclf.gate": verdict, "reviewclf.gate_reason": report.reason}
            version = register(
                tracker,
                run_id=result["run_id"],
                model_uri=result["model_uri"],
                tags={
                    **tags,
                    "reviewclf.candidate": result["candidate"],
                    "reviewclf.dataset": str(evaluated.details["dataset"]),
                    "reviewclf.gold": str(evaluated.inputs["gold"] or ""),
                    "reviewclf.gate_report": tracker.artifact_address(result["run_id"], "gate/report.html"),
                },
                description=_describe(result, report, evaluated.counts["gold_rows"]),
            )
            tracker.log(result["run_id"], tags=tags)
            tracker.log_json(result["run_id"], report.model_dump(mode="json"), "gate/report.json")
            page = report_html([report], title=f"Gate report: {result['candidate']}, version {version}")
            tracker.log_text(result["run_id"], page, "gate/report.html")
            verdicts[result["candidate"]] = {"verdict": verdict, "reason": report.reason, "version": version}
            logger.info("%s (version %s): %s", result["candidate"], version, report.reason)
        parent = _parent_of(tracker, str(evaluated.details["dataset"]))
        tracker.log_text(parent, report_html(reports, title="Gate report"), "gate/report.html")
        passed = [result for result in results if verdicts[result["candidate"]]["verdict"] == "passed"]
        best = max(passed, key=lambda result: result["validation_weighted_f1"], default=None)
        return StageResult(
            counts={"candidates": len(results), "passed": len(passed)},
            details={
                "verdicts": verdicts,
                "challenger": None
                if best is None
                else {
                    "candidate": best["candidate"],
                    "version": verdicts[best["candidate"]]["version"],
                    "run_id": best["run_id"],
                },
            },
        )

    manifest = store.run_stage("gate", 1, inputs, work)
    challenger: Any = manifest.details["challenger"]
    if challenger is not None:
        challenge(tracker, challenger["version"])
    return manifest


def promote(settings: Settings, gated: Manifest, *, who: str = "") -> Manifest:
    """Make the challenger the champion; nothing happens when there is none or it is champion already.

    Parameters
    ----------
    gated : Manifest
        From :func:`gate`.
    who : str
        Recorded on the version. The same `who` repeating the call (a retried task) gets the same answer again.

    Returns
    -------
    Manifest
        ``details``: ``promoted`` (a new champion?), ``champion``, ``previous``, ``reason``.
    """
    from reviewclf.registry.model import aliases
    from reviewclf.registry.promotion import promote as move_aliases

    tracker = _tracker(settings)
    challenger: Any = gated.details["challenger"]
    details: dict[str, Any]
    if challenger is None:
        details = {"promoted": False, "champion": aliases(tracker).get("champion"), "reason": "no candidate passed the gate"}
    else:
        reason = f"{challenger['candidate']} passed the gate ({gated.digest[:8]})"
        promotion = move_aliases(tracker, challenger["version"], reason=reason, who=who, key=who)
        details = {
            "promoted": promotion.changed,
            "champion": promotion.champion,
            "previous": promotion.previous,
            "candidate": challenger["candidate"],
            "reason": reason if promotion.changed else f"version {promotion.champion} is champion already",
        }
    # Not a stage of the store: what it changes is the registry, which somebody else may have changed since.
    return Manifest(
        stage="promote",
        digest=digest_of({"gated": gated.digest, **details}),
        inputs={"gated": gated.digest},
        counts={"promoted": int(details["promoted"])},
        details=details,
    )


def _skip(tracker: Tracker, dataset: Manifest, spec: Candidate, store: Store, reason: str) -> Manifest:
    """Say why a candidate is not trained; not a stage of the store, as the next attempt may find what is missing now."""
    logger.warning("%s is skipped: %s", spec.name, reason)
    parent = _retrain_run(tracker, dataset, store)
    tracker.log(parent, tags={f"reviewclf.skipped.{spec.name}": reason})
    details = {"candidate": spec.name, "skipped": reason}
    return Manifest(stage="train", digest=digest_of([dataset.digest, details]), details=details)


# -- one candidate ---------------------------------------------------------------------------------------------------


def _train(
    settings: Settings, store: Store, taxonomy: Taxonomy, tracker: Tracker, dataset: Manifest, spec: Candidate, key: str
) -> StageResult:
    from reviewclf.evaluation import evaluate as score
    from reviewclf.evaluation import expected_calibration_error, plot_learning_curves, plot_reliability
    from reviewclf.registry.model import log_model

    rows = store.read_table(dataset.keys("dataset"), schema=tables.DATASET_SCHEMA).to_pandas()
    train_rows, validation = rows[rows["split"] == "train"], rows[rows["split"] == "validation"]
    parent = _retrain_run(tracker, dataset, store)
    with tracker.candidate_run(key, parent=parent, candidate=spec.name, description=spec.description) as run_id:
        tracker.log(run_id, params={"kind": spec.kind, "seed": settings.seed})
        _log_dataset(tracker, run_id, dataset, store, rows)
        started = time.perf_counter()
        told: set[int] = set()

        def on_epoch(epoch: int, figures: Mapping[str, float]) -> None:
            told.add(epoch)
            tracker.log(
                run_id, metrics={f"epoch/{name}": value for name, value in figures.items() if name != "epoch"}, step=epoch
            )

        with tracker.hardware(run_id), memory_limit(settings.training.max_memory_gib):
            classifier = train_candidate(
                spec,
                train_rows,
                validation,
                classes=taxonomy.names,
                stems=taxonomy.keyword_stems,
                seed=settings.seed,
                encoders=settings.encoders,
                checkpoints=settings.home.expanduser().resolve() / "checkpoints" / key,
                on_epoch=on_epoch,
            )
        seconds = time.perf_counter() - started
        metrics = {"train/seconds": seconds, "train/rows": len(train_rows), "validation/rows": len(validation)}
        weighted_f1 = 0.0
        probabilities = classifier.validation_probabilities
        if probabilities is not None and len(validation):
            predicted = [classifier.classes[position] for position in probabilities.argmax(axis=1)]
            result = score(validation["label"].tolist(), predicted, taxonomy.names)
            weighted_f1 = result.weighted_f1.value
            calibration = expected_calibration_error(validation["label"].tolist(), probabilities, taxonomy.names)
            metrics.update(_metrics("validation", result))
            metrics["validation/ece"] = calibration.value
            figure = plot_reliability(calibration, f"{spec.name} against votes on validation")
            tracker.log_figure(run_id, figure, "validation/reliability.png")
        metrics.update({f"train/{name}": value for name, value in classifier.figures.items()})
        tracker.log(run_id, metrics=metrics, params=_chosen(classifier))
        tracker.log_json(run_id, dict(classifier.abstain), "abstain.json")
        if classifier.exported:
            tracker.log_json(run_id, dict(classifier.exported), "export.json")
        if classifier.trials:
            tracker.log_json(run_id, [dict(trial) for trial in classifier.trials], "trials.json")
        for entry in classifier.history:
            # What a killed attempt had told is told again: its run is gone.
            if int(entry["epoch"]) not in told:
                on_epoch(int(entry["epoch"]), entry)
        if classifier.history:
            tracker.log_json(run_id, [dict(epoch) for epoch in classifier.history], "epochs.json")
            tracker.log_figure(run_id, plot_learning_curves(classifier.history, spec.name), "learning_curves.png")
        tracker.log_environment(run_id)
        with tempfile.TemporaryDirectory() as folder:
            classifier.save(Path(folder))
            model_uri = log_model(
                tracker,
                run_id,
                Path(folder),
                kind=spec.kind,
                example="Платье красивое, но маломерит на размер",
                metadata={"candidate": spec.name, "dataset": dataset.digest, "taxonomy": digest_of(taxonomy)},
            )
    logger.info("%s: validation weighted F1 %.3f (agreement with votes), %.1f s", spec.name, weighted_f1, seconds)
    return StageResult(
        counts={"train_rows": len(train_rows), "validation_rows": len(validation)},
        details={
            "candidate": spec.name,
            "run_id": run_id,
            "model_uri": model_uri,
            "validation_weighted_f1": weighted_f1,
        },
    )


def _evaluate_one(
    store: Store, taxonomy: Taxonomy, tracker: Tracker, gold: Gold | None, dataset: Manifest, trained: Manifest
) -> dict[str, Any]:
    from reviewclf.evaluation import evaluate as score
    from reviewclf.evaluation import (
        expected_calibration_error,
        measure_latency,
        plot_confusion_matrix,
        plot_reliability,
    )
    from reviewclf.registry.model import load_model

    run_id, name = str(trained.details["run_id"]), str(trained.details["candidate"])
    model = load_model(tracker, str(trained.details["model_uri"]), version="candidate")
    result: dict[str, Any] = {**trained.details}
    if gold is not None:
        answers = model.predict(gold.frame["text"].tolist())
        figures = score(gold.frame["label"].tolist(), answers["label"].tolist(), taxonomy.names)
        probabilities = pd.DataFrame(answers["probabilities"].tolist())[taxonomy.names].to_numpy()
        calibration = expected_calibration_error(gold.frame["label"].tolist(), probabilities, taxonomy.names)
        tracker.log(run_id, metrics={**_metrics("gold", figures), "gold/ece": calibration.value, "gold/rows": figures.n})
        tracker.log_json(run_id, figures.model_dump(mode="json"), "evaluation/gold.json")
        rows = gold.frame[["review_id", "text_hash", "label"]].assign(
            predicted=answers["label"].to_numpy(), confidence=answers["confidence"].round(6).to_numpy()
        )
        tracker.log_json(run_id, rows.to_dict("records"), "evaluation/gold_answers.json")
        tracker.log_json(run_id, calibration.model_dump(mode="json"), "evaluation/calibration.json")
        title = f"{name} on {figures.n} gold reviews"
        tracker.log_figure(run_id, plot_confusion_matrix(figures, title), "evaluation/confusion_matrix.png")
        tracker.log_figure(run_id, plot_reliability(calibration, title), "evaluation/reliability.png")
        result.update(
            weighted_f1=figures.weighted_f1.value,
            weighted_f1_low=figures.weighted_f1.low,
            weighted_f1_high=figures.weighted_f1.high,
            macro_f1=figures.macro_f1.value,
            accuracy=figures.accuracy.value,
        )
        texts = gold.frame["text"].tolist()
    else:
        rows = store.read_table(dataset.keys("dataset"), ["text_clean"], schema=tables.DATASET_SCHEMA)
        texts = rows["text_clean"].to_pylist()
    latency = measure_latency(model.predict, texts[:_LATENCY_TEXTS])
    tracker.log(
        run_id,
        metrics={
            "latency/p50_seconds": latency.p50,
            "latency/p95_seconds": latency.p95,
            "latency/batch_seconds_per_example": latency.batch_seconds_per_example,
        },
    )
    result.update(seconds_per_example_p50=latency.p50, seconds_per_example_p95=latency.p95)
    return result


def _effect_on_gold(
    settings: Settings, store: Store, taxonomy: Taxonomy, tracker: Tracker, gold: Gold, dataset: Manifest
) -> dict[str, Any]:
    """Recall on gold of each thin class, with the synthetic rows chosen and without any; for the record, it decides nothing."""
    choices = choices_of(dataset)
    if not choices:
        return {}
    rows = store.read_table(dataset.keys("dataset"), schema=tables.DATASET_SCHEMA).to_pandas()
    train_rows = rows[rows["split"] == "train"].reset_index(drop=True)
    validation = rows[rows["split"] == "validation"].reset_index(drop=True)
    entries: Any = dataset.inputs["candidates"]
    spec = cheapest([parse_candidate(entry) for entry in entries])
    answers: list[list[str]] = []
    real_rows = train_rows[train_rows["origin"] != "synthetic"].reset_index(drop=True)
    for part in [train_rows, real_rows] if len(real_rows) < len(train_rows) else [real_rows]:
        classifier: Any = train_candidate(
            spec, part, validation, classes=taxonomy.names, stems=taxonomy.keyword_stems, seed=settings.seed
        )
        probabilities = classifier.predict_proba(gold.frame["text_clean"].tolist())
        answers.append([classifier.classes[position] for position in probabilities.argmax(axis=1)])
    effect: dict[str, Any] = {}
    parent = _parent_of(tracker, dataset.digest)
    for choice in choices:
        figures = recall_on(gold.frame["label"].tolist(), answers[0], answers[-1], choice.category)
        effect[choice.category] = figures
        tracker.log(
            parent,
            metrics={f"augmentation/class_{choice.id}/gold_recall/{name}": value for name, value in figures.items()},
        )
        if figures:
            logger.info(
                "%s on %d gold reviews, %s: recall %.3f with %d synthetic rows, %.3f without; difference %.3f (%.3f to %.3f)",
                choice.category,
                figures["n"],
                spec.name,
                figures["with"],
                choice.rows,
                *(figures[name] for name in ("without", "difference", "difference_low", "difference_high")),
            )
    tracker.log_json(parent, effect, "augmentation/gold.json")
    return effect


# -- small parts -----------------------------------------------------------------------------------------------------


def _tracker(settings: Settings) -> Tracker:
    from reviewclf.registry.tracking import Tracker

    return Tracker(settings.tracking_uri)


def _retrain_run(tracker: Tracker, dataset: Manifest, store: Store) -> str:
    key = dataset.digest
    known = tracker.find_runs({"reviewclf.key": key, "reviewclf.kind": "retrain"}, newest=1)
    if known:
        return str(known[0].info.run_id)
    counts = ", ".join(f"{name} {count}" for name, count in dataset.counts.items())
    run_id = tracker.retrain_run(
        key,
        name=f"retrain-{key[:8]}",
        description=f"Retrain on dataset `{dataset.digest}`: {counts}.",
        tags={"reviewclf.dataset": dataset.digest},
    )
    rows = store.read_table(dataset.keys("dataset"), schema=tables.DATASET_SCHEMA).to_pandas()
    _log_dataset(tracker, run_id, dataset, store, rows)
    tracker.log(run_id, metrics={f"dataset/{name}": count for name, count in dataset.counts.items()})
    tracker.log_json(run_id, dataset.model_dump(mode="json"), "dataset/card.json")
    tracker.log_text(run_id, card_markdown(dataset), "dataset/card.md")
    _log_augmentation(tracker, run_id, dataset)
    tracker.log_environment(run_id)
    tracker.finish(run_id)
    return run_id


def _log_augmentation(tracker: Tracker, run_id: str, dataset: Manifest) -> None:
    """What the filters refused, and the curve of each class: metrics whose steps are numbers of synthetic rows."""
    card: Any = dataset.details["card"]
    if card["filters"]:
        tracker.log_text(run_id, filter_table(card["filters"]), "augmentation/filters.md")
    choices = choices_of(dataset)
    if not choices:
        return
    tracker.log_text(run_id, curve_table(choices), "augmentation/curve.md")
    tracker.log_json(run_id, [choice.model_dump(mode="json") for choice in choices], "augmentation/curve.json")
    for choice in choices:
        prefix = f"augmentation/class_{choice.id}"
        tracker.log(run_id, metrics={f"{prefix}/chosen_rows": choice.rows, f"{prefix}/chosen_amount": choice.amount})
        for figure in choice.curve:
            values = figure.model_dump(exclude={"amount", "rows", "n"})
            tracker.log(run_id, metrics={f"{prefix}/{name}": value for name, value in values.items()}, step=figure.rows)


def _parent_of(tracker: Tracker, key: str) -> str:
    runs = tracker.find_runs({"reviewclf.key": key, "reviewclf.kind": "retrain"}, newest=1)
    if not runs:
        raise RegistryError(f"the MLflow run of retrain {key} is gone; run build_dataset again")
    return str(runs[0].info.run_id)


def _log_dataset(tracker: Tracker, run_id: str, dataset: Manifest, store: Store, rows: pd.DataFrame) -> None:
    source = f"{store.uri}/{dataset.keys('dataset')[0]}"
    for split, context in (("train", "training"), ("validation", "validation"), ("test", "gold")):
        part = rows[rows["split"] == split]
        if len(part):
            tracker.log_dataset(run_id, part, name=f"reviews-{split}", digest=dataset.digest, source=source, context=context)


def _candidate(dataset: Manifest, name: str) -> Candidate:
    entries: Any = dataset.inputs["candidates"]
    known = {entry["name"]: entry for entry in entries}
    if name not in known:
        raise TrainingError(f"no candidate {name!r} in this retrain; there are {', '.join(known)}")
    return parse_candidate(known[name])


def _metrics(prefix: str, result: Any) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for name in ("accuracy", "precision", "recall", "weighted_f1", "macro_f1"):
        interval = getattr(result, name)
        metrics.update(
            {f"{prefix}/{name}": interval.value, f"{prefix}/{name}_low": interval.low, f"{prefix}/{name}_high": interval.high}
        )
    return metrics


def _chosen(classifier: Any) -> dict[str, Any]:
    chosen = getattr(classifier, "chosen", None)
    return dict(chosen) if chosen else {}


def _describe(result: dict[str, Any], report: GateReport, gold_rows: int) -> str:
    if result.get("weighted_f1") is None:
        figure = "not judged: no gold reviews"
    else:
        figure = (
            f"weighted F1 {result['weighted_f1']:.3f} (95% interval {result['weighted_f1_low']:.3f} to "
            f"{result['weighted_f1_high']:.3f}) on {gold_rows} gold reviews"
        )
    return f"{result['candidate']}: {figure}; gate {report.reason}."
