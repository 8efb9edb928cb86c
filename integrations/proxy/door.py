"""Who may come in: callers with a key, or from this machine; nobody once the proxy is about to end."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping

from .errors import ProxyError, shutting_down
from .limits import Admission
from .settings import ProxySettings, is_loopback


class Keys:
    """The keys that callers may show. Holds hashes only."""

    def __init__(self, keys: Iterable[str]) -> None:
        """Make it; without keys everybody may call."""
        self._hashes = tuple(_hash(key) for key in keys)

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


class Door:
    """What decides who comes in.

    Attributes:
        admission: who is at work and who waits.
        draining: True once no more requests are taken.
    """

    def __init__(self, settings: ProxySettings) -> None:
        """Make it; nobody is in."""
        self.admission = Admission(
            settings.max_concurrency, settings.max_queue, settings.queue_seconds, settings.per_client
        )
        self.draining = False
        self._keys = Keys(key.get_secret_value() for key in settings.api_keys)
        # Where nothing but the address keeps others out, names are looked at, too.
        self._any_host = bool(settings.api_keys) or settings.insecure

    def refuse_when_draining(self) -> None:
        """Raise 503 once the proxy is about to end."""
        if self.draining:
            raise shutting_down()

    def caller(self, headers: Mapping[str, str], address: str) -> str:
        """Return a name for who calls.

        Raises:
            ProxyError: 401, without a valid key; or 403, by a name that is not this machine's. A page on the
                web can have its own name lead to this machine, and would be let in by the browser.
        """
        host = headers.get("host", "").lower()
        name = host if host.endswith("]") else host.rsplit(":", 1)[0]
        if not self._any_host and not is_loopback(name.strip("[]")):
            raise ProxyError(
                403,
                "unknown_host",
                "expected the header 'Host: localhost' or a loopback address; set an API key to be called "
                "by other names",
            )
        return self._keys.caller(headers, address)


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
