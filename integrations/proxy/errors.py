"""What goes wrong, as answers in the shape of OpenAI's errors. No message holds a user's text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx

from guardrail.errors import ConfigError, InputError, ModelError
from guardrail.threads import OverloadedError

from .limits import ClientBusyError, QueueFullError, QueueTimeoutError

RETRY_SECONDS = 1
CLOSE = {"connection": "close"}


class ProxyError(Exception):
    """A request that is answered with an error.

    Attributes:
        status: of the answer, 400 to 599.
        code: one word for programs.
        message: for people.
        headers: of the answer.
        unread: True if the body of the request was not read to its end.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        headers: Mapping[str, str] | None = None,
        *,
        unread: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = dict(headers or {})
        self.unread = unread

    @property
    def body(self) -> bytes:
        """The answer, as OpenAI's API words its errors."""
        return json.dumps({"error": self.to_dict()}).encode()

    @property
    def event(self) -> bytes:
        """The error as the last event of a stream; the blank line before it ends one that was cut off."""
        return b"\n\ndata: " + self.body + b"\n\n"

    def to_dict(self) -> dict[str, Any]:
        """Return what stands under "error"."""
        return {"message": self.message, "type": _kind(self.status), "param": None, "code": self.code}


def bad_request(message: str, code: str = "invalid_request") -> ProxyError:
    """Return the answer to a request that cannot be read."""
    return ProxyError(400, code, message)


def overloaded(code: str, message: str, status: int = 503) -> ProxyError:
    """Return the answer to a request that comes at a bad time."""
    return ProxyError(status, code, message, {"retry-after": str(RETRY_SECONDS)})


def shutting_down() -> ProxyError:
    """Return the answer to a request that comes, or is not done, when the proxy ends."""
    refusal = overloaded("shutting_down", "the proxy is shutting down; try again, or another one")
    refusal.headers |= CLOSE
    return refusal


def late() -> ProxyError:
    """Return the answer to a request that took too long."""
    return ProxyError(504, "deadline", "the request took longer than this proxy allows")


def failure_of(error: Exception) -> ProxyError:
    """Return the answer that an error comes to."""
    if isinstance(error, ProxyError):
        return error
    if isinstance(error, InputError | ConfigError):
        return bad_request(str(error))
    if isinstance(error, ClientBusyError):
        return overloaded("client_busy", "you have too many requests at work; wait for one to end", 429)
    if isinstance(error, QueueFullError | QueueTimeoutError | OverloadedError):
        return overloaded("overloaded", "too many requests wait for their turn; try again")
    if isinstance(error, ModelError) and error.stage == "llm":
        return ProxyError(502, "upstream_failed", "the upstream sent something that is no reply")
    if isinstance(error, ModelError):
        return ProxyError(500, "guard_failed", f"the guard failed ({error.stage}); nothing was let through")
    if isinstance(error, httpx.TimeoutException):
        return ProxyError(504, "upstream_timeout", "the upstream took too long")
    if isinstance(error, httpx.HTTPError | httpx.StreamError | httpx.InvalidURL):
        return ProxyError(502, "upstream_failed", f"the upstream failed ({type(error).__name__})")
    return ProxyError(500, "internal_error", "the proxy failed")


def _kind(status: int) -> str:
    if status == 401:
        return "authentication_error"
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"
