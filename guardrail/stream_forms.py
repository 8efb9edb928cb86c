"""Streams of plain callables: strings, or dicts and messages that each hold a piece of the content."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from functools import reduce
from typing import Any

from .conversation import read_reply
from .deltas import NAMES, merge_deltas
from .outcome import GuardedReply
from .reply_form import in_form
from .streaming import Held, Mark, Part, Words


class PlainForm:
    """Gives back pieces of the kind that came in: strings for strings, dicts for dicts.

    Dicts may be deltas as OpenAI's API sends them: content and tool calls come piece by piece. Message
    objects must know how to be added up, as LangChain's chunks do.
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
        rest = _without_content(item)
        if rest is not None:
            yield rest

    def whole(self) -> Any:
        """Return the pieces added up."""
        items = self._items
        if not items:
            return ""
        if all(isinstance(item, str) for item in items):
            return "".join(items)
        if all(isinstance(item, Mapping) for item in items):
            return merge_deltas(items)
        return reduce(operator.add, items)

    def words(self, key: Hashable, text: str) -> Iterable[Any]:
        """Return one piece."""
        return [in_form(self._template, text)]

    def ours(self, text: str) -> Iterable[Any]:
        """Return one piece."""
        return [in_form(self._template, text) if self._form is None else self._form(text)]

    def end(self, reply: GuardedReply) -> Iterable[Any]:
        """Return nothing: who wants the outcome reads it off the stream."""
        return []


def _without_content(item: Any) -> Part | None:
    """Return what a piece holds besides its content; None if nothing is left to tell."""
    if not isinstance(item, Mapping):
        copy = getattr(item, "model_copy", None)
        return None if copy is None else Mark(copy(update={"content": ""}))
    rest = {name: value for name, value in item.items() if name != "content" and value is not None}
    if not rest.keys() - {"role"}:
        return None
    wordless = all(name in NAMES or not isinstance(value, str) for name, value in rest.items())
    piece = {**item, "content": ""}
    return Mark(piece) if wordless else Held(piece)
