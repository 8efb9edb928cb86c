"""How a stream of LangChain message chunks is read and written; what may be shown is decided elsewhere.

Words of the content and of the reasoning come out as they are judged. All that is not content (tool calls,
token counts, metadata) comes out once, behind them: LangChain adds it up, so what two drafts say of it would
be one muddle.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessageChunk
from langchain_core.messages.ai import add_ai_message_chunks

from guardrail.outcome import GuardedReply
from guardrail.streaming import OWN_STRATEGIES, Breaks, Held, Mark, Part, Words

from .langchain_messages import as_chunk, as_message, facts, readable, shown, wordless

# Some providers' APIs put the reasoning here.
REASONING = "reasoning_content"
# Kinds of content blocks; the name of the kind is that of the field with the words, if there are any.
KINDS = ("text", "reasoning", "thinking", "redacted_thinking")
# Fields whose strings are for the provider alone, and how these look.
OPAQUE_FIELDS = frozenset({"id", "signature", "encrypted_content", "data"})
OPAQUE = re.compile(r"[A-Za-z0-9+/=_.:-]*")
# Without these LangChain cannot tell what the blocks of a chunk mean, so every chunk has them.
EVERYWHERE = ("model_provider", "output_version")


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in the content words belong; `part` and its kind are those of an item of a reasoning summary."""

    kind: str
    index: int | str
    part: int | str | None = None
    part_kind: str = ""

    def block(self, text: str) -> dict[str, Any]:
        if self.part is None:
            return {"type": self.kind, self.kind: text, "index": self.index}
        summary = [{"type": self.part_kind, "text": text, "index": self.part}]
        return {"type": self.kind, "summary": summary, "index": self.index}


class LangChainForm:
    """Reads message chunks, whole messages or strings; writes message chunks that add up to one message."""

    def __init__(self) -> None:
        """Make it; it serves one reply."""
        # The draft at hand:
        self._items: list[AIMessageChunk] = []
        self._sum: AIMessageChunk | None = None
        self._single = False  # the model does not stream: its message comes out in one piece, too
        self._shows = False  # some of the draft was shown
        self._draft_id: str | None = None
        # All drafts:
        self._breaks = Breaks()
        self._last: AIMessage | None = None  # the one before, as far as it came
        self._id: str | None = None  # the message's, settled by the first draft that was shown in part
        self._name: str | None = None
        self._highest = -1  # index of a content block
        self._offset = 0  # to the indices of this draft's blocks
        self._blocks_shown = False
        self._drafts = 0  # that were shown in part

    def restart(self) -> None:
        """Forget the draft; the next one continues the message if some of this one was shown."""
        self._breaks.restart()
        if not self._items:
            return
        self._last = as_message(self._merged())
        if self._shows:
            # What follows must not be added to blocks of this draft, nor change the message's id.
            self._id = self._message_id
            self._offset = self._highest + 1
            self._drafts += 1
        self._items, self._sum, self._single, self._shows = [], None, False, False

    def parts(self, item: Any) -> Iterator[Part]:
        """Take a chunk apart: words of its reasoning and its content; what can't be cut is held.

        Raises:
            InputError: it is neither a message nor a string.
        """
        whole = not isinstance(item, str | BaseMessageChunk)
        chunk = item if isinstance(item, AIMessageChunk) else as_chunk(as_message(item))
        first = not self._items
        self._items.append(chunk)
        self._sum = None
        self._name = chunk.name or self._name
        self._draft_id = chunk.id if first else _better(self._draft_id, chunk.id)
        if self._single:  # it does stream
            self._single = False
            yield from self._parts(self._items[0])
        self._single = whole and first and self._drafts == 0
        if not self._single:
            yield from self._parts(chunk)

    def whole(self) -> Any:
        """Return the draft as it is judged."""
        return readable(as_message(self._merged())) if self._items else ""

    def words(self, key: Hashable, text: str) -> Iterable[Any]:
        """Return one chunk."""
        self._shows = True
        is_text = key is None or (isinstance(key, _Place) and key.kind == "text")
        text = self._breaks.placed("text" if is_text else "reasoning", text)
        if isinstance(key, _Place):
            self._blocks_shown = True
            return [self._chunk(content=[key.block(text)])]
        if key == REASONING:
            return [self._chunk(additional_kwargs={REASONING: text})]
        return [self._chunk(content=text)]

    def ours(self, text: str) -> Iterable[Any]:
        """Return one chunk; a block of its own behind blocks that were shown."""
        text = self._breaks.placed("text", text)
        block = {"type": "text", "text": text, "index": self._offset}
        return [self._chunk(content=[block] if self._blocks_shown else text)]

    def end(self, reply: GuardedReply) -> Iterable[Any]:
        """Return what is not content, with the outcome."""
        own = reply.strategy in OWN_STRATEGIES
        if own and self._single:
            return [as_chunk(shown(as_message(self._items[0]), reply))]
        return self._own_end(reply) if own else [self._replaced_end(reply)]

    def _own_end(self, reply: GuardedReply) -> Iterator[AIMessageChunk]:
        whole = self._merged()
        more = dict(whole.additional_kwargs)
        if isinstance(more.get(REASONING), str):
            del more[REASONING]  # they were its words
        if whole.tool_call_chunks:
            # Not on the last chunk: there they would count as added up already.
            yield self._chunk(tool_call_chunks=whole.tool_call_chunks)
        yield self._chunk(
            additional_kwargs=more,
            usage_metadata=whole.usage_metadata,
            response_metadata={**whole.response_metadata, **facts(reply)},
            chunk_position="last",
        )

    def _replaced_end(self, reply: GuardedReply) -> AIMessageChunk:
        last = self._last
        return self._chunk(
            usage_metadata=None if last is None else last.usage_metadata,
            response_metadata={**({} if last is None else wordless(last.response_metadata)), **facts(reply)},
            chunk_position="last",
        )

    @property
    def _message_id(self) -> str | None:
        return self._id if self._drafts else self._draft_id

    def _merged(self) -> AIMessageChunk:
        if self._sum is None:
            first, *rest = self._items
            self._sum = add_ai_message_chunks(first, *rest) if rest else first
        return self._sum

    def _parts(self, chunk: AIMessageChunk) -> Iterator[Part]:
        reasoning = chunk.additional_kwargs.get(REASONING)
        if isinstance(reasoning, str):
            yield Words(reasoning, REASONING)
        if isinstance(chunk.content, str):
            yield Words(chunk.content)
            return
        for block in chunk.content:
            block = self._numbered(block)
            found = _taken_apart(block)
            if found is None:
                yield Held(self._chunk(content=[block]))
                continue
            words, rest = found
            if words is not None:
                yield words
            if rest is not None:
                yield Mark(self._chunk(content=[rest]))

    def _numbered(self, block: Any) -> Any:
        """Return the block with an index that no block of an earlier draft has."""
        if not isinstance(block, dict) or not _joins(block.get("index")):
            return block
        index = block["index"]
        if isinstance(index, str):
            return {**block, "index": f"{index}_{self._drafts}"} if self._drafts else block
        self._highest = max(self._highest, index + self._offset)
        return {**block, "index": index + self._offset}

    def _chunk(self, **fields: Any) -> AIMessageChunk:
        latest = self._items[-1] if self._items else AIMessageChunk(content="")
        told = latest.response_metadata
        defaults = {
            # Nothing, in the kind of content that the model sends: LangChain keeps the two kinds apart.
            "content": [] if isinstance(latest.content, list) else "",
            "id": self._message_id,
            "name": self._name,
        }
        metadata = {name: told[name] for name in EVERYWHERE if name in told}
        metadata |= fields.pop("response_metadata", {})
        return AIMessageChunk(**{**defaults, **fields, "response_metadata": metadata})


