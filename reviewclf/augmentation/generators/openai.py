"""Reviews written by any server that speaks OpenAI's chat protocol, as a JSON list."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

from reviewclf.augmentation.generators.base import Written
from reviewclf.augmentation.prompts import WritingRequest, parse_reviews
from reviewclf.llm.client import ChatClient
from reviewclf.llm.parallel import ask_many
from reviewclf.llm.problems import ChatProblem, Kind
from reviewclf.llm.replies import Reply
from reviewclf.llm.ways import Wanted
from reviewclf.settings import AugmentationSettings, LLMSettings
from reviewclf.taxonomy import Taxonomy

logger = logging.getLogger(__name__)


class OpenAIGenerator:
    """Writes with the model that votes, several requests at a time; see :class:`reviewclf.llm.client.ChatClient`.

    A request that the server refuses, or whose answer was cut before a review came, brings none: the former is kept as it is,
    the latter asked again another time.

    Parameters
    ----------
    options : LLMSettings
        ``base_url``, ``model``, ``concurrency``, ``timeout_seconds``, ``max_retries``, ``thinking``.
    writing : AugmentationSettings
        ``temperature``, ``tokens_per_review``.
    taxonomy : Taxonomy
        The categories.

    Raises
    ------
    LabelingError
        When asked: the server does not know the model, refuses the key or the request as such, or wants to be paid.
    AnnotatorUnavailableError
        When asked: the server cannot be reached, or stays overloaded. What was written by then has been handed out.
    """

    def __init__(self, options: LLMSettings, writing: AugmentationSettings, taxonomy: Taxonomy) -> None:
        self.may_ask: Callable[[int], bool] = lambda in_flight: True
        self.on_cost: Callable[[int, int], None] = lambda tokens_in, tokens_out: None
        self._client = ChatClient(options, has_probabilities=False)
        self._client.on_cost = lambda tokens_in, tokens_out: self.on_cost(tokens_in, tokens_out)
        self._options = options
        self._writing = writing
        self._is_settled = False

    @property
    def version(self) -> str:
        """Model and temperature."""
        return f"{self._options.model}@{self._options.revision}/t{self._writing.temperature:g}"

    @property
    def is_costly(self) -> bool:
        """Yes."""
        return True

    def available(self, category: str) -> None:
        """As many as are asked for."""

    def write(self, requests: Sequence[WritingRequest]) -> Iterator[Written]:
        """Answers as they come back."""
        waiting = list(requests)
        if not self._is_settled and waiting and self.may_ask(0):
            self._client.given_up.clear()
            self._client.check()
            # The first request shows how the server wants to be asked.
            first = waiting.pop(0)
            reply = self._client.settle(self._wanted(first))
            self._is_settled = True
            if written := self._written(first, reply):
                yield written
        for found in ask_many(
            self._ask,
            waiting,
            concurrency=self._options.concurrency,
            may_ask=lambda in_flight: self.may_ask(in_flight),
            given_up=self._client.given_up,
        ):
            if found is not None:
                yield found

    def _ask(self, request: WritingRequest) -> Written | None:
        try:
            reply = self._client.answer(self._wanted(request))
        except ChatProblem as problem:
            if problem.kind in (Kind.CUT, Kind.FAILED, Kind.KEY):
                logger.warning("request %d for %s is left for another time: %s", request.number, request.category, problem)
                return None
            reply = Reply("", refusal=f"the server refused it: {problem}")
        return self._written(request, reply)

    def _wanted(self, request: WritingRequest) -> Wanted:
        reviews = {"type": "array", "items": {"type": "string"}, "minItems": request.n, "maxItems": request.n}
        return Wanted(
            system=request.system,
            user=request.user,
            form="reviews",
            schema={
                "type": "object",
                "properties": {"reviews": reviews},
                "required": ["reviews"],
                "additionalProperties": False,
            },
            tokens=lambda form, has_probabilities: self._writing.tokens_per_review * request.n + 32,
            temperature=self._writing.temperature,
            # Servers that do not know seeds leave it unread.
            seed=request.seed * 1_000_003 % 2**31 + request.number,
        )

    def _written(self, request: WritingRequest, reply: Reply) -> Written | None:
        """What came of a request; None where the answer was cut before a review, so that it is asked again."""
        texts = () if reply.refusal else tuple(parse_reviews(reply.content, is_cut=reply.is_cut)[: 2 * request.n])
        if not texts and not reply.refusal and (reply.is_cut or reply.has_thought):
            self.on_cost(reply.tokens_in, reply.tokens_out)
            logger.warning(
                "request %d for %s is left for another time: the answer was cut, or a thought (REVIEWCLF_LLM__THINKING)",
                request.number,
                request.category,
            )
            return None
        return Written(
            category=request.category,
            number=request.number,
            seed=request.seed,
            prompt=request.prompt,
            generator=self.version,
            examples=request.examples,
            texts=texts,
            raw=None if texts else (reply.refusal or reply.content[:2000]),
            tokens_in=reply.tokens_in,
            tokens_out=reply.tokens_out,
            seconds=reply.seconds,
        )
