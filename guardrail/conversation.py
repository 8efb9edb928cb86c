"""Read what chat apps call "messages" into turns.

Knows every accepted form and nothing about tokens, models or rules. LangChain messages are
recognised by their shape, so langchain is never imported.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from .errors import InputError
from .types import Role, Turn
from .words import fields_in, words_in


class MessageLike(Protocol):
    """A message object with a role and a content, as LangChain's and the OpenAI client's are."""

    content: Any


Messages = str | Mapping[str, Any] | MessageLike | Sequence["str | Mapping[str, Any] | MessageLike"]

# Every name that the large chat APIs and datasets use, and what it means to us.
ROLES: dict[str, Role] = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "ai": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "aimessagechunk": "assistant",
    "humanmessagechunk": "user",
    "systemmessagechunk": "system",
    "toolmessagechunk": "tool",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "function": "tool",
}
TEXT_PARTS = frozenset(
    "text input_text output_text reasoning reasoning_content thinking redacted_thinking refusal".split()
)
CALL_PARTS = frozenset(
    """tool_use tool_call tool_call_chunk invalid_tool_call function_call
    server_tool_call server_tool_call_chunk server_tool_use""".split()
)
ARGUMENTS = ("arguments", "args", "input")
# Where a message may hold words beside its content, and where such a value nests them.
BESIDE = ("reasoning_content", "reasoning", "reasoning_details", "thinking", "refusal", "audio")
NESTED = ("text", "transcript", "summary", "content", *BESIDE)
# Of a reply: names and numbers, as far as providers tell.
UNREAD_FIELDS = frozenset({"response_metadata", "usage", "usage_metadata"})
EXPECTED = (
    "expected a string, a list of strings (user and assistant in turn), a list of "
    "{'role': ..., 'content': ...} dicts, or LangChain messages"
)


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation that has been read.

    Attributes:
        turns: user, assistant and tool turns in order; system messages are left out.
        positions: for each turn, its position among the messages that were given.
        parts_skipped: for each turn, how many of its parts were not text.
    """

    turns: tuple[Turn, ...] = field(repr=False)
    positions: tuple[int, ...]
    parts_skipped: tuple[int, ...]

    @property
    def judged(self) -> Turn:
        """The turn that is judged: the last one."""
        return self.turns[-1]


def read_conversation(messages: Messages) -> Conversation:
    """Read messages in any accepted form.

    System and developer messages belong to the app: they are neither judged nor context. A
    conversation may end with one; the last other turn is judged. A tool's result is judged like
    something that a user brought in.

    Args:
        messages: a string (one user turn); a list of strings (user, assistant, user, ...); dicts
            with "role" and "content", where content is a string, None or OpenAI content parts;
            LangChain messages or any object with `.content` and `.role` or `.type`; a mix.

    Returns:
        The conversation, with at least one turn. Turns may be blank.

    Raises:
        InputError: nothing to judge, an unknown role, or a type that cannot be read. The message
            names the position and the type, never the text.
    """
    items = _as_items(messages)
    turns: list[Turn] = []
    positions: list[int] = []
    skipped: list[int] = []
    for position, item in enumerate(items):
        turn, parts_skipped = _read_item(item, position, len(turns))
        if turn.role == "system":
            continue
        turns.append(turn)
        positions.append(position)
        skipped.append(parts_skipped)
    if not turns:
        raise InputError(
            f"expected at least one user, assistant or tool message to judge, got {len(items)} messages "
            f"without one; pass the conversation whose last turn is to be judged"
        )
    return Conversation(tuple(turns), tuple(positions), tuple(skipped))


def read_reply(reply: object) -> tuple[Turn, int]:
    """Read what an LLM returned (a string, a dict or a message) as an assistant turn.

    It is shown as it came, so its words are read wherever they stand, behind its text; but for
    `UNREAD_FIELDS`.

    Returns:
        The turn, and how many of its parts are not text and were not read.

    Raises:
        InputError: the reply is of a type that cannot be read.
    """
    if isinstance(reply, str):
        return Turn("assistant", reply), 0
    if isinstance(reply, Mapping) or hasattr(reply, "content"):
        text, skipped = _item_text(reply, 0)
        return Turn("assistant", "\n".join(filter(None, (text, *_other_words(reply, text))))), skipped
    raise InputError(
        f"expected the LLM to return a string, a {{'content': ...}} dict or a message, got "
        f"{type(reply).__name__}; return one of these from the wrapped callable"
    )


def _as_items(messages: object) -> Sequence[object]:
    if isinstance(messages, str | Mapping) or hasattr(messages, "content"):
        return (messages,)
    if hasattr(messages, "to_messages"):  # a LangChain prompt value
        messages = messages.to_messages()
    if isinstance(messages, bytes | bytearray) or not isinstance(messages, Iterable):
        raise InputError(f"{EXPECTED}, got {type(messages).__name__}")
    items: list[object] = list(messages)
    if not items:
        raise InputError(f"{EXPECTED}, got an empty {type(messages).__name__}")
    return items


