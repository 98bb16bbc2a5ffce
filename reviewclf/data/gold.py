"""Gold: reviews labelled by people, read from the file that the settings name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import fsspec
import pandas as pd

from reviewclf.data.frames import is_missing, read_frame
from reviewclf.data.sources.rows import read_id
from reviewclf.errors import DataContractError
from reviewclf.manifest import digest_of
from reviewclf.settings import Settings
from reviewclf.taxonomy import Taxonomy, match_name
from reviewclf.text import clean_text, is_misread, text_hash

_NAMED = 10
_SETTING = "REVIEWCLF_GOLD"
_YES = frozenset(["1", "1.0", "true", "yes", "y", "да", "истина", "+"])


@dataclass(frozen=True)
class Gold:
    """Gold rows (``review_id``, ``text_clean``, ``text_hash``, ``label``, and ``text`` as it came), their file and digest.

    Attributes
    ----------
    written_at : datetime or None
        The newest ``created_at``: when the last of the reviews was written, which a copy of the file does not change. Without
        that column, when the file was last modified (``LastModified`` on S3). None where neither can be told.
    notes : tuple of str
        What its readers should know: reviews that stand in it twice, contradictions that are marked and left out.
    """

    frame: pd.DataFrame
    uri: str
    digest: str
    written_at: datetime | None = None
    notes: tuple[str, ...] = ()


def load_gold(settings: Settings, taxonomy: Taxonomy) -> Gold | None:
    """Read and check ``REVIEWCLF_GOLD``; None when it is empty.

    Raises
    ------
    DataContractError
        The file cannot be read, holds no review, or rows break the contract: see :func:`check_gold`.
    """
    if settings.gold is None:
        return None
    raw = read_frame(settings.gold, setting=_SETTING)
    frame, notes = check_gold(raw, taxonomy.names, name=settings.gold)
    return Gold(
        frame=frame,
        uri=settings.gold,
        digest=digest_of(frame.to_dict("records")),
        written_at=_written_at(raw, settings.gold),
        notes=tuple(notes),
    )


def check_gold(gold: pd.DataFrame, categories: Sequence[str], *, name: str = "gold") -> tuple[pd.DataFrame, list[str]]:
    """Check and clean gold rows.

    A review that two readers labelled alike counts once. Where they differ, rows that the column ``ambiguous`` marks give way;
    where all of them are marked, the review is left out.

    Parameters
    ----------
    gold : DataFrame
        ``text`` and ``label``; ``review_id`` and ``ambiguous`` where there are any.
    categories : sequence of str
        Labels of the taxonomy; letter case and white space are not minded.
    name : str
        File that the rows came from, for messages.

    Returns
    -------
    frame : DataFrame
        ``review_id``, ``text_clean``, ``text_hash``, ``label``, and ``text`` as it came, one row a review.
    notes : list of str
        What was counted once or left out, naming the rows.

    Raises
    ------
    DataContractError
        A column is missing, there is no row, a text is empty, a label is not in the taxonomy, or readers of one review differ;
        the message names the file and all such rows.
    """
    missing = [column for column in ("text", "label") if column not in gold.columns]
    if missing:
        raise DataContractError(
            f"{name}: gold needs the column(s) {', '.join(missing)}; found {', '.join(map(str, gold.columns))}"
        )
    if not len(gold):
        raise DataContractError(
            f"{name}: holds no reviews, only a header; give reviews labelled by people, or leave {_SETTING} empty to go without"
        )
    gold = gold.reset_index(drop=True)

    def refuse(where: str, found: dict[int, str], end: str = "") -> None:
        if found:
            listed = _listed([f"row {row + 1}: {problem}" for row, problem in found.items()])
            raise DataContractError(f"{where}, {listed}{end}; {len(found)} such row(s)")

    labels = [match_name(value, categories) for value in gold["label"]]
    strange = {row: f"label {_shown(gold['label'][row])!r}" for row, label in enumerate(labels) if label is None}
    refuse(name, strange, f" is not in the taxonomy ({', '.join(categories)})")
    foreign = {row: text for row, text in enumerate(gold["text"]) if not isinstance(text, str) and not is_missing(text)}
    refuse(f"{name}, column 'text'", {row: f"{type(text).__name__}, expected text" for row, text in foreign.items()})
    texts = [clean_text(_shown(text)) for text in gold["text"]]
    empty = {row: "the text is empty" for row, text in enumerate(texts) if not text}
    lost = {row: f"the letters of the text are lost ({text:.40})" for row, text in enumerate(texts) if is_misread(text)}
    refuse(name, empty | lost)
    hashes = [text_hash(text) for text in texts]
    frame = pd.DataFrame(
        {
            "review_id": [
                read_id(value) or hashed for value, hashed in zip(gold.get("review_id", pd.Series(hashes)), hashes, strict=True)
            ],
            "text_clean": texts,
            "text_hash": hashes,
            "label": labels,
            "text": gold["text"].astype(str),
        }
    )
    marked = gold["ambiguous"].map(lambda value: _shown(value).lower() in _YES) if "ambiguous" in gold.columns else None
    return _once_each(frame, None if marked is None else marked.tolist(), name)


def _once_each(frame: pd.DataFrame, marked: Sequence[bool] | None, name: str) -> tuple[pd.DataFrame, list[str]]:
    """One row a review, and what is to be said about the others."""
    labels: dict[str, list[tuple[int, str]]] = {}
    for row, (key, label) in enumerate(zip(frame["text_hash"], frame["label"], strict=True)):
        labels.setdefault(key, []).append((row, label))
    left_out: list[int] = []
    twice, contradictions, given_way = [], [], []
    for rows in labels.values():
        sure = [(row, label) for row, label in rows if not (marked and marked[row])]
        said = " and ".join(f"row {row + 1} «{label}»" for row, label in rows)
        if len(rows) == 1:
            continue
        if len({label for _, label in rows}) == 1:
            twice.append(", ".join(f"row {row + 1}" for row, _ in rows))
            left_out.extend(row for row, _ in rows[1:])
        elif len({label for _, label in sure}) > 1:
            contradictions.append(f"{said} («{frame['text_clean'].iloc[rows[0][0]]:.60}»)")
        else:
            given_way.append(said)
            kept = sure[0][0] if sure else None
            left_out.extend(row for row, _ in rows if row != kept)
    if contradictions:
        raise DataContractError(
            f"{name}: one review, two labels: {_listed(contradictions)}; {len(contradictions)} such review(s). Keep the right "
            "label, or write true into the column ambiguous of the row(s) that shall give way"
        )
    notes = []
    if twice:
        notes.append(f"{name}: {len(twice)} review(s) were labelled alike more than once and count once: {_listed(twice)}")
    if given_way:
        notes.append(f"{name}: rows marked ambiguous gave way in {len(given_way)} review(s): {_listed(given_way)}")
    return frame.drop(index=left_out).reset_index(drop=True), notes


def _shown(value: Any) -> str:
    return "" if pd.isna(value) else str(value).strip()


def _listed(found: Sequence[str]) -> str:
    more = len(found) - _NAMED
    return "; ".join(found[:_NAMED]) + (f"; and {more} more" if more > 0 else "")


def _written_at(raw: pd.DataFrame, uri: str) -> datetime | None:
    if "created_at" in raw.columns:
        times = pd.to_datetime(raw["created_at"], errors="coerce", utc=True, format="mixed").dropna()
        if len(times):
            newest: datetime = times.max().to_pydatetime()
            return newest
    try:
        filesystem, path = fsspec.core.url_to_fs(uri)
        modified: datetime = filesystem.modified(path)
    except (OSError, ValueError, NotImplementedError):
        return None
    return modified if modified.tzinfo else modified.replace(tzinfo=UTC)
