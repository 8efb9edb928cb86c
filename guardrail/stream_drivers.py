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

    def __init__(self, reply: ReplyStream, call: Callable[[Any], Any], *, started: bool = False) -> None:
        """Make it; nothing happens before the first piece is asked for.

        Args:
            reply: the state machine.
            call: calls the LLM with messages; returns its stream, or one whole reply.
            started: True if `reply.start` was called already.
        """
        self._reply = reply
        self._pieces = _pieces(reply, call, started)

    @property
    def result(self) -> GuardedReply | None:
        """The outcome, once the stream has ended; None before."""
        return self._reply.result

    def __next__(self) -> Any:
        return next(self._pieces)

    def close(self) -> None:
        """Close the LLM's stream; no more pieces come."""
        self._pieces.close()

    def __enter__(self) -> GuardedStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncGuardedStream(AsyncIterator[Any]):
    """As `GuardedStream`, for async code; judging leaves the event loop free."""

    def __init__(
        self, guard: Guardrail, reply: ReplyStream, call: Callable[[Any], Any], *, started: bool = False
    ) -> None:
        """Make it; nothing happens before the first piece is asked for.

        Args:
            guard: lends its threads.
            reply: the state machine.
            call: calls the LLM with messages; returns an async or a sync stream or one whole reply, or an
                awaitable of one of these.
            started: True if `reply.start` was called already.
        """
        self._reply = reply
        self._pieces = _apieces(guard, reply, call, started)

    @property
    def result(self) -> GuardedReply | None:
        """The outcome, once the stream has ended; None before."""
        return self._reply.result

    async def __anext__(self) -> Any:
        return await anext(self._pieces)

    async def aclose(self) -> None:
        """Close the LLM's stream; no more pieces come."""
        await self._pieces.aclose()

    async def __aenter__(self) -> AsyncGuardedStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def _pieces(reply: ReplyStream, call: Callable[[Any], Any], started: bool) -> Generator[Any, None, None]:
    if not started:
        reply.start()
    yield from reply.take()
    while reply.result is None:
        upstream: Any = None
        try:
            try:
                upstream = call_within(reply.seconds_left, call, reply.request)
            except Exception as error:
                reply.fail(error)
            else:
                yield from _read(reply, opened(upstream))
        finally:
            close(upstream)
        yield from reply.take()


def _read(reply: ReplyStream, upstream: Iterator[Any]) -> Iterator[Any]:
    """Read the LLM's stream until it ends, fails, or is not wanted any more."""
    try:
        while True:
            try:
                item = next_within(reply.seconds_left, upstream)
            except Exception as error:
                reply.fail(error)
                return
            if item is END:
                reply.finish()
                return
            if reply.feed(item):
                reply.judge()
                if reply.closed:
                    return
                yield from reply.take()
    finally:
        close(upstream)


async def _apieces(
    guard: Guardrail, reply: ReplyStream, call: Callable[[Any], Any], started: bool
) -> AsyncGenerator[Any, None]:
    if not started:
        await guard.in_thread(reply.start)
    for piece in reply.take():
        yield piece
    while reply.result is None:
        upstream: Any = None
        try:
            try:
                upstream = await acall_within(reply.seconds_left, call, reply.request)
            except Exception as error:
                await guard.in_thread(partial(reply.fail, error))
            else:
                stream = aopened(upstream)
                try:
                    while await _astep(guard, reply, stream):
                        for piece in reply.take():
                            yield piece
                finally:
                    await aclose(stream)
        finally:
            await aclose(upstream)
        for piece in reply.take():
            yield piece


async def _astep(guard: Guardrail, reply: ReplyStream, upstream: Any) -> bool:
    """Read and judge one item; return False once there is nothing more to read."""
    try:
        item = await anext_within(reply.seconds_left, upstream)
    except Exception as error:
        await guard.in_thread(partial(reply.fail, error))
        return False
    if item is END:
        await guard.in_thread(reply.finish)
        return False
    if reply.feed(item):
        await guard.in_thread(reply.judge)
    return not reply.closed
