"""Votes by any server that speaks OpenAI's chat protocol: vLLM, llama.cpp, Ollama, a vendor."""

from __future__ import annotations

import itertools
import logging
import math
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import numpy as np

from reviewclf.errors import AnnotatorUnavailableError, LabelingError
from reviewclf.labeling.annotators.base import Vote
from reviewclf.labeling.annotators.prompted import Floats, PromptedAnnotator, Request
from reviewclf.labeling.prompts import CONTENT_FREE, Question, parse_answer
from reviewclf.settings import LLMSettings
from reviewclf.taxonomy import Taxonomy

logger = logging.getLogger(__name__)

_STRIPPED = " \t\n\"'«»`*.:()"
_TOP = 20
# The strictest first; a server that refuses one is asked in the next way from then on.
_LADDER = ("choice", "json_schema", "json_object", "none")
_MAX_TOKENS = {"choice": 2, "json_schema": 24, "json_object": 24, "none": 8}
_WRITTEN_TOKENS = 64
_MIN_MASS = 0.1
_BUSY = (408, 409, 425, 429)


class Reply(NamedTuple):
    """What came back: the text, the codes' probabilities where the server gives them, and what it cost."""

    text: str
    shares: dict[str, float] | None
    tokens_in: int
    tokens_out: int
    seconds: float


