"""Whether a server is away for the moment, which passes by itself, or refuses for good; whether a disk is full."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator

from reviewclf.errors import SourceUnavailableError

_PASSING_STATUS = 429
_SERVER_ERRORS = 500
_PASSING_NUMBERS = {errno.EREMOTEIO} if hasattr(errno, "EREMOTEIO") else set()

# This machine has too little of something for the moment: open files, memory, processes.
_SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)

# No space, over quota, over the size that the system allows; SQLite has words of its own, and so has Python where no folder
# takes a temporary file. Servers hand on the words alone.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_WORDS = (*(os.strerror(number) for number in _FULL), "database or disk is full", "No usable temporary directory")


def full_disk(error: BaseException | None) -> BaseException | None:
    """What says that there is no space left, here or on a server: the error, or the innermost of its causes; None: nothing."""
    found = None
    while error is not None:
        if getattr(error, "errno", None) in _FULL or any(words in str(error) for words in _FULL_WORDS):
            found = error
        error = error.__cause__
    return found


def is_full(error: BaseException) -> bool:
    """Whether an error says, or was caused by one that says, that there is no space left for what was to be written."""
    return full_disk(error) is not None


def is_short(error: BaseException | None) -> bool:
    """Whether an error, or what led to it, says that this machine lacks memory or open files, which passes by itself."""
    while error is not None:
        if isinstance(error, MemoryError) or getattr(error, "errno", None) in _SHORT:
            return True
        error = error.__cause__ or error.__context__
    return False


def space_hint(error: BaseException) -> str:
    """What to do about a full disk, to be put behind the error's own words; empty for other errors."""
    return ": free some space, then run this stage again" if is_full(error) else ""


def is_away(error: BaseException | None) -> bool:
    """Whether an error of a file system, or what caused it, says that its server does not answer or is overloaded.

    Parameters
    ----------
    error : BaseException or None
        From fsspec, s3fs, botocore or a socket. Errors of botocore are no :class:`OSError`.
    """
    while error is not None:
        if isinstance(error, ConnectionError | TimeoutError) or getattr(error, "errno", None) in _PASSING_NUMBERS:
            return True
        # No import: where botocore was not loaded, no error is one of its.
        botocore = sys.modules.get("botocore.exceptions")
        if botocore is not None and isinstance(error, botocore.ConnectionError | botocore.HTTPClientError):
            return True
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            if status == _PASSING_STATUS or status >= _SERVER_ERRORS:
                return True
        error = error.__cause__
    return False


@contextlib.contextmanager
def reading(uri: str) -> Iterator[None]:
    """Tell a server that is away from data that cannot be read, whatever the block made of the error.

    Raises
    ------
    SourceUnavailableError
        The server that holds `uri` does not answer.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, SourceUnavailableError) or not is_away(error):
            raise
        raise SourceUnavailableError(f"{uri}: its server is away: {error.__cause__ or error}") from error
