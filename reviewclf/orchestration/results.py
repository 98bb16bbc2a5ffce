"""What tasks have handed on, as Airflow keeps it (XCom)."""

from __future__ import annotations

import json
from typing import Any


def read_result(value: Any) -> Any:
    """A result from its row, or None. Read as JSON: what a task wrote must not decide which classes are made here."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return None
