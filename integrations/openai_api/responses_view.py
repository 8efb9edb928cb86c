"""What the items of the Responses API hold, so that all of it can be judged. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .codec import UNREADABLE, View, joined
from .wire import call_view, strings

# Where words stand: in a message's text or refusal, in a reasoning item's summary or text.
Kind = Literal["text", "refusal", "summary", "reasoning"]
_PART_KINDS: dict[str, Kind] = {
    "output_text": "text",
    "refusal": "refusal",
    "summary_text": "summary",
    "reasoning_text": "reasoning",
}
# Calls of tools that the app itself runs, and where their words stand.
_OWN_CALLS = {"function_call": "arguments", "custom_tool_call": "input"}
_MORE_OWN_CALLS = frozenset(
    "computer_call local_shell_call shell_call apply_patch_call mcp_approval_request".split()
)


@dataclass(frozen=True, slots=True)
class Run:
    """Words of one part of a message or of a reasoning item.

    Attributes:
        kind: where they stand.
        place: number of the part in the item's content, or in its summary.
        text: the words.
    """

    kind: Kind
    place: int
    text: str = field(repr=False)


def text_field(kind: Kind) -> str:
    """Return the field of a part that holds its words."""
    return "refusal" if kind == "refusal" else "text"


def runs(item: Mapping[str, Any]) -> Iterator[Run]:
    """Return the words of a message or of a reasoning item, part by part."""
    for name in ("summary", "content"):
        for place, part in enumerate(_list(item.get(name))):
            kind = _kind(part)
            if kind is not None:
                yield Run(kind, place, part[text_field(kind)])


def beside(item: Mapping[str, Any]) -> list[Any]:
    """Return what a message or a reasoning item holds beside its runs: words, and what cannot be read."""
    found: list[Any] = []
    for name in ("summary", "content"):
        value = item.get(name)
        found += strings(value) if not isinstance(value, list) else ()
        for part in _list(value):
            kind = _kind(part)
            if kind is None:
                found += [UNREADABLE, *strings(part)]
            else:
                found += strings(_without(part, text_field(kind)))
    return [*found, *strings(_without(item, "summary", "content"))]


def is_spoken(item: Mapping[str, Any]) -> bool:
    """Return True for items that are words: messages and reasoning; others call tools or tell of them."""
    return item.get("type") in ("message", "reasoning")


def output_view(output: Sequence[Mapping[str, Any]], more: Any = None) -> View:
    """Return what items of a response hold, in the order in which streams tell it.

    Args:
        output: the items.
        more: what may hold words beside them.
    """
    texts: list[str] = []
    rest: list[Any] = []
    calls: list[dict[str, Any]] = []
    for item in output:
        if is_spoken(item):
            texts += [run.text for run in runs(item)]
            rest += beside(item)
            continue
        kind = str(item.get("type"))
        if kind in _OWN_CALLS:
            words = _OWN_CALLS[kind]
            named = " ".join(strings(_without(item, words)))
            calls.append(call_view(named, item.get(words)))
        elif kind in _MORE_OWN_CALLS:
            calls.append(call_view("", "\n".join(strings(item))))
        elif kind == "image_generation_call":
            rest.append(UNREADABLE)  # a picture is not looked at; only its prompt could be read
        else:
            rest += strings(item)
    # Clients put all answers together into one text.
    answers = joined(
        (None, run.text) for item in output if is_spoken(item) for run in runs(item) if run.kind == "text"
    )
    content = [text for text in (*texts, *rest, *strings(more), *answers) if text]
    return {"role": "assistant", "content": content, "tool_calls": calls}


def as_message(item: Any) -> Mapping[str, Any] | None:
    """Return an item of a request's input as a message; None if it only points to something."""
    kind = item.get("type", "message")
    if kind == "message":
        return {"role": item.get("role"), "content": item.get("content")}
    if kind == "item_reference":
        return None
    if kind in _OWN_CALLS or kind in _MORE_OWN_CALLS:
        return output_view([item])
    if kind.endswith("_output"):
        return {"role": "tool", "content": _output(item.get("output"))}
    return {"role": "assistant", "content": list(strings(item))}


def _output(value: Any) -> list[Any]:
    """Return what a tool said; a picture in it cannot be read."""
    if not isinstance(value, list):
        return list(strings(value))
    return [part if isinstance(part, Mapping) else " ".join(strings(part)) for part in value]


def _kind(part: Any) -> Kind | None:
    kind = _PART_KINDS.get(str(part.get("type"))) if isinstance(part, Mapping) else None
    return kind if kind is not None and isinstance(part.get(text_field(kind)), str) else None


def _without(item: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in item.items() if name not in names}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
