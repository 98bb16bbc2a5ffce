"""Scores on gold, on the serving path: every candidate of a retrain, and the champion on the very same rows."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa

from reviewclf import tables
from reviewclf.augmentation.amounts import cheapest, choices_of, recall_on
from reviewclf.data.duplicates import match_near_duplicates
from reviewclf.data.gold import Gold, load_gold
from reviewclf.errors import ConflictError, RegistryError, RegistryUnavailableError, StoreError, TrainingError
from reviewclf.manifest import Manifest, digest_of
from reviewclf.registry.runs import parent_of, skip_candidate, tracker_of
from reviewclf.settings import ServingSettings, Settings
from reviewclf.store import StageResult, Store
from reviewclf.taxonomy import Taxonomy
from reviewclf.training.candidates import parse_candidate
from reviewclf.training.rows import TrainingJob

if TYPE_CHECKING:
    from reviewclf.evaluation import Latency
    from reviewclf.registry.tracking import Tracker

logger = logging.getLogger(__name__)

_LATENCY_TEXTS = 200
_MIB = 1024 * 1024


@dataclass(frozen=True)
class Scored:
    """A registered version on gold: its number, its score (a manifest), and the digest of the dataset it was trained on."""

    version: str
    score: Manifest
    dataset: str


def evaluate(settings: Settings, dataset: Manifest, trained: Sequence[Manifest]) -> Manifest:
    """Score every candidate on gold, on the serving path, and log the figures to its run; then the champion, if any.

    A candidate that was skipped, has failed or cannot be scored costs the others nothing.

    Without gold only the seconds per example are measured: agreement with votes is no substitute. What a model answers on one
    gold set is kept in the store, so nothing is scored twice, and nothing scored on other gold is ever taken for it.

    Returns
    -------
    Manifest
        ``details["candidates"]``: for each, its run, model, metrics with intervals and seconds per example;
        ``details["left_out"]``: why the others are not among them, by name.

    Raises
    ------
    TrainingError
        There is no candidate left.
    """
    store = Store(settings.store_uri)
    taxonomy = Taxonomy.load(settings.taxonomy)
    tracker = tracker_of(settings)
    gold = load_gold(settings, taxonomy)
    scores: dict[str, tuple[Manifest, Manifest]] = {}
    left_out: dict[str, str] = {}
    for manifest in trained:
        name = str(manifest.details["candidate"])
        if "skipped" in manifest.details:
            left_out[name] = str(manifest.details["skipped"])
            continue
        run_id, uri = str(manifest.details["run_id"]), str(manifest.details["model_uri"])
        try:
            score = score_model(
                store, taxonomy, tracker, gold, run_id=run_id, model_uri=uri, serving=settings.serving, dataset=dataset
            )
        except (ConflictError, RegistryUnavailableError, StoreError):
            raise
        except Exception as error:  # whatever a broken model raises: the others are judged all the same
            logger.exception("%s cannot be scored", name)
            left_out[name] = _skip(tracker, store, dataset, name, f"{type(error).__name__}: {error}")
        else:
            scores[name] = (manifest, score)
    left_out |= _lost(tracker, store, dataset, {*left_out, *scores})
    if not scores:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise TrainingError(f"no candidate could be trained here ({reasons})")

    def work() -> StageResult:
        results: list[Any] = []
        for manifest, score in scores.values():
            figures: Any = score.details["figures"]
            results.append({**manifest.details, **figures, "score": score.digest})
        return StageResult(
            counts={"candidates": len(results), "gold_rows": 0 if gold is None else len(gold.frame)},
            details={
                "dataset": dataset.digest,
                "leak_check": _leak_check(settings, store, dataset, gold),
                "candidates": results,
                "augmentation_on_gold": _effect_on_gold(settings, store, taxonomy, tracker, gold, dataset),
            },
        )

    inputs = {
        "dataset": dataset.digest,
        "trained": [manifest.digest for manifest, _ in scores.values()],
        "gold": None if gold is None else gold.digest,
    }
    manifest = store.run_stage("evaluate", 3, inputs, work)
    if gold is not None:
        score_champion(store, taxonomy, tracker, gold, settings.serving)
    return manifest.model_copy(update={"details": {**manifest.details, "left_out": left_out}})


def _skip(tracker: Tracker, store: Store, dataset: Manifest, name: str, reason: str) -> str:
    return str(skip_candidate(tracker, dataset, name, store, reason, failed=True).details["skipped"])


def _lost(tracker: Tracker, store: Store, dataset: Manifest, known: Collection[str]) -> dict[str, str]:
    """Candidates of the retrain of which no manifest came: their tasks were killed or ran out of time. Reasons by name."""
    from reviewclf.registry.tracking import CANDIDATE_TAG, FAILURE_TAG, PARENT_TAG

    entries: Any = dataset.inputs["candidates"]
    reasons: dict[str, str] = {}
    for name in (str(entry["name"]) for entry in entries if entry["name"] not in known):
        parent = parent_of(tracker, dataset.digest)
        runs = tracker.find_runs({PARENT_TAG: parent, CANDIDATE_TAG: name}, newest=1)
        said = runs[0].data.tags.get(FAILURE_TAG) if runs else None
        reason = said or "its task ended without a word: it was not run, was killed (perhaps for memory), or ran out of time"
        reasons[name] = _skip(tracker, store, dataset, name, reason)
    return reasons


def score_champion(
    store: Store, taxonomy: Taxonomy, tracker: Tracker, gold: Gold, serving: ServingSettings | None = None
) -> Scored | None:
    """The champion on the same gold rows; scored anew where that has not been done on this gold. None without a champion.

    Raises
    ------
    RegistryError
        The champion cannot be loaded: what production follows is broken, and nothing can be compared with it.
    """
    from reviewclf.registry import CHAMPION, REGISTERED_MODEL
    from reviewclf.registry.model import aliases

    version = aliases(tracker).get(CHAMPION)
    if version is None:
        return None
    with tracker.errors(f"show version {version}"):
        found = tracker.client.get_model_version(REGISTERED_MODEL, version)
    try:
        uri = f"models:/{REGISTERED_MODEL}/{version}"
        score = score_model(store, taxonomy, tracker, gold, run_id=found.run_id or "", model_uri=uri, serving=serving)
    except RegistryUnavailableError:
        # No fault of the champion's: nobody should roll it back.
        raise
    except RegistryError as error:
        raise RegistryError(
            f"the champion (version {version}) cannot be scored on gold, so nothing can be compared with it: {error}. "
            "`reviewclf rollback` returns to the version before it, `reviewclf promote VERSION --reason ...` makes another one "
            "the champion"
        ) from error
    if found.tags.get("reviewclf.gold") != gold.digest:
        with tracker.errors(f"tag version {version}"):
            tracker.client.set_model_version_tag(REGISTERED_MODEL, version, "reviewclf.gold", gold.digest)
    return Scored(version=version, score=score, dataset=found.tags.get("reviewclf.dataset", ""))


def score_model(
    store: Store,
    taxonomy: Taxonomy,
    tracker: Tracker,
    gold: Gold | None,
    *,
    run_id: str,
    model_uri: str,
    serving: ServingSettings | None = None,
    dataset: Manifest | None = None,
) -> Manifest:
    """Score one model on gold and time it, once for each gold set; the figures go to its run.

    Seconds per example are those of the code that serves (:func:`reviewclf.serving.predictor.served`): from the bytes of a
    request with one review to those of its answer, without HTTP.

    Parameters
    ----------
    run_id : str
        Run that the model belongs to; empty for a version that was registered by hand, which is not timed and whose figures
        stay in the store.
    serving : ServingSettings, optional
        How the server runs models; default: as without any settings.
    dataset : Manifest, optional
        On whose reviews it is timed without gold.

    Returns
    -------
    Manifest
        Output ``answers`` (``tables.GOLD_ANSWERS_SCHEMA``) where there is gold; ``details["figures"]``: metrics with bounds, by
        class, calibration error, seconds per example, size.
    """

    def work() -> StageResult:
        from reviewclf.registry.model import load_model

        model = load_model(tracker, model_uri, version="candidate")
        size = model.pyfunc.metadata.model_size_bytes
        figures: dict[str, Any] = {"model_mib": size / _MIB if size else None}
        outputs: dict[str, str | list[str]] = {}
        if gold is not None:
            rows, on_gold = _on_gold(taxonomy, tracker, gold, model, run_id)
            figures |= on_gold
            answers = pa.Table.from_pandas(rows, schema=tables.GOLD_ANSWERS_SCHEMA, preserve_index=False)
            outputs = {"answers": store.put_table(answers)}
        if run_id:
            texts: list[str] = []
            if gold is not None:
                texts = gold.frame["text"].tolist()
            elif dataset is not None:
                texts = store.read(dataset, "dataset", ["text_clean"])["text_clean"].to_pylist()
            latency = _time(tracker, model_uri, texts[:_LATENCY_TEXTS], serving or ServingSettings())
            seconds = {"p50": latency.p50, "p95": latency.p95}
            figures |= {f"seconds_per_example_{name}": value for name, value in seconds.items()} | {"timed_calls": latency.n}
            metrics = {f"latency/{name}_seconds": value for name, value in seconds.items()}
            metrics["latency/batch_seconds_per_example"] = latency.batch_seconds_per_example
            tracker.log(run_id, metrics=metrics | ({"model/mib": size / _MIB} if size else {}))
        return StageResult(
            outputs=outputs, counts={"gold_rows": 0 if gold is None else len(gold.frame)}, details={"figures": figures}
        )

    inputs = {
        "model": run_id or model_uri,
        "tracking": tracker.identity,
        "gold": None if gold is None else gold.digest,
        "taxonomy": digest_of(taxonomy),
    }
    return store.run_stage("score", 2, inputs, work)


def _time(tracker: Tracker, model_uri: str, texts: Sequence[str], serving: ServingSettings) -> Latency:
    """Seconds per example of a logged model, on the code that serves."""
    from reviewclf.evaluation import measure_latency
    from reviewclf.registry.deployment import fetch_classifier
    from reviewclf.serving.predictor import served

    with tempfile.TemporaryDirectory() as folder:
        with tracker.errors(f"hand out {model_uri}"):
            fetch_classifier(model_uri, Path(folder))
        with served(Path(folder), serving) as answer:
            return measure_latency(answer, texts)


def seen_rows(settings: Settings, store: Store, dataset: str, gold: Gold) -> list[int] | None:
    """Positions of gold rows that a dataset's training or validation rows repeat; None where the dataset is not in this store.

    A dataset is built free of the gold there is; gold that came later may hold what a model was trained on.
    """
    built = store.manifest("dataset", dataset) if dataset else None
    if built is None:
        return None
    if built.inputs.get("gold") == gold.digest:
        return []
    similarity = settings.dataset.near_duplicate_similarity

    def work() -> StageResult:
        rows = store.read_table(built.keys("dataset"), ["text_clean", "split"], schema=tables.DATASET_SCHEMA).to_pandas()
        known = rows.loc[rows["split"] != "test", "text_clean"].tolist()
        matches = match_near_duplicates(gold.frame["text_clean"].tolist(), known, similarity=similarity) if known else []
        positions = [place for place, match in enumerate(matches) if match is not None]
        return StageResult(counts={"rows": len(positions)}, details={"positions": list(positions)})

    inputs = {"dataset": dataset, "gold": gold.digest, "similarity": similarity}
    found: Any = store.run_stage("seen", 1, inputs, work).details["positions"]
    return [int(position) for position in found]


def _leak_check(settings: Settings, store: Store, dataset: Manifest, gold: Gold | None) -> str:
    """``passed``, or why not: the dataset was checked when it was built, but against the gold of that time."""
    said = str(dataset.details.get("leak_check"))
    if said != "passed" or gold is None:
        return said
    seen = seen_rows(settings, store, dataset.digest, gold)
    if seen is None:
        return "the dataset is not in this store"
    return (
        "passed" if not seen else f"{len(seen)} gold review(s) are, or nearly are, in the training set: gold has changed since"
    )


def _on_gold(taxonomy: Taxonomy, tracker: Tracker, gold: Gold, model: Any, run_id: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    from reviewclf.evaluation import evaluate as score
    from reviewclf.evaluation import expected_calibration_error, plot_confusion_matrix, plot_reliability

    answers = model.predict(gold.frame["text"].tolist())
    true, predicted = gold.frame["label"].tolist(), answers["label"].tolist()
    # The champion may know categories that the taxonomy has dropped, or lack some that are new.
    probabilities = pd.DataFrame(answers["probabilities"].tolist())
    labels = [*taxonomy.names, *(name for name in probabilities.columns if name not in taxonomy.names)]
    scores = score(true, predicted, labels)
    calibration = expected_calibration_error(true, probabilities.reindex(columns=labels, fill_value=0.0).to_numpy(), labels)
    figures = {**scores.figures(), "ece": calibration.value}
    rows = gold.frame[["review_id", "text_hash", "label"]].assign(
        predicted=predicted, confidence=answers["confidence"].round(6).to_numpy()
    )
    if run_id:
        metrics = {f"gold/{name}": value for name, value in {**figures, "rows": scores.n}.items()}
        tracker.log(run_id, metrics=metrics, tags={"reviewclf.gold": gold.digest})
        tracker.log_json(run_id, scores.model_dump(mode="json"), "evaluation/gold.json")
        tracker.log_json(run_id, rows.to_dict("records"), "evaluation/gold_answers.json")
        tracker.log_json(run_id, calibration.model_dump(mode="json"), "evaluation/calibration.json")
        title = f"{tracker.client.get_run(run_id).info.run_name} on {scores.n} gold reviews"
        tracker.log_figure(run_id, plot_confusion_matrix(scores, title), "evaluation/confusion_matrix.png")
        tracker.log_figure(run_id, plot_reliability(calibration, title), "evaluation/reliability.png")
    return rows, {**figures, "per_class": [item.model_dump(mode="json") for item in scores.per_class if item.support]}


def _effect_on_gold(
    settings: Settings, store: Store, taxonomy: Taxonomy, tracker: Tracker, gold: Gold | None, dataset: Manifest
) -> dict[str, Any]:
    """Recall on gold of each thin class, with the synthetic rows chosen and without any; for the record, it decides nothing."""
    choices = choices_of(dataset)
    if gold is None or not choices:
        return {}
    rows = store.read_table(dataset.keys("dataset"), schema=tables.DATASET_SCHEMA).to_pandas()
    entries: Any = dataset.inputs["candidates"]
    spec = cheapest([parse_candidate(entry) for entry in entries])
    split = {name: rows[rows["split"] == name].reset_index(drop=True) for name in ("train", "validation")}
    job = TrainingJob(**split, classes=taxonomy.names, stems=taxonomy.keyword_stems, seed=settings.seed)
    without = replace(job, train=job.train[job.train["origin"] != "synthetic"].reset_index(drop=True))
    texts, true = gold.frame["text_clean"].tolist(), gold.frame["label"].tolist()
    try:
        answers = spec.train(job).predict(texts)
        bare = spec.train(without).predict(texts) if len(without.train) < len(job.train) else answers
    except TrainingError as error:
        logger.warning("what synthetic rows do on gold is not known: %s", error)
        return {}
    effect: dict[str, Any] = {}
    parent = parent_of(tracker, dataset.digest)
    for choice in choices:
        figures = effect[choice.category] = recall_on(true, answers, bare, choice.category)
        metrics = {f"augmentation/class_{choice.id}/gold_recall/{name}": value for name, value in figures.items()}
        tracker.log(parent, metrics=metrics)
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
