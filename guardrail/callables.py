"""What can be told of a callable without calling it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def is_async(function: Callable[..., Any], *, wrapped: bool = False) -> bool:
    """Return True if a call gives a coroutine.

    Args:
        function: a function, a partial of one, or an object with `__call__`.
        wrapped: look at what `functools.wraps` has wrapped, too: a plain function around an async one
            that hands its coroutine on, as in OpenAI's client. (Another wrapper might run it.)
    """
    function = _bare(function)
    inner = inspect.unwrap(function) if wrapped else function
    return inspect.iscoroutinefunction(inner) or _is_or_calls(function, inspect.iscoroutinefunction)


def yields(function: Callable[..., Any]) -> bool:
    """Return True if a call gives a generator."""
    return _is_or_calls(_bare(function), inspect.isgeneratorfunction)


def yields_async(function: Callable[..., Any]) -> bool:
    """Return True if a call gives an async generator."""
    return _is_or_calls(_bare(function), inspect.isasyncgenfunction)


def with_arguments(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Callable[[Any], Any]:
    """Return a function of one argument, async if `function` is, that hands on the others too."""
    if is_async(function):

        async def acall(first: Any) -> Any:
            return await function(first, *args, **kwargs)

        return acall

    def call(first: Any) -> Any:
        return function(first, *args, **kwargs)

    return call


def _bare(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function without the partials around it."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _is_or_calls(function: Callable[..., Any], test: Callable[[Any], bool]) -> bool:
    return test(function) or test(getattr(function, "__call__", None))  # noqa: B004
