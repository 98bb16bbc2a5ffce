"""Reviews written by a language model: one that a server holds, or one in this process."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any, Self

from reviewclf.augmentation.generators.base import Written
from reviewclf.augmentation.prompts import WritingRequest, parse_reviews
from reviewclf.llm.budget import Paced
from reviewclf.llm.client import ChatClient
from reviewclf.llm.local import LocalModel
from reviewclf.llm.replies import Reply
from reviewclf.llm.ways import ChatRequest
from reviewclf.settings import AugmentationSettings, LLMSettings

logger = logging.getLogger(__name__)


class PromptedGenerator(Paced):
    """Writes with the model that votes.

    Parameters
    ----------
    options : LLMSettings
        The model.
    writing : AugmentationSettings
        ``temperature``, ``tokens_per_review``.
    """

    is_costly = True

    def __init__(self, options: LLMSettings, writing: AugmentationSettings) -> None:
        super().__init__()
        self.version = f"{options.model_name}/t{writing.temperature:g}"
        self._temperature, self._tokens_per_review = writing.temperature, writing.tokens_per_review

    def available(self, category: str) -> None:
        """As many as are asked for."""

    def _room(self, request: WritingRequest) -> int:
        return self._tokens_per_review * request.n + 32

    def _written(self, request: WritingRequest, reply: Reply) -> Written:
        texts = () if reply.refusal else tuple(parse_reviews(reply.content, is_cut=reply.is_cut)[: 2 * request.n])
        return Written(
            **request.model_dump(include={"category", "number", "seed", "prompt", "examples"}),
            generator=self.version,
            texts=texts,
            raw=None if texts else (reply.refusal or reply.content[:2000]),
            tokens_in=reply.tokens_in,
            tokens_out=reply.tokens_out,
            seconds=reply.seconds,
        )


class OpenAIGenerator(PromptedGenerator):
    """Asks a server, several requests at a time; see :class:`reviewclf.llm.client.ChatClient`.

    A request that the server refuses, or whose answer was cut before a review came, brings none: the former is kept as it is,
    the latter asked again another time.

    Raises
    ------
    LabelingError
        When asked: the server does not know the model, refuses the key or the request as such, or wants to be paid.
    AnnotatorUnavailableError
        When asked: the server cannot be reached, or stays overloaded. What was written by then has been handed out.
    """

    def __init__(self, options: LLMSettings, writing: AugmentationSettings) -> None:
        super().__init__(options, writing)
        self._client = ChatClient(options, self, has_probabilities=False)
        self._is_prepared = False

    def write(self, requests: Sequence[WritingRequest]) -> Iterator[Written]:
        """Answers as they come back."""
        waiting = list(requests)
        if not self._is_prepared and waiting and self.budget.may_ask(0):
            # The first request shows how the server wants to be asked.
            first = waiting.pop(0)
            reply = self._client.prepare(self._chat_request(first))
            self._is_prepared = True
            yield from self._kept(first, reply)
        for request, reply in self._client.answers((request, self._chat_request(request)) for request in waiting):
            yield from self._kept(request, reply)

    def _chat_request(self, request: WritingRequest) -> ChatRequest:
        reviews = {"type": "array", "items": {"type": "string"}, "minItems": request.n, "maxItems": request.n}
        return ChatRequest(
            system=request.system,
            user=request.user,
            form="reviews",
            properties={"reviews": reviews},
            tokens=lambda form, has_probabilities: self._room(request),
            temperature=self._temperature,
            # Servers that do not know seeds leave it unread.
            seed=request.own_seed,
        )

    def _kept(self, request: WritingRequest, reply: Reply) -> Iterator[Written]:
        """What came of a request; nothing where it is to be asked again."""
        written = self._written(request, reply)
        is_cut = not written.texts and not reply.refusal and (reply.is_cut or reply.has_thought)
        if reply.is_final and not is_cut:
            yield written
            return
        self.budget.waste(reply.tokens_in, reply.tokens_out)
        why = reply.refusal or "the answer was cut, or a thought (REVIEWCLF_LLM__THINKING)"
        logger.warning("request %d for %s is left for another time: %s", request.number, request.category, why)


class TransformersGenerator(PromptedGenerator):
    """Samples answers one request at a time; the same request, model and machine give the same answer.

    Raises
    ------
    LabelingError
        When asked: the model cannot be loaded.
    """

    def __init__(self, options: LLMSettings, writing: AugmentationSettings) -> None:
        super().__init__(options, writing)
        self._model = LocalModel(options)
        self._thinking = options.thinking == "on"

    def use(self, model: Any, tokenizer: Any) -> Self:
        """Take a model and tokenizer that are loaded already."""
        self._model.use(model, tokenizer)
        return self

    def write(self, requests: Sequence[WritingRequest]) -> Iterator[Written]:
        """Answers in the order of the requests."""
        for request in requests:
            if not self.budget.may_ask(0):
                return
            question = self._model.render(request.system, request.user, thinking=self._thinking)
            _, tokenizer = self._model.load()
            tokens = tokenizer(question, add_special_tokens=False)["input_ids"]
            room, seed = self._room(request), request.own_seed
            reply = self._model.write(tokens, room=room, temperature=self._temperature, top_p=0.95, seed=seed)
            yield self._written(request, reply)
