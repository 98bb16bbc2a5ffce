"""Ids as sources write them: which are ids, and what stands for those that are none."""

from __future__ import annotations

import hashlib
import re
from typing import Any

# What programs write where they hold nothing.
_NOTHING = frozenset(
    {"", "nan", "none", "null", "nil", "<na>", "nat", "n/a", "#n/a", "na", "#знач!", "#н/д", r"\n", "-nan", "undefined"}
)
# Excel shows long numbers as 1,23457E+17 and forgets the other digits.
_SPOILT = re.compile(r"[-+]?(?:\d[.,]\d+e[+]?\d+|\de[+]\d+)", re.IGNORECASE)
# pandas holds integers as floats where a column has gaps.
_WHOLE = re.compile(r"(\d+)\.0+")
# Above it a float stands for several integers.
_EXACT = 2.0**53


def read_id(value: Any) -> str | None:
    """The source's id as text; None where the source wrote none, or one that has lost its digits.

    ``1001.0`` is 1001, which pandas wrote as a float because other rows lack their id.
    """
    value = value.item() if hasattr(value, "item") and hasattr(value, "dtype") else value
    if value is None or value != value:
        return None
    if isinstance(value, float):
        if not value.is_integer():
            return str(value)
        return str(int(value)) if abs(value) < _EXACT else None
    text = (_written(value) if isinstance(value, bytes) else str(value)).strip()
    if text.casefold() in _NOTHING or _SPOILT.fullmatch(text):
        return None
    whole = _WHOLE.fullmatch(text)
    return whole[1] if whole else text


def _written(value: bytes) -> str:
    """Bytes as the text that they are, else, as those of a UUID, in hexadecimal digits."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return value.hex()
    return text if text.isprintable() else value.hex()


def made_id(source: str, content: str) -> str:
    """Id of a row that has no usable one: the digest of its source and `content`, its text where nothing else is known."""
    return hashlib.blake2b(f"{source}\x00{content}".encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
