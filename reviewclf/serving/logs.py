"""One JSON object a line. Reviews are not in it unless a setting says so, keys never are."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

from pydantic_core import to_json


class JsonFormatter(logging.Formatter):
    """Time, level, logger and message, then what the call gave as ``extra={"fields": {...}}``."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        content = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            content["exception"] = self.formatException(record.exc_info)
        try:
            return str(to_json(content, fallback=str), "utf-8")
        except ValueError:  # what is no text in UTF-8
            return json.dumps(content, ensure_ascii=True, default=str)


# All logs of a process go to standard output.
LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": JsonFormatter}},
    "handlers": {"out": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout", "formatter": "json"}},
    "root": {"handlers": ["out"], "level": "INFO"},
    "loggers": {
        # Its own handlers would write each line again, and it repeats each request.
        "uvicorn": {"handlers": [], "propagate": True},
        "uvicorn.access": {"handlers": [], "propagate": False},
        "mlflow": {"handlers": [], "propagate": True},
        "alembic": {"level": "WARNING"},
    },
}
