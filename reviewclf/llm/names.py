"""Names of models, which servers list with prefixes and tags that people leave out. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def names_in(listed: Any) -> tuple[list[str], set[str]]:
    """Names and makers in a server's list of models: OpenAI's form, Ollama's, or a bare list."""
    if isinstance(listed, Mapping):
        listed = listed.get("data") or listed.get("models")
    names: list[str] = []
    makers: set[str] = set()
    for item in listed if isinstance(listed, list) else []:
        if isinstance(item, str):
            names.append(item)
        elif isinstance(item, Mapping):
            name = next((item[key] for key in ("id", "name", "model") if isinstance(item.get(key), str)), None)
            aliases = item.get("aliases")
            names += [name] if name else []
            names += [alias for alias in aliases if isinstance(alias, str)] if isinstance(aliases, list) else []
            makers.add(str(item.get("owned_by")).casefold())
    return names, makers


def matching(wanted: str, names: Sequence[str]) -> list[str]:
    """Names that mean the model wanted: in other case, with another prefix (``models/``, ``openai/``) or tag (``:latest``).

    A name without a tag means the one model of that name, whatever its tag; where there are several, none.
    """
    base, tag = _base_and_tag(wanted)
    alike = [(name, other) for name in names for start, other in (_base_and_tag(name),) if _is_end(base, start)]
    same = [name for name, other in alike if (other or "latest") == (tag or "latest")]
    if not same and not tag and len(alike) == 1:
        return [alike[0][0]]
    return same


def _is_end(one: str, other: str) -> bool:
    """Whether two names are the same, or one is the other behind a slash."""
    return bool(one and other) and (one == other or one.endswith(f"/{other}") or other.endswith(f"/{one}"))


def _base_and_tag(name: str) -> tuple[str, str]:
    base, _, tag = name.casefold().rpartition(":")
    return (name.casefold(), "") if not base or "/" in tag else (base, tag)
