"""What a stage hands on: a small manifest of addresses, counts and digests. Data never travels in it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict, JsonValue


class Manifest(BaseModel):
    """The committed result of one stage.

    Attributes
    ----------
    stage : str
        Name of the stage, such as ``ingest``.
    digest : str
        Address of the result: a digest of the stage's version, inputs and parameters (32 hexadecimal characters).
    inputs : dict
        What it was made from: digests of manifests, files and settings, by name.
    outputs : dict
        Store keys (relative to the store's root) of what was written, by name; lists where there are several parts.
    counts : dict
        Rows in, out and left out, by name.
    details : dict
        Anything else worth showing: verdicts, metrics, addresses of pages. Small.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    digest: str
    inputs: dict[str, JsonValue] = {}
    outputs: dict[str, str | list[str]] = {}
    counts: dict[str, int] = {}
    details: dict[str, JsonValue] = {}

    def keys(self, name: str) -> list[str]:
        """Store keys of output `name` as a list; empty when the stage wrote none."""
        value = self.outputs.get(name, [])
        return [value] if isinstance(value, str) else list(value)


def digest_of(value: Any) -> str:
    """Digest of a JSON-like value: 32 hexadecimal characters of BLAKE2b over its canonical JSON form.

    Pydantic models are taken as their JSON form. The order of dictionary keys does not matter; that of lists does.
    """
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=_jsonable)
    return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()


def _jsonable(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return str(value)