class OpenAIAnnotator(PromptedAnnotator):
    """Asks a server, several requests at a time; see :class:`PromptedAnnotator`.

    The official client tries again with growing pauses on time-outs, 429 and 5xx. When a server stays away,
    :class:`AnnotatorUnavailableError` ends the asking; votes given by then have been handed out.

    Parameters
    ----------
    options : LLMSettings
        ``base_url``, ``model``, ``concurrency``, ``timeout_seconds``, ``max_retries``, ``structured_output``.
    taxonomy : Taxonomy
        The categories.

    Raises
    ------
    LabelingError
        When asked: the server does not know the model, refuses the key, or refuses the question as such.
    AnnotatorUnavailableError
        When asked: the server cannot be reached, or stays overloaded.
    """

    def __init__(self, options: LLMSettings, taxonomy: Taxonomy) -> None:
        super().__init__(options, taxonomy)
        if options.base_url is None and not os.environ.get("OPENAI_API_KEY"):
            raise LabelingError(
                "REVIEWCLF_LLM__BACKEND=openai needs a server: set REVIEWCLF_LLM__BASE_URL (such as http://127.0.0.1:8000/v1), "
                "or OPENAI_API_KEY for the vendor itself"
            )
        self.server = options.base_url or "api.openai.com"
        # vLLM's own way; other servers may take it without a word and not do it.
        ladder = _LADDER[1:]
        self._modes = list(ladder if options.structured_output == "auto" else [options.structured_output, "none"])
        self._logprobs = options.answer == "probabilities"
        self._lock = threading.Lock()
        self._client: Any = None
        self._priors: dict[tuple[str, int], Floats | None] = {}

    def check(self) -> None:
        """Ask the server which models it has.

        Raises
        ------
        LabelingError, AnnotatorUnavailableError
            As the class says.
        """
        import openai

        try:
            listed = self.connect().with_options(max_retries=1, timeout=15.0).models.list().data
        except (openai.NotFoundError, openai.PermissionDeniedError):
            return  # some servers do not list their models; a wrong name then shows at the first question
        except openai.OpenAIError as error:
            raise self.explained(error) from error
        if self.options.structured_output == "auto" and any(model.owned_by == "vllm" for model in listed):
            with self._lock:
                self._modes = list(_LADDER)
        models = [model.id for model in listed]
        if models and self.options.model not in models:
            raise LabelingError(
                f"the server {self.server} has no model {self.options.model!r}; it has {', '.join(models[:10])}. "
                "Set REVIEWCLF_LLM__MODEL"
            )

    def ask(self, requests: Sequence[Request]) -> Iterator[Vote]:
        """Votes as they come back."""
        self.check()
        self._settle(requests[0].question)
        for question in {(r.question.name, r.question.draw): r.question for r in requests}.values():
            self._prior(question)
        waiting = iter(requests)
        with ThreadPoolExecutor(self.options.concurrency, thread_name_prefix="annotator") as pool:
            flying: set[Future[Vote]] = set()
            try:
                while True:
                    # Twice as many as run at once keeps every thread busy and no more than that in memory.
                    room = 2 * self.options.concurrency - len(flying)
                    flying.update(pool.submit(self._vote, request) for request in itertools.islice(waiting, room))
                    if not flying:
                        return
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
                # What is in flight was paid for.
                for future in flying:
                    future.cancel()

    def _settle(self, question: Question) -> None:
        """Find out how the server wants to be asked, without the patience that a busy one deserves."""
        import openai

        patient = self.connect()
        self._client = patient.with_options(max_retries=0)
        try:
            self._complete(question, CONTENT_FREE[0])
        except openai.OpenAIError as error:
            logger.debug("first question: %s", _brief(error))  # if it lasts, the next one will say so
        finally:
            self._client = patient

    # -- one request ---------------------------------------------------------------------------------------------------

    def _vote(self, request: Request) -> Vote:
        import openai

        try:
            reply = self._complete(request.question, request.text)
        except (openai.BadRequestError, openai.UnprocessableEntityError, openai.APIResponseValidationError) as error:
            # This one review is what the server cannot take; others may be fine.
            return self.vote(request, reason=f"the server refused it: {_brief(error)}")
        except openai.OpenAIError as error:
            raise self.explained(error) from error
        costs: dict[str, Any] = {
            "tokens_in": reply.tokens_in, "tokens_out": reply.tokens_out, "seconds": reply.seconds,
        }  # fmt: skip
        if reply.shares:
            return self.vote_by_probabilities(request, reply.shares, self._prior(request.question), min_mass=_MIN_MASS, **costs)
        return self.vote_by_text(request, reply.text, **costs)

    def _complete(self, question: Question, text: str) -> Reply:
        import openai

        while True:
            mode, logprobs = self._modes[0], self._logprobs
            try:
                return self._send(question, text, mode, logprobs=logprobs)
            except (openai.BadRequestError, openai.UnprocessableEntityError, openai.InternalServerError) as error:
                # Some servers answer 500 to a request that they do not understand.
                if isinstance(error, openai.InternalServerError) and not is_misunderstanding(error):
                    raise
                if not self._step_down(mode, logprobs, error):
                    raise

    def _step_down(self, mode: str, logprobs: bool, error: Exception) -> bool:
        """Give up what the server seems not to know; False when there is nothing left to give up, or it says it is the text."""
        about = str(error).casefold()
        if "context" in about and ("length" in about or "window" in about):
            return False
        with self._lock:
            if self._modes[0] != mode or self._logprobs != logprobs:
                return True  # another thread has done it
            if logprobs and "logprob" in about:
                self._logprobs = False
                logger.warning("%s gives no probabilities; answers are read as text, with confidence as stated", self.server)
                return True
            if len(self._modes) > 1:
                refused = self._modes.pop(0)
                logger.info("%s does not take structured output as %s; trying %s", self.server, refused, self._modes[0])
                return True
        return False

    def _send(self, question: Question, text: str, mode: str, *, logprobs: bool) -> Reply:
        arguments: dict[str, Any] = {}
        codes = list(question.labels)
        schema = {
            "type": "object",
            "properties": {"label": {"type": "string", "enum": codes}},
            "required": ["label"],
            "additionalProperties": False,
        }
        if mode == "choice":
            arguments["extra_body"] = {"structured_outputs": {"choice": codes}}
        elif mode == "json_schema":
            arguments["response_format"] = {
                "type": "json_schema", "json_schema": {"name": "category", "strict": True, "schema": schema},
            }  # fmt: skip
        elif mode == "json_object":
            arguments["extra_body"] = {"response_format": {"type": "json_object", "schema": schema}}
        if logprobs:
            arguments.update(logprobs=True, top_logprobs=_TOP)
        started = time.perf_counter()
        answer = self.connect().chat.completions.create(
            model=self.options.model,
            messages=[{"role": "system", "content": question.system}, {"role": "user", "content": question.user(text)}],
            temperature=0.0,
            max_tokens=_MAX_TOKENS[mode] if self.options.answer == "probabilities" or mode != "none" else _WRITTEN_TOKENS,
            **arguments,
        )
        seconds = time.perf_counter() - started
        choice = answer.choices[0] if answer.choices else None
        content = (choice.message.content or "") if choice is not None else ""
        shares = _code_shares(choice, content, question) if logprobs and choice is not None else None
        usage = answer.usage
        return Reply(
            text=content,
            shares=shares,
            tokens_in=int(usage.prompt_tokens or 0) if usage else 0,
            tokens_out=int(usage.completion_tokens or 0) if usage else 0,
            seconds=seconds,
        )

    def _prior(self, question: Question) -> Floats | None:
        """What the model answers to texts without content; None when not wanted or not to be had."""
        import openai

        if not self.options.calibrate or not self._logprobs:
            return None
        key = (question.name, question.draw)
        if key not in self._priors:
            try:
                replies = [self._complete(question, text) for text in CONTENT_FREE]
            except openai.OpenAIError as error:
                raise self.explained(error) from error
            shares = [[reply.shares.get(code, 0.0) for code in question.labels] for reply in replies if reply.shares]
            self._priors[key] = np.array(shares).mean(axis=0) if shares and np.sum(shares) > 0 else None
        return self._priors[key]

    # -- plumbing ------------------------------------------------------------------------------------------------------

    def connect(self) -> Any:
        """The client, made once."""
        import openai

        with self._lock:
            if self._client is None:
                self._client = openai.OpenAI(
                    base_url=self.options.base_url,
                    # Servers of one's own mostly want none, the client always does.
                    api_key=os.environ.get("OPENAI_API_KEY") or "none",
                    timeout=self.options.timeout_seconds,
                    max_retries=self.options.max_retries,
                )
            return self._client

    def explained(self, error: Exception) -> LabelingError:
        """What an error of the client means to people."""
        import openai

        if isinstance(error, openai.NotFoundError):
            return LabelingError(
                f"the server {self.server} does not know the model {self.options.model!r} or is no OpenAI-compatible server "
                f"({_brief(error)}); check REVIEWCLF_LLM__MODEL and REVIEWCLF_LLM__BASE_URL (it mostly ends in /v1)"
            )
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            return LabelingError(f"the server {self.server} refuses the key ({_brief(error)}); set OPENAI_API_KEY")
        status = getattr(error, "status_code", None)
        if isinstance(error, openai.APIConnectionError) or (status is not None and (status >= 500 or status in _BUSY)):
            return AnnotatorUnavailableError(
                f"the server {self.server} cannot be reached or is overloaded ({_brief(error)}); "
                "votes so far are kept, run the task again when it is back (REVIEWCLF_LLM__BASE_URL)"
            )
        return LabelingError(f"the server {self.server} refused the question: {_brief(error)}")


