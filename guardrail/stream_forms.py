"""Streams of plain callables: strings, or dicts and messages that each hold a piece of the content."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from copy import copy
from functools import reduce
from typing import Any

from .conversation import read_reply
from .deltas import NAMES, merge_deltas
from .outcome import GuardedReply
from .reply_form import fields_of, in_form
from .streaming import Held, Mark, Part, Words

# Told once, with the rest of a piece and not with its words: who adds pieces up counts it twice.
COUNTED: dict[str, Any] = {"usage_metadata": None, "response_metadata": {}}
# Beside these, text in a piece may be the reply's own.
WORDLESS = NAMES | {"chunk_position"}
METADATA = frozenset({"response_metadata", "usage_metadata", "usage"})


class PlainForm:
    """Gives back pieces of the kind that came in: strings for strings, dicts for dicts.

    Dicts may be deltas as OpenAI's API sends them: content and tool calls come piece by piece. So may
    objects, such as its client's; those that know how to be added up, as LangChain's chunks do, are. None
    counts as a piece without content.
    """

    def __init__(self, form: Callable[[str], Any] | None = None) -> None:
        """Make it.

        Args:
            form: makes a piece out of text that is not the LLM's own; None takes the kind of its last
                piece, or strings if there was none.
        """
        self._form = form
        self._template: Any = ""
        self._items: list[Any] = []

    def restart(self) -> None:
        """Forget what was read."""
        self._items = []

    def parts(self, item: Any) -> Iterator[Part]:
        """Take a piece apart: words of its content, and all else, held if there are words in it.

        Raises:
            InputError: it is of a type that cannot be read.
        """
        if item is None:
            return
        text, skipped = read_reply(item)
        self._items.append(item)
        self._template = item
        if isinstance(item, str):
            yield Words(item)
            return
        content = item.get("content") if isinstance(item, Mapping) else item.content
        if skipped or text.text != (content or ""):
            yield Held(item)
            return
        if content:
            yield Words(content)
        yield from self._without_content(item, content)

    def whole(self) -> Any:
        """Return the pieces added up."""
        items = self._items
        if not items:
            return ""
        if len(items) == 1:
            return items[0]
        if all(isinstance(item, str) for item in items):
            return "".join(items)
        if all(_adds_up(item) for item in items):
            return reduce(operator.add, items)
        return merge_deltas({"content": item} if isinstance(item, str) else fields_of(item) for item in items)

    def words(self, key: Hashable, text: str) -> Iterable[Any]:
        """Return one piece."""
        return [_worded(self._template, text)]

    def ours(self, text: str) -> Iterable[Any]:
        """Return one piece."""
        return [in_form(self._template, text) if self._form is None else self._form(text)]

    def end(self, reply: GuardedReply) -> Iterable[Any]:
        """Return nothing: who wants the outcome reads it off the stream."""
        return []

    def _without_content(self, item: Any, content: Any) -> Iterator[Part]:
        """Return what a piece holds besides its content, if it tells anything that its words do not."""
        fields = {name: value for name, value in fields_of(item).items() if name != "content" and value}
        told = fields_of(_worded(item, "")) if content else {}
        if all(told.get(name) == value for name, value in fields.items()):
            return
        rest = _emptied(item) if content else item
        yield Mark(rest) if all(_is_wordless(*field) for field in fields.items()) else Held(rest)


def _adds_up(item: Any) -> bool:
    """Return True for LangChain's chunks: a sum of its other messages is a prompt."""
    return hasattr(item, "__add__") and type(item).__name__.endswith("Chunk")


def _worded(template: Any, text: str) -> Any:
    """Return words as a piece of the template's kind."""
    piece = in_form(template, text)
    if isinstance(piece, Mapping):
        return {name: value for name, value in piece.items() if name not in COUNTED}
    known = getattr(type(piece), "model_fields", {})
    told = {name: value for name, value in COUNTED.items() if name in known}
    return piece.model_copy(update=told) if told else piece


def _emptied(item: Any) -> Any:
    """Return a piece without its content."""
    if isinstance(item, Mapping):
        return {**item, "content": ""}
    if hasattr(item, "model_copy"):
        return item.model_copy(update={"content": ""})
    emptied = copy(item)
    emptied.__dict__["content"] = ""
    return emptied


def _is_wordless(name: str, value: Any) -> bool:
    """Return True if nothing in a field can be words of the reply."""
    if isinstance(value, str):
        return not value or name in WORDLESS
    if isinstance(value, Mapping):
        if name in METADATA and "logprobs" not in value:
            return True
        return all(_is_wordless(str(inner), found) for inner, found in value.items())
    if isinstance(value, list | tuple):
        return all(_is_wordless("", found) for found in value)
    return value is None or isinstance(value, bool | int | float)
