"""Near-duplicate reviews: MinHash over character trigrams, LSH for candidates, exact Jaccard similarity for the verdict.

Two reviews are near-duplicates when the sets of trigrams of their normal forms (case, punctuation, ё and white space do not
count; both ends padded) overlap by at least `similarity`, 0.7 by default. A typo in 40 characters leaves about 0.85, a word
added to 80 about 0.9, while different reviews that share a stock phrase stay well below 0.7 unless the phrase is most of
both: «Товар не получила, деньги вернули» and «... не вернули» do count, which keeps such a pair on one side of a split. In
one to three words a single letter is much of the text: «хорошее платье» and «хорошая платье» reach 0.6 and «юбка супер» and
«шубка супер» 0.56, so texts that short match by their normal form alone.

Whether a pair is found depends on the two texts and `similarity` only, never on the other texts, their order, the process
or the platform. So what one function calls near-duplicates, the others do too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from reviewclf.text import normal_form, text_hash

_NGRAM = 3
# With an edge the first and the last letters count as much as the others («юбка супер», «шубка супер»).
_EDGE = "\0" * (_NGRAM - 1)
_BITS = 21  # a code point needs 21 bits, so three of them fit a 64-bit number and a trigram's number is exact
_BATCH = 4096
_SEED = 20_240_229
# Where texts are compared pairwise longer signatures are cheap, and a missed pair could leak gold into training.
_PAIR_PERMUTATIONS = 128
# Least share of the pairs exactly at the threshold that the bands let through: pairwise, and in the stored index.
_PAIR_RECALL = 0.999
_INDEX_RECALL = 0.985
# A candidate whose estimated similarity is this many standard deviations below the threshold is not verified exactly.
_DEVIATIONS = 5.0

Signatures = npt.NDArray[np.uint32]
Pairs = npt.NDArray[np.int64]
Positions = npt.NDArray[np.intp]


def signatures(texts: Sequence[str], *, permutations: int = 64) -> Signatures:
    """MinHash signatures (Broder 1997) of the texts' trigram sets.

    Parameters
    ----------
    texts : sequence of str
        n texts; empty ones are allowed.
    permutations : int
        Length of a signature. The similarity estimated from two of them has a standard deviation of at most
        ``0.5 / sqrt(permutations)``.

    Returns
    -------
    array of uint32, shape (n, permutations)
        The same on every platform and in every process. A shorter signature is the beginning of a longer one.
    """
    if permutations < 1:
        raise ValueError(f"permutations must be at least 1, got {permutations}")
    return _signed(_forms(texts), permutations)


def near_duplicate_pairs(texts: Sequence[str], *, similarity: float = 0.7) -> Pairs:
    """All pairs of texts whose trigram sets have a Jaccard similarity of at least `similarity`.

    Returns
    -------
    array of int64, shape (m, 2)
        Positions i < j, sorted. Equal normal forms are pairs too, so k copies of a text give k (k - 1) / 2 of them.

    Notes
    -----
    Candidates come from LSH over the distinct normal forms and are verified exactly: every pair returned is right, and of
    those exactly at the threshold 99.9% are found, of more similar ones more.
    """
    forms = _forms(texts)
    members: dict[str, list[int]] = {}
    for position, form in enumerate(forms):
        members.setdefault(form, []).append(position)
    found = [pair for same in members.values() for pair in _combinations(same)]
    groups = list(members.values())
    for first, second in _similar_forms(list(members), similarity=similarity):
        found.extend((min(i, j), max(i, j)) for i in groups[first] for j in groups[second])
    return np.array(sorted(found), dtype=np.int64).reshape(-1, 2)


def near_duplicate_groups(texts: Sequence[str], *, similarity: float = 0.7) -> list[str]:
    """Group of each text: texts joined by a chain of near-duplicates share one.

    Returns
    -------
    list of str
        n group ids. The id is the smallest :func:`~reviewclf.text.text_hash` in the group, so it depends on what the group
        holds and not on the order of the texts.
    """
    forms = _forms(texts)
    originals = dict(zip(forms, texts, strict=True))
    distinct = list(originals)
    labels = np.arange(len(distinct))
    members = {label: [label] for label in range(len(distinct))}

    def is_joined(first: int, others: Positions) -> npt.NDArray[np.bool_]:
        same: npt.NDArray[np.bool_] = labels[others] == labels[first]
        return same

    for first, second in _similar_forms(distinct, similarity=similarity, is_settled=is_joined):
        small, large = sorted((int(labels[first]), int(labels[second])), key=lambda label: len(members[label]))
        if small != large:
            labels[members[small]] = large
            members[large] += members.pop(small)
    smallest = {label: min(text_hash(originals[distinct[i]]) for i in inside) for label, inside in members.items()}
    by_form = {form: smallest[label] for form, label in zip(distinct, labels.tolist(), strict=True)}
    return [by_form[form] for form in forms]


def match_near_duplicates(texts: Sequence[str], references: Sequence[str], *, similarity: float = 0.7) -> list[int | None]:
    """For each text the position of the first reference that it is a near-duplicate of, None where there is none."""
    positions: dict[str, int] = {}
    for position, form in enumerate(_forms(references)):
        positions.setdefault(form, position)
    known = list(positions)
    forms = _forms(texts)
    others = list(dict.fromkeys(forms))
    best = np.full(len(others), len(known))

    def has_earlier(reference: int, rest: Positions) -> npt.NDArray[np.bool_]:
        earlier: npt.NDArray[np.bool_] = best[rest - len(known)] <= reference
        return earlier

    for reference, other in _similar_forms(known, others, similarity=similarity, is_settled=has_earlier):
        best[other] = min(best[other], reference)
    # Positions grow along `known`, so the first of the distinct references is the first of all.
    matches = {form: positions[known[i]] for form, i in zip(others, best.tolist(), strict=True) if i < len(known)}
    return [matches.get(form) for form in forms]


class NearDuplicateIndex:
    """Growing index of signatures, for recognising near-duplicates of what earlier runs have stored.

    Parameters
    ----------
    similarity : float
        Jaccard similarity, estimated from the signatures, from which two texts count as near-duplicates.
    permutations : int
        Length of the signatures.
    """

    def __init__(self, *, similarity: float = 0.7, permutations: int = 64) -> None:
        # Imported here: it takes a second with its optional parts, and the pure functions do without.
        from datasketch import LeanMinHash, MinHashLSH

        self._similarity = similarity
        self._permutations = permutations
        self._lsh = MinHashLSH(num_perm=permutations, params=_bands(similarity, permutations, recall=_INDEX_RECALL))
        sketch_class: Any = LeanMinHash
        # The name of the scheme only has to be the same everywhere: the hashing is ours.
        self._sketch = partial(sketch_class, seed=_SEED, scheme="affine32")
        self._signatures: dict[str, Signatures] = {}

    def __len__(self) -> int:
        return len(self._signatures)

    def add(self, signatures: Signatures, keys: Sequence[str]) -> None:
        """Add signatures, shape (n, permutations), under n keys; a key that is there already is left as it is.

        Raises
        ------
        ValueError
            If the shapes do not fit.
        """
        if not len(keys) == len(signatures) == 0 and signatures.shape != (len(keys), self._permutations):
            raise ValueError(
                f"signatures of shape {signatures.shape} do not fit {len(keys)} keys of {self._permutations} permutations"
            )
        for key, signature in zip(keys, signatures, strict=True):
            if key not in self._signatures:
                own = np.array(signature, dtype=np.uint32)
                self._signatures[key] = own
                self._lsh.insert(key, self._sketch(hashvalues=own), check_duplication=False)

    def query(self, signature: Signatures) -> list[str]:
        """Keys of the near-duplicates of one signature, shape (permutations,): most similar first, then by key.

        Raises
        ------
        ValueError
            If the length does not fit.
        """
        if signature.shape != (self._permutations,):
            raise ValueError(f"a signature of shape {signature.shape} does not fit {self._permutations} permutations")
        own = np.asarray(signature, dtype=np.uint32)
        keys = self._lsh.query(self._sketch(hashvalues=own))
        if not keys:
            return []
        estimates = np.mean(np.stack([self._signatures[key] for key in keys]) == own, axis=1)
        ranked = sorted((-estimate, key) for key, estimate in zip(keys, estimates, strict=True))
        return [key for estimate, key in ranked if -estimate >= self._similarity - 1e-9]


def _forms(texts: Sequence[str]) -> list[str]:
    """Return what is compared: the normal form, or the text itself where that is empty («!!!»), as in ``text_hash``."""
    return [normal_form(text) or text.strip() for text in texts]


def _signed(forms: Sequence[str], permutations: int) -> Signatures:
    result = np.empty((len(forms), permutations), dtype=np.uint32)
    # The raw stream of PCG64 is fixed by its definition, so the numbers are part of the stored format.
    stream = np.random.PCG64(_SEED).random_raw(2 * permutations)
    multipliers, offsets = stream[0::2] | np.uint64(1), stream[1::2]
    for start in range(0, len(forms), _BATCH):
        shingles, bounds = _flat_shingles(forms[start : start + _BATCH])
        mixed = _mixed(shingles)
        rows = result[start : start + _BATCH]
        for column in range(permutations):
            # Multiply-shift: the upper half of a * x + b modulo 2**64 (Dietzfelbinger et al. 1997).
            hashed = ((mixed * multipliers[column] + offsets[column]) >> np.uint64(32)).astype(np.uint32)
            rows[:, column] = np.minimum.reduceat(hashed, bounds)
    return result


def _flat_shingles(forms: Sequence[str]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.intp]]:
    """Trigrams of all forms one after another as exact numbers, and where each form's begin. No form is without one."""
    padded = [f"{_EDGE}{form}{_EDGE}" for form in forms]
    lengths = np.array([len(form) for form in padded], dtype=np.intp)
    points = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
    shifts = np.uint64(_BITS)
    trigrams = (((points[:-2] << shifts) | points[1:-1]) << shifts) | points[2:]
    ends = np.cumsum(lengths)
    # The last two trigrams of a form would reach into the next one.
    keep = np.ones(len(points), dtype=bool)
    keep[ends - 1] = keep[ends - 2] = False
    counts = lengths - (_NGRAM - 1)
    return trigrams[keep[: len(trigrams)]], np.concatenate(([0], np.cumsum(counts)[:-1])).astype(np.intp)


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Spread the trigrams over 64 bits (the finaliser of SplitMix64); multiply-shift wants no structure in its input."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _bands(similarity: float, permutations: int, *, recall: float) -> tuple[int, int]:
    """Bands and rows: the most rows a band (fewest needless candidates) that keep the recall at the threshold."""
    if not 0.0 < similarity <= 1.0:
        raise ValueError(f"similarity must lie in (0, 1], got {similarity}")
    for rows in range(permutations, 1, -1):
        bands = permutations // rows
        if 1.0 - (1.0 - similarity**rows) ** bands >= recall:
            return bands, rows
    return permutations, 1


