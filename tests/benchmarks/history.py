"""Stores with many nights behind them: their tables are written directly, as the stages would have left them."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa

from reviewclf import tables
from reviewclf.data.cleaning import day_of
from reviewclf.data.digests import row_digests
from reviewclf.data.intake import READ
from reviewclf.data.sketches import Sketches
from reviewclf.settings import Settings
from reviewclf.store import Store
from reviewclf.text import clean_texts, text_hash
from tests.benchmarks import ROOT, load_reviews
from tests.benchmarks.dataset import perturbed

# Real reviews of several marketplaces, where they lie beside the checkout.
MANY_REVIEWS = ROOT.parent / "shared" / "data" / "multi" / "reviews.csv"
SOURCE = "reviews.csv"
_PART_ROWS = 20_000
_FIRST = datetime(2024, 1, 1, tzinfo=UTC)


def texts(n: int, *, seed: int = 1) -> list[str]:
    """`n` texts made of real reviews; those for fewer are the first ones of those for more."""
    found, _ = load_reviews()
    if MANY_REVIEWS.exists():
        with MANY_REVIEWS.open(encoding="utf-8", newline="") as file:
            found = [row["text"] for row in csv.DictReader(file)]
    return perturbed([text for text in found if text.strip()], n, seed=seed)


def raw_rows(made: list[str], *, start: int = 0, source: str = SOURCE) -> pa.Table:
    """Rows of ``raw``: review `start` and those that follow."""
    numbers = range(start, start + len(made))
    columns = {
        "review_id": [f"r{number}" for number in numbers],
        "text": made,
        "source": [source] * len(made),
        "created_at": [_FIRST + timedelta(minutes=number) for number in numbers],
        "extra": ["{}"] * len(made),
        "row_number": [number + 1 for number in numbers],
    }
    return pa.table(columns, schema=tables.RAW_SCHEMA)


def write_history(settings: Settings, made: list[str]) -> int:
    """Fill an empty store with these reviews, as if they had come and been cleaned, and nothing else.

    Returns
    -------
    int
        Clean reviews: the others are exact copies.
    """
    store = Store(settings.store_uri)
    parts: dict[str, list[str]] = {name: [] for name in ("raw", "seen", "clean", "duplicates", "bands")}
    owners: dict[str, str] = {}
    for start in range(0, len(made), _PART_ROWS):
        for name, part in _parts(made[start : start + _PART_ROWS], start, owners, settings):
            parts[name] += store.put_part(part)
    store.commit(store.snapshot(), key="history", append=parts)
    return len(owners)


def write_source(folder: Path, made: list[str], *, start: int) -> None:
    """A file of reviews for a night to read."""
    import pandas as pd

    rows = raw_rows(made, start=start).to_pandas()
    pd.DataFrame(rows[["review_id", "text", "created_at"]]).to_csv(folder / SOURCE, index=False)


def _parts(made: list[str], start: int, owners: dict[str, str], settings: Settings) -> Iterator[tuple[str, pa.Table]]:
    raw = raw_rows(made, start=start)
    yield "raw", raw
    yield "seen", pa.table({"row": row_digests(raw, READ)})
    cleaned = clean_texts(made)
    hashes = [text_hash(text) for text in cleaned]
    rows = raw.to_pylist()
    for row, key, text in zip(rows, hashes, cleaned, strict=True):
        first = owners.setdefault(key, row["review_id"])
        row |= {"text_hash": key, "text_clean": text, "duplicate_of": first, "dt": day_of(row["created_at"])}
    clean = pa.Table.from_pylist([row for row in rows if row["duplicate_of"] == row["review_id"]], tables.CLEAN_SCHEMA)
    yield "clean", clean
    copies = [row for row in rows if row["duplicate_of"] != row["review_id"]]
    yield "duplicates", pa.Table.from_pylist(copies, tables.DUPLICATE_SCHEMA)
    similarity = settings.dataset.near_duplicate_similarity
    sketches = Sketches.of(clean["text_clean"].to_pylist(), similarity)
    yield "bands", sketches.to_table(clean["text_hash"].to_pylist(), similarity)
