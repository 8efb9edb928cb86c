"""Put the guard around a LangChain chat model, so that only judged replies come out of it.

    from guardrail.integrations.langchain import guard_model

    chain = prompt | guard_model(chat_model) | StrOutputParser()

The model is wrapped, not its output: whoever listens to a chain (`stream`, `astream_events`,
LangGraph's "messages" mode) hears each token as soon as the model says it, so an inner model that
could be heard would give away what is taken back later. Here it runs with detached callbacks.
In this form a stream holds the whole reply back until it is judged.

When to guide, regenerate or compose is decided in `guardrail.middleware`; this module only turns
messages into what that reads, and its outcome into messages.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pydantic import Field

from guardrail.conversation import read_reply
from guardrail.errors import InputError, MissingDependencyError
from guardrail.middleware import agenerate, generate
from guardrail.outcome import GuardedReply
from guardrail.pipeline import Guardrail
from guardrail.types import Verdict

try:
    from langchain_core.caches import BaseCache
    from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
    from langchain_core.language_models import BaseChatModel
    from langchain_core.language_models.base import LangSmithParams
    from langchain_core.messages import (
        AIMessage,
        AIMessageChunk,
        BaseMessage,
        convert_to_messages,
        message_chunk_to_message,
    )
    from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
    from langchain_core.runnables import Runnable, RunnableBinding, RunnableConfig, RunnableLambda
    from langchain_core.runnables.config import var_child_runnable_config
except ImportError as error:
    raise MissingDependencyError("langchain-core", "langchain") from error

__all__ = ["GuardedChatModel", "check_runnable", "guard_model"]

# With these strategies the inner model's own message is shown, with all others words of ours.
INNER_STRATEGIES = ("pass", "guided", "regenerated")
# Where providers put words: reasoning, refusals and tool calls besides content and `tool_calls`.
TEXT_KEYS = frozenset(
    {
        "text", "content", "summary", "reasoning", "reasoning_content", "reasoning_details", "thinking",
        "refusal", "audio", "transcript", "function", "function_call", "tool_calls", "name", "title",
    }
)  # fmt: skip
ARGUMENT_KEYS = frozenset({"args", "arguments", "input"})
# A string that can only be a name, a number or a date: no words, no JSON.
PLAIN_NAME = re.compile(r"[A-Za-z0-9_.:/@+-]{1,100}")
TOOL_REASONS = ("tool_calls", "tool_call", "tool_use", "function_call")


class GuardedChatModel(BaseChatModel):
    """A chat model with the guard around it: it takes the inner model's place in any chain or agent.

    The conversation is judged first; where a rule is touched or broken the inner model gets the rule
    in a system message; its reply is judged and, if need be, made again or replaced. See
    `guardrail.middleware.generate`. `response_metadata["guardrail"]` of the message tells what
    happened: strategy, both verdicts, attempts; no text of the conversation.

    Replies are not cached here unless you ask for it: a cached one would not know of rules that were
    added since. The inner model may cache its drafts; each is judged again.

    Attributes:
        model: the inner chat model, or a runnable from messages to a message, e.g. `model.bind(...)`.
        guard: judges; never serialised.
        on_intervention: gets the messages and the verdict and returns the text to show when the
            user's turn asks for intervention.
        cache: as in any chat model, but off by default.

    Raises:
        InputError: from any call, if the conversation or the inner model's output cannot be read.
        ModelError: from any call, if the guard failed and is set to `on_error="raise"`.
    """

    model: Runnable[Any, Any]
    guard: Guardrail = Field(exclude=True, repr=False)
    on_intervention: Callable[[Any, Verdict], str] | None = Field(default=None, exclude=True, repr=False)
    cache: BaseCache | bool | None = Field(default=False, exclude=True)

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

    @property
    def _llm_type(self) -> str:
        return "guarded-chat-model"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        inner = self._innermost
        return {"inner": inner._llm_type if isinstance(inner, BaseChatModel) else type(inner).__name__}

    @property
    def _innermost(self) -> Runnable[Any, Any]:
        inner = self.model
        while isinstance(inner, RunnableBinding):
            inner = inner.bound
        return inner

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        """Name the inner model's provider in traces, not this wrapper."""
        inner = self._innermost
        if isinstance(inner, BaseChatModel):
            return inner._get_ls_params(stop=stop, **kwargs)
        return super()._get_ls_params(stop=stop, **kwargs)

    def _resolve_model_profile(self) -> Any:
        """Say of this model what the inner one says of itself (langchain-core 1.1 and later)."""
        return getattr(self._innermost, "profile", None)

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> int:
        """Count tokens as the inner model does, for `trim_messages` and its like."""
        inner = self._innermost
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
        yield ChatGenerationChunk(message=_as_chunk(self._reply(messages, stop, kwargs)))

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        yield ChatGenerationChunk(message=_as_chunk(await self._areply(messages, stop, kwargs)))

    def _reply(
        self, messages: list[BaseMessage], stop: list[str] | None, options: dict[str, Any]
    ) -> AIMessage:
        inner = _Inner(self.model, stop, options)
        return inner.shown(generate(self.guard, inner.call, messages, on_intervention=self.on_intervention))

    async def _areply(
        self, messages: list[BaseMessage], stop: list[str] | None, options: dict[str, Any]
    ) -> AIMessage:
        inner = _Inner(self.model, stop, options)
        return inner.shown(
            await agenerate(self.guard, inner.acall, messages, on_intervention=self.on_intervention)
        )


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


