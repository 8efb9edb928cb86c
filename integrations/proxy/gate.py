"""What every request passes: outermost the note-taking, then for each endpoint the limits around its work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import parse_qsl

from .body import ClientGoneError, linger, read_body
from .errors import CLOSE, ProxyError, failure_of, late, overloaded
from .keys import Keys
from .limits import Admission, ClientBusyError, QueueFullError, QueueTimeoutError
from .logs import log_request, logger
from .metrics import Metrics
from .record import CURRENT, KEY, Record
from .settings import ProxySettings, is_loopback
from .tracing import request_span

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
# A caller that does not read gets this long to be told why its stream ends, seconds.
LAST_WORD_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Call:
    """A request that was let in.

    Attributes:
        headers: names in lower case.
        query: the parameters of the URL.
        body: as it came.
        record: notes about it.
    """

    headers: Mapping[str, str] = field(repr=False)
    query: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    record: Record


class Answer(Protocol):
    """Sends itself; starlette's responses do."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send it."""


@dataclass(slots=True)
class Door:
    """What decides who comes in.

    Attributes:
        draining: True once no more requests are taken.
    """

    settings: ProxySettings
    keys: Keys
    admission: Admission
    draining: bool = False

    def refuse_when_draining(self) -> None:
        """Raise 503 once the proxy is about to end."""
        if self.draining:
            refusal = overloaded("shutting_down", "the proxy is shutting down; try another one")
            refusal.headers |= CLOSE
            raise refusal

    def refuse_other_hosts(self, host: str) -> None:
        """Raise 403 for a name that is not this machine's, where nothing but the address keeps others out.

        A page on the web can have its own name lead to this machine, and would be let in by the browser.
        """
        settings = self.settings
        if settings.api_keys or settings.insecure:
            return
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        if not is_loopback(name.strip("[]")):
            raise ProxyError(
                403,
                "unknown_host",
                "expected the header 'Host: localhost' or a loopback address; set an API key to be called "
                "by other names",
            )


class Observed:
    """Gives each request a record and an id, logs, counts and traces it at its end."""

    def __init__(self, app: App, metrics: Metrics) -> None:
        """Put it around an app."""
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; no exception leaves this, as the server would log its text."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = headers_of(scope)
        record = scope[KEY] = Record.of(scope["method"], headers.get("x-request-id"))

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                own = (b"x-request-id", record.request_id.encode())
                message = {**message, "headers": [*message.get("headers", ()), own]}
            else:
                record.bytes_out += len(message.get("body", b""))
            began = time.monotonic()
            await send(message)
            record.sending_seconds += time.monotonic() - began

        token = CURRENT.set(record)
        try:
            with request_span(record, headers):
                try:
                    await self._answered(scope, receive, noted, record)
                finally:
                    record.close()
        finally:
            CURRENT.reset(token)
            self._metrics.add(record)
            log_request(record)

    async def _answered(self, scope: Scope, receive: Receive, send: Send, record: Record) -> None:
        try:
            await self._app(scope, receive, send)
        except ClientGoneError:
            pass
        except Exception as error:
            failure = failure_of(error)
            record.error = record.error or failure.code
            logger.error("%s", type(error).__name__, extra={"request": record})
            if not record.status:
                await send_error(send, failure)


