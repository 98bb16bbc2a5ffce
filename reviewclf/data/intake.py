"""Rows of a source on their way into the store.

What was seen before is left out, what was refused is judged, and ids are looked at.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reviewclf import tables
from reviewclf.data.digests import Digests, Erased, row_digests
from reviewclf.data.lookups import matching_rows
from reviewclf.data.sources.rows import Chunk, has_unknown_time, made_id
from reviewclf.errors import QualityError
from reviewclf.settings import IngestSettings
from reviewclf.store import Snapshot, StageResult, Store
from reviewclf.text import clean_texts, text_hash

logger = logging.getLogger(__name__)

# A lone row that cannot be read is an accident of its own, whatever its share of a small file.
_FEWEST_REFUSED = 2
_SHOWN = 3
_SHOWN_PAYLOAD = 80
# One id with several texts is a review that was edited. A column in which many ids have several texts, such as the number of
# the product, holds no ids of reviews.
_MOST_SHARED = 0.1
_FEWEST_SHARED = 3
_TEXTS_OF_NO_ID = 3

# A file is compared with others where there are so many, and volumes below `_FEWEST_ROWS` say nothing, whatever their ratio.
_MIN_FILES = 3
_FEWEST_ROWS = 100

Mask = np.ndarray
# Source and id: several sources may use the same ids.
ReviewKey = tuple[str, str]
# What makes a row that was read the same as another, and one that was refused.
READ = ("source", "review_id", "text")
REFUSED = ("source", "reason", "payload")


def kind_of(reason: str) -> str:
    """The stable beginning of a reason for quarantine: ``too_many_fields`` of ``too_many_fields: expected 2, found 3``."""
    return reason.partition(":")[0].strip()


def check_file(name: str, rows: int, *, before: int | None, others: Sequence[int], max_ratio: float) -> None:
    """Refuse a file that has shrunk or grown out of all proportion.

    Parameters
    ----------
    name : str
        Its address.
    rows : int
        All its rows, known ones included.
    before : int or None
        Its rows when it was read last; None or 0 for a file that was never read or always empty.
    others : sequence of int
        Rows of other files that were read before, with which a new file is compared.
    max_ratio : float
        ``REVIEWCLF_QUALITY__MAX_VOLUME_RATIO``.

    Raises
    ------
    QualityError
        Names the file, what was expected and the setting.
    """
    if not rows:
        return
    if before:
        low = high = before
        said = f"it held {before:,} when it was read last"
    elif len(others) >= _MIN_FILES:
        # Many shops may share a folder: only a file far smaller than each of the others has lost its rows. That new files
        # bring far more than usual is seen when the night's new rows are counted.
        low, high = min(others), rows
        said = f"each of {len(others)} files before held {low:,} or more"
    else:
        return
    if (low >= _FEWEST_ROWS and rows * max_ratio < low) or (rows >= _FEWEST_ROWS and rows > high * max_ratio):
        raise QualityError(
            f"{name}: holds {rows:,} rows, but {said}; nothing was published. If the file is whole, set "
            f"REVIEWCLF_QUALITY__MAX_VOLUME_RATIO above {max(rows, low) / max(1, min(rows, low)):.0f} for this night"
        )


class Current(NamedTuple):
    """The newest text of a review that was edited: its hash and time."""

    text_hash: str
    created_at: datetime | None


def seen_among(store: Store, base: Snapshot, digests: Digests) -> Mask:
    """Which of the digests of rows the store has seen."""
    found = matching_rows(store, base.keys("seen"), tables.SEEN_SCHEMA, ["row"], pa.table({"row": digests}), on="row")
    return np.isin(digests, found["row"].to_numpy())


class Intake:
    """Takes in rows chunk by chunk and writes those that the store has not seen.

    Parameters
    ----------
    store, base
        Where the rows go, and what is there.
    options : IngestSettings
        How the source is read.
    fill_times : bool
        Known rows whose review has no time in the store count as new where they have one now.
    """

    def __init__(self, store: Store, base: Snapshot, options: IngestSettings, *, fill_times: bool = False) -> None:
        self._store, self._base, self._options = store, base, options
        self._erased = Erased(store, base)
        self._fill_times = fill_times
        # By source and id, what holds now of the reviews among those that came which were edited.
        self._edited: dict[ReviewKey, Current] = {}
        self._outputs: dict[str, list[str]] = {"raw": [], "quarantine": [], "seen": []}
        self._by_source: dict[str, Counter[str]] = {}
        self._reasons: Counter[str] = Counter()
        self._unknown_dates: list[str] = []
        self._id_digests: dict[str, list[tuple[Digests, Digests]]] = {}

    def take(self, uri: str, name: str, chunks: Iterable[Chunk], *, is_whole: bool) -> tuple[int, Any]:
        """Take in one file or table.

        Parameters
        ----------
        uri, name : str
            Its address, and the name that its rows carry.
        chunks : iterable of Chunk
            Its rows.
        is_whole : bool
            These are all rows that carry the name, so that the last one of an id says what its review is now.

        Returns
        -------
        tuple
            Number of rows, and the watermark.

        Raises
        ------
        QualityError
            More of its rows were refused than ``max_refused_share`` allows.
        """
        rows, watermark = 0, None
        refused: Counter[str] = Counter()
        shown: list[str] = []
        last: dict[ReviewKey, tuple[dict[str, Any], bool]] = {}
        for chunk in chunks:
            rows += chunk.rows.num_rows + chunk.quarantined.num_rows
            watermark = chunk.watermark
            for row in chunk.quarantined.to_pylist():
                refused[kind_of(row["reason"])] += 1
                if len(shown) < _SHOWN:
                    shown.append(f"row {row['row_number']}, {row['reason']}: {row['payload'][:_SHOWN_PAYLOAD]!r}")
            self._add(name, chunk, last)
        count = sum(refused.values())
        if count >= _FEWEST_REFUSED and count > self._options.max_refused_share * rows:
            reasons = ", ".join(f"{reason} {number}" for reason, number in refused.most_common())
            raise QualityError(
                f"{uri}: {count} of {rows} rows ({count / rows:.0%}) cannot be read, nothing was published: {reasons}. "
                f"The first ones: {'; '.join(shown)}. Mend the file or the settings that read it (REVIEWCLF_INGEST__*), or set "
                f"REVIEWCLF_INGEST__MAX_REFUSED_SHARE above {count / rows:.3f} to put such rows into quarantine"
            )
        if is_whole:
            self._restate([row for row, is_new in last.values() if not is_new])
        return rows, watermark

    def result(self, state: dict[str, Any]) -> StageResult:
        """What came in, with `state` to remember."""
        all_counts = self._by_source.values()
        counts = {name: sum(of[name] for of in all_counts) for name in ("known", "raw", "quarantined", "unknown_dates")}
        if counts["unknown_dates"]:
            logger.warning(
                "%d rows came with a time in column %r that cannot be read, such as %s; they are kept without one",
                counts["unknown_dates"],
                self._options.created_at_column,
                "; ".join(self._unknown_dates),
            )
        return StageResult(
            outputs=dict(self._outputs),
            counts={"rows_in": counts["known"] + counts["raw"] + counts["quarantined"], **counts},
            details={
                "state": state,
                "by_source": {name: dict(counts) for name, counts in sorted(self._by_source.items())},
                "reasons": dict(sorted(self._reasons.items())),
                "unknown_dates": list(self._unknown_dates),
                "ids_ignored": [name for name, parts in sorted(self._id_digests.items()) if self._are_no_ids(name, parts)],
            },
        )

    def _add(self, name: str, chunk: Chunk, last: dict[ReviewKey, tuple[dict[str, Any], bool]]) -> None:
        rows, quarantined = chunk.rows, chunk.quarantined
        erased = self._erased.of_review(rows)
        self._count(name, "known", int(erased.sum()))
        rows = rows.filter(pa.array(~erased))
        digests = row_digests(rows, READ)
        bad_digests = row_digests(quarantined, REFUSED)
        self._id_digests.setdefault(name, []).append((row_digests(rows, ("review_id",)), digests))
        is_seen, is_seen_bad = (seen_among(self._store, self._base, part) for part in (digests, bad_digests))
        is_new, is_new_bad = ~is_seen, ~is_seen_bad
        edited, timeless = self._edited_among(rows), self._timeless_among(rows) if self._fill_times else set()
        self._edited |= edited
        if edited or timeless:
            for position, row in enumerate(rows.to_pylist()):
                key = self._key_among(row, edited)
                if key is not None:
                    _keep_newer(last, key, row, bool(is_new[position]))
                elif not is_new[position] and row["created_at"] is not None and self._key_among(row, timeless) is not None:
                    is_new[position] = True
        is_new[is_new] = ~self._erased.has_text(rows.filter(pa.array(is_new)))
        self._count(name, "known", int((~is_new).sum() + (~is_new_bad).sum()))
        rows, quarantined = rows.filter(pa.array(is_new)), quarantined.filter(pa.array(is_new_bad))
        self._count(name, "raw", rows.num_rows)
        self._count(name, "quarantined", quarantined.num_rows)
        self._reasons.update(map(kind_of, quarantined["reason"].to_pylist()))
        self._note_unknown_dates(name, rows)
        # A row without news in its digest may be new by its time alone.
        seen = np.concatenate([digests[~is_seen], bad_digests[~is_seen_bad]])
        for table, part in (("raw", rows), ("quarantine", quarantined), ("seen", pa.table({"row": seen}))):
            self._outputs[table] += self._store.put_part(part)

    def _edited_among(self, rows: pa.Table) -> dict[ReviewKey, Current]:
        """By source and id, what holds now of the rows' reviews that were edited."""
        columns = ["source", "review_id", "replaced_by", "replaced_by_created_at"]
        return {
            (row["source"], row["review_id"]): Current(row["replaced_by"], row["replaced_by_created_at"])
            for row in self._matching("history", columns, rows)
        }

    def _timeless_among(self, rows: pa.Table) -> set[ReviewKey]:
        """The rows' reviews that are clean and have no time, by source and id."""
        found = self._matching("clean", ["source", "review_id", "created_at"], rows)
        return {(row["source"], row["review_id"]) for row in found if row["created_at"] is None}

    def _matching(self, table: str, columns: list[str], rows: pa.Table) -> list[dict[str, Any]]:
        """Rows of a table with an id that the reviews of these rows may have."""
        keys = self._base.keys(table)
        if not keys:
            return []
        own, source = rows["review_id"].to_pylist(), rows["source"].to_pylist()
        ids = {*own, *map(made_id, source, own)}
        found: list[dict[str, Any]] = matching_rows(
            self._store, keys, tables.SCHEMAS[table], columns, ids, on="review_id"
        ).to_pylist()
        return found

    def _count(self, name: str, count: str, rows: int) -> None:
        self._by_source.setdefault(name, Counter())[count] += rows

    def _note_unknown_dates(self, name: str, rows: pa.Table) -> None:
        for row in rows.filter(pc.is_null(rows["created_at"])).to_pylist():
            if has_unknown_time(row, self._options):
                self._count(name, "unknown_dates", 1)
                if len(self._unknown_dates) < _SHOWN:
                    value = json.loads(row["extra"])[self._options.created_at_column]
                    self._unknown_dates.append(f"{value!r:.60} ({name}, row {row['row_number']})")

    def _key_among(self, row: Mapping[str, Any], keys: Container[ReviewKey]) -> ReviewKey | None:
        """Under which of `keys` a row's review is held: by its id, or by the one made where another source has used that."""
        source, own = row["source"], row["review_id"]
        return next((key for key in ((source, own), (source, made_id(source, own))) if key in keys), None)

    def _restate(self, rows: list[dict[str, Any]]) -> None:
        """Take in again what holds now of reviews that were edited and have got an earlier text back."""
        for row, text in zip(rows, clean_texts([row["text"] or "" for row in rows]), strict=True):
            current = self._edited[self._key_among(row, self._edited) or ("", "")]
            is_older = row["created_at"] and current.created_at and row["created_at"] < current.created_at
            if text and text_hash(text) != current.text_hash and not is_older:
                self._count(row["source"], "known", -1)
                self._count(row["source"], "raw", 1)
                self._outputs["raw"] += self._store.put_part([row], tables.RAW_SCHEMA)

    def _are_no_ids(self, name: str, parts: list[tuple[Digests, Digests]]) -> bool:
        """Whether the ids of a source name something else than its reviews."""
        pairs = np.unique(np.stack([np.concatenate(column) for column in zip(*parts, strict=True)], axis=1), axis=0)
        if not len(pairs):
            return False
        _, texts = np.unique(pairs[:, 0], return_counts=True)
        shared, most = int((texts - 1).sum()), int(texts.max())
        found = shared > _MOST_SHARED * len(pairs) and (shared >= _FEWEST_SHARED or most >= _TEXTS_OF_NO_ID)
        if found:
            logger.warning(
                "%s: %d ids stand for %d different texts, so column %r holds no ids of reviews: they are ignored, and each "
                "review is known by its text; set REVIEWCLF_INGEST__ID_COLUMN to the column that holds them",
                name,
                len(texts),
                len(pairs),
                self._options.id_column,
            )
        return found


def _keep_newer(last: dict[ReviewKey, tuple[dict[str, Any], bool]], key: ReviewKey, row: dict[str, Any], is_new: bool) -> None:
    before = last.get(key)
    if before is None or not (row["created_at"] and before[0]["created_at"] and row["created_at"] < before[0]["created_at"]):
        last[key] = (row, is_new)
