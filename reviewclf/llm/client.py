"""A client of any server that speaks OpenAI's chat protocol: vLLM, llama.cpp, Ollama, a gateway, a vendor."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any, TypeVar

from reviewclf.errors import LabelingError
from reviewclf.llm.budget import Paced
from reviewclf.llm.parallel import ask_many
from reviewclf.llm.problems import ChatProblem, Kind, explained, problem_of_error
from reviewclf.llm.replies import Reply, read_reply
from reviewclf.llm.ways import (
    FORMS,
    QUIET,
    ChatRequest,
    Ways,
    alternatives,
    is_misunderstanding,
    matching,
    names_in,
    plainest,
    simpler,
)
from reviewclf.settings import LLMSettings

logger = logging.getLogger(__name__)

# Between attempts, in seconds: doubled from the first to the last, with some chance in it, or as the server asks.
_FIRST_PAUSE = 0.5
_LAST_PAUSE = 8.0
# A server that asks for more patience than this is away.
_LONGEST_PAUSE = 60.0
_LIST_SECONDS = 15.0
_WORD = ChatRequest("", "1", "word", {}, lambda form, probabilities: 16)
_NO_SUCH_MODEL = "reviewclf-asks-whether-names-matter"
# What one review alone provokes; and what it may have provoked, in the server or a firewall, where others are answered.
_OF_ITS_TEXT = (Kind.FILTERED, Kind.TOO_LONG, Kind.CUT)
_PERHAPS_OF_ITS_TEXT = (Kind.REFUSED, Kind.FAILED, Kind.KEY)
# After these the same question may be answered another time.
_NOT_FINAL = (Kind.CUT, Kind.FAILED, Kind.KEY)

Key = TypeVar("Key")
Answer = TypeVar("Answer")


class ChatClient:
    """Asks a server, in the way that it wants to be asked.

    What a server refuses of a request (a parameter, a form of answer, the model's name) is found out with a question of which
    no review is part, or from a message that names it, and counts only when the server has taken the other way. Requests that
    fail for a moment are sent again with growing pauses, also where the failure comes inside a reply with status 200.

    Parameters
    ----------
    options : LLMSettings
        ``base_url``, ``model``, ``concurrency``, ``timeout_seconds``, ``max_retries``, ``structured_output``, ``thinking``,
        ``thinking_tokens``.
    paced : Paced
        Whose budget says how much is asked, and is charged for answers that nobody is given.
    has_probabilities : bool
        Whether probabilities of the answer's tokens are wanted.

    Raises
    ------
    LabelingError
        When asked: the server does not know the model, refuses the key, wants to be paid, refuses every question, or is no
        chat server.
    AnnotatorUnavailableError
        When asked: the server cannot be reached, or stays overloaded.
    """

    def __init__(self, options: LLMSettings, paced: Paced, *, has_probabilities: bool) -> None:
        if options.base_url is None and not os.environ.get("OPENAI_API_KEY"):
            raise LabelingError(
                "REVIEWCLF_LLM__BACKEND=openai needs a server: set REVIEWCLF_LLM__BASE_URL (such as http://127.0.0.1:8000/v1), "
                "or OPENAI_API_KEY for the vendor itself"
            )
        self.options = options
        self.server = options.base_url or "api.openai.com"
        forms = FORMS[1:] if options.structured_output == "auto" else (options.structured_output, "none")
        self.ways = Ways(
            models=(options.model,),
            forms=tuple(dict.fromkeys(forms)),
            probabilities=Ways.probabilities if has_probabilities else 0,
            quiet=next(iter(QUIET)) if options.thinking == "off" else None,
            room=options.room_for_thoughts,
        )
        self._paced = paced
        self._given_up = threading.Event()
        self._lock = threading.Lock()
        self._first: ChatRequest | None = None

    # -- before the first question -------------------------------------------------------------------------------------

    def check(self) -> None:
        """Ask the server which models it has, and whether the one wanted is among them.

        Servers that list none, or do not answer in time, are taken at their word: a wrong name shows at the first question.

        Raises
        ------
        LabelingError, AnnotatorUnavailableError
            As the class says.
        """
        try:
            listed = self._patiently(self._list_models, retries=1)
        except ChatProblem as problem:
            if (
                (problem.status == 200 and self._trial(_WORD, plainest(self.ways)) is not None)
                or problem.kind in (Kind.CREDIT, Kind.FAILED)
                or (problem.kind is Kind.KEY and problem.status != 403)
                or problem.status in (502, 503, 504)
                or (problem.status is None and not problem.is_timeout)
            ):
                raise self._explained(problem) from problem
            return
        names, makers = names_in(listed)
        if self.options.structured_output == "auto" and "vllm" in makers:
            self._learn(dataclasses.replace(self.ways, forms=FORMS))
        if not names or self.options.model in names:
            return
        if others := matching(self.options.model, names):
            self._learn(dataclasses.replace(self.ways, models=(self.options.model, *others)))
        elif not self._knows_unlisted():
            raise LabelingError(
                f"the server {self.server} has no model {self.options.model!r}; it has {', '.join(names[:10])}. "
                "Set REVIEWCLF_LLM__MODEL"
            )

    def _list_models(self) -> Any:
        text = self._read(lambda client: client.with_options(timeout=_LIST_SECONDS).models.with_raw_response.list())
        try:
            return json.loads(text)
        except ValueError:
            raise ChatProblem(Kind.ADDRESS, f"its list of models is no JSON: {text[:80]!r}", status=200) from None

    def _knows_unlisted(self) -> bool:
        """Whether the server has a model that it does not list: it answers to this name, and not to any name at all."""
        plain = plainest(self.ways)
        if self._trial(_WORD, dataclasses.replace(plain, models=(_NO_SUCH_MODEL,))) is None:
            return False
        problem = self._trial(_WORD, plain)
        # A server that is busy has said nothing of names; the first question will.
        return problem is None or problem.kind in (Kind.AWAY, Kind.FAILED, Kind.CREDIT)

    def _trial(self, request: ChatRequest, ways: Ways) -> ChatProblem | None:
        """What is wrong with a question that no review is part of; None where it is answered."""
        try:
            self._waste(self._send(request, ways))
        except ChatProblem as problem:
            return problem
        return None

    def _waste(self, reply: Reply) -> None:
        self._paced.budget.waste(reply.tokens_in, reply.tokens_out)

    def prepare(self, request: ChatRequest) -> Reply:
        """Look whether the server has the model, and find out how it wants to be asked, with a question without a review.

        Raises
        ------
        LabelingError, AnnotatorUnavailableError
            As the class says.
        """
        self._given_up.clear()
        self.check()
        try:
            reply = self._patiently(lambda: self._searched(request), retries=self.options.max_retries)
            if _thinks(reply) and self.options.thinking != "on":
                reply = self._quieted(request, reply)
        except ChatProblem as problem:
            raise self._explained(problem) from problem
        if _thinks(reply) and reply.is_cut:
            self._waste(reply)
            raise self._explained(ChatProblem(Kind.CUT, f"its thought was cut after {reply.tokens_out} tokens"))
        self._first = request
        if self.ways.probabilities and not reply.tokens and reply.content.strip():
            self._learn(dataclasses.replace(self.ways, probabilities=0))
        return reply

    def _searched(self, request: ChatRequest) -> Reply:
        """Ask once; where that is refused without a word of what is refused, look for a way that the server takes."""
        try:
            return self._try(request, self.ways)
        except ChatProblem as problem:
            if problem.kind is Kind.CUT:
                return Reply("", is_cut=True, has_thought=True)
            # An internal error may come of what is asked for too: then the simplest request is answered.
            plain = plainest(self.ways)
            simplest = (plain, dataclasses.replace(plain, limit=None))
            if problem.kind is Kind.REFUSED or (
                problem.kind is Kind.FAILED and any(self._trial(request, ways) is None for ways in simplest)
            ):
                for ways in alternatives(self.ways):
                    with contextlib.suppress(ChatProblem):
                        return self._try(request, ways)
            raise

    def _quieted(self, request: ChatRequest, reply: Reply) -> Reply:
        """Ask the model not to think, in the first way that helps; where none does, leave room for its thoughts."""
        known = self.ways
        self._waste(reply)
        for quiet in QUIET:
            ways = dataclasses.replace(known, quiet=quiet, room=0)
            if ways == known:
                continue
            try:
                other = self._send(request, ways)
            except ChatProblem as problem:
                logger.debug("%s does not take %s: %s", self.server, quiet, problem)
                continue
            if not _thinks(other) and not other.is_cut and other.content.strip():
                logger.info("%s is told by %s not to think", self.server, quiet)
                self._learn(ways)
                return other
            self._waste(other)
        room = self.options.thinking_tokens
        told = "%s thinks and cannot be told not to: answers get room for %d tokens more (REVIEWCLF_LLM__THINKING_TOKENS)"
        logger.warning(told, self.options.model, room)
        return self._ask(request, dataclasses.replace(known, quiet=None, room=room))

    def _explained(self, problem: ChatProblem) -> LabelingError:
        return explained(problem, self.options, self.server)

    # -- questions -----------------------------------------------------------------------------------------------------

    def answers(self, questions: Iterable[tuple[Key, ChatRequest]]) -> Iterator[tuple[Key, Reply]]:
        """Answers as they come back, each with the key of its question, while the budget has room; see :meth:`answer`.

        When the server fails for good, what was in flight is handed out before the error is raised.
        """
        return ask_many(
            lambda question: (question[0], self.answer(question[1])),
            questions,
            concurrency=self.options.concurrency,
            may_ask=lambda in_flight: self._paced.budget.may_ask(in_flight),
            given_up=self._given_up,
        )

    def answer(self, request: ChatRequest) -> Reply:
        """The answer to one question; a refusal where nothing but this question is refused, or fails.

        Raises
        ------
        LabelingError, AnnotatorUnavailableError
            As the class says.
        """
        try:
            return self._ask(request)
        except ChatProblem as problem:
            is_its_own = problem.kind in _OF_ITS_TEXT or (problem.kind in _PERHAPS_OF_ITS_TEXT and self._still_answers())
            if not is_its_own:
                raise self._explained(problem) from problem
            if problem.kind in _NOT_FINAL:
                return Reply("", refusal=f"the server fails on it: {problem}", is_final=False)
            said = "a content filter refused it" if problem.kind is Kind.FILTERED else "the server refused it"
            return Reply("", refusal=f"{said}: {problem}")

    def _still_answers(self) -> bool:
        """Whether the server answers a question that no review is part of, as it did at first."""
        return self._first is not None and not self._given_up.is_set() and self._trial(self._first, self.ways) is None

    def _ask(self, request: ChatRequest, ways: Ways | None = None) -> Reply:
        return self._patiently(lambda: self._try(request, ways or self.ways), retries=self.options.max_retries)

    def _patiently(self, ask: Callable[[], Answer], *, retries: int) -> Answer:
        """Ask again, with growing pauses, while what goes wrong may pass."""
        attempt = 0
        while True:
            try:
                return ask()
            except ChatProblem as problem:
                if problem.kind not in (Kind.AWAY, Kind.FAILED) or attempt >= retries:
                    raise
                pause = problem.retry_after
                if pause is None:
                    pause = min(_FIRST_PAUSE * 2**attempt, _LAST_PAUSE) * random.uniform(0.75, 1.0)  # noqa: S311
                # Where another request has found the server away, this one need not find out again.
                if pause > _LONGEST_PAUSE or self._given_up.wait(pause):
                    raise
            attempt += 1

    def _try(self, request: ChatRequest, ways: Ways) -> Reply:
        """Ask once in every way that is left, as far as the server names what it refuses; remember the one that it takes."""
        while True:
            try:
                reply = self._send(request, ways)
            except ChatProblem as problem:
                other = self._other(ways, problem)
                if other is None:
                    raise
                logger.info("%s does not take it (%s); asking in another way", self.server, problem)
                ways = other
            else:
                self._learn(ways)
                return reply

    @staticmethod
    def _other(ways: Ways, problem: ChatProblem) -> Ways | None:
        if problem.kind in (Kind.MODEL, Kind.ADDRESS) and problem.status in (400, 404) and len(ways.models) > 1:
            return dataclasses.replace(ways, models=ways.models[1:])
        # Some call a parameter that is not for everybody forbidden (403).
        may_name_it = problem.kind is Kind.FAILED or (problem.kind is Kind.KEY and problem.status == 403)
        if problem.kind is Kind.REFUSED or (may_name_it and is_misunderstanding(problem)):
            return simpler(ways, problem)
        return None

    def _learn(self, ways: Ways) -> None:
        with self._lock:
            if ways == self.ways:
                return
            if self.ways.probabilities and not ways.probabilities:
                logger.warning("%s gives no probabilities; answers are read as text, with confidence as stated", self.server)
            logger.info("%s is asked as %s", self.server, ways)
            self.ways = ways

    def _send(self, request: ChatRequest, ways: Ways) -> Reply:
        arguments = ways.arguments(request)
        characters = sum(len(message["content"]) for message in arguments["messages"])
        started = time.perf_counter()
        try:
            text = self._read(lambda client: client.chat.completions.with_raw_response.create(**arguments))
            seconds = time.perf_counter() - started
            try:
                body = json.loads(text)
            except ValueError:
                # The beginning of a reply: the connection was lost, and what stood before the server said 200.
                raise ChatProblem(Kind.FAILED, f"the reply is no JSON: {text[:80]!r}") from None
            return read_reply(body, asked_characters=characters)._replace(seconds=seconds)
        except ChatProblem as problem:
            # The address was right: a page of maintenance stands before the server, or of a firewall before this review.
            if problem.kind is Kind.ADDRESS and self._first is not None:
                problem.kind = Kind.FAILED
            raise

    def _read(self, call: Callable[[Any], Any]) -> str:
        """The text of a reply.

        Raises
        ------
        ChatProblem
            There is none, or it is no JSON at all but a page or a stream.
        """
        import openai

        try:
            # Errors on the way to a reply, and what the client makes of odd ones.
            response = call(self._connection).http_response
            text = str(response.text).removeprefix("\ufeff")
        except (openai.OpenAIError, ValueError, TypeError) as error:
            raise problem_of_error(error, self.options) from error
        kind = str(response.headers.get("content-type", "")).casefold()
        if "html" in kind or text.lstrip()[:1] == "<":
            raise ChatProblem(Kind.ADDRESS, f"it answers with a web page: {' '.join(text.split())[:60]!r}", status=200)
        if "event-stream" in kind or text.startswith("data:"):
            raise ChatProblem(Kind.ADDRESS, "it streams its answer (text/event-stream), though none is asked to", status=200)
        return text

    @cached_property
    def _connection(self) -> Any:
        """The official client. Patience is ours: it must hold for failures inside a reply as well."""
        import openai

        return openai.OpenAI(
            base_url=self.options.base_url,
            # Servers of one's own mostly want none, the client always does.
            api_key=(os.environ.get("OPENAI_API_KEY") or "").strip() or "none",
            timeout=self.options.timeout_seconds,
            max_retries=0,
        )


def _thinks(reply: Reply) -> bool:
    """Whether a model thinks: it shows so, or its room is used up without a word."""
    return reply.has_thought or (reply.is_cut and not reply.content.strip())
