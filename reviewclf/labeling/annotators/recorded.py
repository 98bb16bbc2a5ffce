"""Votes replayed from a file or table: what a language model, or people, answered at another time or place."""

from __future__ import annotations

import math
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import pandas as pd
from pydantic import BaseModel

from reviewclf.data.frames import is_missing, read_frame
from reviewclf.data.sources.rows import read_id
from reviewclf.errors import LabelingError
from reviewclf.labeling.annotators.base import Review, Vote, VoteIdentity
from reviewclf.manifest import digest_of
from reviewclf.settings import Settings
from reviewclf.taxonomy import Taxonomy, match_name

# A vote or two may be spoilt, or be for a category that is gone; beyond this the file is not what it should be.
_MOST_REFUSED = 0.5
_NAMED = 5
_NUMBERS = ("draw", "tokens_in", "tokens_out", "seconds")


Name: TypeAlias = Literal["text_hash", "review_id"]


class RefusedVote(BaseModel):
    """A row of the votes file that is no vote, and why."""

    row_number: int
    reason: str
    payload: str


class RecordedAnnotator:
    """Replays votes by ``text_hash``, or by ``review_id`` where the file names that instead.

    Attributes
    ----------
    by : str
        The column that names the reviews: ``text_hash`` or ``review_id``.
    refused : list of RefusedVote
        Rows that break the votes contract: unknown label, confidence outside [0, 1], no id, the same vote twice.
    """

    is_costly = False

    def __init__(
        self,
        votes: Sequence[Vote],
        *,
        by: Name,
        refused: Sequence[RefusedVote] = (),
        uri: str = "votes",
    ) -> None:
        self.by = by
        self._uri = uri
        self.version = digest_of([vote.model_dump(mode="json") for vote in votes])
        self.refused = list(refused)
        self._votes: dict[str, list[Vote]] = {}
        for vote in votes:
            self._votes.setdefault(vote.text_hash, []).append(vote)

    @classmethod
    def load(cls, uri: str, categories: Sequence[str]) -> RecordedAnnotator:
        """Read a votes file (CSV, JSON Lines, Parquet; local or ``s3://``) in the votes contract.

        Raises
        ------
        LabelingError
            The file lacks ``text_hash`` and ``review_id``, or ``annotator`` or ``label``; or most of its rows are no votes.
        """
        frame = read_frame(uri, setting="REVIEWCLF_VOTES")
        named = [name for name in get_args(Name) if name in frame.columns]
        by = next((name for name in named if frame[name].notna().any()), next(iter(named), None))
        missing = [name for name in ("annotator", "label") if name not in frame.columns]
        if by is None or missing:
            lacking = [*missing, *([] if by else ["text_hash (or review_id)"])]
            raise LabelingError(
                f"{uri}: a votes file needs the column(s) {', '.join(lacking)}; found {', '.join(map(str, frame.columns))}"
            )
        votes: dict[VoteIdentity, Vote] = {}
        refused: list[RefusedVote] = []
        for number, row in enumerate(frame.to_dict("records"), start=1):
            try:
                vote = _read_vote(row, by, categories)
                if vote.identity in votes:
                    raise ValueError("the same vote stands in an earlier row")  # noqa: TRY301 - one more reason
                votes[vote.identity] = vote
            except ValueError as error:
                payload = pd.Series(row).to_json(force_ascii=False)
                refused.append(RefusedVote(row_number=number, reason=str(error), payload=payload))
        if len(frame) and not votes:
            raise LabelingError(f"{uri}: none of its {len(frame)} rows is a vote; the first: {refused[0].reason}")
        if len(refused) > _MOST_REFUSED * len(frame):
            rows = "; ".join(f"row {row.row_number}: {row.reason}" for row in refused[:_NAMED])
            raise LabelingError(f"{uri}: {len(refused)} of its {len(frame)} rows are no votes: {rows}")
        return cls(list(votes.values()), by=by, refused=refused, uri=uri)

    def __len__(self) -> int:
        return sum(map(len, self._votes.values()))

    def expected(self, review: Review) -> Sequence[tuple[str, str, int]]:
        """The recorded votes on this review."""
        return [vote.identity[1:] for vote in self._votes_on(review)]

    def annotate(self, reviews: Sequence[Review], *, known: Container[VoteIdentity] = frozenset()) -> Iterable[Vote]:
        """Recorded votes on `reviews`; none for a review that the file does not name."""
        for review in reviews:
            for recorded in self._votes_on(review):
                vote = recorded.model_copy(update={"text_hash": review.text_hash})
                if vote.identity not in known:
                    yield vote

    @property
    def names(self) -> list[str]:
        """What the file calls the reviews that it has votes on, each once."""
        return list(self._votes)

    def unmatched(self, found: Collection[str]) -> list[str]:
        """Names of the file, sorted, that are not among those `found` in the store."""
        return sorted(set(self._votes).difference(found))

    def check_matched(self, found: Collection[str], here: Sequence[str]) -> None:
        """Refuse votes of which not one is on a review of the store, where there are any of both.

        Parameters
        ----------
        found : collection of str
            Names of the file that are names of reviews of the store.
        here : sequence of str
            Some names of reviews of the store, for the message; none where it has no reviews.

        Raises
        ------
        LabelingError
            Names the column and some of the ids on both sides.
        """
        if not self._votes or not here or not set(self._votes).isdisjoint(found):
            return
        raise LabelingError(
            f"{self._uri}: none of its {len(self._votes)} different {self.by} names a review of the store: the file has "
            f"{', '.join(self.names[:_NAMED])}, the store {', '.join(here[:_NAMED])}; check REVIEWCLF_VOTES, and that "
            f"the column {self.by} holds what REVIEWCLF_INGEST__ID_COLUMN reads"
        )

    def _keys(self, review: Review) -> tuple[str, ...]:
        return (review.text_hash,) if self.by == "text_hash" else review.review_ids

    def _votes_on(self, review: Review) -> list[Vote]:
        # Two copies of one text may both have been voted on; the same voter then counts once, by the first copy.
        votes: dict[tuple[str, str, int], Vote] = {}
        for vote in (vote for key in self._keys(review) for vote in self._votes.get(key, ())):
            votes.setdefault(vote.identity[1:], vote)
        return list(votes.values())


