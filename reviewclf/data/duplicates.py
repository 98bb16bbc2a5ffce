"""Near-duplicate reviews: MinHash over character trigrams, LSH for candidates, exact Jaccard similarity for the verdict.

Two reviews are near-duplicates when the sets of trigrams of their comparison forms (case, punctuation, ё, white space and
look-alike letters of other alphabets do not count; both ends padded) overlap by at least `similarity`, 0.7 by default. A typo
in 40 characters leaves about 0.85, a word added to 80 about 0.9, while different reviews that share a stock phrase stay well
below 0.7 unless the phrase is most of both: «Товар не получила, деньги вернули» and «... не вернули» do count, which keeps
such a pair on one side of a split. In one to three words a single letter is much of the text: «хорошее платье» and «хорошая
платье» reach 0.6 and «юбка супер» and «шубка супер» 0.56, so texts that short match by their form alone. Texts that differ in
spaces alone («п л а т ь е») are near-duplicates always.

Whether a pair is found depends on the two texts and `similarity` only, never on the other texts, their order, the process
or the platform. So what one function calls near-duplicates, the others do too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from reviewclf.text import comparison_form, form_hash

_NGRAM = 3
# With an edge the first and the last letters count as much as the others («юбка супер», «шубка супер»).
_EDGE = "\0" * (_NGRAM - 1)
_BITS = 21  # a code point needs 21 bits, so three of them fit a 64-bit number and a trigram's number is exact
_BATCH = 4096
_SEED = 20_240_229
# Length of a signature.
_PERMUTATIONS = 128
# Least share of the pairs exactly at the threshold that the bands let through: a missed pair could leak gold into training.
_RECALL = 0.999
# Pairs that are held and that are compared at once, which bounds the memory that they take.
_PAIRS = 1_000_000
_COMPARED = 16_384

Signatures = npt.NDArray[np.uint32]
Positions = npt.NDArray[np.int64]
Trigrams = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]
_MayPair = Callable[[Positions, Positions, Positions, Positions], Mask]


def near_duplicate_pairs(texts: Sequence[str], *, similarity: float = 0.7) -> Positions:
    """All pairs of texts whose trigram sets have a Jaccard similarity of at least `similarity`.

    Returns
    -------
    array of int64, shape (m, 2)
        Positions i < j, sorted. Equal forms are pairs too, so k copies of a text give k (k - 1) / 2 of them.

    Notes
    -----
    Candidates come from LSH over the distinct forms and are verified exactly: every pair returned is right, and of those
    exactly at the threshold 99.9% are found, of more similar ones more.
    """
    forms, places = distinct_forms(comparison_forms(texts))
    members: list[list[int]] = [[] for _ in forms]
    for position, place in enumerate(places.tolist()):
        members[place].append(position)
    search = _Search(forms, similarity)
    alike = {(place, place) for place in range(len(forms))}
    same_letters: dict[str, list[int]] = {}
    for place, form in enumerate(forms):
        same_letters.setdefault(without_spaces(form), []).append(place)
    for same in same_letters.values():
        alike.update(combinations(same, 2))
    for first, second in search.candidates(lambda _members, _starts, left, _: np.ones(len(left), dtype=bool)):
        alike.update(zip(*(side.tolist() for side in search.similar(first, second)), strict=True))
    found = {(min(a, b), max(a, b)) for i, j in alike for a in members[i] for b in members[j] if a != b}
    return np.array(sorted(found), dtype=np.int64).reshape(-1, 2)


def near_duplicate_groups(texts: Sequence[str], *, similarity: float = 0.7) -> list[str]:
    """Group of each text: texts joined by a chain of near-duplicates share one.

    Returns
    -------
    list of str
        n group ids. The id is the smallest :func:`~reviewclf.text.text_hash` in the group, so it depends on what the group
        holds and not on the order of the texts.

    Notes
    -----
    Memory: about 0.7 KiB for each distinct text beside the texts themselves. Pairs that are in one group already are not
    looked at, so thousands of reviews made from one template do not cost their square.
    """
    forms, places = distinct_forms(comparison_forms(texts))
    search = _Search(forms, similarity)
    # Forms that differ in spaces only belong together from the beginning.
    _, labels = distinct_forms([without_spaces(form) for form in forms])

    def in_open_bucket(members: Positions, starts: Positions, left: Positions, _: Positions) -> Mask:
        inside = labels[members]
        is_open: Mask = np.minimum.reduceat(inside, starts) != np.maximum.reduceat(inside, starts)
        return np.repeat(is_open, np.diff(starts, append=len(members)))[left]

    for first, second in search.candidates(in_open_bucket):
        apart = labels[first] != labels[second]
        _join(labels, *search.similar(first[apart], second[apart]))
    names: dict[int, str] = {}
    for label, form in zip(labels.tolist(), forms, strict=True):
        name = form_hash(form)
        names[label] = min(name, names.get(label, name))
    return [names[label] for label in labels[places].tolist()]


def match_near_duplicates(texts: Sequence[str], references: Sequence[str], *, similarity: float = 0.7) -> list[int | None]:
    """For each text the position of the first reference that it is a near-duplicate of, None where there is none."""
    known, reference_places = distinct_forms(comparison_forms(references))
    forms, places = distinct_forms(comparison_forms(texts))
    border, none = len(forms), len(known)
    same_letters: dict[str, int] = {}
    for place, form in enumerate(known):
        same_letters.setdefault(without_spaces(form), place)
    best = np.array([same_letters.get(without_spaces(form), none) for form in forms], dtype=np.int64)
    search = _Search([*forms, *known], similarity)

    def may_be_better(members: Positions, _: Positions, left: Positions, right: Positions) -> Mask:
        # References ascend in a bucket: after one that comes too late there is no other.
        result: Mask = members[right] - border < best[members[left]]
        return result

    for first, second in search.candidates(may_be_better, border=border):
        is_better = second - border < best[first]
        first, second = search.similar(first[is_better], second[is_better])
        np.minimum.at(best, first, second - border)
    # Positions of the distinct forms among all references, which grow along `known`.
    _, positions = np.unique(reference_places, return_index=True)
    matches = [int(positions[place]) if place < none else None for place in best.tolist()]
    return [matches[place] for place in places.tolist()]


def jaccard(first: str, second: str) -> float:
    """Similarity of two texts in [0, 1], exactly; what the functions above compare with their threshold."""
    left, right = (frozenset(flat_trigrams([form])[0].tolist()) for form in comparison_forms([first, second]))
    return len(left & right) / len(left | right)


def comparison_forms(texts: Sequence[str]) -> list[str]:
    """Return what is compared: the comparison form, or the text itself where that is empty («!!!»), as in ``text_hash``."""
    return [comparison_form(text) or text.strip() for text in texts]


def without_spaces(form: str) -> str:
    """The letters of a form."""
    return form.replace(" ", "")


def _signatures(forms: Sequence[str]) -> Signatures:
    """MinHash signatures (Broder 1997) of the forms' trigram sets, shape (n, permutations); the same on every platform."""
    result = np.empty((len(forms), _PERMUTATIONS), dtype=np.uint32)
    # The raw stream of PCG64 is fixed by its definition, so that the same pairs are found everywhere.
    stream = np.random.PCG64(_SEED).random_raw(2 * _PERMUTATIONS)
    multipliers, offsets = stream[0::2] | np.uint64(1), stream[1::2]
    for start in range(0, len(forms), _BATCH):
        shingles, bounds = flat_trigrams(forms[start : start + _BATCH])
        mixed = spread(shingles)
        rows = result[start : start + _BATCH]
        for column in range(_PERMUTATIONS):
            # Multiply-shift: the upper half of a * x + b modulo 2**64 (Dietzfelbinger et al. 1997).
            hashed = ((mixed * multipliers[column] + offsets[column]) >> np.uint64(32)).astype(np.uint32)
            rows[:, column] = np.minimum.reduceat(hashed, bounds)
    return result


