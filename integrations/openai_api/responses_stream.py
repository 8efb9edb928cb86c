"""Streams of the Responses API: read the upstream's events, and take them apart for the guard. Pure."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from guardrail.outcome import GuardedReply
from guardrail.sentences import is_ended
from guardrail.streaming import Held, Mark, Part, Words

from .codec import is_own, joined
from .facts import facts
from .responses_view import Kind, beside, is_spoken, output_view, runs
from .responses_write import ResponsesWriter, Source
from .sse import Event
from .wire import UpstreamError, loads, without_words

_DELTAS: dict[str, tuple[Kind, str]] = {
    "response.output_text.delta": ("text", "content_index"),
    "response.refusal.delta": ("refusal", "content_index"),
    "response.reasoning_summary_text.delta": ("summary", "summary_index"),
    "response.reasoning_text.delta": ("reasoning", "content_index"),
}
_FINAL = ("response.completed", "response.incomplete")


# Where words stand: number of the draft, number of the item, kind, number of the part, id of the item.
_Key = tuple[int, int, Kind, int, Any]


@dataclass(frozen=True, slots=True)
class _Started:
    response: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Said:
    """Words of a part of an item; `id` is the item's, if it was told."""

    item: int
    kind: Kind
    place: int
    text: str = field(repr=False)
    id: Any = None


@dataclass(frozen=True, slots=True)
class _Finished:
    """An item is complete; what is in it was said before, all but what stands beside its words."""

    number: int
    item: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Final:
    event: str
    response: Mapping[str, Any] = field(repr=False)


class ResponsesReader:
    """Reads one stream of the upstream.

    Texts are taken from the deltas and held against the finished items; other items from their end alone.
    """

    def __init__(self) -> None:
        self.done = False
        self._said: dict[tuple[int, str, int], str] = {}
        self._ids: dict[int, str] = {}
        self._items = 0  # finished ones

    def feed(self, event: Event) -> Iterator[Any]:
        """Return what an event tells.

        Raises:
            UpstreamError: it is garbage, tells of a failure, or contradicts what came before.
        """
        if self.done or event.data.strip() == "[DONE]":
            return
        try:
            data = loads(event.data)
        except ValueError:
            raise UpstreamError("expected events of JSON, got something else") from None
        if not isinstance(data, Mapping):
            raise UpstreamError("expected events that are objects, got something else")
        yield from self._event(str(data.get("type") or event.name), data)

    def finish(self) -> None:
        """Take note that the stream has ended.

        Raises:
            UpstreamError: the response was not complete.
        """
        if not self.done:
            raise UpstreamError("expected a stream that ends with response.completed, it broke off")

    def _event(self, kind: str, data: Mapping[str, Any]) -> Iterator[Any]:
        if kind in ("error", "response.failed") or (not kind and data.get("error")):
            found = data.get("error") or _mapping(data, "response").get("error") or data
            raise UpstreamError("failed within its stream", found if isinstance(found, Mapping) else {})
        if kind in _DELTAS:
            yield from self._delta(*_DELTAS[kind], data)
        elif kind in ("response.created", "response.in_progress", "response.queued"):
            yield _Started(_mapping(data, "response"))
        elif kind == "response.output_item.added":
            self._name(_number(data, "output_index"), _mapping(data, "item"))
        elif kind == "response.output_item.done":
            yield from self._finished(_number(data, "output_index"), _mapping(data, "item"))
        elif kind in _FINAL:
            response = _mapping(data, "response")
            if not self._items:  # an upstream that tells its items at the end alone
                for number, item in enumerate(_items(response)):
                    yield from self._finished(number, item)
            self.done = True
            yield _Final(kind, response)

    def _name(self, number: int, item: Mapping[str, Any]) -> None:
        if isinstance(item.get("id"), str):
            self._ids[number] = item["id"]

    def _delta(self, kind: Kind, name: str, data: Mapping[str, Any]) -> Iterator[Any]:
        item, place, text = _number(data, "output_index"), _number(data, name), data.get("delta")
        if not isinstance(text, str):
            raise UpstreamError("expected deltas of text, got something else")
        yield self._say(item, kind, place, text)

    def _say(self, item: int, kind: Kind, place: int, text: str) -> _Said:
        key = (item, kind, place)
        self._said[key] = self._said.get(key, "") + text
        return _Said(item, kind, place, text, self._ids.get(item))

    def _finished(self, number: int, item: Mapping[str, Any]) -> Iterator[Any]:
        self._items += 1
        self._name(number, item)
        if is_spoken(item):
            for run in runs(item):
                said = self._said.get((number, run.kind, run.place), "")
                if not run.text.startswith(said):
                    raise UpstreamError("expected an item to hold the text of its deltas, got another text")
                if run.text != said:
                    yield self._say(number, run.kind, run.place, run.text[len(said) :])
        yield _Finished(number, item)


@dataclass(frozen=True, slots=True)
class _Say:
    """Words to write."""

    source: Source
    kind: Kind
    place: int
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Item:
    """An item to write: its end, if its words were written before."""

    source: Source
    item: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Annotations:
    source: Source
    of_parts: Mapping[int, list[Any]] = field(repr=False)


@dataclass(frozen=True, slots=True)
class _End:
    reply: GuardedReply


