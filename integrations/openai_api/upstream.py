"""Read what the upstream sends, and hand on what is shown of it: the I/O of the transports, sync and async.

Whatever is closed here closes the upstream's connection.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

from guardrail.stream_drivers import AsyncGuardedStream, GuardedStream

from .exchange import UpstreamItems
from .http import check_size

# Behind its last event an upstream that ends at once leaves the connection fit for use again, seconds.
_LINGER = 0.1


class SyncItems:
    """The items of a sync response."""

    def __init__(self, response: Any, items: UpstreamItems) -> None:
        """Make it; nothing is read yet."""
        self._response = response
        self._bytes = response.iter_bytes()
        self._items = items
        self._ready: deque[Any] = deque()

    def __iter__(self) -> SyncItems:
        return self

    def __next__(self) -> Any:
        while not self._ready:
            data = None if self._items.done else next(self._bytes, None)
            if data is None:
                self._items.finish()
                raise StopIteration
            self._ready.extend(self._items.feed(data))
        return self._ready.popleft()

    def close(self) -> None:
        """Close the response."""
        self._response.close()


class AsyncItems:
    """The items of an async response."""

    def __init__(self, response: Any, items: UpstreamItems) -> None:
        """Make it; nothing is read yet."""
        self._response = response
        self._bytes = response.aiter_bytes()
        self._items = items
        self._ready: deque[Any] = deque()

    def __aiter__(self) -> AsyncItems:
        return self

    async def __anext__(self) -> Any:
        while not self._ready:
            data = None if self._items.done else await anext(self._bytes, None)
            if data is None:
                self._items.finish()
                raise StopAsyncIteration
            self._ready.extend(self._items.feed(data))
        return self._ready.popleft()

    async def aclose(self) -> None:
        """Close the response."""
        try:
            if self._items.done:
                async with asyncio.timeout(_LINGER):
                    async for _ in self._bytes:
                        pass
        except Exception:
            pass  # it is done with
        finally:
            await self._response.aclose()


class SyncBody:
    """The bytes of a guarded stream; closed, it closes the upstream, also if it was never begun."""

    def __init__(self, pieces: Any, stream: GuardedStream) -> None:
        self._pieces = pieces
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        return cast("Iterator[bytes]", self._pieces)

    def close(self) -> None:
        """Close both."""
        self._pieces.close()
        self._stream.close()


class AsyncBody:
    """As `SyncBody`."""

    def __init__(self, pieces: Any, stream: AsyncGuardedStream) -> None:
        self._pieces = pieces
        self._stream = stream

    def __aiter__(self) -> AsyncIterator[bytes]:
        return cast("AsyncIterator[bytes]", self._pieces)

    async def aclose(self) -> None:
        """Close both."""
        await self._pieces.aclose()
        await self._stream.aclose()


def read(response: Any) -> bytes:
    """Return a whole body, and close the response.

    Raises:
        UpstreamError: it is too long.
    """
    parts, size = [], 0
    try:
        for part in response.iter_bytes():
            parts.append(part)
            size += len(part)
            check_size(size)
    finally:
        response.close()
    return b"".join(parts)


async def aread(response: Any) -> bytes:
    """Do as `read`."""
    parts, size = [], 0
    try:
        async for part in response.aiter_bytes():
            parts.append(part)
            size += len(part)
            check_size(size)
    finally:
        await response.aclose()
    return b"".join(parts)
