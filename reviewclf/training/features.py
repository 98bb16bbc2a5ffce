"""Texts as sparse numbers: TF-IDF of words and characters, and which categories' keyword stems occur."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from reviewclf.taxonomy import StemMatcher
from reviewclf.text import clean_text
from reviewclf.training.candidates import LinearSettings, Ngrams

# Blocks of TF-IDF features in the order of their columns, and scikit-learn's name for how each reads a text.
_BLOCKS = {"word": "word", "char": "char_wb"}
_DIGIT = re.compile(r"\d")


def prepare(text: str | None) -> str:
    """Cleaned text in the one letter case and spelling that features are made of; empty for None and NaN."""
    if not isinstance(text, str):
        return ""
    return clean_text(text).casefold().replace("ё", "е")


class TextFeatures:
    """Turns prepared texts into feature rows.

    Parameters
    ----------
    settings : LinearSettings
        Which blocks there are: ``word``, ``char``, ``stem_weight``.
    stems : mapping of str to list of str
        Keyword stems by category, see :class:`reviewclf.taxonomy.StemMatcher`.
    vectorizers : mapping of str to TfidfVectorizer, optional
        Fitted vectorizers of the blocks ``word`` and ``char``; without them call :meth:`fit_transform` first.
    """

    def __init__(
        self, settings: LinearSettings, stems: Mapping[str, list[str]], vectorizers: Mapping[str, Any] | None = None
    ) -> None:
        self.settings = settings
        self.stems = {category: list(items) for category, items in stems.items()}
        self.vectorizers: dict[str, Any] = dict(vectorizers or {})
        self._matcher = StemMatcher(self.stems)
        self._columns = {category: column for column, category in enumerate(self.stems)}

    def fit_transform(self, texts: Sequence[str]) -> Any:
        """Learn the vocabulary of n prepared texts.

        Returns
        -------
        CSR matrix of shape (n, features)
            A block in which no n-gram is frequent enough is left out, as happens with a handful of texts.

        Raises
        ------
        ValueError
            Nothing is left at all.
        """
        from sklearn.feature_extraction.text import TfidfVectorizer

        folded = self._fold(texts)
        blocks = []
        reasons = []
        for name, analyzer in _BLOCKS.items():
            ngrams: Ngrams | None = getattr(self.settings, name)
            if ngrams is None:
                continue
            vectorizer = TfidfVectorizer(analyzer=analyzer, lowercase=False, **_arguments(ngrams))
            try:
                blocks.append(vectorizer.fit_transform(folded))
            except ValueError as error:  # scikit-learn's word for an empty vocabulary
                reasons.append(f"{name}: {error}")
            else:
                self.vectorizers[name] = vectorizer
        if not blocks and not self._has_stems:
            raise ValueError("; ".join(reasons) or "the taxonomy has no keyword stems")
        return self._join(blocks, texts)

    def transform(self, texts: Sequence[str]) -> Any:
        """Features of n prepared texts: CSR of shape (n, features)."""
        folded = self._fold(texts)
        return self._join([self.vectorizers[n].transform(folded) for n in _BLOCKS if n in self.vectorizers], texts)

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
        from sklearn.feature_extraction.text import TfidfVectorizer

        for name, learned in state.items():
            ngrams: Ngrams = getattr(self.settings, name)
            terms = str(learned["terms"]).split("\n")
            vectorizer = TfidfVectorizer(
                analyzer=_BLOCKS[name], lowercase=False, vocabulary=terms, **{**_arguments(ngrams), "max_features": None}
            )
            vectorizer.idf_ = learned["idf"]
            self.vectorizers[name] = vectorizer

    @property
    def _has_stems(self) -> bool:
        return self.settings.stem_weight > 0 and bool(self.stems)

    def _fold(self, texts: Sequence[str]) -> Sequence[str]:
        return [_DIGIT.sub("0", text) for text in texts] if self.settings.digits_as_zero else texts

    def _join(self, blocks: list[Any], texts: Sequence[str]) -> Any:
        if self._has_stems:
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


def _arguments(ngrams: Ngrams) -> dict[str, Any]:
    return {**ngrams.model_dump(), "ngram_range": tuple(ngrams.ngram_range)}
