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
    same = [name for name in names if _is_end(_untagged(wanted), _untagged(name)) and _tags_agree(wanted, name)]
    if same:
        return same
    if _tag(wanted):
        return []
    tagged = [name for name in names if _is_end(wanted.casefold(), name.casefold().rpartition(":")[0])]
    return tagged if len(tagged) == 1 else []


def _is_end(one: str, other: str) -> bool:
    """Whether two names are the same, or one is the other behind a slash."""
    return bool(one and other) and (one == other or one.endswith(f"/{other}") or other.endswith(f"/{one}"))


def _tag(name: str) -> str:
    tag = name.casefold().rpartition(":")[2] if ":" in name else ""
    return "" if "/" in tag else tag


def _untagged(name: str) -> str:
    tag = _tag(name)
    return name.casefold().removesuffix(f":{tag}") if tag else name.casefold()


def _tags_agree(one: str, other: str) -> bool:
    return (_tag(one) or "latest") == (_tag(other) or "latest")
