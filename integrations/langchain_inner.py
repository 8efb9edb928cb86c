"""The chat model inside a guarded one: called so that nobody outside can hear it.

Whoever listens to a chain hears every token as soon as a model says it, through callbacks that LangChain
finds in the call's config or in context variables; and what runs inside a LangGraph graph may write to its
streams and checkpoints. All of that is out of reach while a guarded reply is made, for the inner model, a
judge and a hook alike, and as before whenever it is not: between the pieces of a stream, too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, convert_to_messages
from langchain_core.runnables import Runnable, RunnableBinding, RunnableConfig, RunnableWithFallbacks
from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.tracers import context as tracers
from pydantic import ValidationError

from guardrail.calling import aclose, close

from .langchain_messages import as_message, readable

# LangGraph's own entries in a config: the stream, the checkpoints and the state of the graph around.
GRAPH_ENTRIES = ("__pregel_", "checkpoint_")
# The one that may stay, as it holds what the app gives its nodes; what it writes to is taken out.
GRAPH_RUNTIME = "__pregel_runtime"
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
    if isinstance(model, RunnableWithFallbacks) and any(
        wants_structure(each, {}) for each in model.runnables
    ):
        return True
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
        return self._keep(self._model.invoke(convert_to_messages(request), **self._options))

    async def ainvoke(self, request: Any) -> AIMessage:
        """Return a draft as it is judged."""
        return self._keep(await self._model.ainvoke(convert_to_messages(request), **self._options))

    def stream(self, request: Any) -> Iterator[Any]:
        """Return a draft piece by piece, as the model says it."""
        return self._model.stream(convert_to_messages(request), **self._options)

    async def astream(self, request: Any) -> AsyncIterator[Any]:
        """Return a draft piece by piece, as the model says it."""
        return self._model.astream(convert_to_messages(request), **self._options)

    def _keep(self, output: object) -> AIMessage:
        self.draft = as_message(output)
        return readable(self.draft)


class DetachedStream(Iterator[Any]):
    """A stream that is detached while it is read, and only then."""

    def __init__(self, stream: Iterator[Any], configurable: Mapping[str, Any]) -> None:
        """Make it; the stream is not begun."""
        self._stream = stream
        self._configurable = configurable

    def __next__(self) -> Any:
        with detached(self._configurable):
            return next(self._stream)

    def close(self) -> None:
        """Close the stream."""
        with detached(self._configurable):
            close(self._stream)


class AsyncDetachedStream(AsyncIterator[Any]):
    """As `DetachedStream`, for async code."""

    def __init__(self, stream: AsyncIterator[Any], configurable: Mapping[str, Any]) -> None:
        """Make it; the stream is not begun."""
        self._stream = stream
        self._configurable = configurable

    async def __anext__(self) -> Any:
        with detached(self._configurable):
            return await anext(self._stream)

    async def aclose(self) -> None:
        """Close the stream."""
        with detached(self._configurable):
            await aclose(self._stream)


@contextmanager
def detached(configurable: Mapping[str, Any]) -> Iterator[None]:
    """Hide what runs inside from every callback around it; never to be held open over a yield.

    A model that calls another one without a config would otherwise find the chain's callbacks in the context.
    So are the handlers hidden that `get_usage_metadata_callback` and its like put there: they would count a
    reply twice.

    Args:
        configurable: what the call chooses of the inner model's configurable fields.

    Raises:
        OutputParserException: the inner model raised one, or a `ValidationError`; theirs may quote a draft,
            so this one takes their place.
    """
    hooks = getattr(tracers, "_configure_hooks", ())
    wanted: list[tuple[ContextVar[Any], Any]] = [(hook[0], None) for hook in hooks]
    outer = var_child_runnable_config.get() or {}
    wanted.append((var_child_runnable_config, _detached_config(outer, configurable)))
    tokens = [(variable, variable.set(value)) for variable, value in wanted]
    try:
        yield
    except (OutputParserException, ValidationError) as error:
        raise OutputParserException(
            f"expected output of the inner model that can be parsed, it raised {type(error).__name__}; what "
            f"that says is left out, as it may quote words that were not judged"
        ) from None
    finally:
        for variable, token in reversed(tokens):
            variable.reset(token)


def _detached_config(config: RunnableConfig, configurable: Mapping[str, Any]) -> RunnableConfig:
    given = {**(config.get("configurable") or {}), **configurable}
    kept = {name: value for name, value in given.items() if not name.startswith(GRAPH_ENTRIES)}
    runtime: Any = given.get(GRAPH_RUNTIME)
    if hasattr(runtime, "stream_writer"):
        kept[GRAPH_RUNTIME] = dataclasses.replace(runtime, stream_writer=lambda _: None)
    return {**config, "callbacks": [], "configurable": kept}
