"""People's answers as they come back: the filled-in queue, and every export of Label Studio that holds them.

Label Studio writes an answer down in three ways. JSON keeps tasks with their annotations (``completions`` before version 1.0);
the files of a target storage hold single annotations with their task inside. JSON_MIN, CSV and TSV have one flat row for each
annotation: the task's data, the choice under the name of its control, and who answered when.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import fsspec
import pandas as pd

from reviewclf.data.frames import read_frame
from reviewclf.data.sources.dates import parse_when
from reviewclf.data.sources.rows import read_id
from reviewclf.errors import LabelingError
from reviewclf.labeling.label_studio import Found, Given, chosen_names, person_of, plain_text, take_task
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
    if uri.lower().endswith(_JSON):
        return answers_from_json(_bytes(uri), categories, name=uri, control=control)
    return answers_from_frame(read_frame(uri, setting="IN", excel_safe=True), categories, name=uri, control=control)


def answers_from_frame(frame: pd.DataFrame, categories: Sequence[str], *, name: str, control: str | None = None) -> Answers:
    """People's answers from a table: the filled-in queue, or Label Studio's CSV or TSV; see :func:`read_answers`."""
    found = Found(name)
    rows = [(f"{name}, row {number}", row) for number, row in enumerate(_records(frame), start=1)]
    if not rows:
        raise LabelingError(f"{name}: holds no rows, only a header ({', '.join(map(str, frame.columns))})")
    _take_rows(found, rows, categories, control)
    return _checked(found, categories, control)


def answers_from_json(content: bytes, categories: Sequence[str], *, name: str, control: str | None = None) -> Answers:
    """People's answers from JSON or JSON Lines; see :func:`read_answers`."""
    found = Found(name)
    rows: list[tuple[str, dict[str, Any]]] = []
    foreign: list[str] = []
    for position, item in enumerate(_objects(content, name), start=1):
        place = f"{name}, task {plain_text(item.get('id')) or f'at place {position}'}" if isinstance(item, dict) else name
        if not isinstance(item, dict):
            foreign.append(f"{place}: what stands at place {position} is no task, but {type(item).__name__}")
        elif isinstance(item.get("result"), list) and isinstance(item.get("task"), dict):
            place = f"{name}, task {plain_text(item['task'].get('id')) or position}"
            take_task(found, place, item["task"].get("data"), [item])
        elif isinstance(item.get("data"), dict):
            annotations = item.get("annotations", item.get("completions"))
            take_task(found, place, item["data"], annotations if isinstance(annotations, list) else [])
            if not annotations and item.get("drafts"):
                found.notes.append(f"{place}: holds a draft that was not submitted")
        elif any(key in item for key in (*_KEYS, "text", "annotation_id")):
            rows.append((place, item))
        else:
            names = ", ".join(map(str, item)) or "nothing"
            foreign.append(f"{place}: is no task of Label Studio and no row of the queue; it holds {names:.120}")
    if not rows and not found.given and not found.waiting and not found.notes and not found.problems:
        raise LabelingError(f"{foreign[0]}. Export the project again as JSON, JSON_MIN or CSV")
    found.problems += foreign
    if rows:
        _take_rows(found, rows, categories, control)
    return _checked(found, categories, control)


def _bytes(uri: str) -> bytes:
    try:
        with reading(uri), fsspec.open(uri, "rb", compression="infer") as file:
            content: bytes = file.read()
    except (OSError, ValueError, ImportError) as error:
        raise LabelingError(f"{uri}: cannot be read: {error}") from error
    return content


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


# -- flat rows -------------------------------------------------------------------------------------------------------


def _take_rows(
    found: Found, rows: Sequence[tuple[str, dict[str, Any]]], categories: Sequence[str], control: str | None
) -> None:
    columns = list(dict.fromkeys(name for _, row in rows for name in row))
    exported = "annotation_id" in columns or "lead_time" in columns
    if not any(key in columns for key in (*_KEYS, "text")) or not (exported or control or _QUEUE_COLUMN in columns):
        raise LabelingError(
            f"{found.name}: answers need the columns answer and text_hash (or review_id); found {', '.join(map(str, columns))}"
        )
    if control is not None:
        controls = [control]
    elif exported:
        controls = _controls_among(columns, rows, categories, found.name)
    else:
        controls = [_QUEUE_COLUMN]
    for place, row in rows:
        choices = {name: names for name in controls if (names := chosen_names(row.get(name)))}
        # Label Studio writes tasks that nobody has answered with an empty annotation_id.
        if (exported and "annotation_id" in columns and not plain_text(row.get("annotation_id"))) or (
            not exported and not choices
        ):
            found.waiting += 1
            continue
        when = row.get("updated_at") or row.get("created_at") if exported else None
        found.given.append(Given(place, row, choices, row.get("annotator"), when))


