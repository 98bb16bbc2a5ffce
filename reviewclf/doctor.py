"""What is missing on this machine, and how to get it."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from reviewclf.errors import EncoderUnavailableError, ReviewclfError
from reviewclf.settings import Settings, load_settings

Mark = Literal["ok", "note", "missing"]


class Finding(NamedTuple):
    """One thing that was looked at."""

    mark: Mark
    subject: str
    text: str


_PACKAGES = ("apache-airflow", "mlflow", "great-expectations", "scikit-learn", "pandas", "skops", "torch", "transformers")
_MIN_FREE_GIB = 2.0


def examine() -> list[Finding]:
    """Look at the interpreter, packages, settings, files, store and registry; nothing is changed but the store's folder."""
    findings = [_python(), *_packages()]
    try:
        settings = load_settings()
    except ReviewclfError as error:
        return [*findings, Finding("missing", "settings", str(error))]
    findings.append(_disk(settings))
    checks: tuple[tuple[str, Callable[[Settings], Finding]], ...] = (
        ("taxonomy", _taxonomy),
        ("source", _source),
        ("gold", _gold),
        ("votes", _votes),
        ("labelling model", _model),
        ("candidates", _candidates),
        ("encoders", _encoders),
        ("store", _store),
        ("registry", _registry),
        ("alerts", _alerts),
        ("serving", _serving),
    )
    for subject, check in checks:
        try:
            findings.append(check(settings))
        except ReviewclfError as error:
            findings.append(Finding("missing", subject, str(error)))
    return findings


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    fits = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return Finding("ok" if fits else "missing", "python", version if fits else f"{version}: needs 3.11 to 3.13")


