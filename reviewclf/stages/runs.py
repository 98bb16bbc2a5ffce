"""MLflow runs of a retrain: the parent with its dataset, and what all its stages need to write to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from reviewclf import tables
from reviewclf.augmentation.amounts import curve_table
from reviewclf.data.card import card_markdown
from reviewclf.errors import RegistryError
from reviewclf.manifest import Manifest
from reviewclf.settings import Settings
from reviewclf.stages.dataset import choices_of, filter_table
from reviewclf.storage import Store

if TYPE_CHECKING:
    from reviewclf.registry.tracking import Tracker


def tracker_of(settings: Settings) -> Tracker:
    """The tracking server of the settings."""
    from reviewclf.registry.tracking import Tracker

    return Tracker(settings.tracking_uri)


def retrain_run(tracker: Tracker, dataset: Manifest, store: Store) -> str:
    """Id of the parent run of a retrain; made, with its dataset and card, at the first call."""
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
    log_dataset(tracker, run_id, dataset, store, rows)
    tracker.log(run_id, metrics={f"dataset/{name}": count for name, count in dataset.counts.items()})
    tracker.log_json(run_id, dataset.model_dump(mode="json"), "dataset/card.json")
    tracker.log_text(run_id, card_markdown(dataset), "dataset/card.md")
    _log_augmentation(tracker, run_id, dataset)
    tracker.log_environment(run_id)
    tracker.finish(run_id)
    return run_id


def parent_of(tracker: Tracker, key: str) -> str:
    """Id of the parent run of the retrain on dataset `key`. Raises RegistryError when somebody deleted it."""
    runs = tracker.find_runs({"reviewclf.key": key, "reviewclf.kind": "retrain"}, newest=1)
    if not runs:
        raise RegistryError(f"the MLflow run of retrain {key} is gone; run build_dataset again")
    return str(runs[0].info.run_id)


def log_dataset(tracker: Tracker, run_id: str, dataset: Manifest, store: Store, rows: pd.DataFrame) -> None:
    """Log the splits of a dataset as inputs of a run."""
    source = f"{store.uri}/{dataset.keys('dataset')[0]}"
    for split, context in (("train", "training"), ("validation", "validation"), ("test", "gold")):
        part = rows[rows["split"] == split]
        if len(part):
            tracker.log_dataset(run_id, part, name=f"reviews-{split}", digest=dataset.digest, source=source, context=context)


def metrics_of(prefix: str, result: Any) -> dict[str, float]:
    """Metrics with their bounds, as MLflow takes them."""
    metrics: dict[str, float] = {}
    for name in ("accuracy", "precision", "recall", "weighted_f1", "macro_f1"):
        interval = getattr(result, name)
        metrics.update(
            {f"{prefix}/{name}": interval.value, f"{prefix}/{name}_low": interval.low, f"{prefix}/{name}_high": interval.high}
        )
    return metrics


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
