"""LangChain messages as the guard reads them and as the user may see them. Pure: nothing is called."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    BaseMessageChunk,
    message_chunk_to_message,
)

from guardrail.conversation import read_reply
from guardrail.errors import InputError
from guardrail.outcome import GuardedReply
from guardrail.streaming import OWN_STRATEGIES

# Under this name the outcome stands in a message's `response_metadata`.
FACTS = "guardrail"
# Where providers put words: reasoning, refusals and tool calls besides content and `tool_calls`.
TEXT_KEYS = frozenset(
    {
        "text", "content", "summary", "reasoning", "reasoning_content", "reasoning_details", "thinking",
        "refusal", "audio", "transcript", "function", "function_call", "tool_calls", "name", "title",
        "annotations", "citations", "cited_text", "quote", "extras",
    }
)  # fmt: skip
# Of these, the ones that stand beside a text in its own block: what it quotes.
BESIDE_TEXT = ("annotations", "citations", "extras")
ARGUMENT_KEYS = frozenset({"args", "arguments", "input"})
# A string that can only be a name, a number or a date: no words, no JSON.
PLAIN_NAME = re.compile(r"[A-Za-z0-9_.:/@+-]{1,100}")
TOOL_REASONS = ("tool_calls", "tool_call", "tool_use", "function_call")


def as_message(output: object) -> AIMessage:
    """Return what a chat model or a chain of one returned as a whole message.

    Raises:
        InputError: it is neither a message nor a string.
    """
    if isinstance(output, BaseMessageChunk):
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


def as_chunk(message: AIMessage) -> AIMessageChunk:
    """Return a whole message as the only piece of a stream."""
    fields = {name: getattr(message, name) for name in type(message).model_fields if name != "type"}
    return AIMessageChunk(**fields, chunk_position="last")


def readable(message: AIMessage) -> AIMessage:
    """Return the message as it is judged: words that stand outside its content are moved into it."""
    message = message.model_copy(update={"content": _unwrapped(message.content)})
    texts = [text for place in _other_places(message) for text in _words(place)]
    if not texts:
        return message
    content = [message.content] if isinstance(message.content, str) else message.content
    moved: dict[str, Any] = {"additional_kwargs": {}, "invalid_tool_calls": []}
    return message.model_copy(update={"content": [*texts, *content], **moved})


def shown(draft: AIMessage | None, reply: GuardedReply) -> AIMessage:
    """Return the message that the user may see: the draft as it is, or one with nothing of it.

    Args:
        draft: what the model said last; None if it was not called.
        reply: what came of it.
    """
    if draft is None:
        return AIMessage(content=reply.text, response_metadata=facts(reply))
    if reply.strategy in OWN_STRATEGIES:
        return draft.model_copy(update={"response_metadata": {**draft.response_metadata, **facts(reply)}})
    # A new message, so that no tool call, reasoning or token list of the draft can come along.
    return AIMessage(
        content=reply.text,
        id=draft.id,
        name=draft.name,
        usage_metadata=draft.usage_metadata,
        response_metadata={**wordless(draft.response_metadata), **facts(reply)},
    )


def facts(reply: GuardedReply) -> dict[str, Any]:
    """Return what a message tells of its making: strategy, verdicts, attempts; no text."""
    found = {name: fact for name, fact in reply.to_dict().items() if name != "text"}
    # `attempt_texts` keeps rejected drafts for the app's own eyes; a message goes to the user.
    found["attempts"] = [{k: v for k, v in attempt.items() if k != "text"} for attempt in found["attempts"]]
    return {FACTS: found}


def is_replaced(message: BaseMessage) -> bool:
    """Return True if the words of a guarded model's message are not the model's own."""
    return message.response_metadata.get(FACTS, {}).get("strategy") not in OWN_STRATEGIES


def wordless(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a replaced message may keep: numbers and names, not token lists or quotes of the draft."""
    kept = _numbers(metadata)
    for name, value in metadata.items():
        # Its content is a plain string, so it has no version of content blocks.
        if isinstance(value, str) and PLAIN_NAME.fullmatch(value) and name != "output_version":
            kept |= {} if value in TOOL_REASONS else {name: value}
    return kept


def _unwrapped(content: str | list[Any]) -> str | list[Any]:
    """Return content without LangChain's wrapping of blocks that it has no type of its own for."""
    if isinstance(content, str):
        return content
    wrapped = [isinstance(part, dict) and part.get("type") == "non_standard" for part in content]
    return [part.get("value", part) if wrap else part for part, wrap in zip(content, wrapped, strict=True)]


def _other_places(message: AIMessage) -> Iterator[object]:
    """Yield the parts of a message that can hold words and that `read_reply` does not read in order."""
    known = {call["id"] for call in message.tool_calls if call["id"]}
    for part in message.content:
        if isinstance(part, dict) and not known & {part.get("id"), part.get("call_id")}:
            read_part = read_reply({"content": [part]})[0].text
            yield {name: part[name] for name in BESIDE_TEXT if name in part} if read_part else part
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


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, value in values.items():
        if value is None or isinstance(value, bool | int | float):
            kept[name] = value
        elif isinstance(value, Mapping) and (inner := _numbers(value)):
            kept[name] = inner
    return kept
