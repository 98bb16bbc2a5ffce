"""Rows known by digests alone: those that came before, and those that were erased and must not come back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from reviewclf.store import Snapshot, Store
from reviewclf.text import clean_texts, text_hash

Digests = np.ndarray
# Kinds of the table `erased`.
ERASED_REVIEW, ERASED_TEXT = "review", "text"


def row_digests(table: pa.Table, columns: Sequence[str]) -> Digests:
    """64 bits a row over `columns`: with ten million rows the odds of any false match are one in 400,000."""
    digests = (
        hashlib.blake2b(json.dumps(values, ensure_ascii=False).encode(), digest_size=8).digest()
        for values in zip(*(table[name].to_pylist() for name in columns), strict=True)
    )
    return np.frombuffer(b"".join(digests), dtype="<i8").astype(np.int64)


class Erased:
    """Reviews that were erased and that a source may still hold."""

    def __init__(self, store: Store, base: Snapshot) -> None:
        found = store.read(base, "erased")
        kinds = np.array(found["kind"].to_pylist(), dtype=object)
        digests = found["digest"].to_numpy()
        self._reviews, self._texts = digests[kinds == ERASED_REVIEW], digests[kinds == ERASED_TEXT]

    def of_review(self, rows: pa.Table) -> np.ndarray:
        """Which raw rows are of such a review."""
        if not len(self._reviews):
            return np.zeros(rows.num_rows, dtype=bool)
        return np.isin(row_digests(rows, ("source", "review_id")), self._reviews)

    def has_text(self, rows: pa.Table) -> np.ndarray:
        """Which raw rows have the text of such a review, under whatever id."""
        if not len(self._texts):
            return np.zeros(rows.num_rows, dtype=bool)
        hashes = [text_hash(text) if text else "" for text in clean_texts([text or "" for text in rows["text"].to_pylist()])]
        return np.isin(row_digests(pa.table({"text_hash": pa.array(hashes, pa.string())}), ("text_hash",)), self._texts)
