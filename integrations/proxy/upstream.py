"""The LLM's API behind the proxy: which headers go there and come back, and the time that it takes.

The transport is used without a client around it: a client would keep cookies of one caller for the next.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx

from ..openai_api.transport import AsyncGuardTransport
from .errors import ProxyError
from .record import CURRENT
from .settings import ProxySettings
from .tracing import trace_headers

if TYPE_CHECKING:
    from guardrail import Guardrail

# Nothing else of a request goes on: no cookies, no keys but the one for the upstream, no forwarded addresses.
# The type of the body is ours, like the body: in another character set it would be another text.
SENT = frozenset({"accept", "user-agent", "idempotency-key", "traceparent", "tracestate"})
SENT_PREFIXES = ("openai-", "x-stainless-")
# Nothing else of an answer comes back: no cookies, no places elsewhere, nothing about the connection.
RETURNED = frozenset({b"content-type", b"retry-after", b"retry-after-ms", b"x-should-retry"})
RETURNED_PREFIXES = (b"x-guardrail-", b"x-ratelimit-", b"openai-")
MOST_REPLY_BYTES = 32 * 1024**2
STREAM = "text/event-stream"


class Upstream:
    """Sends requests on, guarded or as they are."""

    def __init__(
        self, guard: Guardrail, settings: ProxySettings, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        """Make it.

        Args:
            guard: judges what is sent and what comes back.
            settings: where, with which key, how long.
            transport: in place of the network, e.g. an `httpx.ASGITransport`.
        """
        self._settings = settings
        limits = httpx.Limits(
            max_connections=settings.max_concurrency + 1,  # one for /readyz
            max_keepalive_connections=settings.max_concurrency + 1,
        )
        self._plain = _Timed(transport or httpx.AsyncHTTPTransport(limits=limits, trust_env=False))
        self._guarded = AsyncGuardTransport(guard, self._plain, owns_inner=False, library=httpx)
        seconds = settings.deadline_seconds
        self._timeout = httpx.Timeout(seconds, connect=settings.connect_seconds).as_dict()

    async def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> httpx.Response:
        """Send a request through the guard.

        Args:
            path: under the upstream's base URL.
            body: JSON.
            headers: of the caller.

        Raises:
            httpx.HTTPError: the upstream failed.
            ProxyError: 502, it redirects, or refuses the proxy's own key.
            ModelError: the guard failed and `on_error` is "raise".
        """
        found: httpx.Response = await self._guarded.handle_async_request(
            self._request("POST", path, headers, body)
        )
        return await self._accepted(found)

    async def get(self, path: str, headers: Mapping[str, str]) -> httpx.Response:
        """Send a request as it is.

        Raises:
            httpx.HTTPError: the upstream failed.
            ProxyError: 502, it redirects, or refuses the proxy's own key.
        """
        found = await self._plain.handle_async_request(self._request("GET", path, headers))
        return await self._accepted(found)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._guarded.aclose()
        await self._plain.aclose()

    async def _accepted(self, response: httpx.Response) -> httpx.Response:
        status, refusal = response.status_code, None
        if 300 <= status < 400:
            refusal = ProxyError(502, "upstream_redirect", "the upstream redirects; set its final URL")
        elif status == 401 and self._settings.upstream_key is not None:
            # Its words are about a key that is none of the caller's, and may quote it.
            refusal = ProxyError(502, "upstream_key", "the upstream refuses the key that this proxy shows it")
        if refusal is not None:
            await response.aclose()
            raise refusal
        return response

    def _request(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> httpx.Request:
        return httpx.Request(
            method,
            self._settings.upstream + path,
            headers=self._headers(headers),
            content=body,
            extensions={"timeout": self._timeout},
        )

    def _headers(self, given: Mapping[str, str]) -> dict[str, str]:
        sent = {
            name: value for name, value in given.items() if name in SENT or name.startswith(SENT_PREFIXES)
        }
        key = self._settings.upstream_key
        if key is not None:
            sent["authorization"] = f"Bearer {key.get_secret_value()}"
        elif not self._settings.api_keys and "authorization" in given:
            # Where the proxy asks for a key that is what stands here, and the upstream must not learn it.
            sent["authorization"] = given["authorization"]
        sent |= {"accept-encoding": "identity", "content-type": "application/json"}
        return sent | trace_headers()


def returned_headers(response: httpx.Response) -> list[tuple[bytes, bytes]]:
    """Return the headers of an answer that the caller may see, in lower case."""
    found = [(name.lower(), value) for name, value in response.headers.raw]
    return [(name, value) for name, value in found if name in RETURNED or name.startswith(RETURNED_PREFIXES)]


async def read_whole(response: httpx.Response) -> bytes:
    """Return an answer that is no stream.

    Raises:
        ProxyError: 502, it is longer than any answer should be.
        httpx.HTTPError: the upstream failed.
    """
    parts: list[bytes] = []
    size = 0
    async for part in response.aiter_bytes():
        parts.append(part)
        size += len(part)
        if size > MOST_REPLY_BYTES:
            raise ProxyError(
                502, "upstream_too_long", f"the upstream sent more than {MOST_REPLY_BYTES} bytes"
            )
    return b"".join(parts)


class _Timed(httpx.AsyncBaseTransport):
    """Notes how long the upstream is waited for in the record of the request at hand."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        with _noted():
            response = await self._inner.handle_async_request(request)
        record = CURRENT.get()
        if record is not None:
            record.upstream_status = response.status_code
        assert isinstance(response.stream, httpx.AsyncByteStream)
        return httpx.Response(
            response.status_code,
            headers=response.headers,
            stream=_TimedStream(response.stream),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        await self._inner.aclose()


class _TimedStream(httpx.AsyncByteStream):
    def __init__(self, inner: httpx.AsyncByteStream) -> None:
        self._inner = inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        parts = aiter(self._inner)
        while True:
            with _noted():
                try:
                    part = await anext(parts)
                except StopAsyncIteration:
                    return
            yield part

    async def aclose(self) -> None:
        await self._inner.aclose()


@contextmanager
def _noted() -> Iterator[None]:
    started = time.monotonic()
    try:
        yield
    finally:
        record = CURRENT.get()
        if record is not None:
            record.upstream_seconds += time.monotonic() - started