def _similar_forms(
    forms: Sequence[str],
    others: Sequence[str] | None = None,
    *,
    similarity: float,
    is_settled: Callable[[int, Positions], npt.NDArray[np.bool_]] | None = None,
) -> Iterator[tuple[int, int]]:
    """Pairs (i, j) of similar forms: i < j within `forms`, or i of `forms` and j of `others`.

    `is_settled` says of a position and an array of later ones (those of `others` counted on from the end of `forms`) which
    pairs the caller needs no more. It is asked again and again, so that thousands of reviews made from one template do not
    cost their square.
    """
    bands, rows = _bands(similarity, _PAIR_PERMUTATIONS, recall=_PAIR_RECALL)
    every = [*forms, *(others or ())]
    border = None if others is None else len(forms)
    array = _signed(every, _PAIR_PERMUTATIONS)
    least = similarity - _DEVIATIONS * (similarity * (1.0 - similarity) / _PAIR_PERMUTATIONS) ** 0.5
    sets: dict[int, frozenset[int]] = {}
    seen: set[tuple[int, int]] = set()

    def shingles(position: int) -> frozenset[int]:
        if position not in sets:
            sets[position] = frozenset(_flat_shingles([every[position]])[0].tolist())
        return sets[position]

    for bucket in _buckets(array, bands=bands, rows=rows):
        for place, first in enumerate(bucket.tolist()[:-1]):
            if border is not None and first >= border:
                break
            rest = bucket[place + 1 :]
            if border is not None:
                rest = rest[rest >= border]
            if is_settled is not None:
                rest = rest[~is_settled(first, rest)]
            estimates = np.mean(array[rest] == array[first], axis=1)
            for second in rest[estimates >= least].tolist():
                if (first, second) in seen:
                    continue
                seen.add((first, second))
                left, right = shingles(first), shingles(second)
                common = len(left & right)
                if common >= similarity * (len(left) + len(right) - common) - 1e-9:
                    yield first, second - (border or 0)


def _buckets(array: Signatures, *, bands: int, rows: int) -> Iterator[Positions]:
    """Positions, ascending, of the signatures that agree in all rows of a band; bands one after another."""
    for band in range(bands):
        part = np.ascontiguousarray(array[:, band * rows : (band + 1) * rows])
        keys = part.view(np.dtype((np.void, part.dtype.itemsize * rows))).ravel()
        order = np.argsort(keys, kind="stable")
        cuts = np.flatnonzero(keys[order][1:] != keys[order][:-1]) + 1
        for bucket in np.split(order, cuts):
            if len(bucket) > 1:
                yield bucket


def _combinations(positions: Sequence[int]) -> Iterator[tuple[int, int]]:
    for place, first in enumerate(positions):
        for second in positions[place + 1 :]:
            yield first, second
