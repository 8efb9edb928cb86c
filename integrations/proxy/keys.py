"""Who calls: the API key, compared in constant time, and a name for each caller that is not the key."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping

from .errors import ProxyError


class Keys:
    """The keys that callers may show. Holds hashes only."""

    def __init__(self, keys: Iterable[str]) -> None:
        """Make it; without keys everybody may call."""
        self._hashes = tuple(_hash(key) for key in keys)

    @property
    def asked_for(self) -> bool:
        """True if callers must show a key."""
        return bool(self._hashes)

    def caller(self, headers: Mapping[str, str], address: str) -> str:
        """Return a name for who calls: by key where keys are asked for, else by address.

        Raises:
            ProxyError: 401, the key is missing or unknown.
        """
        if not self._hashes:
            return address
        scheme, _, shown = headers.get("authorization", "").partition(" ")
        found = _hash(shown.strip())
        # Every hash is compared whatever the others gave: the time tells nothing.
        same = [hmac.compare_digest(found, known) for known in self._hashes]
        if scheme.lower() != "bearer" or not any(same):
            raise ProxyError(
                401,
                "invalid_api_key",
                "expected a valid API key in the header 'Authorization: Bearer ...'",
                {"www-authenticate": "Bearer"},
            )
        return found.hex()


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
