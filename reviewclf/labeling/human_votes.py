"""What people's answers amount to: which text each is about, and which answer of a person counts. Pure."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pandas as pd

from reviewclf.labeling.annotators.base import Review, Vote
from reviewclf.tables import HUMAN
from reviewclf.text import clean_text, text_hash

PROMPT = "review@1"


@dataclass
class HumanVotes:
    """Answers that were made votes, and what is to be said about the others.

    Attributes
    ----------
    votes : list of Vote
        One for each answer that is new or a change of mind.
    known : int
        Answers that say what is known already, or what the same person has taken back.
    problems : list of str
        A line for each answer that fits no review.
    notes : list of str
        A line for each change of mind and each disagreement.
    """

    votes: list[Vote] = field(default_factory=list)
    known: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class AnsweredReviews:
    """Finds the text that an answer is about: by its hash, by the text itself, or by the id of its review.

    Parameters
    ----------
    reviews : sequence of Review
        Of the store.
    gold : collection of str
        Text hashes of gold. People are not asked about it, so an id that gold has too means the other review.
    """

    def __init__(self, reviews: Sequence[Review], *, gold: Collection[str] = ()) -> None:
        judged = set(gold)
        # An id of the review by its hash, for messages, and the hashes by id.
        self.ids = {review.text_hash: next(iter(review.review_ids), review.text_hash) for review in reviews}
        self._hashes: dict[str, list[str]] = {}
        for review in sorted(reviews, key=lambda review: review.text_hash in judged):
            for review_id in review.review_ids:
                named = self._hashes.setdefault(review_id, [])
                if not named or review.text_hash not in judged:
                    named.append(review.text_hash)

    def find(self, answer: Mapping[Any, Any]) -> str:
        """Hash of the text that was answered about, by ``text_hash``, ``text`` and ``review_id``.

        Raises
        ------
        LookupError
            There is none, there are several, or the review has another text since; its argument says what to do.
        """
        given, review_id, text = (str(answer.get(name) or "").strip() for name in ("text_hash", "review_id", "text"))
        if given in self.ids:
            return given
        if text and (hashed := text_hash(clean_text(text))) in self.ids:
            return hashed
        named = self._hashes.get(review_id, [])
        if not named:
            name = review_id or given or repr(text[:60])
            raise LookupError(f"{name} names no review of the store; was it exported from here?")
        if given:
            raise LookupError(
                f"review {review_id} has another text since it was answered; export the queue again, answer it anew"
            )
        if len(named) > 1:
            raise LookupError(f"{review_id} names {len(named)} reviews of the store; give the column text_hash as well")
        return named[0]


def votes_from_answers(
    answers: pd.DataFrame, reviews: AnsweredReviews, earlier: Mapping[tuple[str, str], Vote], *, source: str
) -> HumanVotes:
    """Make votes of answers: one vote a person and text, the newest of their answers.

    Parameters
    ----------
    answers : DataFrame
        See :func:`reviewclf.stages.review.import_answers`.
    reviews : AnsweredReviews
        Those of the store.
    earlier : mapping of (text hash, annotator) to Vote
        The newest vote of each person so far.
    source : str
        The annotator of answers that name none.
    """
    made = HumanVotes()
    said: dict[tuple[str, str], list[dict[Any, Any]]] = {}
    for row in answers.to_dict("records"):
        try:
            key = reviews.find(row)
        except LookupError as error:
            made.problems.append(f"{row.get('place') or source}: {error.args[0]}")
            continue
        names = [f"{HUMAN}/{name}" for name in (row.get("annotator") or source, row.get("known_as")) if name]
        annotator = next((name for name in names if (key, name) in earlier), names[0])
        said.setdefault((key, annotator), []).append(row)
    newest = {key: vote.label for key, vote in earlier.items()}
    for identity, rows in sorted(said.items()):
        vote = _vote(identity, rows, earlier.get(identity), source, made.notes)
        if vote is not None:
            made.votes.append(vote)
            newest[identity] = vote.label
        made.known += len(rows) - (vote is not None)
    made.notes += _disagreements(newest, {key for key, _ in said}, reviews)
    return made


def _vote(
    identity: tuple[str, str], rows: Sequence[Mapping[Any, Any]], before: Vote | None, source: str, notes: list[str]
) -> Vote | None:
    """The vote that a person's answers on one text amount to; None where it is known."""
    key, annotator = identity
    answer = _latest(rows)
    place, label, when = answer.get("place") or source, answer["label"], answer.get("answered_at") or None
    others = list(dict.fromkeys(f"«{row['label']}»" for row in rows if row["label"] != label))
    if others:
        notes.append(f"{place}: {annotator} answered more than once; the latest counts, «{label}», not {', '.join(others)}")
    if before is not None and before.label == label:
        return None
    seen = None if before is None else _answered_at(before)
    if before is not None and when and seen and when < seen:
        notes.append(f"{place}: «{label}» by {annotator} is older than «{before.label}», which was taken in before and counts")
        return None
    return Vote(
        text_hash=key,
        annotator=annotator,
        prompt=PROMPT,
        draw=0 if before is None else before.draw + 1,
        label=label,
        confidence=1.0,
        raw=when and json.dumps({"answered_at": when.isoformat()}),
    )


def _latest(rows: Sequence[Mapping[Any, Any]]) -> Mapping[Any, Any]:
    """By the times of the answers where all have one, else the last in the file."""
    if all(row.get("answered_at") for row in rows):
        return max(reversed(rows), key=lambda row: row["answered_at"])
    return rows[-1]


def _answered_at(vote: Vote) -> datetime | None:
    """When a person gave this answer, where their file said so."""
    try:
        return datetime.fromisoformat(json.loads(vote.raw or "")["answered_at"])
    except (ValueError, KeyError, TypeError):
        return None


def _disagreements(newest: Mapping[tuple[str, str], str | None], asked: set[str], reviews: AnsweredReviews) -> list[str]:
    votes: dict[str, dict[str, str | None]] = {}
    for (key, annotator), label in newest.items():
        if key in asked:
            votes.setdefault(key, {})[annotator.removeprefix(f"{HUMAN}/")] = label
    return [
        f"review {reviews.ids[key]}: people disagree ({', '.join(f'{who}: {label}' for who, label in said.items())}); "
        "all their votes are kept, the most frequent decides, and a tie comes back into the queue"
        for key, said in sorted(votes.items())
        if len(set(said.values())) > 1
    ]
