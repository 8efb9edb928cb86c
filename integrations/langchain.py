"""Put the guard around a LangChain chat model, so that only judged replies come out of it.

    from guardrail.integrations.langchain import guard_model

    chain = prompt | guard_model(chat_model) | StrOutputParser()

The model is wrapped, not its output: whoever listens to a chain (`stream`, `astream_events`,
LangGraph's "messages" mode) hears each token as soon as the model says it, so an inner model that
could be heard would give away what is taken back later. Here it runs detached, and what it says comes
out sentence by sentence, as it is judged. (LangSmith, where it is switched on, and callbacks of the inner
model itself are the developer's own ears and do hear it.)

When to guide, regenerate or compose is decided in `guardrail.session`; this folder only turns
messages into what that reads, and its outcome into messages.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from typing import Any, Literal

from pydantic import Field, PrivateAttr

from guardrail.errors import MissingDependencyError
from guardrail.middleware import agenerate, generate
from guardrail.pipeline import Guardrail
from guardrail.session import Session
from guardrail.stream_drivers import AsyncGuardedStream, GuardedStream
from guardrail.streaming import ReplyStream
from guardrail.types import Verdict

try:
    from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
    from langchain_core.language_models import BaseChatModel
    from langchain_core.language_models.base import LangSmithParams
    from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
    from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
    from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda

    from .langchain_inner import (
        AsyncDetachedStream,
        DetachedStream,
        InnerModel,
        detached,
        innermost,
        wants_structure,
    )
    from .langchain_messages import as_chunk, shown
    from .langchain_runnable import GuardrailRunnable
    from .langchain_stream import LangChainForm
    from .langchain_structure import guarded_structure
except ImportError as error:
    raise MissingDependencyError("langchain-core", "langchain") from error

__all__ = ["GuardedChatModel", "GuardrailRunnable", "check_runnable", "guard_model"]


class GuardedChatModel(BaseChatModel):
    """A chat model with the guard around it: it takes the inner model's place in any chain or agent.

    The conversation is judged first; where a rule is touched or broken the inner model gets the rule
    in a system message; its reply is judged and, if need be, made again or replaced. See
    `guardrail.middleware.generate` and `stream`. `response_metadata["guardrail"]` of the message, or of the
    last chunk, tells what happened: strategy, both verdicts, attempts; no text of the conversation.

    Reasoning, tool calls and their arguments are judged with the reply, tools' results as turns of the
    conversation. A replaced reply calls no tools. Token counts are those of the draft that was taken, not
    of rejected ones. Inside of a LangGraph graph the inner model has no part in its streams and checkpoints.

    Replies are not cached here: a cached one would not know of another guard, nor of rules that were added
    since. The inner model may cache its drafts; each is judged again.

    Attributes:
        model: the inner chat model, or a runnable from messages to a message, e.g. `model.bind(...)`.
        guard: judges; never serialised.
        on_intervention: gets the messages and the verdict and returns the text to show when the
            user's turn asks for intervention.
        whole: True makes streams come in one piece, once all of it is judged. Always so where an option
            asks for JSON: half of a rejected draft before another one is none.
        cache: always False.

    Raises:
        InputError: from any call, if the conversation or the inner model's output cannot be read.
        ModelError: from any call, if the guard failed and is set to `on_error="raise"`.
        OutputParserException: from any call, if the inner model raised one or a `ValidationError`; it does
            not quote the draft, as theirs may.
        Exception: from any call, whatever else the inner model raises in the first one.
    """

    model: Runnable[Any, Any]
    guard: Guardrail = Field(exclude=True, repr=False)
    on_intervention: Callable[[Any, Verdict], str] | None = Field(default=None, exclude=True, repr=False)
    whole: bool = False
    cache: Literal[False] = Field(default=False, exclude=True)
    _configurable: Mapping[str, Any] = PrivateAttr(default_factory=dict)

    def bind_tools(
        self, tools: Sequence[Any], *, tool_choice: str | None = None, **kwargs: Any
    ) -> GuardedChatModel:
        """Return a guarded model whose inner model knows the tools.

        Args:
            tools: as the inner model's own `bind_tools` takes them.
            tool_choice: handed on if given.
            kwargs: handed on.

        Raises:
            NotImplementedError: the inner model cannot bind tools.
        """
        bind = getattr(self.model, "bind_tools", None)
        if bind is None:
            raise NotImplementedError(
                f"expected an inner model with bind_tools, got {type(self.model).__name__}; "
                f"bind the tools before you wrap it"
            )
        if tool_choice is not None:
            kwargs["tool_choice"] = tool_choice
        return self.model_copy(update={"model": bind(tools, **kwargs)})

    def with_structured_output(
        self, schema: Any, *, include_raw: bool = False, **kwargs: Any
    ) -> Runnable[Any, Any]:
        """Return a runnable that gives structured output, made by the inner model's own method.

        Every draft is judged before it is parsed. A reply that the guard put in place of the model's
        holds no structure: it raises, and it never comes out as None.

        Args:
            schema: as the inner model takes it.
            include_raw: True returns {"raw", "parsed", "parsing_error"}; what would raise is in the last.
            kwargs: handed on, e.g. `method`.

        Raises:
            NotImplementedError: the inner model can neither do this nor bind tools.
            OutputParserException: from a call, if the guard replaced the reply or it cannot be parsed.
        """
        structured = self._inner_structure(schema, include_raw=include_raw, **kwargs)
        if structured is None:
            base = super().with_structured_output(schema, include_raw=include_raw, **kwargs)
            structured = guarded_structure(base, self._whole)
        if structured is None:
            raise NotImplementedError(
                f"expected a model and a parser in a row, got structured output of another make from "
                f"{type(self.model).__name__}; bind its tools with bind_tools and parse the reply yourself"
            )
        return structured

    def _inner_structure(self, schema: Any, **kwargs: Any) -> Runnable[Any, Any] | None:
        make = getattr(self.model, "with_structured_output", None)
        try:
            return None if make is None else guarded_structure(make(schema, **kwargs), self._whole)
        except NotImplementedError:
            return None

    def _whole(self, model: Runnable[Any, Any]) -> GuardedChatModel:
        if isinstance(model, GuardedChatModel):
            return model.model_copy(update={"whole": True})
        return self.model_copy(update={"model": model, "whole": True})

    # A chat model is not told the call's config, so what that chooses is kept for the inner model.

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        """Return a reply that was judged."""
        return super(GuardedChatModel, self._configured(config)).invoke(input, config, **kwargs)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        """Return a reply that was judged; the event loop stays free."""
        return await super(GuardedChatModel, self._configured(config)).ainvoke(input, config, **kwargs)

    def stream(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[AIMessageChunk]:
        """Return a reply sentence by sentence, as it is judged."""
        return super(GuardedChatModel, self._configured(config)).stream(input, config, **kwargs)

    def astream(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[AIMessageChunk]:
        """Return a reply sentence by sentence, as it is judged; the event loop stays free."""
        return super(GuardedChatModel, self._configured(config)).astream(input, config, **kwargs)

    def _configured(self, config: RunnableConfig | None) -> GuardedChatModel:
        chosen = (config or {}).get("configurable")
        if not chosen:
            return self
        configured = self.model_copy()
        configured._configurable = chosen
        return configured

    @property
    def model_name(self) -> str:
        """The inner model's name, by which agents tell what it can do."""
        inner = innermost(self.model)
        names = (getattr(inner, name, None) for name in ("model_name", "model", "model_id"))
        return next((name for name in names if isinstance(name, str) and name), type(inner).__name__)

    @property
    def _llm_type(self) -> str:
        return "guarded-chat-model"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        inner = innermost(self.model)
        return {"inner": inner._llm_type if isinstance(inner, BaseChatModel) else type(inner).__name__}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        """Name the inner model's provider in traces, not this wrapper."""
        inner = innermost(self.model)
        if isinstance(inner, BaseChatModel):
            return inner._get_ls_params(stop=stop, **kwargs)
        return super()._get_ls_params(stop=stop, **kwargs)

    def _resolve_model_profile(self) -> Any:
        """Say of this model what the inner one says of itself (langchain-core 1.1 and later)."""
        return getattr(innermost(self.model), "profile", None)

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> int:
        """Count tokens as the inner model does, for `trim_messages` and its like."""
        inner = innermost(self.model)
        if isinstance(inner, BaseChatModel):
            return inner.get_num_tokens_from_messages(messages, *args, **kwargs)
        return super().get_num_tokens_from_messages(messages, *args, **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        message = self._reply(messages, stop, kwargs)
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        message = await self._areply(messages, stop, kwargs)
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        if self.whole or wants_structure(self.model, kwargs):
            yield ChatGenerationChunk(message=as_chunk(self._reply(messages, stop, kwargs)))
            return
        inner = InnerModel(self.model, stop, kwargs)
        stream = GuardedStream(self._reply_stream(messages), inner.stream)
        with closing(DetachedStream(stream, self._configurable)) as chunks:
            for chunk in chunks:
                yield ChatGenerationChunk(message=chunk)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        if self.whole or wants_structure(self.model, kwargs):
            yield ChatGenerationChunk(message=as_chunk(await self._areply(messages, stop, kwargs)))
            return
        inner = InnerModel(self.model, stop, kwargs)
        stream = AsyncGuardedStream(self.guard, self._reply_stream(messages), inner.astream)
        async with aclosing(AsyncDetachedStream(stream, self._configurable)) as chunks:
            async for chunk in chunks:
                yield ChatGenerationChunk(message=chunk)

    def _reply_stream(self, messages: list[BaseMessage]) -> ReplyStream:
        return ReplyStream(Session(self.guard, messages, self.on_intervention, form=str), LangChainForm())

    def _reply(
        self, messages: list[BaseMessage], stop: list[str] | None, options: dict[str, Any]
    ) -> AIMessage:
        inner = InnerModel(self.model, stop, options)
        with detached(self._configurable):
            reply = generate(self.guard, inner.invoke, messages, on_intervention=self.on_intervention)
        return shown(inner.draft, reply)

    async def _areply(
        self, messages: list[BaseMessage], stop: list[str] | None, options: dict[str, Any]
    ) -> AIMessage:
        inner = InnerModel(self.model, stop, options)
        hook = self.on_intervention
        with detached(self._configurable):
            reply = await agenerate(self.guard, inner.ainvoke, messages, on_intervention=hook)
        return shown(inner.draft, reply)


def guard_model(model: Runnable[Any, Any], guard: Guardrail | None = None) -> GuardedChatModel:
    """Return a chat model with the guard around it.

    Args:
        model: any LangChain chat model, or a runnable from messages to a message.
        guard: None loads the model that ships.

    Raises:
        ArtifactError: `guard` is None and the model that ships is missing or altered.
    """
    return GuardedChatModel(model=model, guard=Guardrail.load() if guard is None else guard)


def check_runnable(guard: Guardrail | None = None) -> Runnable[Any, Verdict]:
    """Return a runnable from messages, a prompt value or a string to the guard's verdict.

    Args:
        guard: None loads the model that ships.

    Raises:
        ArtifactError: `guard` is None and the model that ships is missing or altered.
    """
    chosen = Guardrail.load() if guard is None else guard
    return RunnableLambda(chosen.check, afunc=chosen.acheck, name="guardrail_check")
