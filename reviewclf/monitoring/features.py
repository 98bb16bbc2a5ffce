"""What is read off each review for the watch over drift: length, script, unknown and misspelt words, phrases, an embedding.

All of it is relative to what the champion was trained on: a :class:`FeatureExtractor` learns from those texts which words are
known and which directions texts differ in, then reads any night.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reviewclf.text import cyrillic_share
from reviewclf.training.rows import Floats

_WORD = re.compile(r"[^\W\d_]{2,}")
_MOSTLY = 0.5
# Shorter words have a neighbour one letter away by chance.
_SPELLED = 5
# A word that this many training reviews use is taken to be spelt right.
_COMMON = 3
_PHRASE = 4
_DIMENSIONS = 16
_HASHED = 2**14


@dataclass(frozen=True)
class Features:
    """What was read off n reviews.

    Attributes
    ----------
    length : array, shape (n,)
        Natural logarithm of one more than the characters.
    foreign : array, shape (n,)
        1.0 where fewer than half of the letters are Cyrillic.
    words, unknown : array, shape (n,)
        Words, and those that no training review has.
    long_words, misspelt : array, shape (n,)
        Words of five letters and more, and those that are unknown and one edit away from a common one.
    vectors : array, shape (n, d)
        Embedding: TF-IDF of character trigrams in the directions in which training reviews differ most, each direction with
        the variance 1 among them.
    phrases : Counter
        In how many of the reviews each run of four words occurs.
    """

    length: Floats
    foreign: Floats
    words: Floats
    unknown: Floats
    long_words: Floats
    misspelt: Floats
    vectors: Floats
    phrases: Counter[str]

    def __len__(self) -> int:
        return len(self.length)


class FeatureExtractor:
    """Reads reviews as somebody would who knows the training reviews alone.

    Parameters
    ----------
    texts : sequence of str
        Cleaned training reviews, hundreds at least.

    Notes
    -----
    The training reviews' own readings (:attr:`own`) are made as if each were new: a word is unknown there when no *other*
    training review has it.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        tokens = [words_of(text) for text in texts]
        self._known = Counter(word for words in tokens for word in set(words))
        # Common words, and what is left of each when one letter goes: two spellings one edit apart meet here (as in SymSpell).
        common = [word for word, count in self._known.items() if count >= _COMMON and len(word) >= _SPELLED]
        self._neighbours = {form for word in common for form in (word, *_deletions(word))}
        self._is_misspelt: dict[str, bool] = {}
        self._embedding = _embedding(texts)
        self.own = self._read(texts, tokens, own=1)

    def read(self, texts: Sequence[str]) -> Features:
        """Features of reviews that are not among the training reviews."""
        return self._read(texts, [words_of(text) for text in texts], own=0)

    def unknown_words(self, texts: Iterable[str], *, misspelt: bool = False) -> Counter[str]:
        """In how many of the texts each unknown (or misspelt) word occurs."""
        found: Counter[str] = Counter()
        for text in texts:
            unknown = {word for word in words_of(text) if not self._known[word]}
            found.update(word for word in unknown if not misspelt or self._misspells(word))
        return found

    def _read(self, texts: Sequence[str], tokens: list[list[str]], *, own: int) -> Features:
        unknown = [[word for word in words if self._known[word] <= own] for words in tokens]

        def column(values: Iterable[float]) -> Floats:
            return np.array(list(values), dtype=np.float64)

        return Features(
            length=column(np.log1p(len(text)) for text in texts),
            foreign=column(cyrillic_share(text) < _MOSTLY for text in texts),
            words=column(map(len, tokens)),
            unknown=column(map(len, unknown)),
            long_words=column(sum(len(word) >= _SPELLED for word in words) for words in tokens),
            misspelt=column(sum(map(self._misspells, words)) for words in unknown),
            vectors=self._embedding.transform(texts),
            phrases=Counter(phrase for words in tokens for phrase in phrases_of(words)),
        )

    def _misspells(self, word: str) -> bool:
        if word not in self._is_misspelt:
            is_long = len(word) >= _SPELLED
            self._is_misspelt[word] = is_long and not self._neighbours.isdisjoint([word, *_deletions(word)])
        return self._is_misspelt[word]


def words_of(text: str) -> list[str]:
    """Words of two letters and more, case-folded, ё as е."""
    return _WORD.findall(text.casefold().replace("ё", "е"))


def phrases_of(words: Sequence[str]) -> set[str]:
    """Distinct runs of four words."""
    return {" ".join(words[start : start + _PHRASE]) for start in range(len(words) - _PHRASE + 1)}


def _deletions(word: str) -> list[str]:
    # The last two letters are where Russian words are inflected: a form not seen before is no misspelling.
    return [word[:place] + word[place + 1 :] for place in range(len(word) - 2)]


def _embedding(texts: Sequence[str]) -> Any:
    """TF-IDF of hashed character trigrams, projected onto the leading directions of the training texts and whitened there."""
    from sklearn.decomposition import PCA, TruncatedSVD
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
    from sklearn.pipeline import make_pipeline

    trigrams = HashingVectorizer(
        analyzer="char_wb", ngram_range=(3, 3), n_features=_HASHED, alternate_sign=False, norm=None, binary=True
    )
    # The first direction of uncentred data is their mean; it is one of those kept.
    directions = TruncatedSVD(max(1, min(_DIMENSIONS, len(texts) // 20)), random_state=0)
    return make_pipeline(trigrams, TfidfTransformer(), directions, PCA(whiten=True)).fit(texts)
