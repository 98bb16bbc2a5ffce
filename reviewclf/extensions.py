"""Parts that an installed package adds to the platform: entry points, found by the name that a setting or a file gives."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from reviewclf.errors import ReviewclfError

ANNOTATORS = "reviewclf.annotators"
CANDIDATES = "reviewclf.candidates"

# Ours are entry points too, but listed here: a logged model carries the package's code without its metadata.
_OURS = {
    ANNOTATORS: {
        "recorded": "reviewclf.labeling.annotators.recorded:from_settings",
        "openai": "reviewclf.labeling.annotators.openai:from_settings",
        "transformers": "reviewclf.labeling.annotators.transformers:from_settings",
    },
    CANDIDATES: {
        "linear": "reviewclf.training.linear:LinearCandidate",
        "encoder": "reviewclf.training.encoder:EncoderCandidate",
        "frozen-encoder": "reviewclf.training.frozen:FrozenEncoderCandidate",
    },
}


def extensions(group: str) -> dict[str, EntryPoint]:
    """Entry points of a group by name: ours, then those of installed packages, which cannot replace ours."""
    ours = {name: EntryPoint(name=name, value=value, group=group) for name, value in _OURS[group].items()}
    return ours | {point.name: point for point in entry_points(group=group) if point.name not in ours}


def is_ours(group: str, name: str) -> bool:
    """Whether a name is one of the platform's own, which is known without looking at installed packages."""
    return name in _OURS[group]


def load_extension(group: str, name: object, *, place: str, error_type: type[ReviewclfError]) -> Any:
    """What an entry point names.

    Parameters
    ----------
    group : str
        :data:`ANNOTATORS` or :data:`CANDIDATES`.
    name : object
        The name that was given.
    place : str
        The setting or field that gives it, for messages.
    error_type : type of ReviewclfError
        Raised where nobody registers the name, or its package cannot be imported.
    """
    known = extensions(group)
    if not isinstance(name, str) or name not in known:
        raise error_type(f"{place}: expected one of {', '.join(known)}, found {name!r}")
    try:
        return known[name].load()
    except Exception as error:  # whatever somebody's module raises
        value = known[name].value
        raise error_type(f"{place}: {value}, registered as {name}, cannot be imported ({error!r:.200})") from error
