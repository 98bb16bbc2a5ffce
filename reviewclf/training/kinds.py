"""The kinds of candidates: ours, and those that installed packages register as entry points."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from reviewclf.errors import TrainingError

GROUP = "reviewclf.candidates"

# Written as entry points too, but here: a logged model carries the package's code without its metadata.
_OURS = {
    "linear": "reviewclf.training.linear:LinearCandidate",
    "encoder": "reviewclf.training.encoder:EncoderCandidate",
    "frozen-encoder": "reviewclf.training.frozen:FrozenEncoderCandidate",
}


def known_kinds() -> dict[str, EntryPoint]:
    """Entry points of all kinds by name; no package can replace one of ours."""
    ours = {name: EntryPoint(name=name, value=value, group=GROUP) for name, value in _OURS.items()}
    return ours | {point.name: point for point in entry_points(group=GROUP) if point.name not in ours}


def load_kind(name: object) -> Any:
    """The class of a kind: a subclass of :class:`reviewclf.training.candidates.Candidate`.

    Raises
    ------
    TrainingError
        There is no such kind, or its package cannot be imported.
    """
    known = known_kinds()
    if not isinstance(name, str) or name not in known:
        raise TrainingError(f"kind: expected one of {', '.join(known)}, found {name!r}")
    try:
        return known[name].load()
    except Exception as error:  # whatever somebody's module raises
        raise TrainingError(f"kind: {known[name].value}, registered as {name}, cannot be imported ({error!r:.200})") from error


def package_of(name: str) -> str | None:
    """The installed package that registers a kind; None for ours."""
    distribution = known_kinds()[name].dist
    return None if distribution is None else distribution.name