def _controls_among(
    columns: Sequence[str], rows: Sequence[tuple[str, dict[str, Any]]], categories: Sequence[str], name: str
) -> list[str]:
    """Columns of a flat export that hold names of the taxonomy; where none does, the one that must be the control's."""
    possible = [column for column in columns if column not in _NO_CHOICE]
    if _QUEUE_MARK in columns:
        possible = [column for column in possible if column != _PRESENT_LABEL]
    answered = [row for _, row in rows if "annotation_id" not in columns or plain_text(row.get("annotation_id"))]
    fitting = [
        column
        for column in possible
        if any(match_name(chosen, categories) for row in answered for chosen in chosen_names(row.get(column)))
    ]
    likely = fitting or [column for column in possible if column == _PRESENT_LABEL] or possible
    if not likely or (len(likely) > 1 and not fitting):
        raise LabelingError(
            f"{name}: no column holds names of the taxonomy ({', '.join(categories)}); say which column holds the answers with "
            f"--control, or export the project as JSON; found {', '.join(map(str, columns))}"
        )
    return likely


def _records(frame: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for row in frame.to_dict("records"):
        yield {str(column): value for column, value in row.items()}


# -- checks ----------------------------------------------------------------------------------------------------------


def _checked(found: Found, categories: Sequence[str], control: str | None) -> Answers:
    controls = _controls(found, categories, control)
    emails = {number: who for who, number in map(person_of, (given.completed_by for given in found.given)) if number and who}
    rows: list[dict[str, Any]] = []
    problems, notes = list(found.problems), list(found.notes)
    for given in found.given:
        names = list(dict.fromkeys(name for key in controls for name in given.choices.get(key, ())))
        labels = {match_name(name, categories) or name for name in names}
        who, number = person_of(given.completed_by)
        if not names and given.choices:
            there = "; ".join(f"{key}: {', '.join(chosen)}" for key, chosen in given.choices.items())
            problems.append(f"{given.place}: no answer under {' or '.join(controls)}; found {there} (--control names another)")
        elif not names:
            notes.append(f"{given.place}: submitted without an answer by {who or 'somebody'}")
        elif len(labels) > 1:
            problems.append(
                f"{given.place}: several choices ({', '.join(names)}) where a review has one category; answer it again, with "
                'choice="single" in the labelling configuration'
            )
        elif not (label := match_name(names[0], categories)):
            problems.append(f"{given.place}: {names[0]!r} is not in the taxonomy ({', '.join(categories)})")
        elif not any(plain_text(given.data.get(key)) for key in (*_KEYS, "text")):
            problems.append(f"{given.place}: {' and '.join(_KEYS)} are empty or missing: it is not said which review is meant")
        else:
            rows.append(
                {
                    **{key: read_id(given.data.get(key)) or "" for key in _KEYS},
                    "text": plain_text(given.data.get("text")),
                    "label": label,
                    "annotator": emails.get(who, who),
                    "known_as": number,
                    "answered_at": _when(given.answered_at),
                    "place": given.place,
                }
            )
    if found.waiting:
        notes.append(f"{found.name}: {found.waiting} task(s) or row(s) wait for an answer")
    if not rows and not problems:
        raise LabelingError(f"{found.name}: holds no answer: {'; '.join(notes[-_NAMED:]) or 'nothing was chosen in it'}")
    return Answers(pd.DataFrame(rows, columns=ANSWER_COLUMNS, dtype=object), problems, notes)


def _controls(found: Found, categories: Sequence[str], control: str | None) -> list[str]:
    """Names of the controls that answer our question: those with names of the taxonomy, if no task has two such answers."""
    if control is not None:
        return [control]
    every = list(dict.fromkeys(key for given in found.given for key in given.choices))
    fitting = [
        key
        for key in every
        if any(match_name(name, categories) for given in found.given for name in given.choices.get(key, ()))
    ]
    for given in found.given:
        both = [key for key in fitting if key in given.choices]
        if len(both) > 1:
            raise LabelingError(
                f"{given.place}: has answers under {' and '.join(both)}; say which of them is the category of the review: "
                f"--control {both[0]}"
            )
    return fitting or every


def _when(value: Any) -> datetime | None:
    try:
        return parse_when(value)
    except (ValueError, TypeError, OverflowError, OSError):
        return None