def _better(known: str | None, more: str | None) -> str | None:
    """Return the id that LangChain takes: the provider's own rather than one that LangChain made up."""
    if known is None or (more is not None and known.startswith("lc_") and not more.startswith("lc_")):
        return more
    return known


def _joins(index: object) -> bool:
    """Return True if LangChain adds up blocks of this index; others it puts side by side."""
    return isinstance(index, int) or (isinstance(index, str) and index.startswith("lc_"))


def _taken_apart(block: Any) -> tuple[Words | None, dict[str, Any] | None] | None:
    """Return a block's words and a block of all else that it holds; None if it must not be taken apart.

    Beside the words may only stand what a provider keeps for itself: ids, signatures, numbers.
    """
    if not isinstance(block, dict) or block.get("type") not in KINDS or not _joins(block.get("index")):
        return None
    rest = dict(block)
    kind, index = rest.pop("type"), rest.pop("index")
    if isinstance(rest.get(kind), str):
        place, text = _Place(kind, index), rest.pop(kind)
    elif kind == "reasoning" and (item := _only_item(rest.get("summary"))) is not None:
        place, text = _Place(kind, index, item["index"], item["type"]), item["text"]
        del rest["summary"]
    else:
        return (None, block) if _opaque(rest) else None
    if not _opaque(rest):
        return None
    return Words(text, place), {**place.block(""), **rest} if rest or not text else None


def _only_item(summary: Any) -> dict[str, Any] | None:
    """Return the item of a reasoning summary that is one text and nothing else."""
    if not isinstance(summary, list) or len(summary) != 1 or not isinstance(summary[0], dict):
        return None
    item = summary[0]
    fits = item.keys() == {"type", "text", "index"} and _joins(item["index"])
    return item if fits and isinstance(item["type"], str) and isinstance(item["text"], str) else None


def _opaque(value: Any, name: str = "") -> bool:
    """Return True if a value holds no words."""
    if isinstance(value, str):
        return not value or (name in OPAQUE_FIELDS and OPAQUE.fullmatch(value) is not None)
    if isinstance(value, dict):
        return all(_opaque(inner, key) for key, inner in value.items())
    return not value if isinstance(value, list) else value is None or isinstance(value, int | float)
