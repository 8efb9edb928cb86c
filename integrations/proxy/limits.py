"""Who may come in: a bounded number at work, a bounded queue before it. Knows nothing about HTTP."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class QueueFullError(Exception):
    """As many wait as may; this one is refused at once."""


class QueueTimeoutError(Exception):
    """It waited as long as it may."""


class ClientBusyError(Exception):
    """This client has as many requests at work or waiting as it may."""


class Admission:
    """Hands out turns, first come, first served. For one event loop."""

    def __init__(self, most: int, waiting: int, seconds: float, per_client: int | None = None) -> None:
        """Make it.

        Args:
            most: turns at a time, >= 1.
            waiting: how many may wait for one, >= 0.
            seconds: longest wait.
            per_client: most of one client, at work and waiting; None for no limit.
        """
        self._most = most
        self._room = waiting
        self._seconds = seconds
        self._per_client = per_client
        self._running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._of_client: Counter[str] = Counter()

    @property
    def running(self) -> int:
        """How many are at work."""
        return self._running

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    @property
    def clients(self) -> int:
        """How many clients are at work or wait."""
        return len(self._of_client)

    def refuse_if_full(self, client: str) -> None:
        """Raise what `turn` would raise at once; takes no place.

        Raises:
            QueueFullError: as many wait as may.
            ClientBusyError: this client has its share already.
        """
        if self._per_client is not None and self._of_client[client] >= self._per_client:
            raise ClientBusyError
        if self._running >= self._most and len(self._waiting) >= self._room:
            raise QueueFullError

    @asynccontextmanager
    async def turn(self, client: str) -> AsyncIterator[None]:
        """Wait for a turn and hold it.

        Raises:
            QueueFullError: as many wait as may.
            ClientBusyError: this client has its share already.
            QueueTimeoutError: it waited as long as it may.
        """
        self.refuse_if_full(client)
        self._of_client[client] += 1
        try:
            await self._enter()
            try:
                yield
            finally:
                self._leave()
        finally:
            self._of_client[client] -= 1
            if not self._of_client[client]:
                del self._of_client[client]

    async def _enter(self) -> None:
        if self._running < self._most:
            self._running += 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            async with asyncio.timeout(self._seconds):
                await place
        except BaseException as error:
            if place.done() and not place.cancelled():  # the turn came while this was given up
                self._leave()
            elif place in self._waiting:
                self._waiting.remove(place)
            if isinstance(error, TimeoutError):
                raise QueueTimeoutError from None
            raise

    def _leave(self) -> None:
        """Hand the turn to whoever waits longest, else give it up."""
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                return
        self._running -= 1
