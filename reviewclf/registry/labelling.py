"""A night's labelling in MLflow: what it cost, how it agrees with people, how honest its confidence is, what was asked."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import mlflow

from reviewclf.evaluation import Calibration, ReliabilityBin, plot_reliability
from reviewclf.manifest import Manifest, digest_of
from reviewclf.registry.tracking import KEY_TAG, KIND_TAG, Tracker

if TYPE_CHECKING:
    from reviewclf.labeling.prompts import Prompt

logger = logging.getLogger(__name__)

_KIND = "labelling"
_DIGEST_TAG = "reviewclf.digest"


def log_labelling(tracker: Tracker, labelled: Manifest, *, backend: str, model: str) -> str:
    """The run of one labelling, made at the first call.

    Parameters
    ----------
    labelled : Manifest
        From :func:`reviewclf.stages.label.aggregate`.
    backend, model : str
        Who was asked.
    """
    for known in tracker.find_runs({KEY_TAG: labelled.digest, KIND_TAG: _KIND}, newest=1):
        if tracker.is_alive(str(known.info.run_id)):
            return str(known.info.run_id)
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
    tracker.log(run_id, params={"backend": backend, **({} if backend == "recorded" else {"model": model})}, metrics=metrics)
    tracker.log_json(run_id, labelled.model_dump(mode="json"), "labels.json")
    tracker.finish(run_id)
    return run_id


def register_prompts(tracker: Tracker, prompts: Sequence[Prompt]) -> dict[str, int]:
    """Keep every prompt in MLflow's prompt registry; a new version only where its words differ from the newest one's.

    Returns
    -------
    dict of str to int
        MLflow's version by prompt id.
    """
    versions: dict[str, int] = {}
    with tracker.errors("keep the prompts"):
        mlflow.set_tracking_uri(tracker.tracking_uri)
        for prompt in prompts:
            digest = digest_of(prompt)
            known = mlflow.genai.load_prompt(f"prompts:/{prompt.id}@latest", allow_missing=True, link_to_model=False)
            if known is not None and (known.tags or {}).get(_DIGEST_TAG) == digest:
                versions[prompt.id] = int(known.version)
                continue
            # MLflow writes its variables in double braces.
            template = [
                {
                    "role": "system",
                    "content": prompt.system.replace("{categories}", "{{categories}}").replace("{names}", "{{names}}"),
                },
                {"role": "user", "content": prompt.user.replace("{text}", "{{text}}")},
            ]
            made = mlflow.genai.register_prompt(
                name=prompt.id,
                template=template,
                commit_message=f"version {prompt.version}",
                tags={_DIGEST_TAG: digest, "reviewclf.version": str(prompt.version), "reviewclf.order": prompt.order},
            )
            versions[prompt.id] = int(made.version)
            logger.info("prompt %s@%d is version %d in MLflow", prompt.id, prompt.version, made.version)
    return versions