def from_settings(settings: Settings, taxonomy: Taxonomy) -> RecordedAnnotator | None:
    """The annotator of ``REVIEWCLF_LLM__BACKEND=recorded``; none where ``REVIEWCLF_VOTES`` is empty."""
    return None if settings.votes is None else RecordedAnnotator.load(settings.votes, taxonomy.names)


def _read_vote(row: Mapping[Any, Any], by: str, categories: Sequence[str]) -> Vote:
    """The vote in a row, its ``text_hash`` being what stands in the column `by`.

    Raises
    ------
    ValueError
        It is none; says why.
    """
    numbers = {name: 0.0 if is_missing(row.get(name)) else _number(row[name]) for name in _NUMBERS}
    confidence = _number(row["confidence"]) if "confidence" in row else 1.0
    written = "" if is_missing(row["label"]) else str(row["label"]).strip()
    annotator = "" if is_missing(row["annotator"]) else str(row["annotator"])
    problems = {
        f"label {written!r} is not in the taxonomy": written and match_name(written, categories) is None,
        f"{by} is empty": read_id(row[by]) is None,
        "annotator is empty": not annotator.strip(),
        "seconds are no number": math.isnan(numbers["seconds"]),
        "tokens are no whole number": not (numbers["tokens_in"].is_integer() and numbers["tokens_out"].is_integer()),
        "draw is no whole number": not numbers["draw"].is_integer(),
        "confidence is no number between 0 and 1": not 0.0 <= confidence <= 1.0,
    }
    if problem := next((reason for reason, is_so in problems.items() if is_so), None):
        raise ValueError(problem)
    texts = {name: str(row[name]) for name in ("prompt", "raw", "reason") if not is_missing(row.get(name))}
    return Vote(
        text_hash=str(read_id(row[by])),
        annotator=annotator,
        label=match_name(written, categories),
        confidence=confidence,
        **{"prompt": "recorded@1", **texts, **numbers},
    )


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
