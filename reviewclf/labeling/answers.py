"""People's answers as they come back: the filled-in queue, and every export of Label Studio that holds them.

Label Studio writes an answer down in three ways. JSON keeps tasks with their annotations (``completions`` before version 1.0);
the files of a target storage hold single annotations with their task inside. JSON_MIN, CSV and TSV have one flat row for each
annotation: the task's data, the choice under the name of its control, and who answered when.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import fsspec
import pandas as pd

from reviewclf.data.frames import read_frame
from reviewclf.data.sources.dates import parse_when
from reviewclf.data.sources.rows import read_id
from reviewclf.errors import LabelingError
from reviewclf.labeling.label_studio import choices_of, chosen_names, person_of, plain_text
from reviewclf.outages import reading
from reviewclf.taxonomy import match_name

ANSWER_COLUMNS = ["text_hash", "review_id", "text", "label", "annotator", "known_as", "answered_at", "place"]

_JSON = (".json", ".jsonl", ".ndjson", ".json.gz", ".jsonl.gz", ".ndjson.gz")
_QUEUE_COLUMN = "answer"
_KEYS = ("text_hash", "review_id")
# Columns of a flat export that are never somebody's choice: Label Studio's own, and those of the queue.
_NO_CHOICE = frozenset(
    (*_KEYS, "text", "id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "history", "agreement")
).union(("confidence", "suspicion", "reason"))
# A queue that was imported to Label Studio as a table brings its present label along.
_QUEUE_MARK, _PRESENT_LABEL = "suspicion", "label"
_NAMED = 10

Row = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Answers:
    """What a file of answers holds.

    Attributes
    ----------
    frame : DataFrame
        One row an answer, ``ANSWER_COLUMNS``: the ids and the text by which its review is found (empty where the file has
        none), the category, who answered (empty: not said) and under which number Label Studio knows the same person, when
        (None: not said), and the place in the file, for messages.
    problems : list of str
        A line for each answer that cannot be taken: file, task or row, what is wrong and what to do.
    notes : list of str
        What is no answer, or is one that needs no mending: skipped tasks, drafts, tasks nobody has answered yet.
    """

    frame: pd.DataFrame
    problems: list[str]
    notes: list[str]


@dataclass(frozen=True)
class _Given:
    """What one person said about one review: the chosen names by control."""

    place: str
    data: Mapping[str, Any]
    choices: Mapping[str, list[str]]
    who: Any
    when: Any


@dataclass
class _Found:
    """All that a file holds, before anything is checked against the taxonomy."""

    name: str
    given: list[_Given] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    waiting: int = 0


def read_answers(uri: str, categories: Sequence[str], *, control: str | None = None) -> Answers:
    """Read people's answers from a file, whatever it was exported as.

    Parameters
    ----------
    uri : str
        The queue as a table with the column ``answer`` filled in, or an export of Label Studio: JSON, JSON_MIN, CSV, TSV, or
        the JSON of a target storage, one object a file or a line.
    categories : sequence of str
        Allowed answers; letter case and white space are not minded.
    control : str, optional
        Name of Label Studio's control, or of the column, that holds the answers; default: found by what is in it.

    Raises
    ------
    LabelingError
        The file is neither, holds no answer at all, or several controls hold answers to the same task.
    DataContractError
        The file cannot be read.
    """
    if not uri.lower().endswith(_JSON):
        return answers_from_frame(read_frame(uri, setting="IN", excel_safe=True), categories, name=uri, control=control)
    try:
        with reading(uri), fsspec.open(uri, "rb", compression="infer") as file:
            content: bytes = file.read()
    except (OSError, ValueError, ImportError) as error:
        raise LabelingError(f"{uri}: cannot be read: {error}") from error
    return answers_from_json(content, categories, name=uri, control=control)


def answers_from_frame(frame: pd.DataFrame, categories: Sequence[str], *, name: str, control: str | None = None) -> Answers:
    """People's answers from a table: the filled-in queue, or Label Studio's CSV or TSV; see :func:`read_answers`."""
    found = _Found(name)
    records: list[dict[Any, Any]] = frame.to_dict("records")
    if not records:
        raise LabelingError(f"{name}: holds no rows, only a header ({', '.join(map(str, frame.columns))})")
    _take_rows(found, [(f"{name}, row {number}", row) for number, row in enumerate(records, start=1)], categories, control)
    return _checked(found, categories, control)


def answers_from_json(content: bytes, categories: Sequence[str], *, name: str, control: str | None = None) -> Answers:
    """People's answers from JSON or JSON Lines; see :func:`read_answers`."""
    found = _Found(name)
    rows: list[Row] = []
    foreign: list[str] = []
    for position, item in enumerate(_objects(content, name), start=1):
        if not isinstance(item, dict):
            foreign.append(f"{name}: what stands at place {position} is no task, but {type(item).__name__}")
            continue
        place = f"{name}, task {plain_text(item.get('id')) or f'at place {position}'}"
        if isinstance(item.get("result"), list) and isinstance(task := item.get("task"), dict):
            _take_task(found, f"{name}, task {plain_text(task.get('id')) or position}", task.get("data"), [item])
        elif isinstance(item.get("data"), dict):
            annotations = item.get("annotations", item.get("completions"))
            _take_task(found, place, item["data"], annotations if isinstance(annotations, list) else [])
            if not annotations and item.get("drafts"):
                found.notes.append(f"{place}: holds a draft that was not submitted")
        elif any(key in item for key in (*_KEYS, "text", "annotation_id")):
            rows.append((place, item))
        else:
            names = ", ".join(map(str, item)) or "nothing"
            foreign.append(f"{place}: is no task of Label Studio and no row of the queue; it holds {names:.120}")
    if not rows and found == _Found(name):
        raise LabelingError(f"{foreign[0]}. Export the project again as JSON, JSON_MIN or CSV")
    found.problems += foreign
    if rows:
        _take_rows(found, rows, categories, control)
    return _checked(found, categories, control)


