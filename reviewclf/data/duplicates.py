"""Near-duplicate reviews: MinHash over character trigrams, LSH for candidates, exact Jaccard similarity for the verdict.

Two reviews are near-duplicates when the sets of trigrams of their comparison forms (case, punctuation, ё, white space and
look-alike letters of other alphabets do not count; both ends padded) overlap by at least `similarity`, 0.7 by default. A typo
in 40 characters leaves about 0.85, a word added to 80 about 0.9, while different reviews that share a stock phrase stay well
below 0.7 unless the phrase is most of both: «Товар не получила, деньги вернули» and «... не вернули» do count, which keeps
such a pair on one side of a split. In one to three words a single letter is much of the text: «хорошее платье» and «хорошая
платье» reach 0.6 and «юбка супер» and «шубка супер» 0.56, so texts that short match by their form alone. Texts that differ in
spaces alone («п л а т ь е») are near-duplicates always; only the stored index, which sees signatures, knows nothing of that.

Whether a pair is found depends on the two texts and `similarity` only, never on the other texts, their order, the process
or the platform. So what one function calls near-duplicates, the others do too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from reviewclf.text import comparison_form, form_hash

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
# Bits of a text's fingerprint: a text of 100 trigrams loses two of them to bits that are taken, one of 500 fifty.
_FINGERPRINT = 2048
# Pairs looked at together: fingerprints of 16,384 pairs take 8 MiB; positions of a million 16 MiB.
_CHUNK = 16_384
_PAIRS = 1_000_000
_SIGNED = 16 * _BATCH
_STEPS = (1, 2, 3, 5, 8, 13)
# 64 bits hold a trigram of such ranks and the number of a pair or of one of its two forms.
_RANK_BITS = (64 - (2 * _CHUNK).bit_length()) // 3

Signatures = npt.NDArray[np.uint32]
Pairs = npt.NDArray[np.int64]
Positions = npt.NDArray[np.intp]
Codes = npt.NDArray[np.int64]
Codes64 = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]
CodesT = TypeVar("CodesT", Codes, Codes64)


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
    members: dict[str, list[int]] = {}
    for position, form in enumerate(_forms(texts)):
        members.setdefault(form, []).append(position)
    groups = list(members.values())
    search = _Search(list(members), similarity)
    found = [pair for same in groups for pair in _combinations(same)]
    known = np.empty(0, dtype=np.int64)
    for bucketed in search.bands():
        for first, second in bucketed.all_pairs():
            codes = _sorted_distinct(search.coded(first, second))
            first, second = search.decoded(codes[~_is_in(codes, known)])
            is_near = search.is_near(first, second)
            first, second = first[is_near], second[is_near]
            known = _merged(known, search.coded(first, second))
            is_similar = search.verify(first, second)
            for i, j in zip(first[is_similar].tolist(), second[is_similar].tolist(), strict=True):
                found.extend((min(a, b), max(a, b)) for a in groups[i] for b in groups[j])
    alike: dict[str, list[int]] = {}
    for place, form in enumerate(_spaceless(list(members))):
        alike.setdefault(form, []).append(place)
    for i, j in (pair for places in alike.values() for pair in _combinations(places)):
        found.extend((min(a, b), max(a, b)) for a in groups[i] for b in groups[j])
    return np.array(sorted(set(found)), dtype=np.int64).reshape(-1, 2)


def near_duplicate_groups(texts: Sequence[str], *, similarity: float = 0.7) -> list[str]:
    """Group of each text: texts joined by a chain of near-duplicates share one.

    Returns
    -------
    list of str
        n group ids. The id is the smallest :func:`~reviewclf.text.text_hash` in the group, so it depends on what the group
        holds and not on the order of the texts.

    Notes
    -----
    Memory: 0.5 KiB a distinct text beside the texts themselves. Pairs that are in one group already are not looked at, so
    thousands of reviews made from one template do not cost their square.
    """
    distinct, places = _distinct(_forms(texts))
    search = _Search(distinct, similarity)
    # Forms that differ in spaces only belong together from the beginning.
    first_of: dict[str, int] = {}
    labels = np.array([first_of.setdefault(form, place) for place, form in enumerate(_spaceless(distinct))], dtype=np.intp)
    failed = np.empty(0, dtype=np.int64)
    for bucketed in search.bands():
        for first, second in bucketed.joining_pairs(labels):
            first, second, failed = search.similar(first, second, failed)
            _join(labels, first, second)
    hashes = np.array([form_hash(form) for form in distinct], dtype="S32")
    order = np.lexsort((hashes, labels))
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = labels[order][1:] != labels[order][:-1]
    names = dict(zip(labels[order[is_first]].tolist(), map(bytes.decode, hashes[order[is_first]].tolist()), strict=True))
    return [names[label] for label in labels[places].tolist()]


def match_near_duplicates(texts: Sequence[str], references: Sequence[str], *, similarity: float = 0.7) -> list[int | None]:
    """For each text the position of the first reference that it is a near-duplicate of, None where there is none."""
    known, reference_places = _distinct(_forms(references))
    forms, places = _distinct(_forms(texts))
    border = len(known)
    # The position of a distinct form among all references; positions grow along `known`.
    _, positions = np.unique(reference_places, return_index=True)
    lookup: dict[str, int] = {}
    for place, form in enumerate(_spaceless(known)):
        lookup.setdefault(form, place)
    best = np.array([lookup.get(form, border) for form in _spaceless(forms)], dtype=np.int64)
    search = _Search([*known, *forms], similarity)
    failed = np.empty(0, dtype=np.int64)
    for bucketed in search.bands():
        for first, second in bucketed.crossing_pairs(border, best):
            first, second, failed = search.similar(first, second, failed)
            np.minimum.at(best, second - border, first)
    matches = [int(positions[place]) if place < border else None for place in best.tolist()]
    return [matches[place] for place in places.tolist()]


def jaccard(first: str, second: str) -> float:
    """Similarity of two texts in [0, 1], exactly; what the functions above compare with their threshold."""
    left, right = (frozenset(_flat_shingles([form])[0].tolist()) for form in _forms([first, second]))
    return len(left & right) / len(left | right)


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
    """Return what is compared: the comparison form, or the text itself where that is empty («!!!»), as in ``text_hash``."""
    return [comparison_form(text) or text.strip() for text in texts]


def _spaceless(forms: Sequence[str]) -> list[str]:
    return [form.replace(" ", "") for form in forms]


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


def _fingerprints(forms: Sequence[str]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int32]]:
    """For each form a bit set of its hashed trigrams, shape (n, 32), and how many different trigrams it has, shape (n,)."""
    bits = np.zeros((len(forms), _FINGERPRINT // 64), dtype=np.uint64)
    sizes = np.zeros(len(forms), dtype=np.int32)
    for start in range(0, len(forms), _BATCH):
        shingles, bounds = _flat_shingles(forms[start : start + _BATCH])
        owners = np.repeat(np.arange(len(bounds)), np.diff(np.append(bounds, len(shingles))))
        ranks, width = _short(shingles)
        owned = _sorted_distinct((owners.astype(np.uint64) << width) | ranks)
        sizes[start : start + len(bounds)] = np.bincount((owned >> width).astype(np.intp), minlength=len(bounds))
        taken = np.zeros((len(bounds), _FINGERPRINT), dtype=bool)
        taken[owners, (_mixed(shingles) % np.uint64(_FINGERPRINT)).astype(np.intp)] = True
        bits[start : start + len(bounds)] = np.packbits(taken, axis=1).view(np.uint64)
    return bits, sizes


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


class _Search:
    """Candidate pairs of forms by LSH, and the exact verdict on them. Positions are those of `forms`, which are distinct."""

    def __init__(self, forms: Sequence[str], similarity: float) -> None:
        bands, rows = _bands(similarity, _PAIR_PERMUTATIONS, recall=_PAIR_RECALL)
        self._forms = forms
        self._similarity = similarity
        self._keys = np.zeros((bands, len(forms)), dtype=np.uint64)
        # Signatures are not kept: their bands' keys are half as long, and fingerprints tell more of a pair.
        for start in range(0, len(forms), _SIGNED):
            here = slice(start, start + _SIGNED)
            signed = _signed(forms[here], _PAIR_PERMUTATIONS)
            for band in range(bands):
                for column in range(band * rows, (band + 1) * rows):
                    self._keys[band, here] = _mixed((self._keys[band, here] << np.uint64(1)) ^ signed[:, column])
        self._bits, self._sizes = _fingerprints(forms)
        self._lost = self._sizes - np.bitwise_count(self._bits).sum(axis=1, dtype=np.int32)

    def bands(self) -> Iterator[_Buckets]:
        """The buckets of each band in turn."""
        for keys in self._keys:
            order = np.argsort(keys, kind="stable")
            ordered = keys[order]
            is_start = np.ones(len(order), dtype=bool)
            is_start[1:] = ordered[1:] != ordered[:-1]
            yield _Buckets(order, np.flatnonzero(is_start))

    def coded(self, first: Positions, second: Positions) -> Codes:
        """One number a pair."""
        return first.astype(np.int64) * len(self._forms) + second

    def decoded(self, codes: Codes) -> tuple[Positions, Positions]:
        """The pairs that the numbers stand for."""
        return codes // len(self._forms), codes % len(self._forms)

    def similar(self, first: Positions, second: Positions, failed: Codes) -> tuple[Positions, Positions, Codes]:
        """The pairs that are similar enough; and `failed`, pairs not to be verified again, with those that were not."""
        is_near = self.is_near(first, second)
        first, second = first[is_near], second[is_near]
        codes = self.coded(first, second)
        is_new = ~_is_in(codes, failed)
        first, second, codes = first[is_new], second[is_new], codes[is_new]
        is_similar = self.verify(first, second)
        return first[is_similar], second[is_similar], _merged(failed, codes[~is_similar])

    def is_near(self, first: Positions, second: Positions) -> Mask:
        """Whether a pair may be similar enough, by a bound that no similar pair misses; telling so again costs little."""
        # No two sets have more in common than the smaller one holds.
        sizes = self._sizes[first], self._sizes[second]
        result = self._reaches(np.minimum(*sizes), *sizes)
        places = np.flatnonzero(result)
        for start in range(0, len(places), _CHUNK):
            here = places[start : start + _CHUNK]
            left, right = first[here], second[here]
            shared = np.bitwise_count(self._bits[left] & self._bits[right]).sum(axis=1, dtype=np.int32)
            # Common trigrams share a bit at most with others of their own text, and there they are counted as lost.
            common = shared + np.minimum(self._lost[left], self._lost[right])
            result[here] = self._reaches(common, self._sizes[left], self._sizes[right])
        return result

    def _reaches(self, common: npt.NDArray[Any], left: npt.NDArray[Any], right: npt.NDArray[Any]) -> Mask:
        result: Mask = common >= self._similarity * (left + right - common) - 1e-9
        return result

    def verify(self, first: Positions, second: Positions) -> Mask:
        """Whether each pair is similar enough, exactly."""
        result = np.empty(len(first), dtype=bool)
        for start in range(0, len(first), _CHUNK):
            here = slice(start, start + _CHUNK)
            result[here] = self._is_similar(first[here], second[here])
        return result

    def _is_similar(self, first: Positions, second: Positions) -> Mask:
        involved, pairs = np.unique(np.stack([first, second]), return_inverse=True)
        left, right = pairs.reshape(2, -1)
        trigrams, bounds = _flat_shingles([self._forms[i] for i in involved.tolist()])
        # Ranks instead of code points make a trigram short enough to carry the number of its owner in the same 64 bits.
        ranks, bits = _short(trigrams)
        owners = np.repeat(np.arange(len(bounds)), np.diff(np.append(bounds, len(trigrams))))
        owned = _sorted_distinct((owners.astype(np.uint64) << bits) | ranks)
        owners = (owned >> bits).astype(np.intp)
        ranks = owned & ((np.uint64(1) << bits) - np.uint64(1))
        sizes = np.bincount(owners, minlength=len(bounds))
        begins = np.cumsum(sizes) - sizes
        both = np.concatenate([_runs_of(ranks, begins, sizes, side, bits) for side in (left, right)])
        both.sort()
        twice = both[1:][both[1:] == both[:-1]]
        common = np.bincount((twice >> bits).astype(np.intp), minlength=len(first))
        return self._reaches(common, sizes[left], sizes[right])


class _Buckets:
    """Signatures that agree in all rows of one band: positions, ascending within each bucket."""

    def __init__(self, order: Positions, starts: Positions) -> None:
        sizes = np.diff(np.append(starts, len(order)))
        shared = sizes > 1
        self._members = order[np.repeat(shared, sizes)]
        self._sizes = sizes[shared]
        self._starts = np.cumsum(self._sizes) - self._sizes

    def all_pairs(self) -> Iterator[tuple[Positions, Positions]]:
        """Every pair within a bucket, the smaller position first, in chunks."""
        for left, right in _enumerated(*self._later(np.ones(len(self._sizes), dtype=bool))):
            yield self._members[left], self._members[right]

    def joining_pairs(self, labels: Positions) -> Iterator[tuple[Positions, Positions]]:
        """Pairs within a bucket whose `labels`, which the caller changes meanwhile, differ, in chunks."""
        if not len(self._sizes):
            return
        # First everything with the bucket's first member: mostly that joins the whole bucket.
        heads = np.repeat(self._starts, self._sizes - 1)
        others = np.delete(np.arange(len(self._members)), self._starts)
        for start in range(0, len(heads), _PAIRS):
            yield self._apart(heads[start : start + _PAIRS], others[start : start + _PAIRS], labels)
        # Then each with its neighbours, which joins most of the rest without looking at all pairs.
        bucket = np.repeat(np.arange(len(self._starts)), self._sizes)
        for step in _STEPS:
            near = np.flatnonzero(bucket[step:] == bucket[:-step])
            yield self._apart(near, near + step, labels)
        inside = labels[self._members]
        is_open = np.minimum.reduceat(inside, self._starts) != np.maximum.reduceat(inside, self._starts)
        for left, right in _enumerated(*self._later(is_open, skip_heads=True)):
            yield self._apart(left, right, labels)

    def crossing_pairs(self, border: int, best: Positions) -> Iterator[tuple[Positions, Positions]]:
        """Pairs of a position below `border` and one from there on, where `best` of the latter is still larger, in chunks."""
        if not len(self._sizes):
            return
        below = np.add.reduceat(self._members < border, self._starts)
        crossing = (below > 0) & (below < self._sizes)
        starts, below, sizes = self._starts[crossing], below[crossing], self._sizes[crossing]
        above = sizes - below
        for heads_only in (True, False):
            counts = np.ones(len(starts), dtype=np.intp) if heads_only else below - 1
            places = np.repeat(starts + (0 if heads_only else 1), counts) + _within(counts)
            for left, right in _enumerated(places, np.repeat(starts + below, counts), np.repeat(above, counts)):
                first, second = self._members[left], self._members[right]
                is_open = best[second - border] > first
                yield first[is_open], second[is_open]

    def _later(self, wanted: Mask, *, skip_heads: bool = False) -> tuple[Positions, Positions, Positions]:
        """For each member of the wanted buckets: its place, the place after it, and how many come from there on."""
        starts, sizes = self._starts[wanted], self._sizes[wanted]
        if skip_heads:
            starts, sizes = starts + 1, sizes - 1
        within = _within(sizes)
        places = np.repeat(starts, sizes) + within
        return places, places + 1, np.repeat(sizes, sizes) - within - 1

    def _apart(self, left: Positions, right: Positions, labels: Positions) -> tuple[Positions, Positions]:
        first, second = self._members[left], self._members[right]
        apart = labels[first] != labels[second]
        return first[apart], second[apart]


def _enumerated(places: Positions, begins: Positions, counts: Positions) -> Iterator[tuple[Positions, Positions]]:
    """Pairs of each place with the `counts` places from its `begins` on, about ``_PAIRS`` at a time."""
    ends = np.cumsum(counts)
    start = 0
    while start < len(places):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + _PAIRS, side="right")))
        here = slice(start, stop)
        yield np.repeat(places[here], counts[here]), np.repeat(begins[here], counts[here]) + _within(counts[here])
        start = stop


def _within(counts: Positions) -> Positions:
    """0, 1, ... up to each count, one after another."""
    total = int(counts.sum())
    result: Positions = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
    return result


def _runs_of(ranks: Codes64, begins: Positions, sizes: Positions, side: Positions, bits: np.uint64) -> Codes64:
    """The trigrams of the forms of one side of all pairs, each with the number of its pair above it."""
    counts = sizes[side]
    places = np.repeat(begins[side], counts) + _within(counts)
    pair = np.repeat(np.arange(len(side)), counts).astype(np.uint64)
    result: Codes64 = (pair << bits) | ranks[places]
    return result


def _short(trigrams: Codes64) -> tuple[Codes64, np.uint64]:
    """The trigrams with each code point replaced by its rank among those that occur, and the bits that they take."""
    mask = np.uint64((1 << _BITS) - 1)
    shifts = [np.uint64(2 * _BITS), np.uint64(_BITS), np.uint64(0)]
    parts = [(trigrams >> shift) & mask for shift in shifts]
    occurs = np.zeros(max(int(part.max(initial=0)) for part in parts) + 1, dtype=bool)
    for part in parts:
        occurs[part] = True
    rank = np.cumsum(occurs, dtype=np.uint64) - np.uint64(1)
    width = np.uint64(int(occurs.sum()).bit_length())
    if width > _RANK_BITS:  # text in no alphabet: the distinct trigrams themselves are fewer than their owners leave room for
        distinct, ranks = np.unique(trigrams, return_inverse=True)
        return ranks.astype(np.uint64), np.uint64(len(distinct).bit_length())
    first, second, third = (rank[part] for part in parts)
    return (((first << width) | second) << width) | third, np.uint64(3) * width


def _join(labels: Positions, first: Positions, second: Positions) -> None:
    """Give the components that the pairs connect one label each, in place."""
    if not len(first):
        return
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    old, ends = np.unique(np.stack([labels[first], labels[second]]), return_inverse=True)
    left, right = ends.reshape(2, -1)
    graph = coo_array((np.ones(len(left), dtype=bool), (left, right)), shape=(len(old), len(old)))
    _, component = connected_components(graph, directed=False)
    smallest = np.full(component.max() + 1, np.iinfo(np.int64).max)
    np.minimum.at(smallest, component, old)
    renamed = np.arange(len(labels))
    renamed[old] = smallest[component]
    labels[:] = renamed[labels]


def _distinct(forms: Sequence[str]) -> tuple[list[str], Positions]:
    """The distinct forms in order of appearance, and the place of each form among them."""
    known: dict[str, int] = {}
    places = np.fromiter((known.setdefault(form, len(known)) for form in forms), dtype=np.intp, count=len(forms))
    return list(known), places


def _is_in(codes: Codes, known: Codes) -> Mask:
    """Whether each code stands in the sorted `known`."""
    if not len(known):
        return np.zeros(len(codes), dtype=bool)
    result: Mask = known[np.minimum(np.searchsorted(known, codes), len(known) - 1)] == codes
    return result


def _merged(known: Codes, more: Codes) -> Codes:
    return _sorted_distinct(np.concatenate([known, more])) if len(more) else known


def _sorted_distinct(codes: CodesT) -> CodesT:
    """Sorted distinct codes; several times faster here than ``np.unique``, which hashes where no inverse is asked for."""
    codes = np.sort(codes)
    is_first = np.ones(len(codes), dtype=bool)
    is_first[1:] = codes[1:] != codes[:-1]
    return codes[is_first]


def _combinations(positions: Sequence[int]) -> Iterator[tuple[int, int]]:
    for place, first in enumerate(positions):
        for second in positions[place + 1 :]:
            yield first, second
