"""What a language model's answer to a question says: a category, or why it names none. Pure."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from reviewclf.labeling.prompts import Question
from reviewclf.llm.replies import folded_keys, strip_thoughts

# Where models put the answer that they have thought about.
_BOX = re.compile(r"<answer>(.*?)</answer>|\\boxed\{(?:\\text\{)?([^{}]*)\}", re.DOTALL | re.IGNORECASE)
_KEYS = ("label", "метка", "category", "категория", "номер", "answer", "ответ", "class", "класс", "код", "code", "стеллаж")
# Words that lead to an answer and are no part of it, however they are joined to it: «Номер категории: **3**», {'label': '3'}.
_LEAD = re.compile(
    rf"^(?:\W*(?:{'|'.join(_KEYS)}|категории|ответа|отзыва|товара|мой|итоговый|итог|итого|final|the|is)(?!\w))+\W*",
    re.IGNORECASE,
)
# Codes at the beginning: «3: платье» and «3 или 4», but not «3 из 5».
_CODES = re.compile(r"(?:\W*\b[0-9A-Z]\b(?:\W+(?:и|или|либо|or|and)\b|(?=\s*(?:$|[^\w\s]))|(?=\s+[0-9A-Z]\b)))+")
_CONFIDENCE_KEYS = ("confidence", "уверенность", "probability", "score")
_MORE_ROOM = (
    "if the model thinks first, set REVIEWCLF_LLM__THINKING=off, or =on and REVIEWCLF_LLM__THINKING_TOKENS to the room it needs"
)


class Answer(NamedTuple):
    """What an answer says: a label, or why it says none, and whether it might have with more room; the stated confidence."""

    label: str | None
    reason: str | None = None
    confidence: float | None = None
    is_unfinished: bool = False


def parse_answer(answer: str, question: Question, *, is_cut: bool = False, has_thought: bool = False) -> Answer:
    """Read a free or structured answer: a code, a category's name, or JSON that holds either.

    An answer that names no category, or several, has no label: it is never taken for a class. Thoughts are no answer, and of
    one that was cut off only what it says at its very beginning is.

    Parameters
    ----------
    answer : str
        What the model wrote.
    question : Question
        What it was asked.
    is_cut : bool
        The answer ended for want of room.
    has_thought : bool
        The model thought before, in a field of its own.
    """
    said = strip_thoughts(answer)
    text = said.text
    if not text:
        return _silent(is_open=said.is_open, is_cut=is_cut, has_thought=has_thought or said.has_thought)
    if (structured := _structured(text, question)) is not None:
        return structured
    boxed = {next(filter(None, groups), "") for groups in _BOX.findall(text)}
    read = _begun if is_cut and len(boxed) != 1 else _named
    label = read(boxed.pop() if len(boxed) == 1 else text, question)
    if label is not None:
        return Answer(label)
    shown = repr(" ".join(text.split())[:80])
    if is_cut:
        return Answer(None, f"the answer was cut before it named a category: {shown}; {_MORE_ROOM}", is_unfinished=True)
    return Answer(None, f"the answer names no single category: {shown}")


def _silent(*, is_open: bool, is_cut: bool, has_thought: bool) -> Answer:
    """Why there are no words."""
    if is_open or (has_thought and is_cut):
        why = "the thought was cut before an answer"
    elif has_thought:
        why = "there is a thought and no answer behind it"
    elif is_cut:
        why = "the answer was cut before its first word"
    else:
        return Answer(None, "the answer is empty")
    return Answer(None, f"{why}; {_MORE_ROOM}", is_unfinished=True)


# -- JSON -------------------------------------------------------------------------------------------------------------


def _structured(text: str, question: Question) -> Answer | None:
    """What the JSON in an answer says; None where there is none that answers."""
    found = [(content, value) for content in _objects(text) if (value := _value(content)) is not None]
    labels: dict[str, dict[str, Any]] = {}
    for content, value in found:
        if (label := _named(value, question)) is not None:
            labels.setdefault(label, content)
    if len(labels) == 1:
        ((label, content),) = labels.items()
        return Answer(label, confidence=_stated(content))
    if labels:
        return Answer(None, f"the answer names several categories: {', '.join(sorted(labels))}")
    return Answer(None, f"no category is called {found[0][1][:60]!r}") if found else None


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """JSON objects in a text, their keys in lower case; of those within each other the outermost."""
    place = text.find("{")
    while place >= 0:
        end = place + 1
        with contextlib.suppress(ValueError, RecursionError):
            content, end = json.JSONDecoder().raw_decode(text, place)
            yield folded_keys(content)
        place = text.find("{", end)


def _value(content: Mapping[str, Any]) -> str | None:
    """What an object gives as its answer, under one of the usual keys or the only one that it has."""
    others = [value for key, value in content.items() if key not in _CONFIDENCE_KEYS]
    value = next((content[key] for key in _KEYS if key in content), others[0] if len(others) == 1 else None)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, Mapping):
        return _value(folded_keys(value))
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return None if value is None else str(value)


def _stated(content: Mapping[str, Any]) -> float | None:
    for key in _CONFIDENCE_KEYS:
        value = content.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            share = float(value) / 100 if 1 < value <= 100 else float(value)
            if 0.0 <= share <= 1.0:
                return share
    return None


# -- words ------------------------------------------------------------------------------------------------------------


def _begun(text: str, question: Question) -> str | None:
    """The category that the first line says and nothing else: a code, alone or with its own name, or a name."""
    line = _LEAD.sub("", text).strip().partition("\n")[0].strip("«»\"'`*().,;:{}[]_ \r")
    start = re.match(r"([0-9A-Za-z])\b\W*(.*)$", line)
    if start is None:
        return next((name for name in question.labels.values() if _folded(name) == _folded(line)), None)
    label = question.labels.get(start[1].upper())
    return label if label is not None and _folded(label).startswith(_folded(start[2])) else None


def _named(text: str, question: Question) -> str | None:
    """The one category that a text names by code or name; None when it names none or several."""
    alone = {label for line in text.splitlines() if (label := _begun(line, question)) is not None}
    if alone:
        # A line of its own is the answer, whatever is explained before or after it.
        return alone.pop() if len(alone) == 1 else None
    start = _CODES.match(_LEAD.sub("", text))
    folded = _folded(text)
    named: set[str] = set()
    # The longest first: «нет товара» must not be found in a longer name that holds it.
    for name in sorted(question.labels.values(), key=len, reverse=True):
        needle = _folded(name)
        if re.search(rf"(?<!\w){re.escape(needle)}(?!\w)", folded):
            named.add(name)
            folded = re.sub(rf"(?<!\w){re.escape(needle)}(?!\w)", " ", folded)
    if start is not None:
        named |= {question.labels[code] for code in re.findall(r"\b[0-9A-Z]\b", start[0]) if code in question.labels}
    return named.pop() if len(named) == 1 else None


def _folded(text: str) -> str:
    return re.sub(r"[\s_-]+", " ", text.casefold().replace("ё", "е")).strip()
