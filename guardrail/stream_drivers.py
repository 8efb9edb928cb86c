"""Fetch an LLM's stream, hand it to the state machine, show what that lets go: sync and async.

Knows how to open, read and close streams; what may be shown is decided in `guardrail.streaming`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from .calling import (
    END,
    acall_within,
    aclose,
    anext_within,
    aopened,
    call_within,
    close,
    next_within,
    opened,
)
from .outcome import GuardedReply
from .streaming import ReplyStream

if TYPE_CHECKING:
    from .pipeline import Guardrail


class GuardedStream(Iterator[Any]):
    """The pieces of one guarded reply, each judged before it comes; may be closed, or left, at any time."""

    def __init__(
        self,
        reply: ReplyStream,
        call: Callable[[Any], Any],
        *,
        started: bool = False,
        upstream: Any = None,
    ) -> None:
        """Make it; nothing happens before the first piece is asked for.

        Args:
            reply: the state machine.
            call: calls the LLM with messages; returns its stream, or one whole reply.
            started: True if `reply.start` was called already.
            upstream: what the LLM returned, if it was called already; it is closed in any case.
        """
        self._reply = reply
        self._upstream = upstream
        self._pieces = _pieces(reply, call, started, upstream)

    @property
    def result(self) -> GuardedReply | None:
        """The outcome, once the stream has ended; None before."""
        return self._reply.result

    def __next__(self) -> Any:
        return next(self._pieces)

    def close(self) -> None:
        """Close the LLM's stream; no more pieces come."""
        self._pieces.close()
        close(self._upstream)  # which a stream that was never begun knows nothing of

    def __enter__(self) -> GuardedStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncGuardedStream(AsyncIterator[Any]):
    """As `GuardedStream`, for async code; judging leaves the event loop free."""

    def __init__(
        self,
        guard: Guardrail,
        reply: ReplyStream,
        call: Callable[[Any], Any],
        *,
        started: bool = False,
        upstream: Any = None,
    ) -> None:
        """Make it; nothing happens before the first piece is asked for.

        Args:
            guard: lends its threads.
            reply: the state machine.
            call: calls the LLM with messages; returns an async or a sync stream or one whole reply, or an
                awaitable of one of these.
            started: True if `reply.start` was called already.
            upstream: what the LLM returned, if it was called already; it is closed in any case.
        """
        self._reply = reply
        self._upstream = upstream
        self._pieces = _apieces(guard, reply, call, started, upstream)

    @property
    def result(self) -> GuardedReply | None:
        """The outcome, once the stream has ended; None before."""
        return self._reply.result

    async def __anext__(self) -> Any:
        return await anext(self._pieces)

    async def aclose(self) -> None:
        """Close the LLM's stream; no more pieces come."""
        await self._pieces.aclose()
        await aclose(self._upstream)

    async def __aenter__(self) -> AsyncGuardedStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def _pieces(
    reply: ReplyStream, call: Callable[[Any], Any], started: bool, upstream: Any
) -> Generator[Any, None, None]:
    then: Callable[[], None] | None = None if started else reply.start
    while True:
        yield from reply.take()
        if reply.result is not None:
            return
        if then is not None:
            then()
            then = None
            continue
        try:
            try:
                if upstream is None:
                    upstream = call_within(reply.seconds_left, call, reply.request)
            except Exception as error:
                then = partial(reply.fail, error)
            else:
                then = yield from _read(reply, opened(upstream))
        finally:
            close(upstream)
        upstream = None


def _read(reply: ReplyStream, stream: Iterator[Any]) -> Generator[Any, None, Callable[[], None]]:
    """Read the LLM's stream until it ends, fails, or is not wanted any more; return what comes then.

    That may take long, so the LLM's stream is closed before.
    """
    try:
        while True:
            try:
                item = next_within(reply.seconds_left, stream)
            except Exception as error:
                return partial(reply.fail, error)
            if item is END:
                return reply.finish
            if reply.feed(item):
                reply.judge()
                if reply.closed:
                    return reply.go_on
                yield from reply.take()
    finally:
        close(stream)


async def _apieces(
    guard: Guardrail, reply: ReplyStream, call: Callable[[Any], Any], started: bool, upstream: Any
) -> AsyncGenerator[Any, None]:
    then: Callable[[], None] | None = None if started else reply.start
    while True:
        for piece in reply.take():
            yield piece
        if reply.result is not None:
            return
        if then is not None:
            await guard.in_thread(then)
            then = None
            continue
        try:
            try:
                if upstream is None:
                    upstream = await acall_within(reply.seconds_left, call, reply.request)
            except Exception as error:
                then = partial(reply.fail, error)
            else:
                stream = aopened(upstream)
                try:
                    while (then := await _astep(guard, reply, stream)) is None:
                        for piece in reply.take():
                            yield piece
                finally:
                    await aclose(stream)
        finally:
            await aclose(upstream)
        upstream = None


async def _astep(guard: Guardrail, reply: ReplyStream, stream: Any) -> Callable[[], None] | None:
    """Read and judge one item; return what comes then, as `_read` does, or None to read on."""
    try:
        item = await anext_within(reply.seconds_left, stream)
    except Exception as error:
        return partial(reply.fail, error)
    if item is END:
        return reply.finish
    if reply.feed(item):
        await guard.in_thread(reply.judge)
    return reply.go_on if reply.closed else None