def _code_shares(choice: Any, content: str, question: Question) -> dict[str, float] | None:
    """Probabilities of the codes at the place of the answer where one was written; None where the server gives none."""
    tokens = getattr(choice.logprobs, "content", None) if choice.logprobs else None
    if not tokens:
        return None
    label = parse_answer(content, question).label
    code = next((code for code, name in question.labels.items() if name == label), None)
    place = 0
    if code is not None:
        place = next((i for i, token in enumerate(tokens) if _bare(token.token) == code), 0)
    elif content.lstrip().startswith("{"):
        return None  # cut off before the answer came
    options = tokens[place].top_logprobs or []
    if not options:
        return None
    listed = [(_bare(option.token), math.exp(min(option.logprob, 0.0))) for option in options]
    shares = dict.fromkeys(question.labels, 0.0)
    for found, share in listed:
        if found in shares:
            shares[found] += share
    # A code that is not listed is less likely than all that are, and shares what is left with the other unlisted ones: without
    # this the only listed code would count as certain.
    missing = [code for code, share in shares.items() if share == 0.0]
    left = max(0.0, 1.0 - sum(share for _, share in listed))
    for code in missing:
        shares[code] = min(min(share for _, share in listed), left / len(missing))
    return shares


def is_misunderstanding(error: Exception) -> bool:
    """Whether a server that answers 500 rather means that it does not know what the request asks for."""
    about = str(error).casefold()
    return any(word in about for word in ("response_format", "structured_outputs", "logprobs", "grammar", "validation error"))


def _bare(token: str) -> str:
    return token.strip(_STRIPPED).upper()


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
