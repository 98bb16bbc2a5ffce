"""Sketches of texts: what is kept of each to find its near-duplicates among millions without reading their texts.

A pair of near-duplicates has a key in common: that of a band of its MinHash signatures (:mod:`.duplicates`), or that of its
letters. Most pairs with a common key are no near-duplicates. The numbers of their trigrams, and bitmaps into which the trigrams
are folded by exclusive or (Sandes, Teodoro, Melo: Bitmap filter, 2020), bound what two texts can have in common, and so leave
few of these pairs to be compared. No pair that is similar enough falls to these bounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from reviewclf import tables
from reviewclf.data.duplicates import (
    Mask,
    Positions,
    Verdict,
    bands_and_rows,
    comparison_forms,
    distinct_forms,
    flat_trigrams,
    lsh_keys,
    spread,
    without_spaces,
)

if TYPE_CHECKING:
    from polars import DataFrame

# Bits of a bitmap: with half as many, three times as many pairs have to be compared, most of them of long reviews.
_BITS = 1024
_BATCH = 4096
# Pairs that are held at once.
_PAIRS = 4_000_000


class Sketches(NamedTuple):
    """Sketches of n texts.

    Attributes
    ----------
    keys : array of int32, shape (n, bands + 1)
        Of each band, and of the letters without spaces.
    sizes : array of int32, shape (n,)
        Distinct trigrams.
    bitmaps : array of uint64, shape (n, 16)
        Trigrams that fall on a bit an odd number of times set it.
    """

    keys: npt.NDArray[np.int32]
    sizes: npt.NDArray[np.int32]
    bitmaps: npt.NDArray[np.uint64]

    def at(self, places: Positions) -> Sketches:
        """The sketches at these places."""
        return Sketches(self.keys[places], self.sizes[places], self.bitmaps[places])

    @classmethod
    def of(cls, texts: Sequence[str], similarity: float) -> Sketches:
        """Sketches of texts, for near-duplicates of at least `similarity`."""
        forms = comparison_forms(texts)
        letters = [
            int.from_bytes(blake2b(without_spaces(form).encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
            for form in forms
        ]
        keys = np.vstack([lsh_keys(forms, similarity), np.array(letters, dtype=np.uint64)[None, :]])
        # The same number in another band is another key.
        keys = spread(keys + np.arange(len(keys), dtype=np.uint64)[:, None]) >> np.uint64(32)
        sizes = np.empty(len(forms), dtype=np.int32)
        bitmaps = np.empty((len(forms), _BITS // 64), dtype=np.uint64)
        for start in range(0, len(forms), _BATCH):
            here = slice(start, start + _BATCH)
            sizes[here], bitmaps[here] = _folded(forms[here])
        return cls(np.ascontiguousarray(keys.astype(np.uint32).T).view(np.int32), sizes, bitmaps)

    @classmethod
    def from_table(cls, rows: pa.Table) -> Sketches:
        """Sketches of the rows of the table ``bands``."""
        sizes = rows["size"].to_numpy()
        return cls(_matrix(rows["keys"], np.int32), sizes, _matrix(rows["bitmap"], np.uint64))

    def to_table(self, text_hashes: Sequence[str], similarity: float) -> pa.Table:
        """Rows of the table ``bands``."""
        columns = {
            "text_hash": pa.array(text_hashes, pa.string()),
            "width": pa.array(np.full(len(self.sizes), band_width(similarity))),
            "keys": _binary(self.keys),
            "size": pa.array(self.sizes),
            "bitmap": _binary(self.bitmaps),
        }
        return pa.table(columns, schema=tables.BANDS_SCHEMA)


def band_width(similarity: float) -> int:
    """Rows of a band: keys for different ones have nothing to do with each other."""
    return bands_and_rows(similarity)[1]


class PairSearch:
    """Looks for pairs of new texts, which are given as sketches, and known ones."""

    def __init__(self, new: Sketches, similarity: float) -> None:
        self._new, self._similarity = new, similarity
        self._asked = _keys_of(new, "new")
        self._keys = self._asked["key"].unique().implode()
        self._counts = self._asked.group_by("key").len()

    def pairs(self, known: Sketches) -> Iterator[tuple[Positions, Positions]]:
        """Pairs of a new text and a known one, by position, which hold all near-duplicates; in chunks, by known texts."""
        import polars

        # Few keys are asked for: the others leave before they are joined.
        hits = _keys_of(known, "known").filter(polars.col("key").is_in(self._keys)).join(self._counts, on="key")
        chunks = [hits]
        if hits["len"].sum() > _PAIRS:
            # Thousands of reviews from one template make millions of pairs.
            total = polars.col("len").cast(polars.Int64).cum_sum()
            chunks = hits.sort("known").with_columns(chunk=total // _PAIRS).partition_by("chunk", maintain_order=True)
        for chunk in chunks:
            pairs = chunk.join(self._asked, on="key").select("new", "known")
            first, second = (pairs[name].to_numpy().astype(np.int64) for name in ("new", "known"))
            left, right = self._new.sizes[first].astype(np.int64), known.sizes[second].astype(np.int64)
            # Texts of the same letters are near-duplicates whatever their spaces.
            is_same = self._new.keys[first, -1] == known.keys[second, -1]
            kept = np.flatnonzero(_reaches(np.minimum(left, right), left, right, self._similarity) | is_same)
            first, second, left, right, is_same = (part[kept] for part in (first, second, left, right, is_same))
            differing = np.bitwise_count(self._new.bitmaps[first] ^ known.bitmaps[second]).sum(axis=1, dtype=np.int64)
            kept = np.flatnonzero(_reaches((left + right - differing) // 2, left, right, self._similarity) | is_same)
            # A pair may have several keys in common.
            second, first = np.divmod(np.unique(second[kept] * len(self._new.sizes) + first[kept]), len(self._new.sizes))
            yield first, second


def first_near_duplicates(
    texts: Sequence[str], references: Sequence[str], first: Positions, second: Positions, *, similarity: float = 0.7
) -> list[int | None]:
    """For each text the first of the references that it is paired with and a near-duplicate of, None where there is none.

    Parameters
    ----------
    first, second : array of int64
        Pairs of a text and a reference, by position.
    """
    none = len(references)
    best = np.full(len(texts), none, dtype=np.int64)
    order = np.lexsort((second, first))
    first, second, width = first[order], second[order], 1
    while len(first):
        # The first pair of each text first, then twice as many each time: most need not be looked at.
        begins = np.flatnonzero(np.diff(first, prepend=-1))
        place = np.arange(len(first)) - np.repeat(begins, np.diff(begins, append=len(first)))
        is_next = place < width
        np.minimum.at(best, *_near_duplicates(texts, references, first[is_next], second[is_next], similarity))
        is_open = ~is_next & (best[first] == none)
        first, second, width = first[is_open], second[is_open], 2 * width
    return [place if place < none else None for place in best.tolist()]


def _near_duplicates(
    texts: Sequence[str], references: Sequence[str], first: Positions, second: Positions, similarity: float
) -> tuple[Positions, Positions]:
    """Those of the pairs that are near-duplicates."""
    asked, left = np.unique(first, return_inverse=True)
    held, right = np.unique(second, return_inverse=True)
    right = right + len(asked)
    forms = comparison_forms([*(texts[place] for place in asked), *(references[place] for place in held)])
    _, letters = distinct_forms([without_spaces(form) for form in forms])
    is_same = letters[left] == letters[right]
    similar = Verdict(forms, similarity).similar(left[~is_same], right[~is_same])
    left, right = (np.concatenate(pair) for pair in zip((left[is_same], right[is_same]), similar, strict=True))
    return asked[left], held[right - len(asked)]


def _keys_of(sketches: Sketches, name: str) -> DataFrame:
    import polars

    places = np.repeat(np.arange(len(sketches.keys), dtype=np.uint32), sketches.keys.shape[1])
    return polars.DataFrame({"key": sketches.keys.ravel(), name: places})


def _reaches(common: Positions, left: Positions, right: Positions, similarity: float) -> Mask:
    result: Mask = common >= similarity * (left + right - common) - 1e-9
    return result


def _folded(forms: Sequence[str]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint64]]:
    trigrams, begins = flat_trigrams(forms)
    rows = np.repeat(np.arange(len(forms)), np.diff(begins, append=len(trigrams)))
    distinct = np.unique(trigrams)
    # Each trigram of a form once.
    pairs = np.unique(rows * len(distinct) + np.searchsorted(distinct, trigrams))
    rows, columns = np.divmod(pairs, len(distinct))
    places = (spread(distinct) >> np.uint64(40)).astype(np.int64) % _BITS
    bits = np.bincount(rows * _BITS + places[columns], minlength=len(forms) * _BITS) & 1
    packed = np.packbits(bits.astype(bool).reshape(len(forms), _BITS), axis=1)
    return np.bincount(rows, minlength=len(forms)).astype(np.int32), packed.view(np.uint64)


def _binary(values: npt.NDArray[Any]) -> pa.Array:
    offsets = np.arange(len(values) + 1, dtype=np.int32) * np.int32(values.shape[1] * values.itemsize)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(values))]
    return pa.Array.from_buffers(pa.binary(), len(values), buffers)


def _matrix(column: pa.ChunkedArray, kind: type) -> npt.NDArray[Any]:
    array = column.combine_chunks()
    _, offsets, data = array.buffers()
    borders = np.frombuffer(offsets, dtype=np.int32)[array.offset : array.offset + len(array) + 1]
    values = np.frombuffer(data, dtype=np.uint8)[borders[0] : borders[-1]]
    return values.view(kind).reshape(len(array), -1)