class Gated:
    """One endpoint: checks the key and the limits, then does its work, unless the caller leaves."""

    def __init__(self, path: str, door: Door, work: Callable[[Call], Awaitable[Answer]]) -> None:
        """Make it.

        Args:
            path: as it is named in logs and metrics.
            door: who may come in.
            work: gives the answer to a call.
        """
        self._path = path
        self._door = door
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        record: Record = scope[KEY]
        record.endpoint = self._path
        limit = asyncio.timeout(self._door.settings.deadline_seconds)
        try:
            try:
                async with limit:
                    await self._serve(scope, receive, send, record)
            except TimeoutError:
                if not limit.expired():
                    raise
                raise late() from None
        except ClientGoneError:
            record.error = "client_gone"
        except asyncio.CancelledError:  # the time for shutting down is over
            record.error = "cancelled"
            raise
        except Exception as error:
            failure = _refusal(error)
            record.error = failure.code
            if failure.code == "internal_error":
                logger.error("%s", type(error).__name__, extra={"request": record})
            if record.streaming:
                await _last_word(send, failure)
            elif not record.status:
                await send_error(send, failure, receive if failure.unread else None)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, record: Record) -> None:
        door, settings = self._door, self._door.settings
        door.refuse_when_draining()
        headers = headers_of(scope)
        door.refuse_other_hosts(headers.get("host", ""))
        client = door.keys.caller(headers, (scope.get("client") or ("",))[0])
        # Before the body is read: whoever is refused costs next to nothing.
        door.admission.refuse_if_full(client)
        body = await read_body(
            receive, headers, most=settings.max_body_kib * 1024, seconds=settings.body_seconds
        )
        record.bytes_in = len(body)
        call = Call(headers, query_of(scope), body, record)

        async def work() -> None:
            began = time.monotonic()
            async with door.admission.turn(client):
                started = time.monotonic()
                record.queue_seconds = started - began
                try:
                    answer = await self._work(call)
                    await answer(scope, receive, send)
                finally:
                    waited = record.upstream_seconds + record.sending_seconds
                    record.guard_seconds = max(0.0, time.monotonic() - started - waited)

        await _unless_gone(work(), receive)


async def send_error(send: Send, failure: ProxyError, receive: Receive | None = None) -> None:
    """Send an error in the shape of OpenAI's.

    Args:
        send: of ASGI.
        failure: what to send.
        receive: given if the body was not read: then the answer is sent while it still comes.
    """
    body = failure.body
    headers = {"content-type": "application/json", "content-length": str(len(body)), **failure.headers}
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": failure.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body, "more_body": receive is not None})
    if receive is not None:
        await linger(receive)
        await send({"type": "http.response.body", "body": b""})


async def _last_word(send: Send, failure: ProxyError) -> None:
    """End a stream with an error event. All that came before was judged; no more comes."""
    try:
        async with asyncio.timeout(LAST_WORD_SECONDS):
            await send({"type": "http.response.body", "body": failure.event})
    except TimeoutError:  # the caller does not read; the server closes the connection
        pass


async def _unless_gone(work: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Do the work; stop it when the caller leaves.

    Raises:
        ClientGoneError: the caller left before the end.
        ProxyError: 500, the work was cancelled from within.
        BaseException: whatever the work raises.
    """
    task = asyncio.create_task(work)
    leaving = asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
    finally:
        both = [one for one in (task, leaving) if not one.done()]
        for one in both:
            one.cancel()
        if both:
            await asyncio.wait(both)
        if not task.cancelled():
            task.exception()  # looked at, even where nobody asks any more
    if task.cancelled():  # by itself: nobody has called this off
        raise ProxyError(500, "internal_error", "the proxy failed")
    await task


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _refusal(error: Exception) -> ProxyError:
    if isinstance(error, QueueFullError):
        return overloaded("overloaded", "too many requests wait for their turn; try again")
    if isinstance(error, QueueTimeoutError):
        return overloaded("overloaded", "the request waited too long for its turn; try again")
    if isinstance(error, ClientBusyError):
        return overloaded("client_busy", "you have too many requests at work; wait for one to end", 429)
    return failure_of(error)


def headers_of(scope: Scope) -> dict[str, str]:
    """Return the headers of a request, names in lower case; of several with one name the last."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def query_of(scope: Scope) -> dict[str, str]:
    """Return the parameters of the URL; of several with one name the last.

    Raises:
        ProxyError: 400, there are too many.
    """
    try:
        return dict(parse_qsl(scope.get("query_string", b"").decode("latin-1"), max_num_fields=16))
    except ValueError:
        raise ProxyError(400, "invalid_request", "expected at most 16 parameters in the URL") from None