def _objects(content: bytes, name: str) -> list[Any]:
    """The tasks, rows or annotations of a JSON or JSON Lines file."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        try:
            lines = content.decode(json.detect_encoding(content)).removeprefix("\ufeff").split("\n")
            found = [json.loads(line) for line in lines if line.strip()]
        except (ValueError, RecursionError):
            raise LabelingError(f"{name}: is no JSON export of Label Studio: {error}") from error
    if isinstance(found, dict):
        found = found["tasks"] if isinstance(found.get("tasks"), list) else [found]
    if not isinstance(found, list) or not any(isinstance(item, dict) for item in found):
        raise LabelingError(f"{name}: is no JSON export of Label Studio: it holds no tasks; export the project again as JSON")
    return found


def _take_task(found: _Found, place: str, data: Any, annotations: Sequence[Any]) -> None:
    """Add what was said in the annotations of one task; `data` is what the task is about."""
    if not isinstance(data, dict):
        found.problems.append(f"{place}: does not say which review it is about; export the project as JSON, with its tasks")
        return
    found.waiting += not annotations
    for annotation in annotations:
        if not isinstance(annotation, dict):
            found.problems.append(f"{place}: annotation {annotation} is named but not there; export the project as JSON")
            continue
        who = annotation.get("completed_by") or annotation.get("created_username")
        if annotation.get("was_cancelled") or annotation.get("skipped"):
            found.notes.append(f"{place}: skipped by {person_of(who)[0] or 'somebody'}")
        else:
            when = annotation.get("updated_at") or annotation.get("created_at")
            found.given.append(_Given(place, data, choices_of(annotation.get("result")), who, when))


def _take_rows(found: _Found, rows: Sequence[Row], categories: Sequence[str], control: str | None) -> None:
    """Add what was said in flat rows."""
    columns = list(dict.fromkeys(str(name) for _, row in rows for name in row))
    exported = "annotation_id" in columns or "lead_time" in columns
    if not any(key in columns for key in (*_KEYS, "text")) or not (exported or control or _QUEUE_COLUMN in columns):
        raise LabelingError(
            f"{found.name}: answers need the columns answer and text_hash (or review_id); found {', '.join(columns)}"
        )
    # Label Studio writes tasks that nobody has answered with an empty annotation_id.
    answered = [row for row in rows if "annotation_id" not in columns or plain_text(row[1].get("annotation_id"))]
    controls = [control or _QUEUE_COLUMN]
    if exported and control is None:
        controls = _controls_among(columns, answered, categories, found.name)
    found.waiting += len(rows) - len(answered)
    for place, row in answered:
        choices = {name: names for name in controls if (names := chosen_names(row.get(name)))}
        if not exported and not choices:
            found.waiting += 1
        else:
            when = row.get("updated_at") or row.get("created_at") if exported else None
            found.given.append(_Given(place, row, choices, row.get("annotator"), when))


def _controls_among(columns: Sequence[str], answered: Sequence[Row], categories: Sequence[str], name: str) -> list[str]:
    """Columns of a flat export that hold names of the taxonomy; where none does, the one that must be the control's."""
    is_queue = _QUEUE_MARK in columns
    possible = [column for column in columns if column not in _NO_CHOICE and not (is_queue and column == _PRESENT_LABEL)]
    fitting = _fitting(({column: chosen_names(row.get(column)) for column in possible} for _, row in answered), categories)
    likely = fitting or [column for column in possible if column == _PRESENT_LABEL] or possible
    if not likely or (len(likely) > 1 and not fitting):
        raise LabelingError(
            f"{name}: no column holds names of the taxonomy ({', '.join(categories)}); say which column holds the answers with "
            f"--control, or export the project as JSON; found {', '.join(columns)}"
        )
    return likely


