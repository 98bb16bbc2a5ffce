"""Raw rows become clean rows, duplicates and quarantine, chunk by chunk. Pure but for its memory of what it has seen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa

from reviewclf import tables
from reviewclf.duplicates import NearDuplicateIndex, signatures
from reviewclf.text import clean_texts, text_hash


class CleanedPart(NamedTuple):
    """What one chunk of raw rows became: raw rows = clean + duplicates + quarantine."""

    clean: pa.Table
    duplicates: pa.Table
    near_duplicates: pa.Table
    signatures: pa.Table
    quarantine: pa.Table


class Cleaner:
    """Cleans chunks one after another, and recognises what earlier chunks and nights have brought.

    Parameters
    ----------
    similarity : float
        Estimated Jaccard similarity of character n-grams from which a review counts as a near-duplicate of an earlier one.
        Near-duplicates are recorded and stay: whether they may be trained on together is for the dataset to decide.
    """

    def __init__(self, *, similarity: float) -> None:
        self._hash_by_id: dict[str, str] = {}
        self._first_by_hash: dict[str, str] = {}
        self._index = NearDuplicateIndex(similarity=similarity)

    def know(self, clean: pd.DataFrame, stored: pa.Table) -> None:
        """Remember reviews that are clean already: ``review_id`` and ``text_hash``, and the signatures of the same rows."""
        for review_id, key in zip(clean["review_id"], clean["text_hash"], strict=True):
            self._hash_by_id[review_id] = key
            self._first_by_hash.setdefault(key, review_id)
        self._index.add(tables.signature_array(stored), stored["text_hash"].to_pylist())

    def know_duplicates(self, duplicates: pd.DataFrame) -> None:
        """Remember the ids (``review_id``, ``text_hash``) under which copies came."""
        for review_id, key in zip(duplicates["review_id"], duplicates["text_hash"], strict=True):
            self._hash_by_id.setdefault(review_id, key)

    def clean(self, raw: pa.Table, failed: Mapping[int, str]) -> CleanedPart:
        """Clean one chunk.

        Parameters
        ----------
        raw : Table
            Rows of the raw schema.
        failed : mapping of int to str
            Rows, by position in `raw`, that failed a check, with the reason.
        """
        rows = raw.to_pylist()
        texts = clean_texts([row["text"] or "" for row in rows])
        clean: list[dict[str, Any]] = []
        duplicates: list[dict[str, Any]] = []
        quarantine: list[dict[str, Any]] = []
        for position, (row, text) in enumerate(zip(rows, texts, strict=True)):
            key = text_hash(text) if text else ""
            reason = failed.get(position) or self._refusal(row["review_id"], text, key)
            if reason:
                quarantine.append(_quarantined(row, reason))
            elif key in self._first_by_hash:
                self._hash_by_id.setdefault(row["review_id"], key)
                duplicates.append(
                    {
                        **{name: row[name] for name in ("review_id", "source", "row_number")},
                        "text_hash": key,
                        "duplicate_of": self._first_by_hash[key],
                    }
                )
            else:
                self._hash_by_id[row["review_id"]] = key
                self._first_by_hash[key] = row["review_id"]
                created_at = row["created_at"]
                clean.append(
                    {
                        **{name: row[name] for name in ("review_id", "text", "source", "created_at")},
                        "text_clean": text,
                        "text_hash": key,
                        "dt": None if created_at is None else created_at.date().isoformat(),
                    }
                )
        return CleanedPart(
            clean=pa.Table.from_pylist(clean, schema=tables.CLEAN_SCHEMA),
            duplicates=pa.Table.from_pylist(duplicates, schema=tables.DUPLICATE_SCHEMA),
            quarantine=pa.Table.from_pylist(quarantine, schema=tables.QUARANTINE_SCHEMA),
            **self._near_duplicates(clean),
        )

    def _refusal(self, review_id: str, text: str, key: str) -> str | None:
        if not text:
            return "text_empty_after_cleaning"
        known = self._hash_by_id.get(review_id)
        if known is not None and known != key:
            return "review_id_used_by_another_text"
        return None

    def _near_duplicates(self, clean: list[dict[str, Any]]) -> dict[str, pa.Table]:
        array = signatures([row["text_clean"] for row in clean])
        near = []
        for row, signature in zip(clean, array, strict=True):
            similar = self._index.query(signature)
            if similar:
                near.append({"review_id": row["review_id"], "text_hash": row["text_hash"], "near_duplicate_of": min(similar)})
            self._index.add(signature[None, :], [row["text_hash"]])
        return {
            "near_duplicates": pa.Table.from_pylist(near, schema=tables.NEAR_DUPLICATE_SCHEMA),
            "signatures": tables.signature_table([row["text_hash"] for row in clean], array),
        }


def _quarantined(row: Mapping[str, Any], reason: str) -> dict[str, Any]:
    payload = {name: value for name, value in row.items() if name not in ("row_number", "source")}
    return {
        "review_id": row["review_id"],
        "row_number": row["row_number"],
        "reason": reason,
        "payload": json.dumps(payload, ensure_ascii=False, default=str),
        "source": row["source"],
    }
