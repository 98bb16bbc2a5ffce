"""What errors of the official client mean, and what to tell people of them."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from reviewclf.errors import AnnotatorUnavailableError, LabelingError
from reviewclf.llm.problems import ChatProblem, Kind, problem_of
from reviewclf.settings import LLMSettings


def problem_of_error(error: Exception, options: LLMSettings) -> ChatProblem:
    """The problem behind an error that the client raised."""
    import openai

    if isinstance(error, openai.APIStatusError):
        return problem_of(error.status_code, _body(error), retry_after=_retry_after(error.response.headers))
    if isinstance(error, openai.APITimeoutError):
        hint = "a higher REVIEWCLF_LLM__TIMEOUT_SECONDS or a lower REVIEWCLF_LLM__CONCURRENCY"
        said = f"no answer within {options.timeout_seconds:g} s; a server that works but is slow needs {hint}"
        return ChatProblem(Kind.AWAY, said, is_timeout=True)
    reasons = _chain(error)
    said = next((str(reason) for reason in reversed(reasons) if str(reason)), type(error).__name__)
    if not isinstance(error, openai.APIConnectionError):
        # A key with letters that no header can hold, an address that is none.
        return ChatProblem(Kind.KEY if isinstance(error, UnicodeError) else Kind.ADDRESS, said)
    for reason in reasons:
        if isinstance(reason, ssl.SSLError) or type(reason).__name__ in ("UnsupportedProtocol", "TooManyRedirects"):
            return ChatProblem(Kind.ADDRESS, said)
        # Names without a dot are those of services beside this one, which have none while they are away.
        is_public = "." in (urlsplit(str(options.base_url)).hostname or "")
        if is_public and isinstance(reason, socket.gaierror) and reason.errno in _NO_NAME:
            return ChatProblem(Kind.ADDRESS, said)
    return ChatProblem(Kind.AWAY, said)


_NO_NAME = tuple(getattr(socket, name) for name in ("EAI_NONAME", "EAI_NODATA") if hasattr(socket, name))


def _chain(error: BaseException | None) -> list[BaseException]:
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain


def _body(error: Any) -> Any:
    """What the server said, whole: the client keeps a part of it."""
    text = str(error.response.text)
    try:
        return json.loads(text)
    except ValueError:
        return text or str(error)


def _retry_after(headers: Any) -> float | None:
    """Seconds that the server asks to wait; it may give them as a number or as a time of day."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        said = headers.get(name)
        with contextlib.suppress(TypeError, ValueError):
            return max(0.0, float(said) / unit)
        with contextlib.suppress(TypeError, ValueError):
            return max(0.0, (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds())
    return None


def explained(problem: ChatProblem, options: LLMSettings, server: str) -> LabelingError:
    """What a problem means to people, and the way out."""
    said = f"({problem.message})"
    address = "check REVIEWCLF_LLM__BASE_URL (it mostly ends in /v1)"
    more = f"raise REVIEWCLF_LLM__THINKING_TOKENS (now {options.thinking_tokens})"
    kind = Kind.MODEL if problem.kind is Kind.ADDRESS and problem.status == 404 else problem.kind
    if kind in (Kind.AWAY, Kind.FAILED):
        return AnnotatorUnavailableError(
            f"the server {server} cannot be reached or is overloaded {said}; "
            "votes so far are kept, run the task again when it is back (REVIEWCLF_LLM__BASE_URL)"
        )
    if kind is Kind.CUT:
        way_out = more if options.thinking == "off" else f"set REVIEWCLF_LLM__THINKING=off, or {more}"
        return LabelingError(f"the model {options.model} thinks before it answers {said}: {way_out}")
    what = {
        Kind.CREDIT: f"wants to be paid {said}; top up the account or raise its limit, then run the task again: "
        "votes so far are kept",
        Kind.KEY: f"refuses the key {said}; set OPENAI_API_KEY",
        Kind.MODEL: f"does not know the model {options.model!r} or is no OpenAI-compatible server {said}; "
        f"set REVIEWCLF_LLM__MODEL, or {address}",
        Kind.ADDRESS: f"is no OpenAI-compatible server {said}; {address}",
    }
    return LabelingError(f"the server {server} {what.get(kind, f'refused the question: {problem.message}')}")