def _fitting(answers: Iterable[Mapping[str, list[str]]], categories: Sequence[str]) -> list[str]:
    """Controls under which names of the taxonomy were chosen."""
    fits: dict[str, bool] = {}
    for choices in answers:
        for control, names in choices.items():
            fits[control] = fits.get(control, False) or any(match_name(name, categories) for name in names)
    return [control for control, is_so in fits.items() if is_so]


# -- checks ----------------------------------------------------------------------------------------------------------


def _checked(found: _Found, categories: Sequence[str], control: str | None) -> Answers:
    controls = [control] if control is not None else _controls(found, categories)
    emails = {number: who for who, number in (person_of(given.who) for given in found.given) if number and who}
    rows: list[dict[str, Any]] = []
    problems, notes = list(found.problems), list(found.notes)
    for given in found.given:
        names = list(dict.fromkeys(name for key in controls for name in given.choices.get(key, ())))
        who, number = person_of(given.who)
        if not names and not given.choices:
            notes.append(f"{given.place}: submitted without an answer by {who or 'somebody'}")
        elif problem := _problem(given, names, controls, categories):
            problems.append(f"{given.place}: {problem}")
        else:
            rows.append(
                {
                    **{key: read_id(given.data.get(key)) or "" for key in _KEYS},
                    "text": plain_text(given.data.get("text")),
                    "label": match_name(names[0], categories),
                    "annotator": emails.get(who, who),
                    "known_as": number,
                    "answered_at": _when(given.when),
                    "place": given.place,
                }
            )
    if found.waiting:
        notes.append(f"{found.name}: {found.waiting} task(s) or row(s) wait for an answer")
    if not rows and not problems:
        raise LabelingError(f"{found.name}: holds no answer: {'; '.join(notes[-_NAMED:]) or 'nothing was chosen in it'}")
    return Answers(pd.DataFrame(rows, columns=ANSWER_COLUMNS, dtype=object), problems, notes)


def _problem(given: _Given, names: Sequence[str], controls: Sequence[str], categories: Sequence[str]) -> str | None:
    """Why an answer cannot be taken; None where it can."""
    if not names:
        there = "; ".join(f"{key}: {', '.join(chosen)}" for key, chosen in given.choices.items())
        return f"no answer under {' or '.join(controls)}; found {there} (--control names another)"
    if len({match_name(name, categories) or name for name in names}) > 1:
        mending = 'answer it again, with choice="single" in the labelling configuration'
        return f"several choices ({', '.join(names)}) where a review has one category; {mending}"
    if match_name(names[0], categories) is None:
        return f"{names[0]!r} is not in the taxonomy ({', '.join(categories)})"
    if not any(plain_text(given.data.get(key)) for key in (*_KEYS, "text")):
        return f"{' and '.join(_KEYS)} are empty or missing: it is not said which review is meant"
    return None


def _controls(found: _Found, categories: Sequence[str]) -> list[str]:
    """Names of the controls that answer our question: those with names of the taxonomy, if no task has two such answers."""
    fitting = _fitting((given.choices for given in found.given), categories)
    for given in found.given:
        both = [key for key in fitting if key in given.choices]
        if len(both) > 1:
            raise LabelingError(
                f"{given.place}: has answers under {' and '.join(both)}; say which of them is the category of the review: "
                f"--control {both[0]}"
            )
    return fitting or list(dict.fromkeys(key for given in found.given for key in given.choices))


def _when(value: Any) -> datetime | None:
    try:
        return parse_when(value)
    except (ValueError, TypeError, OverflowError, OSError):
        return None
