"""API keys: compared by their digests, in constant time, and kept nowhere else."""

from __future__ import annotations

import hashlib
import hmac
import re

from pydantic import SecretStr

from reviewclf.errors import SettingsError

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_MIN_LENGTH = 16


class ApiKeys:
    """The keys that may ask.

    Parameters
    ----------
    given : SecretStr or None
        Comma-separated, plain or as ``sha256:`` and the digest in hex; None: everybody may.

    Raises
    ------
    SettingsError
        One is too short or no digest; the message does not show it.
    """

    def __init__(self, given: SecretStr | None) -> None:
        self._digests: list[bytes] = []
        entries = [entry.strip() for entry in given.get_secret_value().split(",")] if given else []
        for place, entry in enumerate(filter(None, entries), 1):
            if entry.startswith("sha256:"):
                match = _DIGEST.fullmatch(entry.lower())
                if match is None:
                    raise SettingsError(f"REVIEWCLF_SERVING__API_KEYS: key {place} is no `sha256:` and 64 hex digits")
                self._digests.append(bytes.fromhex(match[1]))
                continue
            if len(entry) < _MIN_LENGTH:
                raise SettingsError(
                    f"REVIEWCLF_SERVING__API_KEYS: key {place} is shorter than {_MIN_LENGTH} characters; "
                    "make one with `openssl rand -hex 32`"
                )
            self._digests.append(_digest(entry))

    def __bool__(self) -> bool:
        """Whether keys are needed at all."""
        return bool(self._digests)

    def allow(self, key: str | None) -> bool:
        """Whether `key` is one of them. How long it takes tells nothing about which."""
        digest = _digest(key or "")
        found = False
        for known in self._digests:
            found |= hmac.compare_digest(digest, known)
        return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", errors="surrogatepass")).digest()
