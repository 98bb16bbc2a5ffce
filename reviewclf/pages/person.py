"""Who looks at a page."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Person:
    """Who is asking, and what they may do."""

    name: str
    may_promote: bool
    may_roll_back: bool
