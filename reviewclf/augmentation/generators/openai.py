"""Reviews written by any server that speaks OpenAI's chat protocol, as a JSON list."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from reviewclf.augmentation.generators.base import Written
from reviewclf.augmentation.prompts import WritingRequest, parse_reviews
from reviewclf.labeling.annotators.openai import OpenAIAnnotator, is_misunderstanding
from reviewclf.settings import AugmentationSettings, LLMSettings
from reviewclf.taxonomy import Taxonomy

logger = logging.getLogger(__name__)

# The strictest first; a server that refuses one is asked in the next way from then on.
_LADDER = ("json_schema", "json_object", "none")


class OpenAIGenerator:
    """Writes with the model that votes, several requests at a time.

    The official client tries again with growing pauses on time-outs, 429 and 5xx.

    Parameters
    ----------
    options : LLMSettings
        ``base_url``, ``model``, ``concurrency``, ``timeout_seconds``, ``max_retries``.
    writing : AugmentationSettings
        ``temperature``, ``tokens_per_review``.
    taxonomy : Taxonomy
        The categories.

    Raises
    ------
    LabelingError
        When asked: the server does not know the model, refuses the key, or refuses the request as such.
    AnnotatorUnavailableError
        When asked: the server cannot be reached, or stays overloaded. What was written by then has been handed out.
    """

    def __init__(self, options: LLMSettings, writing: AugmentationSettings, taxonomy: Taxonomy) -> None:
        # The voter knows how to reach the server and what its errors mean.
        self._voter = OpenAIAnnotator(options, taxonomy)
        self._options = options
        self._writing = writing
        self._modes = list(_LADDER)
        self._is_checked = False

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
        if not self._is_checked:
            self._voter.check()
            self._is_checked = True
        waiting = list(reversed(requests))
        with ThreadPoolExecutor(self._options.concurrency, thread_name_prefix="writer") as pool:
            flying: set[Future[Written]] = set()
            try:
                while waiting or flying:
                    while waiting and len(flying) < self._options.concurrency:
                        flying.add(pool.submit(self._ask, waiting.pop()))
                    done, flying = wait(flying, return_when=FIRST_COMPLETED)
                    failure: BaseException | None = None
                    for future in done:
                        # A failed request must not take the answers that came with it along.
                        if future.exception() is None:
                            yield future.result()
                        else:
                            failure = future.exception()
                    if failure is not None:
                        raise failure
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _ask(self, request: WritingRequest) -> Written:
        import openai

        while True:
            mode = self._modes[0]
            try:
                return self._send(request, mode)
            except (openai.BadRequestError, openai.UnprocessableEntityError, openai.InternalServerError) as error:
                if isinstance(error, openai.InternalServerError) and not is_misunderstanding(error):
                    raise self._voter.explained(error) from error
                if self._modes[0] == mode:
                    if len(self._modes) == 1:
                        raise self._voter.explained(error) from error
                    self._modes = self._modes[1:]
                    logger.info("%s does not take structured output as %s", self._voter.server, mode)
            except openai.OpenAIError as error:
                raise self._voter.explained(error) from error

    def _send(self, request: WritingRequest, mode: str) -> Written:
        schema = {
            "type": "object",
            "properties": {
                "reviews": {"type": "array", "items": {"type": "string"}, "minItems": request.n, "maxItems": request.n}
            },
            "required": ["reviews"],
            "additionalProperties": False,
        }
        arguments: dict[str, Any] = {}
        if mode == "json_schema":
            arguments["response_format"] = {
                "type": "json_schema", "json_schema": {"name": "reviews", "strict": True, "schema": schema},
            }  # fmt: skip
        elif mode == "json_object":
            # llama.cpp holds the answer to the schema, others to JSON at least.
            arguments["extra_body"] = {"response_format": {"type": "json_object", "schema": schema}}
        started = time.perf_counter()
        answer = self._voter.connect().chat.completions.create(
            model=self._options.model,
            messages=[{"role": "system", "content": request.system}, {"role": "user", "content": request.user}],
            temperature=self._writing.temperature,
            # Servers that do not know seeds leave it unread.
            seed=request.seed * 1_000_003 % 2**31 + request.number,
            max_tokens=self._writing.tokens_per_review * request.n + 32,
            **arguments,
        )
        seconds = time.perf_counter() - started
        content = (answer.choices[0].message.content or "") if answer.choices else ""
        texts = tuple(parse_reviews(content)[: 2 * request.n])
        usage = answer.usage
        return Written(
            category=request.category,
            number=request.number,
            seed=request.seed,
            prompt=request.prompt,
            generator=self.version,
            examples=request.examples,
            texts=texts,
            raw=None if texts else content[:2000],
            tokens_in=int(usage.prompt_tokens or 0) if usage else 0,
            tokens_out=int(usage.completion_tokens or 0) if usage else 0,
            seconds=seconds,
        )
