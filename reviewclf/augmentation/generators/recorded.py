"""Candidates from a file: what a language model wrote at another time or place."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from reviewclf.augmentation.generators.base import Written
from reviewclf.augmentation.prompts import WritingRequest
from reviewclf.data.frames import read_frame
from reviewclf.errors import AugmentationError
from reviewclf.manifest import digest_of
from reviewclf.taxonomy import match_name

logger = logging.getLogger(__name__)


class RecordedGenerator:
    """Hands out the candidates of a file in their order, as many a request as it asks for.

    Parameters
    ----------
    texts : mapping of str to sequence of str
        Candidates by category.
    """

    is_costly = False

    def __init__(self, texts: Mapping[str, Sequence[str]]) -> None:
        self._texts = {category: tuple(of_category) for category, of_category in texts.items()}
        self.version = f"recorded@{digest_of({name: list(of) for name, of in self._texts.items()})[:16]}"

    @classmethod
    def load(cls, uri: str, categories: Sequence[str]) -> RecordedGenerator:
        """Read a file (CSV, JSON Lines, Parquet; local or ``s3://``) with the columns ``category`` and ``text``.

        Rows of other categories than `categories` are left aside with a warning: a file may serve several taxonomies. Letter
        case and white space are not minded.

        Raises
        ------
        AugmentationError
            A column is missing or a text is empty; the message names file, row and column.
        """
        frame = read_frame(uri, setting="REVIEWCLF_SYNTHETIC")
        missing = [name for name in ("category", "text") if name not in frame.columns]
        if missing:
            raise AugmentationError(
                f"{uri}: candidates need the column(s) {', '.join(missing)}; found {', '.join(map(str, frame.columns))}"
            )
        texts: dict[str, list[str]] = {}
        strange: Counter[str] = Counter()
        for number, (category, text) in enumerate(zip(frame["category"], frame["text"], strict=True), start=1):
            if pd.isna(text) or not str(text).strip():
                raise AugmentationError(f"{uri}, row {number}: column text is empty; remove the row or write a review into it")
            if (name := match_name(category, categories)) is None:
                strange["" if pd.isna(category) else str(category).strip()] += 1
            else:
                texts.setdefault(name, []).append(str(text))
        if strange:
            named = ", ".join(f"{name!r} ({count} rows)" for name, count in strange.items())
            logger.warning("%s: not in the taxonomy and left aside: %s", uri, named)
        return cls(texts)

    def available(self, category: str) -> int:
        """Candidates of a category."""
        return len(self._texts.get(category, ()))

    def write(self, requests: Sequence[WritingRequest]) -> Iterator[Written]:
        """The candidates that stand at the requests' places."""
        for request in requests:
            start = request.number * request.n
            yield Written(
                **request.model_dump(include={"category", "number", "seed", "prompt"}),
                generator=self.version,
                texts=self._texts.get(request.category, ())[start : start + request.n],
            )
