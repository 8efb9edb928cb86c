"""The guard as an HTTP transport: put it under any httpx client that talks to an OpenAI-compatible API.

`POST .../chat/completions` and `POST .../responses` are guarded, whole and streaming. A few endpoints that
return no generated conversation pass untouched (models, embeddings, moderations, ...; see `endpoints`).
Every other one is refused with a 400 that says so: what is not understood is not let through.

    inner = httpx.AsyncClient(base_url=..., headers=...)
    transport = AsyncGuardTransport(guard, inner)
    response = await transport.handle_async_request(httpx.Request("POST", url, headers=..., json=body))
    async for piece in response.aiter_bytes(): ...
    await response.aclose()      # closes the upstream too, at any time
    response.extensions["guardrail"].replies   # GuardedReply of each choice, once all was read

What comes back is always the library's `Response`:
- 200: JSON, or `text/event-stream`; headers `x-guardrail-action`, `x-guardrail-probability`,
  `x-guardrail-rules` (about the user's turn; ids joined by commas), and for whole replies
  `x-guardrail-strategy` and `x-guardrail-reply-action`.
- 400: the request cannot be read or is refused; `{"error": {"message", "type": "invalid_request_error",
  "param", "code"}}`.
- 502: the upstream answered the first call with something that is no reply; `"type": "upstream_error"`.
- any status of the upstream's first answer that is no success, with its body, unless words in that are
  unfit (some upstreams quote a draft in their error).
Headers of the upstream come with it, but those that hold words, or lead to another place.
Exceptions: those of httpx of the first call; `ModelError` with `on_error="raise"`. While a stream is read:
the library's `RemoteProtocolError` if the upstream's stream broke off, and the same as above. A failure that
the upstream tells of in its stream is told on, as an event.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from guardrail.calling import acall_within, call_within
from guardrail.session import OnIntervention, checked_intervention
from guardrail.stream_drivers import AsyncGuardedStream, GuardedStream
from guardrail.words import is_name

from .codec import Codec
from .endpoints import Endpoint, endpoint
from .exchange import Exchange, StreamExchange, WholeExchange, read_request
from .facts import Guarded, verdict_headers
from .http import (
    UpstreamRefusedError,
    is_success,
    json_response,
    kept_headers,
    library_of,
    stream_class,
    upstream_request,
)
from .upstream import AsyncBody, AsyncItems, SyncBody, SyncItems, aread, read
from .wire import MOST_BYTES, RequestError, UpstreamError, dumps, error_body

if TYPE_CHECKING:
    from guardrail import Guardrail


class _Transport:
    """What the sync and the async transport have in common."""

    def __init__(
        self,
        guard: Guardrail,
        inner: Any,
        *,
        on_intervention: OnIntervention | None = None,
        owns_inner: bool = True,
        library: ModuleType | None = None,
    ) -> None:
        """Make it.

        Args:
            guard: the guard.
            inner: client, or transport, that sends the requests.
            on_intervention: None takes the guard's setting.
            owns_inner: close `inner` with this.
            library: `httpx` or `httpx2`; None takes the one that `inner` is from.

        Raises:
            InputError: `inner` is neither a client nor a transport.
            ConfigError: `on_intervention` is none of its forms.
        """
        self._guard = guard
        self._inner = inner
        self._on_intervention = checked_intervention(on_intervention or guard.config.on_intervention)
        self._owns_inner = owns_inner
        self._library: Any = library or library_of(inner)

    def _exchange(self, place: Endpoint, data: bytes) -> WholeExchange | StreamExchange:
        """Return what is to be done for a request to a guarded endpoint.

        Raises:
            RequestError: it cannot be read, or asks for what cannot be guarded.
        """
        if len(data) > MOST_BYTES:
            raise RequestError(f"expected a request of at most {MOST_BYTES} bytes, got a longer one")
        codec: Codec = read_request(place, data)
        kind = StreamExchange if codec.streaming else WholeExchange
        return kind(self._guard, codec, self._on_intervention)

    def _request(self, request: Any, body: dict[str, Any], *, again: bool) -> Any:
        return upstream_request(self._library, request, dumps(body), again=again)

    def _answer(self, exchange: WholeExchange, upstream: Any) -> Any:
        body, headers = exchange.answer()
        verdict = exchange.session.verdict_in
        guarded = Guarded(verdict, streaming=False, replies=exchange.replies)
        told = {**verdict_headers(verdict), **headers}
        return json_response(
            self._library, 200, body, [*kept_headers(upstream), *told.items()], {"guardrail": guarded}
        )

    def _refusal(self, error: RequestError) -> Any:
        body = dumps(error_body(str(error), "invalid_request_error", error.param, error.code))
        return json_response(self._library, 400, body, [])

    def _failure(self, exchange: Exchange, error: UpstreamError | UpstreamRefusedError) -> Any:
        """Return what is told if the first call failed."""
        if isinstance(error, UpstreamError):
            # A client would try again, and pay for each reply, where without the guard it would not.
            headers = [("x-should-retry", "false")]
            return json_response(self._library, 502, exchange.error_answer(error), headers)
        headers = kept_headers(error.response)
        body = exchange.error_body(error.body)
        if body is None:
            message = "what the upstream says of the failure is not fit to show"
            body, kind = dumps(error_body(message, "upstream_error")), "application/json"
        else:
            kind = error.response.headers.get("content-type", "").partition(";")[0]
        headers += [("content-type", kind)] if is_name(kind) else []
        return self._library.Response(error.response.status_code, headers=headers, content=body)

    def _streamed(self, upstream: Any, guarded: Guarded, stream: Any) -> Any:
        told = verdict_headers(guarded.verdict)
        headers = [
            *kept_headers(upstream),
            *told.items(),
            ("content-type", "text/event-stream; charset=utf-8"),
        ]
        return self._library.Response(200, headers=headers, stream=stream, extensions={"guardrail": guarded})

    def _broken_off(self, error: UpstreamError, request: Any) -> Exception:
        """Return what the library raises for a stream that ends too early."""
        return cast(Exception, self._library.RemoteProtocolError(str(error), request=request))


class GuardTransport(_Transport):
    """A sync transport: `httpx.Client(transport=GuardTransport(guard, inner))`."""

    def __enter__(self) -> GuardTransport:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close `inner`, if it is owned."""
        if self._owns_inner:
            self._inner.close()

    def handle_request(self, request: Any) -> Any:
        """Send a request, guarded; return the response.

        Raises:
            ModelError: the guard failed and `on_error` is "raise".
            Exception: of the httpx library, if the first call failed.
        """
        try:
            place = endpoint(request.method, request.url.raw_path)
            if place == "pass":
                return self._send(request)
            exchange = self._exchange(place, request.read())
        except RequestError as error:
            return self._refusal(error)
        try:
            if isinstance(exchange, WholeExchange):
                return self._whole(exchange, request)
            return self._stream(exchange, request)
        except (UpstreamError, UpstreamRefusedError) as error:
            return self._failure(exchange, error)

    def _whole(self, exchange: WholeExchange, request: Any) -> Any:
        exchange.start()
        session, upstream = exchange.session, None

        def call(body: dict[str, Any]) -> Any:
            nonlocal upstream
            response = self._open(request, body, again=session.calls > 1)
            data = read(response)
            upstream = response
            return exchange.read(data)

        while (body := exchange.request) is not None:
            try:
                whole = call_within(session.seconds_left, call, body)
            except Exception as error:
                session.fail(error)
            else:
                exchange.offer(whole)
        return self._answer(exchange, upstream)

    def _stream(self, exchange: StreamExchange, request: Any) -> Any:
        exchange.reply.start()
        guarded = Guarded(exchange.session.verdict_in, streaming=True)
        headers_of: Any = None

        def call(messages: Any) -> SyncItems:
            nonlocal headers_of
            again = exchange.session.calls > 1
            response = self._open(request, exchange.body(messages), again=again)
            headers_of = headers_of or response
            return SyncItems(response, exchange.upstream())

        upstream: SyncItems | None = None
        if exchange.reply.result is None:
            # The first answer must be known here: a status that is no success is the client's affair.
            try:
                upstream = call_within(exchange.reply.seconds_left, call, exchange.reply.request)
            except Exception as error:
                exchange.reply.fail(error)
        stream = GuardedStream(exchange.reply, call, started=True, upstream=upstream)
        pieces = self._pieces(exchange, stream, guarded, request)
        body = stream_class(self._library, SyncBody, "SyncByteStream")(pieces, stream)
        return self._streamed(headers_of, guarded, body)

    def _pieces(
        self, exchange: StreamExchange, stream: GuardedStream, guarded: Guarded, request: Any
    ) -> Iterator[bytes]:
        try:
            for item in stream:
                if stream.result is not None and not guarded.replies:
                    guarded.replies.append(stream.result)
                yield exchange.write(item)
        except UpstreamError as error:
            event = exchange.error_event(error)
            if event is None:
                raise self._broken_off(error, request) from error
            yield event
        finally:
            stream.close()

    def _open(self, request: Any, body: dict[str, Any], *, again: bool) -> Any:
        """Send a request; return the response, not read yet.

        Raises:
            UpstreamRefusedError: its status is no success; it is closed.
        """
        response = self._send(self._request(request, body, again=again))
        if not is_success(response):
            raise UpstreamRefusedError(response, read(response))
        return response

    def _send(self, request: Any) -> Any:
        if hasattr(self._inner, "send"):
            return self._inner.send(request, stream=True)
        return self._inner.handle_request(request)


