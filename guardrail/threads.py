"""A bounded number of daemon threads with a bounded line before them, and a call with a time limit.

Unlike those of `ThreadPoolExecutor` these threads end when there is nothing to do, and do not keep the
interpreter from ending when a call hangs. Knows nothing about guards.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

T = TypeVar("T")


# What a part of somebody's own making may raise and what counts as its failure. A `CancelledError` out of a
# sync call is one, too: no event loop cancels such a call.
PART_FAILURES = (Exception, asyncio.CancelledError)


class OverloadedError(RuntimeError):
    """Too many calls are waiting already; this one is refused at once."""


class Workers:
    """At most `most` daemon threads, each of which ends when there is nothing left to do."""

    def __init__(self, most: int, waiting: int, name: str) -> None:
        """Make it; no thread is started yet.

        Args:
            most: threads at a time, >= 1.
            waiting: calls that may wait for one of them; one more is refused.
            name: of the threads.
        """
        self._most = most
        self._room = waiting
        self._name = name
        self._running = 0
        self._waiting: deque[tuple[Future[Any], contextvars.Context, Callable[[], Any]]] = deque()
        self._lock = threading.Lock()

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Run a call as soon as a thread is free, in the caller's context.

        Raises:
            OverloadedError: too many calls wait.
            RuntimeError: no thread could be started, and none is running.
        """
        future: Future[T] = Future()
        with self._lock:
            if len(self._waiting) >= self._room:  # what nobody waits for any more makes way
                self._waiting = deque(job for job in self._waiting if not job[0].cancelled())
            if len(self._waiting) >= self._room:
                raise OverloadedError(f"expected at most {self._room} waiting calls, got one more")
            self._waiting.append((future, contextvars.copy_context(), call))
            if self._running < self._most:
                self._add_thread()
        return future

    def run(self, call: Callable[[], T], seconds: float) -> T:
        """Run a call and wait for it, at most so many seconds; then it is left to itself.

        Raises:
            TimeoutError: it took longer.
            OverloadedError: too many calls wait.
            BaseException: what the call raises.
        """
        future = self.submit(call)
        wait([future], seconds)
        if not future.done():
            future.cancel()
            raise TimeoutError(f"expected an answer within {seconds:.3g} s, got none")
        return future.result()

    async def arun(self, call: Callable[[], T]) -> T:
        """Run a call without blocking the event loop; if this is cancelled, a call that waits is dropped.

        Raises:
            OverloadedError: too many calls wait.
            BaseException: what the call raises.
        """
        return await asyncio.wrap_future(self.submit(call))

    def _add_thread(self) -> None:
        try:
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
        except RuntimeError:
            if not self._running:  # else those that run will come to it
                self._waiting.pop()
                raise
        else:
            self._running += 1

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._running -= 1
                    return
                future, context, call = self._waiting.popleft()
            if future.set_running_or_notify_cancel():
                try:
                    result = context.run(call)
                except StopIteration as error:
                    # asyncio's futures refuse it: whoever waits for one would wait for ever.
                    stopped = RuntimeError("the call raised StopIteration")
                    stopped.__cause__ = error
                    future.set_exception(stopped)
                    del error, stopped
                except BaseException as error:
                    future.set_exception(error)
                    del error
                else:
                    future.set_result(result)
                    del result
            del future, context, call  # not to be held while waiting for the lock
