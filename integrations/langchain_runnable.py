"""A step at the end of a chain that lets only judged replies through: `chain | guard`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, closing
from functools import partial
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import RunnableConfig, RunnableSerializable, ensure_config
from pydantic import ConfigDict, Field

from guardrail.calling import aclose, close
from guardrail.errors import InputError
from guardrail.pipeline import Guardrail
from guardrail.session import Session
from guardrail.stream_drivers import AsyncGuardedStream, GuardedStream
from guardrail.stream_forms import PlainForm
from guardrail.streaming import ReplyStream

from .langchain_messages import as_message, readable, shown
from .langchain_stream import LangChainForm

# What a reply is judged after, where nobody tells.
NO_CONVERSATION = [{"role": "user", "content": ""}]


class GuardrailRunnable(RunnableSerializable[Any, Any]):
    """Judges what a chain says: `chain | GuardrailRunnable(guard=guard)`, before any parser of JSON.

    Takes a string, a message, or a list of messages whose last one is the reply to those before, and
    returns the same with an unfit reply replaced. In a stream strings or message chunks come out sentence by
    sentence, and on a block the chain's stream is closed. (LangChain's parsers read on when they are
    closed: right behind the model this step saves what the rest would cost.)

    Prefer `GuardedChatModel` where you can: this step comes behind the model, so
    - it knows the reply alone, unless it is told the conversation: the field `messages`, or
      `config={"configurable": {"messages": [...]}}` for one call. A reply that is only unsafe as an answer to
      something passes otherwise;
    - it cannot guide the model nor have a reply made again: an unfit one is rewritten or composed;
    - it cannot silence the model: callbacks, `astream_events` and LangGraph's "messages" mode hear the raw
      tokens. Only what the chain returns and streams is guarded.

    Attributes:
        guard: judges; never serialised.
        messages: the conversation that is replied to, in any form that `check` takes; None if unknown.

    Raises:
        InputError: from any call, if the conversation or the chain's output cannot be read.
        ModelError: from any call, if the guard failed and is set to `on_error="raise"`.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    guard: Guardrail = Field(exclude=True, repr=False)
    messages: Any = Field(default=None, exclude=True, repr=False)

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Return a reply that was judged, in the form that it came in."""
        return self._call_with_config(partial(self._guarded, self._told(config)), input, config)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Return a reply that was judged, in the form that it came in; the event loop stays free."""

        async def guarded(given: Any) -> Any:
            return await self.guard.in_thread(partial(self._guarded, told, given))

        told = self._told(config)

        return await self._acall_with_config(guarded, input, config)

    # LangChain's own helper for the two below would read the chain's stream to its end after a block.

    def transform(
        self, input: Iterator[Any], config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[Any]:
        """Judge a stream of strings or message chunks; close it on a block, or when nobody reads on."""
        try:
            first = next(input, "")
            pieces = _with_first(first, input)
            if not isinstance(first, str | BaseMessage):
                yield from super().transform(pieces, config, **kwargs)
                return
            with closing(GuardedStream(self._reply_stream(first, config), lambda _: pieces)) as stream:
                yield from stream
        finally:
            close(input)

    async def atransform(
        self, input: AsyncIterator[Any], config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        """Do as `transform`, async."""

        async def call(_: Any) -> AsyncIterator[Any]:
            return pieces

        try:
            first = await anext(input, "")
            pieces = _with_first_async(first, input)
            if not isinstance(first, str | BaseMessage):
                async for piece in super().atransform(pieces, config, **kwargs):
                    yield piece
                return
            reply = self._reply_stream(first, config)
            async with aclosing(AsyncGuardedStream(self.guard, reply, call)) as stream:
                async for piece in stream:
                    yield piece
        finally:
            await aclose(input)

    def _reply_stream(self, first: Any, config: RunnableConfig | None) -> ReplyStream:
        session = self._session(self._told(config))
        return ReplyStream(session, PlainForm(str) if isinstance(first, str) else LangChainForm())

    def _session(self, messages: Any) -> Session:
        return Session(self.guard, messages, form=str, max_attempts=1)

    def _told(self, config: RunnableConfig | None) -> Any:
        told = ensure_config(config).get("configurable", {}).get("messages", self.messages)
        return NO_CONVERSATION if told is None else told

    def _guarded(self, told: Any, given: Any) -> Any:
        if not isinstance(given, list):
            return self._judged(given, told)
        if not given or not isinstance(given[-1], AIMessage):
            got = type(given[-1]).__name__ if given else "nothing"
            raise InputError(
                f"expected a list of messages that ends with the AI's reply, got {got} at its end"
            )
        return [*given[:-1], self._judged(given[-1], given[:-1] or told)]

    def _judged(self, reply: Any, messages: Any) -> Any:
        draft = as_message(reply)
        session = self._session(messages)
        session.start()
        if session.result is None:
            session.offer(readable(draft))
        assert session.result is not None  # there are no more attempts
        message = shown(draft, session.result)
        return message.content if isinstance(reply, str) else message


def _with_first(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    try:
        yield first
        yield from rest
    finally:
        close(rest)


async def _with_first_async(first: Any, rest: AsyncIterator[Any]) -> AsyncIterator[Any]:
    try:
        yield first
        async for piece in rest:
            yield piece
    finally:
        await aclose(rest)
