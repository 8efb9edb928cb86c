"""Structured output of a guarded chat model: what the inner model builds, with the guard in its midst."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.runnables import (
    Runnable,
    RunnableLambda,
    RunnableParallel,
    RunnableSequence,
    RunnableWithFallbacks,
)

from .langchain_inner import innermost
from .langchain_messages import is_replaced

Model = Runnable[Any, Any]


def guarded_structure(structured: Model, guarded: Callable[[Model], Model]) -> Model | None:
    """Return what `with_structured_output` made, with a guarded model in the place of the model.

    A reply that the guard put in place of the model's is refused before it comes to the parser, which
    might find nothing in it and say so by None.

    Args:
        structured: model and parsers, or with `include_raw` a map of the model and parsers that may fail.
        guarded: makes a guarded model of a model.

    Returns:
        None if it is built in a way that is not known.
    """
    if not isinstance(structured, RunnableSequence):
        return None
    model, *parsers = structured.steps
    if isinstance(model, RunnableParallel):
        return _with_raw(model.steps__, parsers, guarded)
    if not isinstance(innermost(model), BaseChatModel):
        return None
    return RunnableSequence(guarded(model), RunnableLambda(_own), *parsers)


def _with_raw(steps: Any, parsers: list[Model], guarded: Callable[[Model], Model]) -> Model | None:
    """Do so for `include_raw=True`, where a failure of the parsers becomes a part of what is returned."""
    if set(steps) != {"raw"} or len(parsers) != 1 or not isinstance(parsers[0], RunnableWithFallbacks):
        return None
    parse = parsers[0]
    checked: Model = RunnableSequence(RunnableLambda(_own_raw), parse.runnable)
    return RunnableSequence(
        RunnableParallel(raw=guarded(steps["raw"])), parse.model_copy(update={"runnable": checked})
    )


def _own(message: BaseMessage) -> BaseMessage:
    if is_replaced(message):
        raise OutputParserException(
            "expected structured output of the model, but the guard put a reply in its place, which holds "
            "none; include_raw=True gives that reply under 'raw'"
        )
    return message


def _own_raw(found: dict[str, Any]) -> dict[str, Any]:
    _own(found["raw"])
    return found
