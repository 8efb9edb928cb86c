"""Call an LLM, or read its stream, within a time limit, from sync and from async code.

A sync call cannot be stopped: one that takes too long is left to itself, in its thread.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from functools import partial
from typing import Any

from .callables import is_async
from .errors import InputError
from .session import DeadlineError
from .threads import Workers

# Sync LLMs, and sync streams, that are waited for at a time, with a limit or in async code. Those that hang
# stay where they are, so there must be an end to them.
MOST_CALLS = 256
_calls = Workers(MOST_CALLS, sys.maxsize, "guarded-llm-call")

END = object()
"""What `next_within` and `anext_within` return at the end of a stream."""


def call_within(seconds: float | None, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function, in a thread if there is a limit.

    Raises:
        DeadlineError: it took longer.
        BaseException: whatever the function raises.
    """
    if seconds is None:
        return function(*args, **kwargs)
    future = _calls.submit(partial(function, *args, **kwargs))
    wait([future], seconds)
    if not future.done():
        if not future.cancel():
            future.add_done_callback(partial(_abandon, None))
        raise DeadlineError
    return future.result()


async def acall_within(seconds: float | None, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call an async function on this loop, or a sync one in a thread; what it raises comes through.

    Raises:
        DeadlineError: it took longer.
    """
    return await _awaited_within(seconds, _acall(function, *args, **kwargs))


def opened(reply: Any) -> Any:
    """Return an iterator over what an LLM returned: a stream's own, or one of a single whole reply.

    Raises:
        InputError: it is nothing, or it is an awaitable or an async stream, which sync code cannot read.
    """
    if reply is None:
        raise InputError("expected the LLM to return a reply or a stream, got None; return one of these")
    if inspect.isawaitable(reply) or hasattr(reply, "__anext__") or hasattr(reply, "__aiter__"):
        close(reply)
        raise InputError(
            "expected a sync LLM, its call returned an awaitable or an async stream; use the async form"
        )
    return iter(reply) if is_stream(reply) else iter([reply])


def aopened(reply: Any) -> Any:
    """Return an iterator, async where the LLM's stream is, over what it returned."""
    if hasattr(reply, "__aiter__"):
        return aiter(reply)
    return opened(reply)


def is_stream(reply: object) -> bool:
    """Return True if an LLM returned a stream: something iterable that is neither text nor a message."""
    whole = isinstance(reply, str | bytes | Mapping | list | tuple) or hasattr(reply, "content")
    return not whole and isinstance(reply, Iterable) or hasattr(reply, "__aiter__")


def next_within(seconds: float | None, stream: Iterator[Any]) -> Any:
    """Return the next item of a stream, or `END`.

    Raises:
        DeadlineError: it took longer; the stream is closed when it comes round.
        BaseException: whatever the stream raises.
    """
    if seconds is None:
        return next(stream, END)
    late = threading.Event()

    def read() -> Any:
        item = next(stream, END)
        if late.is_set():
            close(stream)
        return item

    try:
        return call_within(seconds, read)
    except DeadlineError:
        late.set()
        raise


async def anext_within(seconds: float | None, stream: Any) -> Any:
    """Do as `next_within`, for an async stream, or a sync one, which is read in threads."""
    if hasattr(stream, "__anext__"):
        return await _awaited_within(seconds, anext(stream, END))
    return await _awaited_within(seconds, _in_thread(lambda: next(stream, END), stream))


def close(stream: Any) -> None:
    """Close a stream or a coroutine, if it can be; it is done with, so its own complaints are not heard."""
    try:
        if hasattr(stream, "close"):
            stream.close()
    except Exception:  # e.g. a generator that still runs in the thread that was left behind
        pass


async def aclose(stream: Any) -> None:
    """Close an async or a sync stream likewise."""
    try:
        if hasattr(stream, "aclose"):
            await stream.aclose()
        elif hasattr(stream, "close"):
            closing = stream.close()
            if inspect.isawaitable(closing):
                await closing
    except Exception:  # of no use to anybody: the guard has decided already
        pass


async def _awaited_within(seconds: float | None, awaitable: Any) -> Any:
    scope = asyncio.timeout(seconds)
    try:
        async with scope:
            return await awaitable
    except TimeoutError:
        if scope.expired():
            raise DeadlineError from None
        raise


async def _acall(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if is_async(function):
        return await function(*args, **kwargs)
    reply = await _in_thread(lambda: function(*args, **kwargs))
    return await reply if inspect.isawaitable(reply) else reply


async def _in_thread(call: Callable[[], Any], stream: Any = None) -> Any:
    """Run a call in a thread; the stream that it reads, or returns, is closed if nobody waits any more."""
    future = _calls.submit(call)
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        future.add_done_callback(partial(_abandon, stream))
        raise


def _abandon(stream: Any, done: Future[Any]) -> None:
    if stream is not None:
        close(stream)
    elif not done.cancelled() and done.exception() is None:
        close(done.result())
