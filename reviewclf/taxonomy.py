"""The categories a review can have, and the keyword stems that hint at them. Pure but for reading the file once."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from reviewclf.errors import TaxonomyError
from reviewclf.text import repaired
from reviewclf.yaml_files import read_yaml

_WORD = re.compile(r"\w+")
# Copied from a page or a table, a name may hold characters that nobody sees.
_UNSEEN = re.compile(r"[\u00ad\u200b-\u200d\u2060\ufeff]")

NonEmpty = Annotated[str, Field(min_length=1)]


def match_name(value: object, names: Sequence[str]) -> str | None:
    """The category that a person, a file or a program means; letter case, white space and a misread encoding are not minded.

    Parameters
    ----------
    value : object
        What was written, such as «Бытовая  техника ».
    names : sequence of str
        Names of the taxonomy.

    Returns
    -------
    str or None
        The name as the taxonomy writes it. None where `value` is no text, or fits none of the names, or several of them and
        none exactly.
    """
    if not isinstance(value, str):
        return None
    if value in names:
        return value
    known = _by_folded_name(tuple(names))
    return known.get(_folded(value)) or known.get(_folded(repaired(value)))


@lru_cache(maxsize=16)
def _by_folded_name(names: tuple[str, ...]) -> dict[str, str]:
    folded = [_folded(name) for name in names]
    return {key: name for key, name in zip(folded, names, strict=True) if folded.count(key) == 1}


def _folded(name: str) -> str:
    return " ".join(unicodedata.normalize("NFC", _UNSEEN.sub("", name)).split()).casefold()


class Category(BaseModel):
    """One class: its label, what belongs to it, and the word stems that hint at it."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    id: int = Field(ge=0)
    name: NonEmpty
    description: NonEmpty
    keywords: tuple[NonEmpty, ...] = ()
    no_product: bool = False


class Taxonomy(BaseModel):
    """An ordered set of categories."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = 1
    categories: tuple[Category, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _consistent(self) -> Taxonomy:
        names = [category.name for category in self.categories]
        if len(set(names)) != len(names):
            raise ValueError(f"category names repeat: {sorted({n for n in names if names.count(n) > 1})}")
        if [category.id for category in self.categories] != list(range(len(names))):
            raise ValueError("ids must be 0, 1, 2, ... in the order of the file")
        if sum(category.no_product for category in self.categories) > 1:
            raise ValueError("at most one category can be `no_product`")
        return self

    @classmethod
    def load(cls, path: str | Path) -> Taxonomy:
        """Read a taxonomy file.

        Raises
        ------
        TaxonomyError
            The file is missing, is no YAML, or a category lacks or repeats a field; the message names it.
        """
        return read_yaml(path, cls, setting="REVIEWCLF_TAXONOMY", error_type=TaxonomyError)

    @property
    def names(self) -> list[str]:
        """Labels in the order of their ids."""
        return [category.name for category in self.categories]

    @property
    def keyword_stems(self) -> dict[str, list[str]]:
        """Stems by label; categories without any are left out."""
        return {category.name: list(category.keywords) for category in self.categories if category.keywords}

    @cached_property
    def matcher(self) -> StemMatcher:
        """The compiled matcher of this taxonomy's stems."""
        return StemMatcher(self.keyword_stems)


class StemMatcher:
    """Finds stems at word starts.

    Parameters
    ----------
    stems : mapping of str to list of str
        Stems by label. A stem matches where a word begins with it; every word of a phrase is a stem of its own
        («чехол на телефон» finds «чехол на телефоне»). A leading ``=`` asks for the whole word.

    Notes
    -----
    Words are looked up by their prefixes in one dictionary, so that the time grows with the length of the text alone,
    not with the number of stems. The longest match at a place wins, and its words are not matched again. The same stem
    may stand under several labels; it then counts for each of them.
    """

    def __init__(self, stems: Mapping[str, list[str]]) -> None:
        self._phrases: dict[str, list[_Phrase]] = {}
        labels: dict[str, list[str]] = {}
        for label, items in stems.items():
            for stem in items:
                known = labels.setdefault(_fold(stem), [])
                if label not in known:
                    known.append(label)
        for stem, owners in labels.items():
            words = tuple(_WORD.findall(stem.removeprefix("=")))
            if not words:
                raise TaxonomyError(f"keyword {stem!r} of {', '.join(owners)} holds no letter or digit")
            phrase = _Phrase(words, stem.startswith("="), tuple(owners))
            self._phrases.setdefault(words[0], []).append(phrase)
        for phrases in self._phrases.values():
            phrases.sort(key=lambda phrase: -len(phrase.words))
        self._longest = max(map(len, self._phrases), default=0)

    def counts(self, text: str) -> dict[str, int]:
        """How many places of `text` match a stem of each label; labels without a match are left out."""
        found: dict[str, int] = {}
        words = _WORD.findall(_fold(text))
        position = 0
        while position < len(words):
            phrase = self._match(words, position)
            if phrase is None:
                position += 1
                continue
            for label in phrase.labels:
                found[label] = found.get(label, 0) + 1
            position += len(phrase.words)
        return found

    def _match(self, words: list[str], position: int) -> _Phrase | None:
        best: _Phrase | None = None
        word = words[position]
        for length in range(min(len(word), self._longest), 0, -1):
            for phrase in self._phrases.get(word[:length], ()):
                if (best is None or len(phrase.words) > len(best.words)) and phrase.matches(words, position):
                    best = phrase
        return best


class _Phrase(NamedTuple):
    words: tuple[str, ...]
    whole: bool
    labels: tuple[str, ...]

    def matches(self, words: list[str], position: int) -> bool:
        here = words[position : position + len(self.words)]
        if len(here) < len(self.words):
            return False
        if self.whole:
            return tuple(here) == self.words
        return all(word.startswith(stem) for word, stem in zip(here, self.words, strict=True))


def _fold(text: str) -> str:
    return text.casefold().replace("ё", "е")
