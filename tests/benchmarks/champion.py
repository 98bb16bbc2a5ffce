"""A registry with a champion."""

from __future__ import annotations

from pathlib import Path


def register_classifier(tracking_uri: str, classifier: Path, *, kind: str, example: str) -> str:
    """Log the saved classifier and let the alias of production point at it; returns the address of the registry."""
    from reviewclf.registry import CHAMPION, REGISTERED_MODEL
    from reviewclf.registry.model import log_model, register
    from reviewclf.registry.tracking import Tracker
    from reviewclf.training.kinds import load_kind

    tracker = Tracker(tracking_uri)
    run = tracker.open_run("key", kind="candidate", name="benchmark", description="")
    uri = log_model(tracker, run, classifier, packages=load_kind(kind).classifier().packages, example=example, metadata={})
    version = register(tracker, run_id=run, model_uri=uri, tags={}, description="")
    tracker.client.set_registered_model_alias(REGISTERED_MODEL, CHAMPION, version)
    return tracker.tracking_uri
