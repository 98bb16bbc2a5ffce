"""A night's labelling in MLflow: what it cost, how it agrees with people, how honest its confidence is."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from reviewclf.evaluation import Calibration, ReliabilityBin, plot_reliability
from reviewclf.manifest import Manifest

if TYPE_CHECKING:
    from reviewclf.registry.tracking import Tracker

# Runs of earlier versions are found by it too.
_KIND = "labelling"


def log_labels(tracker: Tracker, labelled: Manifest, *, backend: str, model: str | None) -> str:
    """The run of one labelling, made at the first call.

    Parameters
    ----------
    labelled : Manifest
        From :func:`reviewclf.stages.label.aggregate`.
    backend : str
        ``REVIEWCLF_LLM__BACKEND``.
    model : str or None
        The language model that was asked, if one was.
    """
    if known := tracker.finished_run(labelled.digest, _KIND):
        return known
    details: dict[str, Any] = dict(labelled.details)
    costs: dict[str, float] = details.get("costs") or {}
    counts = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in labelled.counts.items())
    run_id = tracker.open_run(
        labelled.digest,
        kind=_KIND,
        name=f"labelling {datetime.now(UTC):%Y-%m-%d} {labelled.digest[:8]}",
        description=f"**Labels** by `{backend}`: {counts}.",
    )
    metrics = {f"labels/{name}": float(count) for name, count in labelled.counts.items()}
    metrics.update({f"cost/{name}": value for name, value in costs.items()})
    agreement = details.get("agreement_with_gold")
    if agreement:
        metrics["gold/agreement"] = agreement["share"]
        metrics["gold/rows"] = agreement["n"]
        metrics["gold/ece"] = details["label_ece"]
        calibration = Calibration(
            value=details["label_ece"], n=agreement["n"], bins=[ReliabilityBin(**row) for row in details["reliability"]]
        )
        tracker.log_json(run_id, calibration.model_dump(mode="json"), "labels/reliability.json")
        figure = plot_reliability(calibration, "Labels against people, on gold reviews that were voted on")
        tracker.log_figure(run_id, figure, "labels/reliability.png")
    tracker.log(run_id, params={"backend": backend, **({} if model is None else {"model": model})}, metrics=metrics)
    tracker.log_json(run_id, labelled.model_dump(mode="json"), "labels.json")
    tracker.finish(run_id)
    return run_id