def flat_trigrams(forms: Sequence[str]) -> tuple[Trigrams, Positions]:
    """Trigrams of all forms one after another as exact numbers, and where each form's begin. No form is without one."""
    padded = [f"{_EDGE}{form}{_EDGE}" for form in forms]
    lengths = np.array([len(form) for form in padded], dtype=np.int64)
    points = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
    shifts = np.uint64(_BITS)
    trigrams = (((points[:-2] << shifts) | points[1:-1]) << shifts) | points[2:]
    ends = np.cumsum(lengths)
    # The last two trigrams of a form would reach into the next one.
    keep = np.ones(len(points), dtype=bool)
    keep[ends - 1] = keep[ends - 2] = False
    counts = lengths - (_NGRAM - 1)
    return trigrams[keep[: len(trigrams)]], np.concatenate(([0], np.cumsum(counts)[:-1])).astype(np.int64)


def spread(values: Trigrams) -> Trigrams:
    """Spread the trigrams over 64 bits (the finaliser of SplitMix64); multiply-shift wants no structure in its input."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def bands_and_rows(similarity: float) -> tuple[int, int]:
    """Bands and rows: the most rows a band (fewest needless candidates) that keep the recall at the threshold."""
    if not 0.0 < similarity <= 1.0:
        raise ValueError(f"similarity must lie in (0, 1], got {similarity}")
    for rows in range(_PERMUTATIONS, 1, -1):
        bands = _PERMUTATIONS // rows
        if 1.0 - (1.0 - similarity**rows) ** bands >= _RECALL:
            return bands, rows
    return _PERMUTATIONS, 1


def lsh_keys(forms: Sequence[str], similarity: float) -> Trigrams:
    """What stands for each band of each form's signature, shape (bands, n)."""
    bands, rows = bands_and_rows(similarity)
    keys = np.zeros((bands, len(forms)), dtype=np.uint64)
    # Signatures are not kept: the keys of their bands are half as long.
    for start in range(0, len(forms), 16 * _BATCH):
        here = slice(start, start + 16 * _BATCH)
        signed = _signatures(forms[here])
        for band in range(bands):
            for column in range(band * rows, (band + 1) * rows):
                keys[band, here] = spread((keys[band, here] << np.uint64(1)) ^ signed[:, column])
    return keys


