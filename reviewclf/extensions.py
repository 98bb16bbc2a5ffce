"""Parts that an installed package adds to the platform: entry points, found by the name that a setting gives."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

ANNOTATORS = "reviewclf.annotators"

# Ours are entry points too, but listed here: they must be found where the package's code lies without its metadata.
_OURS = {
    ANNOTATORS: {
        "recorded": "reviewclf.labeling.annotators.recorded:from_settings",
        "openai": "reviewclf.labeling.annotators.openai:from_settings",
        "transformers": "reviewclf.labeling.annotators.transformers:from_settings",
    }
}


def extensions(group: str) -> dict[str, EntryPoint]:
    """Entry points of a group by name: ours, then those of installed packages, which cannot replace ours."""
    ours = {name: EntryPoint(name=name, value=value, group=group) for name, value in _OURS.get(group, {}).items()}
    return {**{point.name: point for point in entry_points(group=group)}, **ours}


def is_ours(group: str, name: str) -> bool:
    """Whether a name is one of the platform's own, which is known without looking at installed packages."""
    return name in _OURS[group]
