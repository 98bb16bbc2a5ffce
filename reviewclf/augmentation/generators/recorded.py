"""Candidates from a file: what a language model wrote at another time or place."""

from __future__ import annotations

import logging
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

    def __init__(self, texts: Mapping[str, Sequence[str]]) -> None:
        self._texts = {category: tuple(of_category) for category, of_category in texts.items()}
        self._version = f"recorded@{digest_of({name: list(of) for name, of in self._texts.items()})[:16]}"

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
        strange: dict[str, int] = {}
        for number, (category, text) in enumerate(zip(frame["category"], frame["text"], strict=True), start=1):
            if pd.isna(text) or not str(text).strip():
                raise AugmentationError(f"{uri}, row {number}: column text is empty; remove the row or write a review into it")
            name = match_name(category, categories)
            if name is not None:
                texts.setdefault(name, []).append(str(text))
            else:
                written = "" if pd.isna(category) else str(category).strip()
                strange[written] = strange.get(written, 0) + 1
        if strange:
            named = ", ".join(f"{name!r} ({count} rows)" for name, count in strange.items())
            logger.warning("%s: not in the taxonomy and left aside: %s", uri, named)
        return cls(texts)

    @property
    def version(self) -> str:
        """Digest of the candidates."""
        return self._version

    @property
    def is_costly(self) -> bool:
        """No: reading again costs nothing."""
        return False

    def available(self, category: str) -> int:
        """Candidates of a category."""
        return len(self._texts.get(category, ()))

    def write(self, requests: Sequence[WritingRequest]) -> Iterator[Written]:
        """The candidates that stand at the requests' places."""
        for request in requests:
            start = request.number * request.n
            yield Written(
                category=request.category,
                number=request.number,
                seed=request.seed,
                prompt=request.prompt,
                generator=self._version,
                texts=self._texts.get(request.category, ())[start : start + request.n],
            )
