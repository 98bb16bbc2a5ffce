"""Votes replayed from a file or table: what a language model, or people, answered at another time or place."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import Any

import pandas as pd
from pydantic import BaseModel

from reviewclf.data.frames import read_frame
from reviewclf.errors import LabelingError
from reviewclf.labeling.annotators.base import Review, Vote, VoteIdentity
from reviewclf.manifest import digest_of

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

    def __init__(self, votes: pd.DataFrame, *, by: str, version: str, refused: Sequence[RefusedVote] = ()) -> None:
        self._by = by
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
            The file lacks ``text_hash`` and ``review_id``, or ``annotator`` or ``label``; or no row of it is a vote.
        """
        frame = read_frame(uri, setting="REVIEWCLF_VOTES")
        by = next((name for name in ("text_hash", "review_id") if name in frame.columns), None)
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
        version = digest_of(votes.astype(object).where(votes.notna(), None).to_dict("records"))
        return cls(votes, by=by, version=version, refused=refused)

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
    known = set(categories)
    payload = frame.apply(lambda row: row.to_json(force_ascii=False), axis=1) if len(frame) else pd.Series([], dtype=object)
    labels = ["" if pd.isna(value) else str(value).strip() for value in frame["label"]]
    frame["label"] = pd.Series([label or None for label in labels], index=frame.index, dtype=object)
    numbers = {name: pd.to_numeric(frame[name], errors="coerce") for name in ("confidence", "draw")}
    reasons = pd.Series("", index=frame.index, dtype=object)
    identity = [frame[by].astype(str), frame["annotator"].astype(str), frame["prompt"].astype(str), numbers["draw"]]
    problems = {
        "the same vote stands in an earlier row": pd.concat(identity, axis=1).duplicated(),
        "confidence is no number between 0 and 1": ~numbers["confidence"].between(0.0, 1.0),
        "draw is no whole number": numbers["draw"].isna() | (numbers["draw"] % 1 != 0),
        "annotator is empty": frame["annotator"].isna() | (frame["annotator"].astype(str).str.strip() == ""),
        f"{by} is empty": frame[by].isna() | (frame[by].astype(str).str.strip() == ""),
    }
    for reason, mask in problems.items():
        reasons[mask.to_numpy()] = reason
    for position, label in zip(frame.index, labels, strict=True):
        if label and label not in known:
            reasons[position] = f"label {label!r} is not in the taxonomy"
    refused = [
        RefusedVote(row_number=int(position) + 1, reason=str(reasons[position]), payload=str(payload[position]))
        for position in frame.index[reasons != ""]
    ]
    for name, values in numbers.items():
        frame[name] = values
    votes = frame[reasons == ""]
    votes = votes.astype({"draw": "int64", "confidence": "float64", by: "str", "annotator": "str", "prompt": "str"})
    columns = [by, *(name for name in Vote.model_fields if name in votes.columns and name != "text_hash")]
    return votes[columns].astype(object).where(votes[columns].notna(), None), refused
