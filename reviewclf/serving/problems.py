"""What is answered in place of predictions: one stable shape, ``{"error": {"code", "message", "request_id"}}``."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel


class ErrorBody(BaseModel):
    """What went wrong.

    Attributes
    ----------
    code : str
        For programs; stays the same when the message is reworded.
    message : str
        For people: what is wrong and what to do.
    request_id : str
        As in the header ``X-Request-ID`` and the log.
    """

    code: str
    message: str
    request_id: str


class ErrorResponse(BaseModel):
    """Body of every answer that is none."""

    error: ErrorBody


class Problem(Exception):  # noqa: N818 - an answer, often to a mistake of the client, and no fault of the server
    """Raised where a request ends without predictions.

    Parameters
    ----------
    status : int
        HTTP status.
    code, message : str
        See :class:`ErrorBody`.
    headers : mapping of str to str, optional
        Such as ``Retry-After``.
    """

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = dict(headers or {})


def unavailable(code: str, message: str, *, retry_after: float) -> Problem:
    """The answer 503 that says when to come again, in whole seconds."""
    return Problem(503, code, message, {"Retry-After": str(max(1, min(60, round(retry_after + 0.5))))})