class _Inner:
    """The inner model for the length of one guarded reply; keeps its last draft."""

    def __init__(self, model: Runnable[Any, Any], stop: list[str] | None, options: dict[str, Any]) -> None:
        self._model = model
        # Without stop words none are handed on: None would undo those that are bound to the model.
        self._options = options if stop is None else {**options, "stop": stop}
        self._draft: AIMessage | None = None

    def call(self, request: Any) -> AIMessage:
        with _detached() as config:
            return self._keep(self._model.invoke(convert_to_messages(request), config, **self._options))

    async def acall(self, request: Any) -> AIMessage:
        with _detached() as config:
            output = await self._model.ainvoke(convert_to_messages(request), config, **self._options)
        return self._keep(output)

    def shown(self, reply: GuardedReply) -> AIMessage:
        """Return the message that the user may see: the draft as it is, or one with nothing of it."""
        found = {name: fact for name, fact in reply.to_dict().items() if name != "text"}
        # `attempt_texts` keeps rejected drafts for the app's own eyes; this message goes to the user.
        found["attempts"] = [
            {k: v for k, v in attempt.items() if k != "text"} for attempt in found["attempts"]
        ]
        facts = {"guardrail": found}
        draft = self._draft
        if draft is None:
            return AIMessage(content=reply.text, response_metadata=facts)
        if reply.strategy in INNER_STRATEGIES:
            return draft.model_copy(update={"response_metadata": {**draft.response_metadata, **facts}})
        # A new message, so that no tool call, reasoning or token list of the draft can come along.
        return AIMessage(
            content=reply.text,
            id=draft.id,
            name=draft.name,
            usage_metadata=draft.usage_metadata,
            response_metadata={**_wordless(draft.response_metadata), **facts},
        )

    def _keep(self, output: object) -> AIMessage:
        self._draft = _as_message(output)
        return _readable(self._draft)


@contextmanager
def _detached() -> Iterator[RunnableConfig]:
    """Hide what runs inside from every callback of the chain around it.

    The config is set for the context too: a model that calls another one without a config would
    otherwise find the chain's callbacks there.
    """
    outer = var_child_runnable_config.get() or {}
    token = var_child_runnable_config.set({**outer, "callbacks": []})
    try:
        yield {"callbacks": []}
    finally:
        var_child_runnable_config.reset(token)


def _as_message(output: object) -> AIMessage:
    if isinstance(output, AIMessageChunk):
        output = message_chunk_to_message(output)
    if isinstance(output, AIMessage):
        return output
    if isinstance(output, BaseMessage):
        return AIMessage(content=output.content, id=output.id, name=output.name)
    if isinstance(output, str):
        return AIMessage(content=output)
    raise InputError(
        f"expected the inner model to return a message or a string, got {type(output).__name__}; "
        f"wrap the chat model itself and put parsers behind it"
    )


def _as_chunk(message: AIMessage) -> AIMessageChunk:
    fields = {name: getattr(message, name) for name in type(message).model_fields if name != "type"}
    return AIMessageChunk(**fields, chunk_position="last")


def _readable(message: AIMessage) -> AIMessage:
    """Return the message as it is judged: words that stand outside its text are put into its content."""
    texts = [text for place in _other_places(message) for text in _words(place)]
    if not texts:
        return message
    content = [message.content] if isinstance(message.content, str) else message.content
    return message.model_copy(update={"content": [*texts, *content]})


def _other_places(message: AIMessage) -> Iterator[object]:
    """Yield the parts of a message that can hold words and that `read_reply` does not read."""
    known = {call["id"] for call in message.tool_calls if call["id"]}
    for part in message.content:
        if isinstance(part, dict) and not known & {part.get("id"), part.get("call_id")}:
            if not read_reply({"content": [part]})[0].text:
                yield part
    yield message.invalid_tool_calls
    # LangChain fills `tool_calls` from here; both hold the same calls then.
    read = {"tool_calls"} if message.tool_calls or message.invalid_tool_calls else set()
    yield {name: value for name, value in message.additional_kwargs.items() if name not in read}


def _words(place: object) -> Iterator[str]:
    if isinstance(place, str):
        if place:
            yield place
    elif isinstance(place, Mapping):
        for name, value in place.items():
            if name in ARGUMENT_KEYS and not isinstance(value, str):
                yield json.dumps(value, ensure_ascii=False, default=str)
            elif name in ARGUMENT_KEYS or name in TEXT_KEYS:
                yield from _words(value)
    elif isinstance(place, list | tuple):
        for item in place:
            yield from _words(item)


def _wordless(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a replaced message may keep: numbers and names, not token lists or quotes of the draft."""
    kept = _numbers(metadata)
    for name, value in metadata.items():
        if isinstance(value, str) and PLAIN_NAME.fullmatch(value) and value not in TOOL_REASONS:
            kept[name] = value
    return kept


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, value in values.items():
        if value is None or isinstance(value, bool | int | float):
            kept[name] = value
        elif isinstance(value, Mapping) and (inner := _numbers(value)):
            kept[name] = inner
    return kept
