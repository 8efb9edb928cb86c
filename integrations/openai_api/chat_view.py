"""What the message of a chat completion holds, so that all of it can be judged. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from guardrail.conversation import CALL_PARTS, TEXT_PARTS
from guardrail.words import is_name

from .codec import UNREADABLE, View, joined
from .wire import call_view, strings

# Where the words of a message stand, in the order in which streams tell them.
TEXT_FIELDS = ("reasoning_content", "reasoning", "content", "refusal")
_READ = {*TEXT_FIELDS, "tool_calls", "function_call", "audio"}


def view(message: Mapping[str, Any], beside: Sequence[Any] = ()) -> View:
    """Return what a message holds, wherever it stands, in the order in which streams tell it.

    Args:
        message: of a choice.
        beside: values beside the message that may hold words, too.
    """
    texts: list[Any] = []
    for name in TEXT_FIELDS:
        value = message.get(name)
        texts += _content(value) if isinstance(value, list) else strings(value)
    if message.get("audio"):
        texts += _audio(message["audio"])
    rest = {name: value for name, value in message.items() if name not in _READ}
    calls = message.get("tool_calls")
    found = calls if isinstance(calls, list) else [calls] if calls else []
    found = [*found, message["function_call"]] if message.get("function_call") else found
    return {
        "role": "assistant",
        "content": [text for text in (*texts, *strings([rest, *beside])) if text],
        "tool_calls": [_call(call) for call in found],
    }


def _content(parts: list[Any]) -> Iterator[Any]:
    """Return the words of content parts; of one that is not text that it cannot be read, too."""
    for part in parts:
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        if not isinstance(kind, str) or ("text" not in kind and kind not in TEXT_PARTS | CALL_PARTS):
            yield UNREADABLE
        yield from strings(part)
    yield from joined((None, text) for part in parts for text in strings(part))


def _audio(audio: Any) -> Iterator[Any]:
    """Return what a voice says; one without a transcript cannot be judged."""
    if isinstance(audio, Mapping) and isinstance(audio.get("transcript"), str):
        sound = audio.get("data")
        yield from strings(
            {name: value for name, value in audio.items() if name != "data" or not is_name(sound)}
        )
    else:
        yield UNREADABLE


def _call(call: Any) -> dict[str, Any]:
    if not isinstance(call, Mapping):
        return call_view("", "\n".join(strings(call)))
    function = call.get("function")
    inner = function if isinstance(function, Mapping) else call
    outer = {name: value for name, value in call.items() if name != "function"} if inner is function else {}
    rest = {name: value for name, value in inner.items() if name != "arguments"}
    return call_view(" ".join(strings([rest, outer])), inner.get("arguments"))
