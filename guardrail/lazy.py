"""Something that is made when it is first needed, once, by whichever thread comes first."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

# Time between two tries to make what could not be made, seconds: a file may come back, but to read a broken
# model folder for every reply would cost more than the reply.
PAUSE = 30.0


class Lazy(Generic[T]):
    """Holds what `make` returns; what it raised is raised again, until it is time for another try."""

    def __init__(self, make: Callable[[], T], pause: float = PAUSE) -> None:
        """Remember how to make it.

        Args:
            make: called until it returns.
            pause: time from one failure to the next call, seconds.
        """
        self._make = make
        self._pause = pause
        self._lock = threading.Lock()
        self._made: list[T] = []
        self._error: Exception | None = None
        self._failed_at = 0.0

    def get(self) -> T:
        """Return it.

        Raises:
            Exception: what `make` raised.
        """
        with self._lock:
            if self._made:
                return self._made[0]
            if self._error is not None and time.monotonic() < self._failed_at + self._pause:
                # A traceback would grow with each time, and keep what its frames hold.
                raise self._error.with_traceback(None)
            try:
                self._made.append(self._make())
            except Exception as error:
                self._error, self._failed_at = error, time.monotonic()
                raise
            self._error = None
            return self._made[0]
