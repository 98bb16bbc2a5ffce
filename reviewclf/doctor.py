"""What is missing on this machine, and how to get it."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
import textwrap
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Literal, NamedTuple

from reviewclf.errors import EncoderUnavailableError, LabelingError, ReviewclfError, SettingsError
from reviewclf.settings import Settings, load_settings

Mark = Literal["ok", "note", "missing"]

_PACKAGES = ("apache-airflow", "mlflow", "great-expectations", "scikit-learn", "pandas", "skops", "torch", "transformers")
_MIN_FREE_GIB = 2.0
_WIDTH = 120


class Finding(NamedTuple):
    """One thing that was looked at; the first line of its text says the most important."""

    mark: Mark
    subject: str
    text: str

    @property
    def line(self) -> str:
        """The finding, or its beginning, in 120 characters at most."""
        start = f"{self.mark:7} {self.subject}: "
        return start + textwrap.shorten(self.text, _WIDTH - len(start), placeholder=" …")

    @property
    def whole(self) -> str:
        """All of it; further lines are indented."""
        return f"{self.mark:7} {self.subject}: " + self.text.replace("\n", "\n" + " " * 8)


class Note(str):
    """What a check says that is neither in order, which is a plain string, nor missing, which is an error."""

    __slots__ = ()


def examine() -> list[Finding]:
    """Look at the interpreter, packages, settings, files, store and registry; nothing is changed but the store's folder."""
    findings = [_look(_python), _look(_packages)]
    try:
        settings = load_settings()
    except SettingsError as error:
        return [*findings, Finding("missing", "settings", str(error))]
    checks = (
        _home,
        _taxonomy,
        _source,
        _gold,
        _votes,
        _labelling_model,
        _candidates,
        _store,
        _registry,
        _alerts,
        _serving,
    )
    return findings + [_look(check, settings) for check in checks]


def _look(check: Callable[..., str], *arguments: Settings) -> Finding:
    """Ask one check, whose name is the subject."""
    subject = check.__name__.replace("_", " ").strip()
    try:
        found = check(*arguments)
    except ReviewclfError as error:
        return Finding("missing", subject, str(error))
    return Finding("note" if isinstance(found, Note) else "ok", subject, found)


def _python() -> str:
    version = ".".join(map(str, sys.version_info[:3]))
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        raise SettingsError(f"{version}: needs 3.11 to 3.13")
    return version


def _packages() -> str:
    installed = {item.name.lower().replace("_", "-"): item.version for item in importlib.metadata.distributions()}
    if absent := [name for name in _PACKAGES if name not in installed]:
        raise SettingsError(f"not installed: {', '.join(absent)}; run pip install -r requirements.txt")
    return ", ".join(f"{name} {installed[name]}" for name in _PACKAGES)


def _home(settings: Settings) -> str:
    folder = settings.home.expanduser().resolve()
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        raise SettingsError(f"{folder} cannot be written to; set REVIEWCLF_HOME to a folder that can")
    free = shutil.disk_usage(folder).free / 2**30
    return f"{settings.home}: {free:.0f} GiB free" if free >= _MIN_FREE_GIB else Note(f"{folder}: only {free:.1f} GiB free")


def _taxonomy(settings: Settings) -> str:
    from reviewclf.taxonomy import Taxonomy

    names = Taxonomy.load(settings.taxonomy).names
    return f"{len(names)} categories: {', '.join(names)}"


def _source(settings: Settings) -> str:
    from reviewclf.data.sources import list_source

    return f"{settings.source}: {len(list_source(settings.source, settings.ingest))} file(s) or table(s)"


def _gold(settings: Settings) -> str:
    from reviewclf.data.gold import load_gold
    from reviewclf.taxonomy import Taxonomy

    gold = load_gold(settings, Taxonomy.load(settings.taxonomy))
    if gold is None:
        return Note("REVIEWCLF_GOLD is empty: nothing passes the gate without reviews labelled by people")
    text = f"{gold.uri}: {len(gold.frame)} reviews labelled by people"
    return Note("\n".join([text, *gold.notes])) if gold.notes else text


def _votes(settings: Settings) -> str:
    from reviewclf.labeling.annotators import RecordedAnnotator
    from reviewclf.taxonomy import Taxonomy

    if settings.votes is None:
        return Note("REVIEWCLF_VOTES is empty: only keyword stems will label")
    recorded = RecordedAnnotator.load(settings.votes, Taxonomy.load(settings.taxonomy).names)
    text = f"{settings.votes}: {len(recorded)} votes"
    return Note(f"{text}, {len(recorded.refused)} row(s) refused") if recorded.refused else text


def _labelling_model(settings: Settings) -> str:
    from reviewclf.taxonomy import Taxonomy

    llm = settings.llm
    if llm.backend == "recorded":
        return "none: votes are read from REVIEWCLF_VOTES"
    if llm.backend == "openai":
        from reviewclf.labeling.annotators.openai import OpenAIAnnotator

        client = OpenAIAnnotator(llm, Taxonomy.load(settings.taxonomy)).client
        client.check()
        return f"{llm.model} at {client.server}"
    if llm.backend != "transformers":
        from reviewclf.labeling.annotators import make_annotators

        version = make_annotators(settings, Taxonomy.load(settings.taxonomy))[0].version
        return f"annotator {version} of an installed package"
    import torch
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(llm.model, revision=llm.revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        how = f"get it with `hf download {llm.model}`, or set REVIEWCLF_LLM__MODEL to a local folder"
        raise LabelingError(f"{llm.model} cannot be found: {how} ({error})") from error
    if not torch.cuda.is_available():
        return Note(f"{llm.model} will run on the CPU: no GPU here")
    return f"{llm.model} on {torch.cuda.get_device_name()}"


def _candidates(settings: Settings) -> str:
    from reviewclf.training.candidates import load_candidates

    trained, skipped = [], {}
    for candidate in load_candidates(settings.candidates):
        try:
            candidate.check_available(settings.encoders)
        except EncoderUnavailableError as error:
            skipped[candidate.name] = str(error)
        else:
            trained.append(candidate.name)
    if not skipped:
        return ", ".join(trained)
    reasons = [f"{name}: {reason}" for name, reason in skipped.items()]
    return Note("\n".join([f"{', '.join(trained)}; will be skipped: {', '.join(skipped)}", *reasons]))


def _store(settings: Settings) -> str:
    from reviewclf.store import Store

    snapshot = Store(settings.store_uri).snapshot()
    return f"{settings.store_uri}: version {snapshot.version}, tables {', '.join(sorted(snapshot.tables)) or 'none yet'}"


def _registry(settings: Settings) -> str:
    uri = settings.tracking_uri
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        return Note(f"{uri}: not there yet; `make run` creates it")
    from reviewclf.registry.model import aliases
    from reviewclf.registry.tracking import Tracker

    champion = aliases(Tracker(uri)).get("champion")
    return (
        Note(f"{uri}: no champion yet; `make run` trains one") if champion is None else f"{uri}: champion is version {champion}"
    )


def _alerts(settings: Settings) -> str:
    if not settings.alerts.connections:
        return Note("REVIEWCLF_ALERTS__CONNECTIONS is empty: what goes wrong at night is only logged")
    return f"go to {', '.join(settings.alerts.connections)}; the DAG reviews_alert_test tries them"


def _serving(settings: Settings) -> str:
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
        return Note(f"{address}: everybody who reaches this machine may ask; {how}")
    return f"{address}, {'with keys' if keys else 'open to this machine alone'}"
