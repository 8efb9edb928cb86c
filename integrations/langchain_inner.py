"""The chat model inside a guarded one: called so that nobody outside can hear it.

Whoever listens to a chain hears every token as soon as a model says it, through callbacks that LangChain
finds in the call's config or in context variables. Both are emptied while the inner model runs, and are as
before whenever it does not: between the pieces of a stream, too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from langchain_core.messages import AIMessage, convert_to_messages
from langchain_core.runnables import Runnable, RunnableBinding, RunnableConfig
from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.tracers import context as tracers

from guardrail.calling import aclose, close

from .langchain_messages import as_message, readable

# Options that ask for JSON in place of prose. JSON cannot be shown sentence by sentence.
STRUCTURE_OPTIONS = frozenset(
    """response_format response_schema response_json_schema response_mime_type output_config output_format
    format ls_structured_output_format structured_output_format""".split()
)


def innermost(model: Runnable[Any, Any]) -> Runnable[Any, Any]:
    """Return what options were bound to."""
    while isinstance(model, RunnableBinding):
        model = model.bound
    return model


def wants_structure(model: Runnable[Any, Any], options: dict[str, Any]) -> bool:
    """Return True if an option of the call, or one that is bound to the model, asks for JSON."""
    found = set(options)
    while isinstance(model, RunnableBinding):
        found |= set(model.kwargs)
        model = model.bound
    return not STRUCTURE_OPTIONS.isdisjoint(found)


class InnerModel:
    """The inner model for the length of one guarded reply; keeps its last whole draft.

    Attributes:
        draft: what `invoke` or `ainvoke` returned last; None before.
    """

    def __init__(self, model: Runnable[Any, Any], stop: list[str] | None, options: dict[str, Any]) -> None:
        """Prepare; nothing is called yet."""
        self._model = model
        # Without stop words none are handed on: None would undo those that are bound to the model.
        self._options = options if stop is None else {**options, "stop": stop}
        self.draft: AIMessage | None = None

    def invoke(self, request: Any) -> AIMessage:
        """Return a draft as it is judged."""
        with _detached() as config:
            output = self._model.invoke(convert_to_messages(request), config, **self._options)
        return self._keep(output)

    async def ainvoke(self, request: Any) -> AIMessage:
        """Return a draft as it is judged."""
        with _detached() as config:
            output = await self._model.ainvoke(convert_to_messages(request), config, **self._options)
        return self._keep(output)

    def stream(self, request: Any) -> Iterator[Any]:
        """Return a draft piece by piece, as the model says it."""
        with _detached() as config:
            return _Pieces(self._model.stream(convert_to_messages(request), config, **self._options))

    async def astream(self, request: Any) -> AsyncIterator[Any]:
        """Return a draft piece by piece, as the model says it."""
        with _detached() as config:
            return _AsyncPieces(self._model.astream(convert_to_messages(request), config, **self._options))

    def _keep(self, output: object) -> AIMessage:
        self.draft = as_message(output)
        return readable(self.draft)


class _Pieces(Iterator[Any]):
    """A stream that is detached while it is read, and only then."""

    def __init__(self, stream: Iterator[Any]) -> None:
        self._stream = stream

    def __next__(self) -> Any:
        with _detached():
            return next(self._stream)

    def close(self) -> None:
        with _detached():
            close(self._stream)


class _AsyncPieces(AsyncIterator[Any]):
    def __init__(self, stream: AsyncIterator[Any]) -> None:
        self._stream = stream

    async def __anext__(self) -> Any:
        with _detached():
            return await anext(self._stream)

    async def aclose(self) -> None:
        with _detached():
            await aclose(self._stream)


@contextmanager
def _detached() -> Iterator[RunnableConfig]:
    """Hide what runs inside from every callback around it; never to be held open over a yield.

    The config is set for the context too: a model that calls another one without a config would otherwise
    find the chain's callbacks there. So are the handlers that `get_usage_metadata_callback` and its like
    put into the context: they would count a reply twice.
    """
    outer = var_child_runnable_config.get() or {}
    hooks = getattr(tracers, "_configure_hooks", ())
    wanted: list[tuple[ContextVar[Any], Any]] = [(hook[0], None) for hook in hooks]
    wanted.append((var_child_runnable_config, {**outer, "callbacks": []}))
    tokens = [(variable, variable.set(value)) for variable, value in wanted]
    try:
        yield {"callbacks": []}
    finally:
        for variable, token in reversed(tokens):
            variable.reset(token)
