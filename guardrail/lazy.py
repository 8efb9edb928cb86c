"""Something that is made when it is first needed, once, by whichever thread comes first."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Lazy(Generic[T]):
    """Holds what `make` returns, or raises again what it raised."""

    def __init__(self, make: Callable[[], T]) -> None:
        """Remember how to make it.

        Args:
            make: called at most once.
        """
        self._make = make
        self._lock = threading.Lock()
        self._made: list[T] = []
        self._error: Exception | None = None

    def get(self) -> T:
        """Return it.

        Raises:
            Exception: what `make` raised, the first time and every time after.
        """
        with self._lock:
            if self._error is not None:
                raise self._error
            if not self._made:
                try:
                    self._made.append(self._make())
                except Exception as error:
                    self._error = error
                    raise
            return self._made[0]