def _read_item(item: object, position: int, turn_number: int) -> tuple[Turn, int]:
    if isinstance(item, str):
        return Turn("user" if turn_number % 2 == 0 else "assistant", item), 0
    if isinstance(item, tuple) and len(item) == 2 and all(isinstance(part, str) for part in item):
        return Turn(_role(item[0], position), item[1]), 0
    if not isinstance(item, Mapping) and not hasattr(item, "content"):
        raise InputError(f"message {position}: {EXPECTED}, got an item of type {type(item).__name__}")
    text, skipped = _item_text(item, position)
    return Turn(_role(_field(item, "role", None) or _field(item, "type", None), position), text), skipped


def _field(item: object, name: str, default: object) -> Any:
    return item.get(name, default) if isinstance(item, Mapping) else getattr(item, name, default)


def _role(role: object, position: int) -> Role:
    known = ROLES.get(role.lower()) if isinstance(role, str) else None
    if known is None:
        accepted = ", ".join(sorted(set(ROLES) - {name for name in ROLES if name.endswith("chunk")}))
        # The role's own text is not shown: whoever mixed up role and content put a user's words there.
        raise InputError(
            f"message {position}: expected a role among {accepted}; got another {type(role).__name__}"
        )
    return known


def _item_text(item: object, position: int) -> tuple[str, int]:
    """Return every word of a message, wherever it stands, and how many of its parts hold none."""
    try:
        text, skipped = _content_text(_field(item, "content", None), position)
        texts = [text, *_words_beside_the_content(item), *_tool_call_texts(item)]
    except (RecursionError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"message {position}: expected plain content parts and tool calls, got something "
            f"nested too deeply or with keys that are not strings"
        ) from None
    return "\n".join(dict.fromkeys(part for part in texts if part)), skipped


def _content_text(content: object, position: int) -> tuple[str, int]:
    if content is None:
        return "", 0
    if isinstance(content, str):
        return content, 0
    if not isinstance(content, Sequence) or isinstance(content, bytes | bytearray):
        raise InputError(
            f"message {position}: expected content to be a string, None or a list of parts, "
            f"got {type(content).__name__}"
        )
    texts = [_part_text(part) for part in content]
    return "\n".join(text for text in texts if text), texts.count(None)


def _part_text(part: object) -> str | None:
    """Return the text of a content part, perhaps empty; None if it is of a kind that we cannot read."""
    if isinstance(part, str):
        return part
    kind = _field(part, "type", "text")
    if kind in CALL_PARTS:
        return _call_text(part)
    if kind not in TEXT_PARTS:
        return None
    # A part carries its text under "text", its own type's name ("refusal", "thinking"), or a summary.
    found = [text for name in ("text", kind, "summary") for text in _strings(_field(part, name, None))]
    holders = (_field(part, name, None) for name in ("text", kind, "summary", "data"))
    known = any(isinstance(holder, str | list | Mapping) for holder in holders)
    return "\n".join(dict.fromkeys(found)) if known else None


def _words_beside_the_content(item: object) -> list[str]:
    """Return text that some APIs put beside the content: reasoning, refusals, a voice's transcript."""
    extra = _field(item, "additional_kwargs", None)
    places = [item, extra] if isinstance(extra, Mapping) else [item]
    return [text for place in places for name in BESIDE for text in _strings(_field(place, name, None))]


def _other_words(reply: object, text: str) -> list[str]:
    """Return words under names that no API is known to use, and in extra fields of content parts."""
    rest = {name: value for name, value in fields_in(reply).items() if name not in UNREAD_FIELDS}
    try:
        return [words for words in dict.fromkeys(words_in(rest)) if words not in text]
    except RecursionError:
        raise InputError("expected a reply of plain fields, got something nested too deeply") from None


def _strings(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list | tuple):
        return [text for item in value for text in _strings(item)]
    if value is None or isinstance(value, int | float):
        return []
    return [text for name in NESTED for text in _strings(_field(value, name, None))]


def _tool_call_texts(item: object) -> list[str]:
    """Return names and arguments of tool calls, broken and old-style ones too: judged with the turn."""
    calls: list[object] = []
    for name in ("tool_calls", "invalid_tool_calls"):
        value = _field(item, name, None)
        calls += value if isinstance(value, list | tuple) else []
    old_style = _field(item, "function_call", None)
    return [_call_text(call) for call in [*calls, *([old_style] if old_style else [])]]


def _call_text(call: object) -> str:
    function = _field(call, "function", None) or call
    arguments = next((found for name in ARGUMENTS if (found := _field(function, name, None))), "")
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False, default=str)
    return f"{_field(function, 'name', '') or ''} {arguments}".strip()


def turn_text(turn: Turn) -> str:
    """Return one turn as the encoder reads it: who speaks, then what; a tool counts as the user."""
    speaker = "assistant" if turn.role == "assistant" else "user"
    return f"{speaker}: {turn.text}"
