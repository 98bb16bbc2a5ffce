"""What goes wrong with a chat server, told apart by what helps: waiting, paying, another setting, or another review."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Any
from urllib.parse import urlsplit

from reviewclf.errors import AnnotatorUnavailableError, LabelingError
from reviewclf.settings import LLMSettings


class Kind(Enum):
    """What helps against a problem."""

    AWAY = "waiting: the server cannot be reached, is overloaded or limits the rate"
    FAILED = "waiting, unless one review provokes it: an internal error, a reply without an answer"
    CREDIT = "paying"
    KEY = "another key"
    ADDRESS = "another address"
    MODEL = "another name of the model"
    FILTERED = "nothing: the text itself is refused"
    TOO_LONG = "nothing: the text is longer than the model reads"
    CUT = "more room for thoughts, or none"
    REFUSED = "asking in another way, unless one review provokes it"


class ChatProblem(Exception):  # noqa: N818 - some are no errors but answers of a kind
    """A request that brought no answer.

    Attributes
    ----------
    kind : Kind
        What helps.
    message : str
        What the server said.
    about : str
        What it said with parameter and code, folded, to look for names in.
    param : str
        The parameter that it complains of, where it names one.
    status : int or None
        Of HTTP, or the one that stands in the body.
    retry_after : float or None
        Seconds that it asks to wait.
    is_timeout : bool
        There was no answer in time.
    """

    def __init__(
        self,
        kind: Kind,
        message: str,
        *,
        param: str = "",
        code: str = "",
        status: int | None = None,
        retry_after: float | None = None,
        is_timeout: bool = False,
    ) -> None:
        self.kind = kind
        self.message = " ".join(message.split())[:300]
        self.param = param.casefold()
        self.about = f"{param} {code} {message}".casefold()
        self.status = status
        self.retry_after = retry_after
        self.is_timeout = is_timeout
        super().__init__(self.message)


_BUSY = (408, 409, 425, 429, 498, 502, 503, 504, 520, 521, 522, 523, 524, 529)

_CREDIT = re.compile(
    r"insufficient.{0,3}(?:quota|balance|funds?|credits?)|exceeded.{0,9}current.{0,3}quota|billing|payment|prepaid"
    r"|(?:out of|not enough|no|available|used all.{0,20}|purchase|add|more) credits?\b"
    r"|credits?.{0,20}(?:exhaust|too low|deplet)|key limit exceeded"
    r"|\bbalance\b.{0,30}(?:low|insufficient|exhaust|negative|not enough)|spending limit|hard.?limit|arrear|top up|余额不足"
    r"|недостаточно средств|пополните|закончил\w* (?:токены|средства|баланс|лимит)",
    re.IGNORECASE,
)
_SURE_CREDIT = re.compile(r"insufficient_quota|insufficient.balance|billing_(?:hard_limit|not_active)", re.IGNORECASE)
_WAIT = re.compile(r"(?:retry|try again)\D{0,20}(?P<count>\d+(?:\.\d+)?)\s*(?P<unit>ms|m(?:in)?|s|h)?", re.IGNORECASE)
_RATE = re.compile(
    r"rate.?limit|too many requests|per (?:minute|second|day)|requests? limit|overload|capacity|throttl|temporar"
    r"|try again later|timed? ?out|unavailable|connection|network|upstream|provider returned|loading|warming|busy"
    r"|internal.{0,3}server|server_error",
    re.IGNORECASE,
)
_FILTER = re.compile(
    r"content.?filter|content.?policy|content.?management|responsible.?ai|data_?inspection|inappropriate content|moderation"
    r"|flagged|content exists risk|usage policy|usage policies|invalid_prompt|prohibited_content"
    r"|sensitive (?:content|words|topic)|safety|unsafe|guardrail|blacklist|этическ|чувствительн",
    re.IGNORECASE,
)
_LONG = re.compile(
    r"context.{0,20}(?:length|window|size)|(?:length|window|size).{0,20}context|n_ctx|reduce the length|prompt is too long"
    r"|(?:prompt|input|messages?|request|text)\b.{0,30}(?:too (?:long|large|many tokens)"
    r"|exceeds?.{0,60}(?:token|length|character))"
    r"|too many (?:input )?tokens"
    r"|maximum (?:number of )?(?:input )?tokens.{0,40}(?:input|prompt)|string_above_max_length",
    re.IGNORECASE,
)
_NO_ROOM = re.compile(r"max_tokens or model output limit was reached|higher max_(?:completion_)?tokens", re.IGNORECASE)
_MODEL = re.compile(
    r"model.{0,80}(?:not (?:found|exist|available|loaded)|is unknown)|model_not_found|no models? loaded"
    r"|(?:unknown|invalid|no such|not a valid|incorrect) model\b|model_not_exist|модел\w+ .{0,60}не найден",
    re.IGNORECASE,
)
_KEY = re.compile(r"(?:api|auth\w*|access).{0,10}(?:key|token)|unauthori[sz]ed|authenticat|credential|forbidden", re.IGNORECASE)


_WRONG_KEY = re.compile(
    r"api.?key.{0,20}(?:not valid|invalid|incorrect|expired|missing|not found)|(?:invalid|incorrect|expired|missing) api.?key"
    r"|(?:invalid|incorrect|expired)_api_key",
    re.IGNORECASE,
)


def problem_of(status: int | None, body: Any, *, retry_after: float | None = None) -> ChatProblem:
    """The problem that an error's status and body tell of.

    Parameters
    ----------
    status : int or None
        Of HTTP; None where the body came with 200 and names none.
    body : any
        What the server said: an error's dict (`message`, `code`, `type`, `param`), or any other JSON or text.
    retry_after : float, optional
        Seconds of the header ``Retry-After``.
    """
    message, code, param = _said(body)
    about = f"{code} {message}"
    if retry_after is None and (hint := _WAIT.search(message)):
        retry_after = float(hint["count"]) * {"ms": 0.001, "m": 60, "min": 60, "h": 3600}.get(str(hint["unit"]).casefold(), 1)
    kind = _kind(status, about, param, waits=retry_after is not None)
    return ChatProblem(kind, message or f"status {status}", param=param, code=code, status=status, retry_after=retry_after)


def _kind(status: int | None, about: str, param: str, *, waits: bool) -> Kind:  # noqa: C901 - a table, in order
    page = "<html" in about.casefold() or "<!doctype" in about.casefold()
    # A limit of requests a minute speaks of plans and billing too; it says how long to wait, a spent account does not.
    if status == 402 or _SURE_CREDIT.search(about) or (not waits and not page and _CREDIT.search(about)):
        return Kind.CREDIT
    if status in _BUSY:
        return Kind.AWAY
    if status == 401 or (status == 400 and _WRONG_KEY.search(about)):
        return Kind.KEY
    if not page and status != 404 and _NO_ROOM.search(about):
        return Kind.CUT
    if not page and status != 404 and _LONG.search(about):
        return Kind.TOO_LONG
    if not page and status != 404 and _FILTER.search(about):
        return Kind.FILTERED
    if status == 403:
        return Kind.KEY
    if status == 404 and re.search(r"endpoints? found.{0,60}(?:parameter|support)", about, re.IGNORECASE):
        return Kind.REFUSED
    if status != 500 and not page and (param.casefold() == "model" or _MODEL.search(about)):
        return Kind.MODEL
    if status is not None and (status < 400 or status in (404, 405, 410) or (page and status == 400)):
        return Kind.ADDRESS
    if status is not None and status >= 500 and status != 501:
        return Kind.FAILED
    if status is not None:
        return Kind.REFUSED
    if _KEY.search(about) and not _RATE.search(about):
        return Kind.KEY
    return Kind.AWAY if _RATE.search(about) else Kind.FAILED


def problem_in(body: Any) -> ChatProblem | None:
    """The error that came inside the body of a reply with status 200; None where there is none."""
    if not isinstance(body, Mapping):
        return None
    error = body.get("error")
    if not error:
        base = body.get("base_resp")
        if isinstance(base, Mapping) and base.get("status_code"):
            error = {"message": base.get("status_msg"), "code": base["status_code"]}
        elif body.get("object") == "error" or (
            not body.get("choices") and any(body.get(name) and isinstance(body[name], str | list) for name in _MESSAGES)
        ):
            error = body
    if not error:
        return None
    return problem_of(status_in(error), error)


_MESSAGES = ("message", "detail", "error_msg", "error_message", "errorMessage", "msg", "errors")


def status_in(error: Any) -> int | None:
    """The status of HTTP that stands in an error's body."""
    if not isinstance(error, Mapping):
        return None
    for name in ("code", "status", "status_code", "http_status"):
        value = error.get(name)
        if isinstance(value, str) and value.isdecimal():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            if 400 <= value <= 599:
                return value
            if 40000 <= value <= 59999:  # 40001 and the like: the status, then a number of the server's own
                return value // 100
    return None


def _said(body: Any) -> tuple[str, str, str]:
    """Message, codes and parameter."""
    if isinstance(body, list) and len(body) == 1:
        body = body[0]
    if isinstance(body, Mapping) and isinstance(body.get("error"), Mapping | str):
        body = body["error"]
    if not isinstance(body, Mapping):
        return (body if isinstance(body, str) else _json(body)), "", ""
    message = next((body[name] for name in _MESSAGES if body.get(name)), None)
    codes = " ".join(str(body[name]) for name in ("code", "type", "status") if body.get(name) is not None)
    more = [_json(body[name]) for name in ("metadata", "details") if body.get(name)]
    text = message if isinstance(message, str) else _json(body if message is None else message)
    # A gateway passes on what the server behind it said beside its own words, Google how long to wait.
    return " ".join([text, *more]), codes, str(body.get("param") or "")


def _json(value: Any) -> str:
    return "" if value is None else json.dumps(value, ensure_ascii=False, default=str)


# -- errors of the official client, and what to tell people ---------------------------------------------------------------


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