class Verdict:
    """Which pairs of forms are similar enough, exactly. Positions are those of `forms`."""

    def __init__(self, forms: Sequence[str], similarity: float) -> None:
        self._similarity = similarity
        self._sets = _trigram_sets(forms)
        self._sizes = np.diff(self._sets.indptr)

    def similar(self, first: Positions, second: Positions) -> tuple[Positions, Positions]:
        """Those of the pairs that are similar enough."""
        # No two sets have more in common than the smaller one holds.
        sizes = self._sizes[first], self._sizes[second]
        is_near = self._reaches(np.minimum(*sizes), *sizes)
        first, second = first[is_near], second[is_near]
        is_similar = np.ones(len(first), dtype=bool)
        for start in range(0, len(first), _COMPARED):
            here = slice(start, start + _COMPARED)
            common = self._sets[first[here]].multiply(self._sets[second[here]]).sum(axis=1, dtype=np.int64)
            is_similar[here] = self._reaches(common, self._sizes[first[here]], self._sizes[second[here]])
        return first[is_similar], second[is_similar]

    def _reaches(self, common: npt.NDArray[Any], left: npt.NDArray[Any], right: npt.NDArray[Any]) -> Mask:
        result: Mask = common >= self._similarity * (left + right - common) - 1e-9
        return result


