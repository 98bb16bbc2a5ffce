"""Votes replayed from a file or table: what a language model, or people, answered at another time or place."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import Any

import pandas as pd
from pydantic import BaseModel

from reviewclf.data.frames import is_missing, read_frame
from reviewclf.data.sources.ids import read_id
from reviewclf.errors import LabelingError
from reviewclf.labeling.annotators.base import Review, Vote, VoteIdentity
from reviewclf.manifest import digest_of
from reviewclf.taxonomy import match_name

# A vote or two may be spoilt, or be for a category that is gone; beyond this the file is not what it should be.
_MOST_REFUSED = 0.5
_NAMED = 5
_REQUIRED = ("annotator", "label")
_OPTIONAL: dict[str, Any] = {
    "prompt": "recorded@1",
    "draw": 0,
    "confidence": 1.0,
    "raw": None,
    "reason": None,
    "tokens_in": 0,
    "tokens_out": 0,
    "seconds": 0.0,
}
_NUMBERS = ("confidence", "draw", "tokens_in", "tokens_out", "seconds")


class RefusedVote(BaseModel):
    """A row of the votes file that is no vote, and why."""

    row_number: int
    reason: str
    payload: str


class RecordedAnnotator:
    """Replays votes by ``text_hash``, or by ``review_id`` where the file names that instead.

    Attributes
    ----------
    refused : list of RefusedVote
        Rows that break the votes contract: unknown label, confidence outside [0, 1], no id, the same vote twice.
    """

    def __init__(
        self, votes: pd.DataFrame, *, by: str, version: str, refused: Sequence[RefusedVote] = (), uri: str = "votes"
    ) -> None:
        self._by = by
        self._uri = uri
        self._version = version
        self.refused = list(refused)
        self._votes: dict[str, list[Vote]] = {}
        for row in votes.to_dict("records"):
            key = str(row.pop(by))
            fields = {str(name): row[name] for name in Vote.model_fields if name in row}
            self._votes.setdefault(key, []).append(Vote.model_validate({**fields, "text_hash": key}))

    @classmethod
    def load(cls, uri: str, categories: Sequence[str]) -> RecordedAnnotator:
        """Read a votes file (CSV, JSON Lines, Parquet; local or ``s3://``) in the votes contract.

        Raises
        ------
        LabelingError
            The file lacks ``text_hash`` and ``review_id``, or ``annotator`` or ``label``; or most of its rows are no votes.
        """
        frame = read_frame(uri, setting="REVIEWCLF_VOTES")
        named = [name for name in ("text_hash", "review_id") if name in frame.columns]
        by = next((name for name in named if frame[name].notna().any()), next(iter(named), None))
        missing = [name for name in _REQUIRED if name not in frame.columns]
        if by is None or missing:
            lacking = [*missing, *([] if by else ["text_hash (or review_id)"])]
            raise LabelingError(
                f"{uri}: a votes file needs the column(s) {', '.join(lacking)}; found {', '.join(map(str, frame.columns))}"
            )
        frame = frame.assign(**{name: default for name, default in _OPTIONAL.items() if name not in frame.columns})
        votes, refused = _check_rows(frame, by, categories)
        if len(frame) and not len(votes):
            raise LabelingError(f"{uri}: none of its {len(frame)} rows is a vote; the first: {refused[0].reason}")
        if len(refused) > _MOST_REFUSED * len(frame):
            rows = "; ".join(f"row {row.row_number}: {row.reason}" for row in refused[:_NAMED])
            raise LabelingError(f"{uri}: {len(refused)} of its {len(frame)} rows are no votes: {rows}")
        version = digest_of(votes.astype(object).where(votes.notna(), None).to_dict("records"))
        return cls(votes, by=by, version=version, refused=refused, uri=uri)

    @property
    def version(self) -> str:
        """Digest of the votes."""
        return self._version

    def __len__(self) -> int:
        return sum(map(len, self._votes.values()))

    @property
    def is_costly(self) -> bool:
        """No: asking again costs nothing."""
        return False

    def expected(self, review: Review) -> Sequence[tuple[str, str, int]]:
        """The recorded votes on this review."""
        return [(vote.annotator, vote.prompt, vote.draw) for vote in self._of(review)]

    def annotate(self, reviews: Sequence[Review], *, known: Container[VoteIdentity] = frozenset()) -> Iterable[Vote]:
        """Recorded votes on `reviews`; none for a review that the file does not name."""
        for review in reviews:
            for recorded in self._of(review):
                vote = recorded.model_copy(update={"text_hash": review.text_hash})
                if vote.identity not in known:
                    yield vote

    def unmatched(self, reviews: Iterable[Review]) -> list[str]:
        """Keys of the file, sorted, that name none of `reviews`."""
        known: set[str] = set()
        for review in reviews:
            known.update([review.text_hash] if self._by == "text_hash" else review.review_ids)
        return sorted(set(self._votes) - known)

    def check_matched(self, reviews: Sequence[Review]) -> None:
        """Refuse votes of which not one is on a review of the store, where there are any of both.

        Raises
        ------
        LabelingError
            Names the column and some of the ids on both sides.
        """
        if not self._votes or not reviews or len(self.unmatched(reviews)) < len(self._votes):
            return
        here = [review.text_hash if self._by == "text_hash" else next(iter(review.review_ids), "") for review in reviews]
        raise LabelingError(
            f"{self._uri}: none of its {len(self._votes)} different {self._by} names a review of the store: the file has "
            f"{', '.join(list(self._votes)[:_NAMED])}, the store {', '.join(here[:_NAMED])}; check REVIEWCLF_VOTES, and that "
            f"the column {self._by} holds what REVIEWCLF_INGEST__ID_COLUMN reads"
        )

    def _of(self, review: Review) -> list[Vote]:
        if self._by == "text_hash":
            return self._votes.get(review.text_hash, [])
        # Two copies of one text may both have been voted on; the same voter then counts once, by the first copy.
        votes: dict[tuple[str, str, int], Vote] = {}
        for review_id in review.review_ids:
            for vote in self._votes.get(review_id, ()):
                votes.setdefault((vote.annotator, vote.prompt, vote.draw), vote)
        return list(votes.values())


def _check_rows(frame: pd.DataFrame, by: str, categories: Sequence[str]) -> tuple[pd.DataFrame, list[RefusedVote]]:
    frame = frame.copy()
    payload = frame.apply(lambda row: row.to_json(force_ascii=False), axis=1) if len(frame) else pd.Series([], dtype=object)
    written = ["" if pd.isna(value) else str(value).strip() for value in frame["label"]]
    labels = [match_name(value, categories) for value in written]
    frame["label"] = pd.Series(labels, index=frame.index, dtype=object)
    frame[by] = pd.Series([read_id(value) for value in frame[by]], index=frame.index, dtype=object)
    for name, default in _OPTIONAL.items():
        if default is not None and name != "confidence":
            frame[name] = [default if is_missing(value) else value for value in frame[name]]
    numbers = {name: pd.to_numeric(frame[name], errors="coerce") for name in _NUMBERS}
    reasons = pd.Series("", index=frame.index, dtype=object)
    identity = [frame[by].astype(str), frame["annotator"].astype(str), frame["prompt"].astype(str), numbers["draw"]]
    problems = {
        "the same vote stands in an earlier row": pd.concat(identity, axis=1).duplicated(),
        "confidence is no number between 0 and 1": ~numbers["confidence"].between(0.0, 1.0),
        "draw is no whole number": numbers["draw"].isna() | (numbers["draw"] % 1 != 0),
        "tokens are no whole number": ~((numbers["tokens_in"] % 1 == 0) & (numbers["tokens_out"] % 1 == 0)),
        "seconds are no number": numbers["seconds"].isna(),
        "annotator is empty": frame["annotator"].isna() | (frame["annotator"].astype(str).str.strip() == ""),
        f"{by} is empty": frame[by].isna(),
    }
    for reason, mask in problems.items():
        reasons[mask.to_numpy()] = reason
    for position, value, label in zip(frame.index, written, labels, strict=True):
        if value and label is None:
            reasons[position] = f"label {value!r} is not in the taxonomy"
    refused = [
        RefusedVote(row_number=int(position) + 1, reason=str(reasons[position]), payload=str(payload[position]))
        for position in frame.index[reasons != ""]
    ]
    for name in ("confidence", "draw"):
        frame[name] = numbers[name]
    votes = frame[reasons == ""]
    votes = votes.astype({"draw": "int64", "confidence": "float64", by: "str", "annotator": "str", "prompt": "str"})
    columns = [by, *(name for name in Vote.model_fields if name in votes.columns and name != "text_hash")]
    return votes[columns].astype(object).where(votes[columns].notna(), None), refused