class AsyncGuardTransport(_Transport):
    """As `GuardTransport`, for async clients; judging leaves the event loop free."""

    async def __aenter__(self) -> AsyncGuardTransport:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close `inner`, if it is owned."""
        if self._owns_inner:
            await self._inner.aclose()

    async def handle_async_request(self, request: Any) -> Any:
        """Send a request, guarded; return the response.

        Raises:
            ModelError: the guard failed and `on_error` is "raise".
            Exception: of the httpx library, if the first call failed.
        """
        try:
            place = endpoint(request.method, request.url.raw_path)
            if place == "pass":
                return await self._send(request)
            data = await request.aread()
            exchange = await self._guard.in_thread(lambda: self._exchange(place, data))
        except RequestError as error:
            return self._refusal(error)
        try:
            if isinstance(exchange, WholeExchange):
                return await self._whole(exchange, request)
            return await self._stream(exchange, request)
        except (UpstreamError, UpstreamRefusedError) as error:
            return await self._guard.in_thread(partial(self._failure, exchange, error))

    async def _whole(self, exchange: WholeExchange, request: Any) -> Any:
        guard = self._guard
        await guard.in_thread(exchange.start)
        session, upstream = exchange.session, None

        async def call(body: dict[str, Any]) -> Any:
            nonlocal upstream
            response = await self._open(request, body, again=session.calls > 1)
            data = await aread(response)
            upstream = response
            return await guard.in_thread(lambda: exchange.read(data))

        while (body := exchange.request) is not None:
            try:
                whole = await acall_within(session.seconds_left, call, body)
            except Exception as error:
                await guard.in_thread(partial(session.fail, error))
            else:
                await guard.in_thread(partial(exchange.offer, whole))
        return self._answer(exchange, upstream)

    async def _stream(self, exchange: StreamExchange, request: Any) -> Any:
        guard = self._guard
        await guard.in_thread(exchange.reply.start)
        guarded = Guarded(exchange.session.verdict_in, streaming=True)
        headers_of: Any = None

        async def call(messages: Any) -> AsyncItems:
            nonlocal headers_of
            again = exchange.session.calls > 1
            response = await self._open(request, exchange.body(messages), again=again)
            headers_of = headers_of or response
            return AsyncItems(response, exchange.upstream())

        upstream: AsyncItems | None = None
        if exchange.reply.result is None:
            try:
                upstream = await acall_within(exchange.reply.seconds_left, call, exchange.reply.request)
            except Exception as error:
                await guard.in_thread(partial(exchange.reply.fail, error))
        stream = AsyncGuardedStream(guard, exchange.reply, call, started=True, upstream=upstream)
        pieces = self._pieces(exchange, stream, guarded, request)
        body = stream_class(self._library, AsyncBody, "AsyncByteStream")(pieces, stream)
        return self._streamed(headers_of, guarded, body)

    async def _pieces(
        self, exchange: StreamExchange, stream: AsyncGuardedStream, guarded: Guarded, request: Any
    ) -> AsyncIterator[bytes]:
        try:
            async for item in stream:
                if stream.result is not None and not guarded.replies:
                    guarded.replies.append(stream.result)
                yield exchange.write(item)
        except UpstreamError as error:
            event = await self._guard.in_thread(partial(exchange.error_event, error))
            if event is None:
                raise self._broken_off(error, request) from error
            yield event
        finally:
            await stream.aclose()

    async def _open(self, request: Any, body: dict[str, Any], *, again: bool) -> Any:
        """Do as `GuardTransport._open`."""
        response = await self._send(self._request(request, body, again=again))
        if not is_success(response):
            raise UpstreamRefusedError(response, await aread(response))
        return response

    async def _send(self, request: Any) -> Any:
        if hasattr(self._inner, "send"):
            return await self._inner.send(request, stream=True)
        return await self._inner.handle_async_request(request)
