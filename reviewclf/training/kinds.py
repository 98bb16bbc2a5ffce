"""The kinds of candidates: ours, and those that installed packages register as entry points."""

from __future__ import annotations

from typing import Any

from reviewclf.errors import TrainingError
from reviewclf.extensions import CANDIDATES, extensions, load_extension


def load_kind(name: object) -> Any:
    """The class of a kind: a subclass of :class:`reviewclf.training.candidates.Candidate`.

    Raises
    ------
    TrainingError
        There is no such kind, or its package cannot be imported.
    """
    return load_extension(CANDIDATES, name, place="kind", error_type=TrainingError)


def package_of(name: str) -> str | None:
    """The installed package that registers a kind; None for ours."""
    distribution = extensions(CANDIDATES)[name].dist
    return None if distribution is None else distribution.name