class ResponsesForm:
    """Events of a response; see `guardrail.streaming.StreamForm`. `write` makes their bytes."""

    def __init__(
        self,
        made_up: Mapping[str, Any],
        echo: Callable[[Mapping[str, Any]], dict[str, Any]],
        *,
        kind: Kind,
        unread_history: bool,
    ) -> None:
        """Make it.

        Args:
            made_up: a response without output; for streams where no upstream was called.
            echo: gives what may be told of an upstream's response before it is judged.
            kind: where text of ours belongs, "text" or "refusal".
            unread_history: told with the facts.
        """
        self._made_up = made_up
        self._echo = echo
        self._kind = kind
        self._unread_history = unread_history
        self._draft = 0
        self._response: dict[str, Any] = {}
        self._usage: Any = made_up["usage"]
        self._forget()
        self._writer = ResponsesWriter()

    def _forget(self) -> None:
        self._runs: list[tuple[_Key, str]] = []
        self._held: list[Mapping[str, Any]] = []
        self._beside: list[Any] = []
        self._final: _Final | None = None

    def restart(self) -> None:
        """Forget what was read."""
        self._draft += 1
        self._forget()
        self._writer.restart()

    def parts(self, item: Any) -> Iterator[Part]:
        """Take apart what an event tells."""
        if isinstance(item, _Said):
            key = (self._draft, item.item, item.kind, item.place, item.id)
            if item.text:
                if self._goes_on_elsewhere(key):
                    yield Held(None)
                self._read(key, item.text)
            yield Words(item.text, key)
        elif isinstance(item, _Finished):
            yield from self._finished(Source(self._draft, item.number, item.item.get("id")), item.item)
        else:
            self._response = self._echo(item.response)
            self._usage = without_words(item.response.get("usage")) or self._usage
            self._final = item if isinstance(item, _Final) else None

    def _finished(self, source: Source, item: Mapping[str, Any]) -> Iterator[Part]:
        if not is_spoken(item):
            self._held.append(item)
            yield Held(_Item(source, item))
            return
        more = beside(item)
        if more:
            self._beside += more
            parts = item.get("content") if item.get("type") == "message" else []
            yield Held(_Annotations(source, _annotations(parts)))
        yield Mark(_Item(source, item))

    def whole(self) -> Mapping[str, Any]:
        """Return all that was read of the draft."""
        held = output_view(self._held)
        texts = [text for _, text in self._runs]
        answers = joined(("text", text) for key, text in self._runs if key[2] == "text")
        return {**held, "content": [*texts, *self._beside, *held["content"], *answers]}

    def words(self, key: Hashable, text: str) -> Iterable[Any]:
        """Return words of the LLM."""
        draft, item, kind, place, id_ = cast("_Key", key)
        return [_Say(Source(draft, item, id_), kind, place, text)]

    def ours(self, text: str) -> Iterable[Any]:
        """Return words in place of the LLM's."""
        return [_Say(Source(self._draft, 0), self._kind, 0, text)]

    def end(self, reply: GuardedReply) -> Iterable[Any]:
        """Return the outcome."""
        return [_End(reply)]

    def write(self, item: Any) -> Iterator[bytes]:
        """Return the bytes of the events for an item; None stands for nothing but a wait."""
        if item is None:
            return
        yield from self._writer.begin({**self._made_up, **self._response})
        if isinstance(item, _Say):
            yield from self._writer.say(item.source, item.kind, item.place, item.text)
        elif isinstance(item, _Annotations):
            yield from self._writer.annotate(item.source, item.of_parts)
        elif isinstance(item, _Item) and is_spoken(item.item):
            yield from self._writer.close(item.source, item.item)
        elif isinstance(item, _Item):
            yield from self._writer.call(item.item)
        else:
            yield from self._write_end(item.reply)

    def _goes_on_elsewhere(self, key: _Key) -> bool:
        """Return True if an answer that broke off within a sentence goes on in another part.

        Clients put all answers together, so that a word may stand in neither part.
        """
        if key[2] != "text":
            return False
        last = next((run for run in reversed(self._runs) if run[0][2] == "text"), None)
        return last is not None and last[0] != key and not is_ended(last[1])

    def _read(self, key: _Key, text: str) -> None:
        if self._runs and self._runs[-1][0] == key:
            text = self._runs.pop()[1] + text
        self._runs.append((key, text))

    def _write_end(self, reply: GuardedReply) -> Iterator[bytes]:
        final = self._final if is_own(reply) else None
        upstream = without_words(final.response) if final is not None else {}
        yield from self._writer.end(
            final.event if final is not None else "response.completed",
            {
                "status": upstream.get("status") or "completed",
                "error": None,
                "incomplete_details": upstream.get("incomplete_details"),
                "usage": self._usage,
                "guardrail": facts([reply], unread_history=self._unread_history),
            },
        )


def _annotations(parts: Any) -> dict[int, list[Any]]:
    """Return the annotations of each content part that has some."""
    each = enumerate(parts if isinstance(parts, list) else [])
    found = {number: part.get("annotations") for number, part in each if isinstance(part, Mapping)}
    return {number: value for number, value in found.items() if isinstance(value, list)}


def _mapping(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = data.get(name)
    if not isinstance(value, Mapping):
        raise UpstreamError(f"expected events with an object {name}, got something else")
    return value


def _items(response: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    output = response.get("output") or []
    if not isinstance(output, list) or not all(isinstance(item, Mapping) for item in output):
        raise UpstreamError("expected a response with a list of output items, got something else")
    return output


def _number(data: Mapping[str, Any], name: str) -> int:
    value = data.get(name, 0)
    if type(value) is not int:
        raise UpstreamError(f"expected events with a number {name}, got something else")
    return value
