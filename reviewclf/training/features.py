"""Texts as sparse numbers: TF-IDF of words and characters, and which categories' keyword stems occur."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator
from scipy import sparse

from reviewclf.taxonomy import StemMatcher
from reviewclf.training.candidates import Strict

# Blocks of TF-IDF features in the order of their columns, and scikit-learn's name for how each reads a text.
_BLOCKS = {"word": "word", "char": "char_wb"}
_DIGIT = re.compile(r"\d")


class Ngrams(Strict):
    """One block of TF-IDF features; the names are those of scikit-learn's TfidfVectorizer."""

    ngram_range: tuple[PositiveInt, PositiveInt]
    max_features: PositiveInt | None = Field(None, description="keep the most frequent ones only")
    min_df: PositiveInt = Field(1, description="training reviews that must hold an n-gram")
    sublinear_tf: bool = Field(False, description="1 + log(count) in place of the count")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.ngram_range[0] > self.ngram_range[1]:
            raise ValueError(f"ngram_range must go from short to long, found {list(self.ngram_range)}")
        return self


class FeatureSettings(Strict):
    """Which features are made of a text."""

    word: Ngrams | None = Field(None, description="n-grams of words")
    char: Ngrams | None = Field(None, description="n-grams of characters inside word boundaries")
    stem_weight: NonNegativeFloat = Field(0.0, description="scale of the features from the taxonomy's keyword stems; 0: none")
    digits_as_zero: bool = Field(False, description="read every digit as 0, so that «92-74-98» and «88-70-96» are one pattern")


class TextFeatures:
    """Turns cleaned texts into feature rows.

    Parameters
    ----------
    settings : FeatureSettings
    stems : mapping of str to list of str
        Keyword stems by category, see :class:`reviewclf.taxonomy.StemMatcher`.
    """

    def __init__(self, settings: FeatureSettings, stems: Mapping[str, list[str]]) -> None:
        self.settings = settings
        self.stems = {category: list(items) for category, items in stems.items()}
        self.vectorizers: dict[str, Any] = {}
        self._matcher = StemMatcher(self.stems)
        self._columns = {category: column for column, category in enumerate(self.stems)}

    def fit_transform(self, texts: Sequence[str]) -> Any:
        """Learn the vocabulary of n cleaned texts.

        Returns
        -------
        CSR matrix of shape (n, features)
            A block in which no n-gram is frequent enough is left out, as happens with a handful of texts.

        Raises
        ------
        ValueError
            Nothing is left at all.
        """
        texts, counted = self._spellings(texts)
        blocks, reasons = [], []
        for name in (name for name in _BLOCKS if getattr(self.settings, name) is not None):
            vectorizer = self._vectorizer(name)
            try:
                blocks.append(vectorizer.fit_transform(counted))
            except ValueError as error:  # scikit-learn's word for an empty vocabulary
                reasons.append(f"{name}: {error}")
            else:
                self.vectorizers[name] = vectorizer
        if not blocks and not self.has_stems:
            raise ValueError("; ".join(reasons) or "the taxonomy has no keyword stems")
        return self._join(blocks, texts)

    def transform(self, texts: Sequence[str]) -> Any:
        """Features of n cleaned texts: CSR of shape (n, features)."""
        texts, counted = self._spellings(texts)
        return self._join([self.vectorizers[n].transform(counted) for n in _BLOCKS if n in self.vectorizers], texts)

    def state(self) -> dict[str, dict[str, Any]]:
        """What the fitted vectorizers have learned: ``terms`` (one a line, by column) and ``idf`` of each block.

        A vocabulary is a dictionary of tens of thousands of numbers, for each of which skops would write a file of its own.
        """
        return {
            name: {"terms": "\n".join(vectorizer.get_feature_names_out()), "idf": vectorizer.idf_}
            for name, vectorizer in self.vectorizers.items()
        }

    def restore(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Make vectorizers of what :meth:`state` gave.

        Raises
        ------
        ValueError
            Blocks, terms and weights do not fit together.
        """
        for name, learned in state.items():
            self.vectorizers[name] = self._vectorizer(name, vocabulary=str(learned["terms"]).split("\n"), max_features=None)
            self.vectorizers[name].idf_ = learned["idf"]

    @property
    def has_stems(self) -> bool:
        """Whether there are features from keyword stems."""
        return self.settings.stem_weight > 0 and bool(self.stems)

    def _vectorizer(self, block: str, **options: Any) -> Any:
        from sklearn.feature_extraction.text import TfidfVectorizer

        ngrams: dict[str, Any] = getattr(self.settings, block).model_dump()
        return TfidfVectorizer(analyzer=_BLOCKS[block], lowercase=False, **{**ngrams, **options})

    def _spellings(self, texts: Sequence[str]) -> tuple[list[str], list[str]]:
        """Texts in one letter case and spelling, as stems are looked for in them and as their n-grams are counted."""
        folded = [text.casefold().replace("ё", "е") for text in texts]
        return folded, [_DIGIT.sub("0", text) for text in folded] if self.settings.digits_as_zero else folded

    def _join(self, blocks: list[Any], texts: Sequence[str]) -> Any:
        if self.has_stems:
            blocks = [*blocks, self._stem_block(texts)]
        return sparse.hstack(blocks, format="csr", dtype=np.float64)

    def _stem_block(self, texts: Sequence[str]) -> Any:
        """One column a category that is 1 where a stem of it occurs, and a last one that is 1 where none does.

        Whether a stem occurs told more in cross-validation than how often. The last column matters most for texts that name
        no product: without it nothing speaks for their class.
        """
        rows, columns = [], []
        for row, text in enumerate(texts):
            found = [self._columns[category] for category in self._matcher.counts(text)] or [len(self._columns)]
            rows += [row] * len(found)
            columns += found
        weights = np.full(len(rows), self.settings.stem_weight)
        return sparse.csr_matrix((weights, (rows, columns)), shape=(len(texts), len(self._columns) + 1))
