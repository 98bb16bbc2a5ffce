"""Votes by any server that speaks OpenAI's chat protocol: vLLM, llama.cpp, Ollama, a vendor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from reviewclf.errors import LabelingError
from reviewclf.labeling.annotators.base import Vote
from reviewclf.labeling.annotators.prompted import Floats, PromptedAnnotator, Request
from reviewclf.labeling.parsing import parse_answer
from reviewclf.labeling.prompts import CONTENT_FREE, Question
from reviewclf.llm.client import ChatClient
from reviewclf.llm.replies import Reply
from reviewclf.llm.ways import ChatRequest
from reviewclf.settings import LLMSettings, Settings
from reviewclf.taxonomy import Taxonomy

_STRIPPED = " \t\n\"'«»`*.:()"
# Room for an answer, in tokens, by the form that it is held to; and for one that is written freely and read as text.
_TOKENS = {"choice": 2, "json_schema": 24, "json_object": 24, "none": 8}
_WRITTEN_TOKENS = 64
_MIN_MASS = 0.1
# So many answers from the beginning that say nothing are no matter of single reviews.
_HOPELESS = 20


class OpenAIAnnotator(PromptedAnnotator):
    """Asks a server, several requests at a time; see :class:`PromptedAnnotator` and :class:`reviewclf.llm.client.ChatClient`.

    What one review provokes (a filter, a refusal, an error) is a vote without a label on that review alone. A thought that was
    cut, or an error that one review provokes, is no vote that is kept. When the server stays away,
    :class:`AnnotatorUnavailableError` ends the asking; votes given by then have been handed out.

    Parameters
    ----------
    options : LLMSettings
        ``base_url``, ``model``, ``concurrency``, ``timeout_seconds``, ``max_retries``, ``structured_output``, ``thinking``.
    taxonomy : Taxonomy
        The categories.

    Raises
    ------
    LabelingError
        When asked: the server does not know the model, refuses the key or the question as such, wants to be paid, or no answer
        comes to its end.
    AnnotatorUnavailableError
        When asked: the server cannot be reached, or stays overloaded.
    """

    def __init__(self, options: LLMSettings, taxonomy: Taxonomy) -> None:
        super().__init__(options, taxonomy)
        self.client = ChatClient(options, self, has_probabilities=options.answer == "probabilities")
        self._priors: dict[tuple[str, int], Floats | None] = {}

    def ask(self, requests: Sequence[Request]) -> Iterator[Vote]:
        """Votes as they come back."""
        if not self.budget.may_ask(0):
            return
        reply = self.client.prepare(self._chat_request(requests[0].question, CONTENT_FREE[0]))
        self.budget.waste(reply.tokens_in, reply.tokens_out)
        for question in {(r.question.name, r.question.draw): r.question for r in requests}.values():
            self._prior(question)
        is_hopeless = True
        answers = self.client.answers((r, self._chat_request(r.question, r.text)) for r in requests)
        for count, (request, reply) in enumerate(answers, start=1):
            vote = self._vote(request, reply)
            yield vote
            is_hopeless = is_hopeless and not vote.is_kept
            if is_hopeless and count >= _HOPELESS:
                raise LabelingError(f"none of the first {count} answers of {self.annotator} can be used: {vote.reason}")

    def _vote(self, request: Request, reply: Reply) -> Vote:
        shares = None if reply.refusal else code_shares(reply, request.question)
        if shares and (sum(shares.values()) > _MIN_MASS or not (reply.is_cut or reply.has_thought)):
            return self.vote_by_probabilities(request, reply, shares, self._prior(request.question), min_mass=_MIN_MASS)
        return self.vote_by_text(request, reply)

    def _chat_request(self, question: Question, text: str) -> ChatRequest:
        codes = list(question.labels)
        is_short = self.options.answer == "probabilities"
        return ChatRequest(
            system=question.system,
            user=question.user(text),
            form="category",
            properties={"label": {"type": "string", "enum": codes}},
            tokens=lambda form, has_probabilities: (
                _TOKENS[form] if form != "none" or (is_short and has_probabilities) else _WRITTEN_TOKENS
            ),
            choices=codes,
        )

    def _prior(self, question: Question) -> Floats | None:
        """What the model answers to texts without content; None when not wanted or not to be had."""
        # What a thought has led to says little of what the model leans to by itself.
        if not self.options.calibrate or not self.client.ways.probabilities or self.client.ways.room:
            return None
        key = (question.name, question.draw)
        if key not in self._priors:
            shares = []
            for text in CONTENT_FREE:
                reply = self.client.answer(self._chat_request(question, text))
                self.budget.waste(reply.tokens_in, reply.tokens_out)
                if reply.refusal is not None:
                    raise LabelingError(f"{question.name}: no prior of the model can be had: {text!r}: {reply.refusal}")
                if of_codes := code_shares(reply, question):
                    shares.append([of_codes.get(code, 0.0) for code in question.labels])
            self._priors[key] = np.array(shares).mean(axis=0) if shares and np.sum(shares) > 0 else None
        return self._priors[key]


def from_settings(settings: Settings, taxonomy: Taxonomy) -> OpenAIAnnotator:
    """The annotator of ``REVIEWCLF_LLM__BACKEND=openai``."""
    return OpenAIAnnotator(settings.llm, taxonomy)


def code_shares(reply: Reply, question: Question) -> dict[str, float] | None:
    """Probabilities of the codes at the place of the answer where one was written; None where the server gives none."""
    label = parse_answer(reply.content, question, is_cut=reply.is_cut, has_thought=reply.has_thought).label
    code = next((code for code, name in question.labels.items() if name == label), None)
    if not reply.tokens or (code is None and (reply.has_thought or reply.content.lstrip().startswith("{"))):
        return None  # cut off before the answer came
    places = [i for i, token in enumerate(reply.tokens) if code is not None and _bare(token.get("token")) == code]
    if reply.has_thought and not places:
        return None
    # A thought weighs codes too; what it came to stands at the end.
    place = (places[-1] if reply.has_thought else places[0]) if places else 0
    options = reply.tokens[place].get("top_logprobs")
    listed = [
        (_bare(option.get("token")), math.exp(min(float(option["logprob"]), 0.0)))
        for option in (options if isinstance(options, list) else [])
        if isinstance(option, dict) and isinstance(option.get("logprob"), int | float)
    ]
    if not listed:
        return None
    shares = {code: sum(share for found, share in listed if found == code) for code in question.labels}
    # A code that is not listed is less likely than all that are, and shares what is left with the other unlisted ones: without
    # this the only listed code would count as certain.
    missing = [code for code, share in shares.items() if share == 0.0]
    left = max(0.0, 1.0 - sum(share for _, share in listed))
    least = min(share for _, share in listed)
    return {**shares, **{code: min(least, left / len(missing)) for code in missing}}


def _bare(token: Any) -> str:
    return str(token).strip(_STRIPPED).upper()
