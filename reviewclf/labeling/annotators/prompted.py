"""What the annotators that ask a language model share: which questions, which texts, which votes are missing."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from reviewclf.labeling.annotators.base import Review, Vote, VoteIdentity
from reviewclf.labeling.parsing import parse_answer
from reviewclf.labeling.prompts import Question, load_prompts, prepare_review
from reviewclf.llm.budget import Paced
from reviewclf.llm.replies import Reply
from reviewclf.manifest import digest_of
from reviewclf.settings import LLMSettings
from reviewclf.taxonomy import Taxonomy

Floats = NDArray[np.float64]

_NOTHING = Reply("")


class Request(NamedTuple):
    """One question about one review."""

    text_hash: str
    text: str
    question: Question


class PromptedAnnotator(Paced):
    """Votes of one language model.

    Vote k of a review is asked with prompt k modulo the number of prompts; every further round lists the categories in another
    order, so that votes differ for a reason and not by chance.

    Parameters
    ----------
    options : LLMSettings
        Model, prompts, number of votes.
    taxonomy : Taxonomy
        The categories to choose from.
    """

    is_costly = True

    def __init__(self, options: LLMSettings, taxonomy: Taxonomy) -> None:
        super().__init__()
        self.options = options
        self.names = taxonomy.names
        self.prompts = load_prompts(options.prompts)
        # What changes an answer beside model and prompt is part of the prompt's name, so that it asks again.
        way: list[object] = [options.answer, options.calibrate, options.max_characters]
        usual: list[object] = [LLMSettings.model_fields[name].default for name in ("answer", "calibrate", "max_characters")]
        if options.thinking == "on":
            way.append(options.thinking)
        suffix = "" if way == usual else f".{digest_of(way)[:4]}"
        count = len(self.prompts)
        filled = [self.prompts[k % count].fill(taxonomy, k // count) for k in range(options.votes)]
        self.questions = [question.model_copy(update={"name": question.name + suffix}) for question in filled]
        self.annotator = options.model_name
        self.version = f"{self.annotator}:{digest_of([[question.name, question.draw] for question in self.questions])[:16]}"

    def expected(self, review: Review) -> Sequence[tuple[str, str, int]]:
        """One vote a question."""
        return [(self.annotator, question.name, question.draw) for question in self.questions]

    def annotate(self, reviews: Sequence[Review], *, known: Container[VoteIdentity] = frozenset()) -> Iterable[Vote]:
        """Ask what is missing. A review in which nothing is left to read gets null votes without being asked about."""
        requests: list[Request] = []
        for review in reviews:
            missing = [q for q in self.questions if (review.text_hash, self.annotator, q.name, q.draw) not in known]
            if not missing:
                continue
            text = prepare_review(review.text, self.names, max_characters=self.options.max_characters)
            about = [Request(review.text_hash, text, question) for question in missing]
            if any(char.isalnum() for char in text):
                requests += about
            else:
                yield from (self.vote(request, reason="no word is left in the text") for request in about)
        if requests:
            yield from self.ask(requests)

    @abstractmethod
    def ask(self, requests: Sequence[Request]) -> Iterator[Vote]:
        """One vote a request, in any order, as soon as it is there."""

    # -- what an answer means ------------------------------------------------------------------------------------------

    def vote(self, request: Request, reply: Reply = _NOTHING, **said: Any) -> Vote:
        """A vote on a request's review, which cost what `reply` did; `said` are further fields of the vote."""
        return Vote(
            text_hash=request.text_hash,
            annotator=self.annotator,
            prompt=request.question.name,
            draw=request.question.draw,
            tokens_in=reply.tokens_in,
            tokens_out=reply.tokens_out,
            seconds=reply.seconds,
            **said,
        )

    def vote_by_probabilities(
        self, request: Request, reply: Reply, shares: Mapping[str, float], prior: Floats | None, *, min_mass: float = 0.0
    ) -> Vote:
        """A vote from the probabilities of the codes.

        Parameters
        ----------
        reply : Reply
            What it cost.
        shares : mapping of str to float
            Probability of each code as the answer's first token; what is missing counts as 0.
        prior : array, shape (k,), optional
            Shares of the codes in answers to texts without content; divided out (contextual calibration; Zhao et al.,
            Calibrate Before Use, ICML 2021).
        min_mass : float
            Up to this sum of probabilities the vote has no label: where a server lists only the likeliest tokens, codes among
            the rest cannot be told apart.
        """
        labels = request.question.labels
        seen = np.array([shares.get(code, 0.0) for code in labels], dtype=np.float64)
        raw = " ".join(f"{code}:{share:.4g}" for code, share in zip(labels, seen, strict=True) if share >= 0.0001)
        if seen.sum() <= min_mass:
            reason = f"the model wants to say something else: all categories together have probability {seen.sum():.2g}"
            return self.vote(request, reply, raw=raw, reason=reason)
        scores = calibrated(seen / seen.sum(), prior)
        best = int(scores.argmax())
        return self.vote(request, reply, label=list(labels.values())[best], confidence=min(float(scores[best]), 1.0), raw=raw)

    def vote_by_text(self, request: Request, reply: Reply) -> Vote:
        """A vote from a written answer; one that was cut before it said anything is not kept. See :func:`parse_answer`."""
        raw = reply.content[:2000]
        if reply.refusal is not None:
            return self.vote(request, reply, raw=raw or None, reason=reply.refusal, is_kept=reply.is_final)
        said = parse_answer(reply.content, request.question, is_cut=reply.is_cut, has_thought=reply.has_thought)
        if said.label is None:
            return self.vote(request, reply, raw=raw, reason=said.reason, is_kept=not said.is_unfinished)
        confidence = self.options.stated_confidence if said.confidence is None else said.confidence
        return self.vote(request, reply, raw=raw, label=said.label, confidence=confidence)


def calibrated(shares: Floats, prior: Floats | None) -> Floats:
    """Probabilities, shape (k,), with the model's prior divided out; its entries count as 1% of an even share at least."""
    if prior is None:
        return shares
    scores: Floats = shares / np.maximum(prior / prior.sum(), 0.01 / len(prior))
    return np.asarray(scores / scores.sum())
