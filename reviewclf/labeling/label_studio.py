"""Label Studio: tasks and configuration for it, and who chose what in an annotation of its exports. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from xml.sax.saxutils import quoteattr

import pandas as pd

_CONTROL = "label"
# What a result calls the names that were chosen, by the kinds of control that choose among names.
_CHOICES = ("choices", "taxonomy", "labels")


def choices_of(results: Any) -> dict[str, list[str]]:
    """The names chosen in an annotation, by control; other kinds of results (comments, ratings) are left aside."""
    choices: dict[str, list[str]] = {}
    for result in results if isinstance(results, list) else []:
        if isinstance(result, dict) and result.get("type", "choices") in _CHOICES:
            choices.setdefault(plain_text(result.get("from_name")), []).extend(chosen_names(result.get("value")))
    return {control: names for control, names in choices.items() if names}


def chosen_names(value: Any) -> list[str]:
    """Names in a value of any export: a name, a list of names, ``{"choices": [...]}``, paths in a tree, or one as JSON."""
    if isinstance(value, str):
        text = " ".join(value.split())
        if text[:1] in ("{", "["):
            try:
                return chosen_names(json.loads(text))
            except (ValueError, RecursionError):
                return [text]
        return [text] if text else []
    if isinstance(value, Mapping):
        if isinstance(paths := value.get("taxonomy"), list):
            # A path leads from the root of a tree to the name that was chosen.
            return [plain_text(path[-1] if isinstance(path, list) and path else path) for path in paths]
        return [name for kind in _CHOICES if kind in value for name in chosen_names(value[kind])]
    if isinstance(value, Iterable):
        return [name for item in value for name in chosen_names(item)]
    return [plain_text(value)] if plain_text(value) else []


def person_of(completed_by: Any) -> tuple[str, str]:
    """Who answered, and the number under which Label Studio knows them; empty where it is not said."""
    if isinstance(completed_by, Mapping):
        number = plain_text(completed_by.get("id"))
        return plain_text(completed_by.get("email") or completed_by.get("username")) or number, number
    who = plain_text(completed_by)
    # What Label Studio's CSV writes for nobody.
    return ("", "") if who in ("None", "nan") else (who, "")


def plain_text(value: Any) -> str:
    """An id, a name or a text as text; a number that a table made of a whole one is whole again."""
    if value is None or value is pd.NA or value is pd.NaT:
        return ""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else "" if math.isnan(value) else str(value)
    return str(value).strip()


def label_studio_tasks(queue: pd.DataFrame) -> str:
    """The queue as Label Studio's JSON tasks, each with the present label as a prediction.

    The labelling configuration that fits is :func:`label_studio_config`.
    """
    tasks = []
    for row in queue.to_dict("records"):
        present = {"from_name": _CONTROL, "to_name": "text", "type": "choices", "value": {"choices": [row["label"]]}}
        data = {name: row[name] for name in ("review_id", "text_hash", "text", "reason")}
        tasks.append({"data": data, "predictions": [{"score": row["confidence"], "result": [present]}]})
    return json.dumps(tasks, ensure_ascii=False, indent=1)


def label_studio_config(categories: Sequence[str]) -> str:
    """Label Studio's labelling configuration for these categories."""
    choices = "\n".join(f"    <Choice value={quoteattr(name)}/>" for name in categories)
    return (
        f'<View>\n  <Text name="text" value="$text"/>\n  <Choices name="{_CONTROL}" toName="text" choice="single" '
        f'showInLine="true">\n{choices}\n  </Choices>\n</View>\n'
    )
