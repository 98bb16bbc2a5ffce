"""Which new texts are near-duplicates of earlier ones, found by the table ``bands``."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from reviewclf import tables
from reviewclf.data.duplicates import Positions, match_near_duplicates
from reviewclf.data.lookups import PLACE, batches, matching_rows, scanned
from reviewclf.data.sketches import PairSearch, Sketches, band_width, first_near_duplicates
from reviewclf.store import Snapshot, Store

logger = logging.getLogger(__name__)

# Rows of ``bands`` that are held at once.
_KNOWN_ROWS = 100_000
# Pairs that may wait for their texts.
_WAITING = 1_000_000
_SKETCHED = ("text_hash", "keys", "size", "bitmap")
_COLUMNS = ("review_id", "text_hash", "text_clean")


class NearDuplicates(NamedTuple):
    """What is found.

    Attributes
    ----------
    rows : list of str
        Parts of ``near_duplicates``.
    found : int
        Their rows.
    bands : list of str
        Parts of ``bands`` for the new texts.
    stored_bands : list of str
        All parts for the earlier ones: those of the table, or new ones where it has none for this similarity.
    """

    rows: list[str]
    found: int
    bands: list[str]
    stored_bands: list[str]


def find_near_duplicates(store: Store, base: Snapshot, new: Sequence[str], similarity: float) -> NearDuplicates:
    """The new clean rows that are near-duplicates of an earlier one, and which one that is.

    They are recorded and stay: whether they may be trained on together is for the dataset to decide. An earlier row is one
    that `base` holds, or one that stands before it in the parts `new` of ``clean``.
    """
    stored = _bands_of(store, base, similarity) if new else base.keys("bands")
    earlier = _Earlier(store, base, new, similarity)
    near: list[str] = []
    bands: list[str] = []
    count = start = 0
    for part in batches(store, new, columns=_COLUMNS):
        rows = part.to_pydict()
        sketches = Sketches.of(rows["text_clean"], similarity)
        matches: Mapping[int, str] = earlier.matches(rows["text_clean"], sketches, [*stored, *bands], start)
        own = match_near_duplicates(rows["text_clean"], rows["text_clean"], similarity=similarity)
        found = []
        for place, (review_id, key, match) in enumerate(zip(rows["review_id"], rows["text_hash"], own, strict=True)):
            # A row that is like no earlier one is the first that is like itself.
            of = matches.get(place, rows["text_hash"][match] if match is not None and match < place else None)
            if of is not None:
                found.append({"review_id": review_id, "text_hash": key, "near_duplicate_of": of})
        near += store.put_part(found, tables.NEAR_DUPLICATE_SCHEMA)
        bands += store.put_part(sketches.to_table(rows["text_hash"], similarity))
        count += len(found)
        start += part.num_rows
    return NearDuplicates(near, count, bands, stored)


def _bands_of(store: Store, base: Snapshot, similarity: float) -> list[str]:
    """Parts of ``bands`` for all clean texts of a snapshot, made where the table is missing or was made for other bands."""
    held = base.keys("bands")
    for part in store.iter_tables(held[:1], ["width"]):
        if part.num_rows == 0 or part["width"][0].as_py() == band_width(similarity):
            return held
    made: list[str] = []
    for part in batches(store, base.keys("clean"), columns=_COLUMNS[1:]):
        sketches = Sketches.of(part["text_clean"].to_pylist(), similarity)
        made += store.put_part(sketches.to_table(part["text_hash"].to_pylist(), similarity))
    if made:
        logger.info("the table bands was filled for all earlier reviews and a similarity of %g", similarity)
    return made


class _Earlier:
    """The rows that are earlier than a batch of new ones."""

    def __init__(self, store: Store, base: Snapshot, new: Sequence[str], similarity: float) -> None:
        self._store, self._similarity = store, similarity
        self._base, self._new = base.keys("clean"), list(new)

    def matches(self, texts: Sequence[str], sketches: Sketches, bands: Sequence[str], start: int) -> dict[int, str]:
        """By position of a text, the hash of the first earlier one that it is a near-duplicate of.

        Parameters
        ----------
        bands : sequence of str
            Parts of ``bands`` for all earlier texts.
        start : int
            Number of new rows before these.
        """
        found: dict[int, str] = {}
        is_open = np.ones(len(texts), dtype=bool)
        asked, search = np.flatnonzero(is_open), None
        positions: list[Positions] = []
        hashes: list[np.ndarray] = []

        def verify() -> None:
            if positions:
                found.update(self._verified(texts, np.concatenate(positions), np.concatenate(hashes), start))
                is_open[list(found)] = False
                positions.clear()
                hashes.clear()

        for known in scanned(self._store, bands, tables.BANDS_SCHEMA, _SKETCHED, _KNOWN_ROWS):
            if search is None or len(asked) != is_open.sum():
                asked = np.flatnonzero(is_open)
                search = PairSearch(sketches.at(asked), self._similarity)
            names = known["text_hash"].to_numpy()
            for first, second in search.pairs(Sketches.from_table(known)):
                # What has found an earlier one since looks no further.
                wanted = is_open[asked[first]]
                positions.append(asked[first[wanted]])
                hashes.append(names[second[wanted]])
                if sum(map(len, positions)) > _WAITING:
                    verify()
        verify()
        return found

    def _verified(self, texts: Sequence[str], positions: Positions, hashes: np.ndarray, start: int) -> dict[int, str]:
        names, references = self._texts(np.unique(hashes).tolist(), start)
        place_of = {name: place for place, name in reversed(list(enumerate(names)))}
        places = np.array([place_of.get(name, -1) for name in hashes.tolist()], dtype=np.int64)
        # A text that has left ``clean`` may have left its bands behind.
        first, second = positions[places >= 0], places[places >= 0]
        matches = first_near_duplicates(texts, references, first, second, similarity=self._similarity)
        return {place: names[match] for place, match in enumerate(matches) if match is not None}

    def _texts(self, hashes: list[str], start: int) -> tuple[list[str], list[str]]:
        """Of the texts with these hashes those that are earlier, in their order, and their hashes."""
        new = self._find(self._new, hashes)
        # A text that moved to another review with these rows is no near-duplicate of itself.
        moved = set(new["text_hash"].to_pylist())
        old = self._find(self._base, [key for key in hashes if key not in moved])
        new = new.filter(pa.array(new[PLACE].to_numpy() < start))
        rows = pa.concat_tables([old, new])
        return rows["text_hash"].to_pylist(), rows["text_clean"].to_pylist()

    def _find(self, keys: Sequence[str], hashes: list[str]) -> pa.Table:
        return matching_rows(self._store, keys, tables.CLEAN_SCHEMA, _COLUMNS[1:], hashes, on="text_hash")