class _Search(Verdict):
    """Candidate pairs of forms by LSH, and the exact verdict on them. The forms are distinct."""

    def __init__(self, forms: Sequence[str], similarity: float) -> None:
        super().__init__(forms, similarity)
        self._keys = lsh_keys(forms, similarity)

    def candidates(self, may_pair: _MayPair, *, border: int | None = None) -> Iterator[tuple[Positions, Positions]]:
        """Pairs, the smaller position first, whose signatures agree in a whole band, in chunks.

        With a `border`, only pairs of a form before it and one from it on. `may_pair` tells before each chunk which forms are
        still wanted as the first of a pair. It is given the forms of the band's buckets, one bucket after another and ascending
        within each; where each bucket begins; and the places among them of the forms in question and of those that each would
        be paired with next.
        """
        for keys in self._keys:
            members = np.argsort(keys, kind="stable")
            ordered = keys[members]
            is_shared = np.zeros(len(members) + 1, dtype=bool)
            is_shared[1:-1] = ordered[1:] == ordered[:-1]
            members, begins = members[is_shared[1:] | is_shared[:-1]], ~is_shared[:-1][is_shared[1:] | is_shared[:-1]]
            starts = np.flatnonzero(begins)
            sizes = np.diff(starts, append=len(members))
            ends = np.repeat(starts + sizes, sizes)
            left = np.arange(len(members))
            next_ = left + 1
            if border is not None:
                next_ = np.repeat(starts + np.add.reduceat((members < border).astype(np.int64), starts), sizes)
                left = np.flatnonzero(members < border)
            # Each form is paired with one of its bucket first, then with those farther away, twice as many each time.
            done = 0
            while len(left := left[next_[left] + done < ends[left]]):
                left = left[may_pair(members, starts, left, next_[left] + done)]
                width = max(1, min(done + 1, _PAIRS // max(1, len(left))))
                right = next_[left][:, None] + np.arange(done, done + width)
                row, column = np.nonzero(right < ends[left][:, None])
                yield members[left[row]], members[right[row, column]]
                done += width


def _trigram_sets(forms: Sequence[str]) -> Any:
    """The trigrams of each form as a sparse matrix of ones, a row for each form and a column for each trigram that occurs."""
    from scipy.sparse import csr_array, vstack

    batches = [forms[start : start + _BATCH] for start in range(0, len(forms), _BATCH)]
    distinct = np.empty(0, dtype=np.uint64)
    for batch in batches:
        distinct = np.union1d(distinct, flat_trigrams(batch)[0])
    parts = [csr_array((0, len(distinct)), dtype=np.int8)]
    for batch in batches:
        trigrams, bounds = flat_trigrams(batch)
        columns = np.searchsorted(distinct, trigrams).astype(np.int32)
        ones, borders = np.ones(len(columns), dtype=np.int8), np.append(bounds, len(columns)).astype(np.int32)
        part = csr_array((ones, columns, borders), shape=(len(batch), len(distinct)))
        part.sum_duplicates()
        part.data[:] = 1
        parts.append(part)
    return vstack(parts, format="csr")


def _join(labels: Positions, first: Positions, second: Positions) -> None:
    """Give the components that the pairs connect one label each, in place."""
    if not len(first):
        return
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    old, ends = np.unique(np.stack([labels[first], labels[second]]), return_inverse=True)
    graph = coo_array((np.ones(len(first), dtype=bool), tuple(ends.reshape(2, -1))), shape=(len(old), len(old)))
    _, component = connected_components(graph, directed=False)
    _, smallest = np.unique(component, return_index=True)
    renamed = np.arange(len(labels))
    renamed[old] = old[smallest[component]]
    labels[:] = renamed[labels]


def distinct_forms(forms: Sequence[str]) -> tuple[list[str], Positions]:
    """The distinct forms in order of appearance, and the place of each form among them."""
    known: dict[str, int] = {}
    places = np.fromiter((known.setdefault(form, len(known)) for form in forms), dtype=np.int64, count=len(forms))
    return list(known), places
