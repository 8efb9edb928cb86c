"""LangChain messages as the guard reads them and as the user may see them. Pure: nothing is called."""

from __future__ import annotations

import re
from collections.abc import Mapping
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
from guardrail.words import words_in

# Under this name the outcome stands in a message's `response_metadata`.
FACTS = "guardrail"
# Blocks of tools that the provider runs itself: what they were asked and what they gave.
PROVIDERS_TOOLS = re.compile(
    r"mcp_call|mcp_list_tools|mcp_tool_use|custom_tool_call|web_search_call|file_search_call"
    r"|code_interpreter_call|executable_code|code_execution_result|\w+_tool_result"
)
# Kinds of values that are no words, or not only words: a block that holds one of them counts as unread.
MEDIA = re.compile(r"(?:input_|output_)?(?:image|audio|video|file|media|document)(?:_url|_file)?")
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
    """Return the message as it is judged: words that stand outside its text are moved to its beginning."""
    content = message.content
    if not isinstance(content, str):
        content = [_readable_block(block) for block in content]
    moved: dict[str, Any] = {"content": content, "additional_kwargs": {}, "invalid_tool_calls": []}
    judged = message.model_copy(update=moved)
    known = read_reply(judged)[0].text
    places = [message.additional_kwargs, message.model_extra, message.tool_calls]
    found = words_in([content, *places, message.invalid_tool_calls])
    texts = [text for text in dict.fromkeys(found) if text not in known]
    if not texts:
        return judged
    rest = [content] if isinstance(content, str) else content
    return judged.model_copy(update={"content": [*texts, *rest]})


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


def _readable_block(block: Any) -> Any:
    """Return a block without LangChain's wrapping; as text if it is of a provider's own tool."""
    if isinstance(block, dict) and block.get("type") == "non_standard":
        block = block.get("value", block)
    if isinstance(block, dict) and _is_providers_tool(block):
        return {"type": "text", "text": "\n".join(words_in(block))}
    return block


def _is_providers_tool(block: dict[str, Any]) -> bool:
    return PROVIDERS_TOOLS.fullmatch(str(block.get("type"))) is not None and not _has_media(block)


def _has_media(value: object) -> bool:
    if isinstance(value, Mapping):
        kind = value.get("type")
        return (isinstance(kind, str) and MEDIA.fullmatch(kind) is not None) or _has_media([*value.values()])
    return isinstance(value, list | tuple) and any(_has_media(item) for item in value)


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, value in values.items():
        if "logprobs" in name:  # in some forms the tokens are the names
            continue
        if value is None or isinstance(value, bool | int | float):
            kept[name] = value
        elif isinstance(value, Mapping) and (inner := _numbers(value)):
            kept[name] = inner
    return kept
