"""Logs that say what the stages have to say, and not what the libraries below them do."""

from __future__ import annotations

import logging
import os

# They log every metric and migration step at INFO, which would bury what a stage has to say.
_CHATTY_LOGGERS = (
    "alembic",
    "fsspec",
    "great_expectations",
    "httpx",
    "httpx2",
    "matplotlib",
    "mlflow",
    "openai",
    "s3fs",
    "urllib3",
)


def quieten_libraries() -> None:
    """Let libraries log warnings and errors only."""
    # MLflow sets its loggers' level when it is first imported.
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    for name in _CHATTY_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
