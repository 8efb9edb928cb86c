"""What can be told of a callable without calling it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any


def is_async(function: Callable[..., Any], *, wrapped: bool = False) -> bool:
    """Return True if a call gives a coroutine.

    Args:
        function: a function, a partial of one, or an object with `__call__`.
        wrapped: look at what `functools.wraps` has wrapped, too: a plain function around an async one
            that hands its coroutine on, as in OpenAI's client. (Another wrapper might run it.)
    """
    while isinstance(function, functools.partial):
        function = function.func
    inner = inspect.unwrap(function) if wrapped else function
    return inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004
    )
