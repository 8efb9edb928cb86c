"""What every request passes: outermost the note-taking, then for each endpoint the limits around its work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import parse_qsl

from .body import ClientGoneError, linger, read_body
from .door import Door
from .errors import CLOSE, ProxyError, failure_of, late, shutting_down
from .logs import log_request, logger
from .metrics import Metrics
from .record import CURRENT, KEY, Record
from .settings import ProxySettings
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
        model: the name in the URL, if the endpoint has one; else "".
        headers: names in lower case.
        query: the parameters of the URL.
        body: as it came.
        record: notes about it.
    """

    model: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    query: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    record: Record


class Answer(Protocol):
    """Sends itself; starlette's responses do."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send it."""


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
                    await self._answered(scope, receive, noted, headers)
                finally:
                    record.close()
        finally:
            CURRENT.reset(token)
            self._metrics.add(record)
            log_request(record)

    async def _answered(self, scope: Scope, receive: Receive, send: Send, headers: Mapping[str, str]) -> None:
        record: Record = scope[KEY]
        try:
            if "transfer-encoding" in headers and "content-length" in headers:
                # A server in front of this one may go by the other of the two, and take the rest of this
                # body for the next caller's request.
                record.error = "two_lengths"
                refusal = ProxyError(400, record.error, "expected one length of the body, got two", CLOSE)
                await send_error(send, refusal)
            else:
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

    def __init__(
        self, path: str, door: Door, settings: ProxySettings, work: Callable[[Call], Awaitable[Answer]]
    ) -> None:
        """Make it.

        Args:
            path: as it is named in logs and metrics.
            door: who may come in.
            settings: how much a request may take.
            work: gives the answer to a call.
        """
        self._path = path
        self._door = door
        self._settings = settings
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        record: Record = scope[KEY]
        record.endpoint = self._path
        limit = asyncio.timeout(self._settings.deadline_seconds)
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
        except asyncio.CancelledError:
            if not self._door.draining:
                record.error = "cancelled"
                raise
            # The server's way to say that the time for shutting down is over.
            await self._refused(shutting_down(), record, receive, send)
        except Exception as error:
            failure = failure_of(error)
            if failure.code == "internal_error":
                logger.error("%s", type(error).__name__, extra={"request": record})
            await self._refused(failure, record, receive, send)

    async def _refused(self, failure: ProxyError, record: Record, receive: Receive, send: Send) -> None:
        record.error = failure.code
        if record.streaming:
            await _last_word(send, failure)
        elif not record.status:
            await send_error(send, failure, receive if failure.unread else None)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, record: Record) -> None:
        door, settings = self._door, self._settings
        door.refuse_when_draining()
        headers = headers_of(scope)
        client = door.caller(headers, (scope.get("client") or ("",))[0])
        # Before the body is read: whoever is refused costs next to nothing.
        door.admission.refuse_if_full(client)
        body = await read_body(
            receive, headers, most=settings.max_body_kib * 1024, seconds=settings.body_seconds
        )
        door.refuse_when_draining()  # nobody waits for what had not come in by then
        record.bytes_in = len(body)
        model = scope.get("path_params", {}).get("model", "")
        call = Call(model, headers, query_of(scope), body, record)

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