def _packages() -> list[Finding]:
    findings = []
    for name in _PACKAGES:
        try:
            findings.append(Finding("ok", name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding("missing", name, "not installed: pip install -r requirements.txt"))
    return findings


def _disk(settings: Settings) -> Finding:
    folder = settings.home.expanduser().resolve()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 2**30
    if not os.access(folder, os.W_OK):
        return Finding("missing", "home", f"{folder} cannot be written to; set REVIEWCLF_HOME to a folder that can")
    if free < _MIN_FREE_GIB:
        return Finding("note", "home", f"{folder}: only {free:.1f} GiB free")
    return Finding("ok", "home", f"{settings.home}: {free:.0f} GiB free")


def _taxonomy(settings: Settings) -> Finding:
    from reviewclf.taxonomy import Taxonomy

    taxonomy = Taxonomy.load(settings.taxonomy)
    return Finding("ok", "taxonomy", f"{len(taxonomy.names)} categories: {', '.join(taxonomy.names)}")


def _source(settings: Settings) -> Finding:
    from reviewclf.data.sources import list_source

    found = list_source(settings.source, settings.ingest)
    return Finding("ok", "source", f"{settings.source}: {len(found)} file(s) or table(s)")


def _gold(settings: Settings) -> Finding:
    from reviewclf.data.gold import load_gold
    from reviewclf.taxonomy import Taxonomy

    gold = load_gold(settings, Taxonomy.load(settings.taxonomy))
    if gold is None:
        return Finding("note", "gold", "REVIEWCLF_GOLD is empty: nothing passes the gate without reviews labelled by people")
    text = "; ".join([f"{gold.uri}: {len(gold.frame)} reviews labelled by people", *gold.notes])
    return Finding("note" if gold.notes else "ok", "gold", text)


def _votes(settings: Settings) -> Finding:
    from reviewclf.labeling.annotators import RecordedAnnotator
    from reviewclf.taxonomy import Taxonomy

    if settings.votes is None:
        return Finding("note", "votes", "REVIEWCLF_VOTES is empty: only keyword stems will label")
    recorded = RecordedAnnotator.load(settings.votes, Taxonomy.load(settings.taxonomy).names)
    refused = f", {len(recorded.refused)} row(s) refused" if recorded.refused else ""
    return Finding("note" if recorded.refused else "ok", "votes", f"{settings.votes}: {len(recorded)} votes{refused}")


def _model(settings: Settings) -> Finding:
    if settings.llm.backend == "recorded":
        return Finding("ok", "labelling model", "none: votes are read from REVIEWCLF_VOTES")
    from reviewclf.taxonomy import Taxonomy

    taxonomy = Taxonomy.load(settings.taxonomy)
    if settings.llm.backend == "openai":
        from reviewclf.labeling.annotators.openai import OpenAIAnnotator

        annotator = OpenAIAnnotator(settings.llm, taxonomy)
        annotator.check()
        return Finding("ok", "labelling model", f"{settings.llm.model} at {annotator.server}")
    import torch
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(settings.llm.model, revision=settings.llm.revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        how = f"get it with `hf download {settings.llm.model}`, or set REVIEWCLF_LLM__MODEL to a local folder"
        return Finding("missing", "labelling model", f"{settings.llm.model} cannot be found ({str(error)[:80]}); {how}")
    if not torch.cuda.is_available():
        return Finding("note", "labelling model", f"{settings.llm.model} will run on the CPU: no GPU here")
    return Finding("ok", "labelling model", f"{settings.llm.model} on {torch.cuda.get_device_name()}")


def _candidates(settings: Settings) -> Finding:
    from reviewclf.training.candidates import load_candidates

    return Finding("ok", "candidates", ", ".join(candidate.name for candidate in load_candidates(settings.candidates)))


def _encoders(settings: Settings) -> Finding:
    from reviewclf.training import check_available
    from reviewclf.training.candidates import load_candidates

    missing, found = {}, []
    for candidate in load_candidates(settings.candidates):
        try:
            check_available(candidate, settings.encoders)
        except EncoderUnavailableError as error:
            missing[candidate.name] = str(error)
        else:
            found.append(candidate.name)
    if missing:
        text = "; ".join(f"{name} will be skipped ({reason})" for name, reason in missing.items())
        return Finding("note", "encoders", text)
    return Finding("ok", "encoders", f"all candidates can be trained: {', '.join(found)}")


def _store(settings: Settings) -> Finding:
    from reviewclf.storage import Store

    snapshot = Store(settings.store_uri).snapshot()
    state = f"version {snapshot.version}, tables {', '.join(sorted(snapshot.tables)) or 'none yet'}"
    return Finding("ok", "store", f"{settings.store_uri}: {state}")


def _registry(settings: Settings) -> Finding:
    uri = settings.tracking_uri
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        return Finding("note", "registry", f"{uri}: not there yet; `make run` creates it")
    from reviewclf.registry.model import aliases
    from reviewclf.registry.tracking import Tracker

    champion = aliases(Tracker(uri)).get("champion")
    if champion is None:
        return Finding("note", "registry", f"{uri}: no champion yet; `make run` trains one")
    return Finding("ok", "registry", f"{uri}: champion is version {champion}")


def _alerts(settings: Settings) -> Finding:
    if not settings.alerts.connections:
        return Finding("note", "alerts", "REVIEWCLF_ALERTS__CONNECTIONS is empty: what goes wrong at night is only logged")
    names = ", ".join(settings.alerts.connections)
    return Finding("ok", "alerts", f"go to {names}; the DAG reviews_alert_test tries them")


def _serving(settings: Settings) -> Finding:
    from ipaddress import ip_address

    from reviewclf.serving.keys import ApiKeys

    serving = settings.serving
    keys = ApiKeys(serving.api_keys)
    try:
        inside = ip_address(serving.host).is_loopback
    except ValueError:
        inside = serving.host == "localhost"
    address = f"{serving.host}:{serving.port}"
    if not inside and not keys:
        how = "set REVIEWCLF_SERVING__API_KEYS, or let REVIEWCLF_SERVING__HOST be 127.0.0.1"
        return Finding("note", "serving", f"{address}: everybody who reaches this machine may ask; {how}")
    return Finding("ok", "serving", f"{address}, {'with keys' if keys else 'open to this machine alone'}")
