"""MLflow runs of a retrain: the parent with its dataset, and what all its stages need to write to it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pandas as pd

from reviewclf.augmentation.amounts import choices_of, curve_table
from reviewclf.augmentation.filters import filter_table
from reviewclf.data.card import card_markdown
from reviewclf.errors import RegistryError
from reviewclf.manifest import Manifest, digest_of
from reviewclf.settings import Settings
from reviewclf.store import Store

if TYPE_CHECKING:
    from reviewclf.registry.tracking import Tracker

logger = logging.getLogger(__name__)


def tracker_of(settings: Settings) -> Tracker:
    """The tracking server of the settings."""
    from reviewclf.registry.tracking import Tracker

    return Tracker(settings.tracking_uri)


def retrain_run(tracker: Tracker, dataset: Manifest, store: Store) -> str:
    """Id of the parent run of a retrain; made, with its dataset and card, at the first call."""
    known = tracker.retrain(dataset.digest)
    # One that a kill left half-told is told to the end.
    if known is not None and known.info.status == "FINISHED":
        return str(known.info.run_id)
    run_id = (
        str(known.info.run_id)
        if known is not None
        else tracker.open_run(
            dataset.digest,
            kind="retrain",
            name=f"retrain {datetime.now(UTC):%Y-%m-%d} {dataset.digest[:8]}",
            description=describe_retrain(dataset.counts),
            tags={"reviewclf.dataset": dataset.digest},
        )
    )
    rows = store.read(dataset, "dataset").to_pandas()
    log_dataset(tracker, run_id, dataset, store, rows)
    tracker.log(run_id, metrics={f"dataset/{name}": count for name, count in dataset.counts.items()})
    tracker.log_json(run_id, dataset.model_dump(mode="json"), "dataset/card.json")
    tracker.log_text(run_id, card_markdown(dataset), "dataset/card.md")
    _log_augmentation(tracker, run_id, dataset)
    tracker.log_environment(run_id)
    tracker.finish(run_id)
    return run_id


def skip_candidate(tracker: Tracker, dataset: Manifest, candidate: str, store: Store, reason: str, *, failed: bool) -> Manifest:
    """Say why a retrain goes on without a candidate; not a stage of the store, as the next attempt may end otherwise."""
    from reviewclf.registry.tracking import FAILED, SKIPPED_TAG

    logger.log(logging.ERROR if failed else logging.WARNING, "goes on without %s: %s", candidate, reason)
    reason = f"{FAILED}{reason}" if failed else reason
    tracker.log(retrain_run(tracker, dataset, store), tags={f"{SKIPPED_TAG}{candidate}": reason})
    details: dict[str, Any] = {"candidate": candidate, "skipped": reason, "failed": failed}
    return Manifest(stage="train", digest=digest_of([dataset.digest, details]), details=details)


def candidate_name(candidate: str, dataset: str) -> str:
    """Name of a candidate's run: those of one night share the end of their retrain's name."""
    return f"{candidate} {dataset[:8]}"


# Under which metric a figure of a candidate stands in MLflow; those of the best one stand on the retrain too, so that nights
# can be compared without opening their candidates.
METRIC_OF = {
    "weighted_f1": "gold/weighted_f1",
    "weighted_f1_low": "gold/weighted_f1_low",
    "weighted_f1_high": "gold/weighted_f1_high",
    "macro_f1": "gold/macro_f1",
    "accuracy": "gold/accuracy",
    "ece": "gold/ece",
    "validation_weighted_f1": "validation/weighted_f1",
    "seconds_per_example_p50": "latency/p50_seconds",
    "seconds_per_example_p95": "latency/p95_seconds",
}


def log_summary(
    tracker: Tracker,
    run_id: str,
    counts: Mapping[str, int],
    candidates: Sequence[Mapping[str, Any]],
    verdicts: Mapping[str, Mapping[str, Any]],
    best: Mapping[str, Any] | None,
) -> None:
    """Show on the retrain's run how it ended: figures of its best candidate, and all of them as a table.

    Parameters
    ----------
    run_id : str
        The parent run.
    counts : mapping
        Rows of the dataset.
    candidates, verdicts
        As in the manifests of `evaluate` and `gate`.
    best : mapping or None
        The candidate that passed and was chosen; None: none passed. Then the figures are those of the best on validation.
    """
    chosen = None if best is None else best["candidate"]
    shown = next((row for row in candidates if row["candidate"] == chosen), None)
    if shown is None:
        shown = max(candidates, key=lambda row: row.get("validation_weighted_f1") or 0.0)
    metrics = {metric: shown[name] for name, metric in METRIC_OF.items() if shown.get(name) is not None}
    passed = [name for name, verdict in verdicts.items() if verdict["verdict"] == "passed"]
    tags = {
        "reviewclf.best": shown["candidate"],
        "reviewclf.gate": "passed" if passed else "failed",
        "mlflow.note.content": describe_retrain(counts, candidates, verdicts, chosen),
    }
    tracker.log(run_id, metrics=metrics, tags=tags)


def describe_retrain(
    counts: Mapping[str, int],
    candidates: Sequence[Mapping[str, Any]] = (),
    verdicts: Mapping[str, Mapping[str, Any]] | None = None,
    chosen: str | None = None,
) -> str:
    """Description of a retrain in MLflow, as Markdown: rows, and candidates as soon as they have been judged."""
    named = {"train_rows": "train", "validation_rows": "validation", "test_rows": "gold", "synthetic": "synthetic"}
    rows = ", ".join(f"{counts[name]:,} {word}" for name, word in named.items() if counts.get(name))
    left_out = ", ".join(
        f"{count:,} {name.removeprefix('left_out_').replace('_', ' ')}"
        for name, count in counts.items()
        if name.startswith("left_out_") and count
    )
    lines = [f"**Rows**: {rows}.{f' Left out: {left_out}.' if left_out else ''}"]
    # A list and no table: MLflow draws tables without room between their columns.
    lines += [""] if candidates else []
    for row in sorted(candidates, key=lambda row: -(row.get("weighted_f1") or 0.0)):
        verdict = (verdicts or {}).get(row["candidate"], {})
        said = [f"- **{row['candidate']}**{', chosen on validation' if row['candidate'] == chosen else ''}:"]
        if row.get("weighted_f1") is None:
            said.append("not judged on gold;")
        else:
            low, high = row["weighted_f1_low"], row["weighted_f1_high"]
            said.append(f"weighted F1 on gold **{row['weighted_f1']:.3f}** (95% interval {low:.3f} to {high:.3f});")
        said.append(f"agreement with votes {row.get('validation_weighted_f1') or 0.0:.3f};")
        said.append(f"p95 {1000 * row['seconds_per_example_p95']:.1f} ms;")
        said.append(f"gate {verdict.get('reason', 'not asked')}, version {verdict.get('version', 'none')}")
        lines.append(" ".join(said))
    return "\n".join(lines)


def parent_of(tracker: Tracker, key: str) -> str:
    """Id of the parent run of the retrain on dataset `key`. Raises RegistryError when somebody deleted it."""
    run = tracker.retrain(key)
    if run is None:
        raise RegistryError(f"the MLflow run of retrain {key} is gone; run build_dataset again")
    return str(run.info.run_id)


def log_dataset(tracker: Tracker, run_id: str, dataset: Manifest, store: Store, rows: pd.DataFrame) -> None:
    """Log the splits of a dataset as inputs of a run."""
    source = f"{store.uri}/{dataset.keys('dataset')[0]}"
    for split, context in (("train", "training"), ("validation", "validation"), ("test", "gold")):
        part = rows[rows["split"] == split]
        if len(part):
            tracker.log_dataset(run_id, part, name=f"reviews-{split}", digest=dataset.digest, source=source, context=context)


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
