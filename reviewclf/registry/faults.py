"""What MLflow's errors mean: whether they may pass by themselves, what was tried and where, and what to do."""

from __future__ import annotations

import contextlib
import re
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from typing import TypeVar
from urllib.parse import urlsplit

import mlflow
import requests
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from reviewclf.errors import RegistryError, RegistryUnavailableError, ReviewclfError
from reviewclf.outages import full_disk, is_away, is_short, space_hint
from reviewclf.registry import EXPERIMENT

T = TypeVar("T")

_MAX_SAID = 500
_PASSING_CODES = ("REQUEST_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "TEMPORARILY_UNAVAILABLE", "ABORTED")
# Databases report these with the same type of error as one that is away.
_DATABASE_REFUSES = re.compile(
    r"authentication failed|access denied|does not exist|unknown database|no such|readonly|read-only|unable to open|pg_hba",
    re.IGNORECASE,
)
_SCHEMES = "http://HOST:PORT, sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE"
# What to do, by what MLflow or a database says.
_HINTS = (
    (r"UNAUTHENTICATED|error code 401", "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"),
    (
        r"PERMISSION_DENIED|error code 403",
        "this account (MLFLOW_TRACKING_USERNAME) needs the right to edit the experiment and the registered model",
    ),
    (
        r"out-of-date database schema",
        f"it was written by another version of MLflow than {mlflow.__version__}, which is installed here: upgrade the older of "
        "the two",
    ),
    (r"file is not a database|disk image is malformed", "the file is damaged or of another kind: name another, or restore it"),
    (r"authentication failed|Access denied", "mend the user and the password in MLFLOW_TRACKING_URI"),
    (
        r"unsupported URI|maintenance mode|Databricks credential|Invalid url|No module named",
        f"set MLFLOW_TRACKING_URI to {_SCHEMES}",
    ),
    (
        r"ENDPOINT_NOT_FOUND|error code (?:404|30\d)|not in a valid JSON",
        "see that MLFLOW_TRACKING_URI is the address of an MLflow server",
    ),
)


def shown(tracking_uri: str) -> str:
    """The address without its password."""
    return re.sub(r"(://[^/@:\s]*):[^/\s]*@", r"\1:***@", tracking_uri)


def registry_error(error: BaseException, tracking_uri: str, doing: str) -> RegistryError:
    """The error to raise in place of one of MLflow's: what was tried, where, what was said, and what to do.

    Parameters
    ----------
    error : BaseException
        Of MLflow, or of the network, database or disk below it.
    tracking_uri : str
        Where; its password is not shown.
    doing : str
        What was tried, as in "did not open the experiment".

    Returns
    -------
    RegistryError
        A :class:`RegistryUnavailableError` where trying again later may help.
    """
    full = full_disk(error)
    if full is not None:
        said = f"{_shortened(str(full))}{_where(full)}{space_hint(full)}"
        return RegistryUnavailableError(f"MLflow at {shown(tracking_uri)} did not {doing}: {said}")
    said = _said(error)
    password = urlsplit(tracking_uri).password if "@" in tracking_uri else None
    if password:
        said = said.replace(password, "***")
    if may_pass(error):
        return RegistryUnavailableError(f"MLflow at {shown(tracking_uri)} did not {doing}: {_shortened(said)}")
    gone = re.search(r"experiment (\S+) must be in the 'active' state", said)
    if gone is not None:
        return deleted_experiment(tracking_uri, gone[1])
    hint = next((hint for words, hint in _HINTS if re.search(words, f"{getattr(error, 'error_code', '')} {said}")), "")
    return RegistryError(f"MLflow at {shown(tracking_uri)} did not {doing}: {_shortened(said)}{f'; {hint}' if hint else ''}")


@contextlib.contextmanager
def registry_errors(tracking_uri: str, doing: str) -> Iterator[None]:
    """Raise :func:`registry_error` in place of what MLflow, the network, a database or the disk raise in the block."""
    try:
        yield
    except ReviewclfError:
        raise
    except Exception as error:
        known = isinstance(error, MlflowException | OSError | SQLAlchemyError | ModuleNotFoundError)
        if not known and not is_away(error):
            raise
        raise registry_error(error, tracking_uri, doing) from error


def if_found(call: Callable[[], T]) -> T | None:
    """What MLflow answers; None where it says that what was asked for does not exist."""
    try:
        return call()
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def deleted_experiment(tracking_uri: str, experiment_id: str) -> RegistryError:
    """The error where somebody has deleted the experiment that all runs belong to: its name stays taken."""
    at = shown(tracking_uri)
    back = f"MLFLOW_TRACKING_URI={at} mlflow experiments restore --experiment-id {experiment_id}"
    gone = f"mlflow gc --backend-store-uri URI --experiment-ids {experiment_id}"
    return RegistryError(
        f"MLflow at {at}: the experiment {EXPERIMENT!r} (id {experiment_id}) was deleted. `{back}` brings its runs, models and "
        f"history back. To begin anew in place of that, remove it for good on the server's machine: `{gone}`"
    )


def may_pass(error: BaseException) -> bool:
    """Whether an error comes from a server that is away or overloaded, or from this machine being short of something.

    Parameters
    ----------
    error : BaseException
        Its causes are looked at too: MLflow wraps what the network and databases raise.
    """
    for found in _causes(error):
        if isinstance(found, SQLAlchemyError):
            kind = type(found).__name__
            gone = kind in ("OperationalError", "InterfaceError", "TimeoutError") and not _DATABASE_REFUSES.search(str(found))
            return gone or bool(getattr(found, "connection_invalidated", False))
        if isinstance(found, requests.exceptions.SSLError):
            return False
        if isinstance(found, requests.ConnectionError | requests.Timeout | requests.exceptions.RetryError) or is_away(found):
            return True
        if isinstance(found, MlflowException) and found.error_code in _PASSING_CODES and found.__cause__ is None:
            return True
    return is_short(error)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what led to it; MLflow raises some of its errors without naming their cause."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _said(error: BaseException) -> str:
    """The words of an error; of a database's only the driver's own, without pages of SQL."""
    database = next((found for found in _causes(error) if isinstance(found, SQLAlchemyError)), None)
    return str(getattr(database, "orig", None) or database or error) or repr(error)


def _shortened(said: str) -> str:
    return textwrap.shorten(said, _MAX_SAID, placeholder="...")


def _where(error: BaseException) -> str:
    """The other folder that a file may have found no space in: artifacts are made before they are stored."""
    if not isinstance(error, OSError) or tempfile.tempdir is None:
        return ""
    return f" (there, or in {tempfile.tempdir}, where files are made first; TMPDIR names another)"
