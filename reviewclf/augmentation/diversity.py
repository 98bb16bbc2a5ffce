"""How varied synthetic reviews are, beside as many real ones. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from pydantic import BaseModel

from reviewclf.text import normal_form
from reviewclf.training.rows import Floats

_DRAWS = 20
_COMPONENTS = 50
# Fewer reviews than this say nothing about variety.
_MIN_TEXTS = 5
_STEP = 0.05


class Diversity(BaseModel, frozen=True):
    """Figures of synthetic and of real reviews, both on samples of `n` texts (means over 20 draws).

    Attributes
    ----------
    n : int
        Texts per sample; 0 where there are too few to compare, and all figures are 0 then.
    distinct, distinct_real : float
        Share of distinct ones among all word pairs (distinct-2; Li et al., A Diversity-Promoting Objective Function for Neural
        Conversation Models, NAACL 2016).
    spread, spread_real : float
        Mean cosine distance between two texts, of TF-IDF vectors of words and character n-grams reduced by SVD.
    """

    n: int = 0
    distinct: float = 0.0
    distinct_real: float = 0.0
    spread: float = 0.0
    spread_real: float = 0.0

    @property
    def ratio(self) -> float:
        """The smaller of both figures' ratios to those of real reviews; 1 where nothing can be compared."""
        pairs = ((self.distinct, self.distinct_real), (self.spread, self.spread_real))
        return min((ours / theirs for ours, theirs in pairs if theirs > 0), default=1.0)


def diversity(texts: Sequence[str], real: Sequence[str], *, seed: int = 0) -> Diversity:
    """Compare the variety of `texts` with that of `real` reviews of the same class."""
    n = min(len(texts), len(real))
    if n < _MIN_TEXTS:
        return Diversity()
    vectors = _vectors([*texts, *real], seed)
    distinct, spread = _figures(texts, vectors[: len(texts)], n, seed)
    distinct_real, spread_real = _figures(real, vectors[len(texts) :], n, seed)
    return Diversity(n=n, distinct=distinct, distinct_real=distinct_real, spread=spread, spread_real=spread_real)


def too_alike(texts: Sequence[str], real: Sequence[str], *, min_ratio: float, seed: int = 0) -> list[int]:
    """Places of `texts` to leave out, the least original first, until the others' diversity reaches `min_ratio` of `real`'s.

    Originality is the share of a text's word pairs that no other text holds, less its nearness to the mean of all texts.
    """
    left = list(range(len(texts)))
    out: list[int] = []
    if min(len(texts), len(real)) < _MIN_TEXTS:
        return out
    vectors = _vectors([*texts, *real], seed)[: len(texts)]
    pairs = [_pairs(text) for text in texts]
    while len(left) > _MIN_TEXTS and diversity([texts[i] for i in left], real, seed=seed).ratio < min_ratio:
        counts = Counter(pair for i in left for pair in set(pairs[i]))
        centre = vectors[left].mean(axis=0)
        originality = {
            i: sum(counts[pair] == 1 for pair in pairs[i]) / max(1, len(pairs[i])) - float(vectors[i] @ centre) for i in left
        }
        worst = sorted(left, key=lambda i: (originality[i], -i))[: max(1, int(_STEP * len(left)))]
        out.extend(worst)
        left = [i for i in left if i not in worst]
    return out


def _pairs(text: str) -> list[tuple[str, str]]:
    return list(pairwise(normal_form(text).split()))


def _vectors(texts: Sequence[str], seed: int) -> Floats:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize

    matrix = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True).fit_transform(texts)
    components = min(_COMPONENTS, matrix.shape[1] - 1, matrix.shape[0] - 1)
    if components < 2:
        return np.ones((len(texts), 1))
    reduced: Floats = TruncatedSVD(components, random_state=seed).fit_transform(matrix)
    return np.asarray(normalize(reduced), dtype=np.float64)


def _figures(texts: Sequence[str], vectors: Floats, n: int, seed: int) -> tuple[float, float]:
    generator = np.random.default_rng(seed)
    pairs = [_pairs(text) for text in texts]
    distinct, spread = [], []
    for _ in range(_DRAWS):
        drawn = generator.choice(len(pairs), n, replace=False)
        all_pairs = [pair for i in drawn for pair in pairs[i]]
        distinct.append(len(set(all_pairs)) / max(1, len(all_pairs)))
        # The mean over all pairs of unit vectors follows from the length of their sum.
        total = vectors[drawn].sum(axis=0)
        spread.append(1.0 - (float(total @ total) - n) / (n * (n - 1)))
    return float(np.mean(distinct)), float(np.mean(spread))
