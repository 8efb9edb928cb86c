"""Streams of chat completions: read the upstream's chunks, write those of a guarded stream. Pure.

Chunks are written anew, as words are let go sentence by sentence. Token probabilities and what else stands
beside the words of a chunk are left out, as they belong to chunks that are never shown. What waits for the
end (tool calls) is added up, and comes in one chunk: so what is shown is what was judged, also where an
upstream says another name in a later piece.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from guardrail.deltas import merge_deltas
from guardrail.outcome import GuardedReply
from guardrail.streaming import Breaks, Held, Part, Words
from guardrail.words import is_name

from .chat_view import TEXT_FIELDS, view
from .codec import is_own, joined
from .facts import facts
from .sse import Event, encode_event
from .wire import UpstreamError, dumps, loads, made_up_id, strings, without_words

_META = ("id", "created", "model", "system_fingerprint", "service_tier")
_DONE = "[DONE]"


class ChatReader:
    """Reads one stream of the upstream; its items are chunks (dicts)."""

    def __init__(self) -> None:
        self.done = False
        self._finished = False

    def feed(self, event: Event) -> Iterator[Mapping[str, Any]]:
        """Return the chunk of an event.

        Raises:
            UpstreamError: it is no chunk, or an error that the upstream tells of.
        """
        if self.done:
            return
        if event.data.strip() == _DONE:
            self.done = True
            return
        try:
            chunk = loads(event.data)
        except ValueError:
            raise UpstreamError("expected chunks of JSON, got something else") from None
        if isinstance(chunk, Mapping) and (event.name == "error" or chunk.get("error")):
            error = chunk.get("error", chunk)
            raise UpstreamError("failed within its stream", error if isinstance(error, Mapping) else {})
        self._check(chunk)
        yield chunk

    def finish(self) -> None:
        """Take note that the stream has ended.

        Raises:
            UpstreamError: nothing had said that it was complete.
        """
        if not self.done and not self._finished:
            raise UpstreamError("expected a stream that ends with a finish_reason or [DONE], it broke off")

    def _check(self, chunk: Any) -> None:
        choices = chunk.get("choices") or [] if isinstance(chunk, Mapping) else None
        if not isinstance(choices, list):
            raise UpstreamError("expected chunks with a list of choices, got something else")
        for choice in choices:
            if not isinstance(choice, Mapping) or not isinstance(choice.get("delta") or {}, Mapping):
                raise UpstreamError("expected choices with a delta, got something else")
            self._finished = self._finished or bool(choice.get("finish_reason"))


@dataclass(frozen=True, slots=True)
class _Say:
    """Words to write into a field of the delta."""

    name: str
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class _End:
    reply: GuardedReply


class ChatForm:
    """Chunks of one choice; see `guardrail.streaming.StreamForm`. `write` makes their bytes."""

    def __init__(self, model: str, *, wants_usage: bool, field: str) -> None:
        """Make it.

        Args:
            model: what was asked for; for chunks where no upstream was called.
            wants_usage: True if the app asked for a chunk that tells the usage.
            field: where text of ours belongs, "content" or "refusal".
        """
        self._model = model
        self._wants_usage = wants_usage
        self._ours = field
        # What was read of the present draft:
        self._meta: dict[str, Any] = {}
        self._runs: list[tuple[str, str]] = []
        self._held: list[Mapping[str, Any]] = []
        self._finish: str | None = None
        self._usage: Any = None
        # What was written:
        self._breaks = Breaks()
        self._head: dict[str, Any] | None = None

    def restart(self) -> None:
        """Forget what was read."""
        self._runs, self._held, self._finish = [], [], None
        self._breaks.restart()

    def parts(self, item: Mapping[str, Any]) -> Iterator[Part]:
        """Take a chunk apart: words of a field, and all else in the delta that may hold words."""
        self._meta = without_words({name: item[name] for name in _META if item.get(name) is not None})
        self._usage = without_words(item.get("usage")) or self._usage
        for choice in item.get("choices") or []:
            if choice.get("index", 0) != 0:
                continue  # nobody asked for it
            self._finish = without_words(choice.get("finish_reason")) or self._finish
            delta = choice.get("delta") or {}
            for name in TEXT_FIELDS:
                text = delta.get(name)
                if isinstance(text, str) and text:
                    self._read(name, text)
                    yield Words(text, name)
            rest = {name: value for name, value in delta.items() if _is_held(name, value)}
            if rest:
                if not self._held:
                    yield Held(self._held)  # the list, which is complete once it is shown
                self._held.append(rest)

    def whole(self) -> Mapping[str, Any]:
        """Return all that was read of the draft."""
        held = view(merge_deltas(self._held))
        texts = [text for _, text in self._runs]
        return {**held, "content": [*texts, *held["content"], *joined(self._runs)]}

    def words(self, key: Hashable, text: str) -> Iterable[Any]:
        """Return words of the LLM."""
        return [_Say(str(key), text)]

    def ours(self, text: str) -> Iterable[Any]:
        """Return words in place of the LLM's."""
        return [_Say(self._ours, text)]

    def end(self, reply: GuardedReply) -> Iterable[Any]:
        """Return the outcome."""
        return [_End(reply)]

    def write(self, item: Any) -> Iterator[bytes]:
        """Return the bytes of the events for an item."""
        if isinstance(item, _End):
            yield from self._write_end(item.reply)
        elif isinstance(item, _Say):
            yield self._chunk({item.name: self._breaks.placed(item.name, item.text)})
        else:
            yield from self._write_held(item)

    def _read(self, name: str, text: str) -> None:
        if self._runs and self._runs[-1][0] == name:
            text = self._runs.pop()[1] + text
        self._runs.append((name, text))

    def _write_held(self, deltas: list[Mapping[str, Any]]) -> Iterator[bytes]:
        whole = merge_deltas(deltas)
        if isinstance(whole.get("audio"), dict):
            whole["audio"].pop("data", None)
        yield self._chunk(whole)
        for delta in deltas:  # sound cannot be added up: each piece is base64 by itself
            audio = delta.get("audio")
            if isinstance(audio, Mapping) and is_name(audio.get("data")):
                yield self._chunk({"audio": {"data": audio["data"]}})

    def _write_end(self, reply: GuardedReply) -> Iterator[bytes]:
        reason = (self._finish or "stop") if is_own(reply) else "stop"
        told: dict[str, Any] = {"guardrail": facts([reply])}
        if self._wants_usage:
            yield self._chunk({}, reason)
            usage = self._usage or {
                "prompt_tokens": 0,
                "completion_tokens": 0,
                "total_tokens": 0,
            }
            yield self._event({**self._started(), "choices": [], "usage": usage, **told})
        else:
            told |= {"usage": self._usage} if self._usage else {}
            yield self._chunk({}, reason, told)
        yield encode_event(_DONE.encode())

    def _chunk(
        self, delta: Mapping[str, Any], reason: str | None = None, more: Mapping[str, Any] | None = None
    ) -> bytes:
        first = self._head is None
        chunk: dict[str, Any] = {
            **self._started(),
            "choices": [
                {
                    "index": 0,
                    "delta": {"role": "assistant", **delta} if first else delta,
                    "logprobs": None,
                    "finish_reason": reason,
                }
            ],
        }
        return self._event(chunk | ({"usage": None} if self._wants_usage else {}) | dict(more or {}))

    def _started(self) -> dict[str, Any]:
        """Return what every chunk holds: of the first draft of which something is shown."""
        if self._head is None:
            made_up = {"id": made_up_id("chatcmpl-"), "created": int(time.time()), "model": self._model}
            self._head = {**made_up, **self._meta, "object": "chat.completion.chunk"}
        return self._head

    def _event(self, chunk: Mapping[str, Any]) -> bytes:
        return encode_event(dumps(chunk))


def _is_held(name: str, value: Any) -> bool:
    """Return True for a part of a delta that cannot be cut into sentences and says something."""
    if name == "role" or (name in TEXT_FIELDS and isinstance(value, str)):
        return False
    return name in ("tool_calls", "function_call", "audio") and bool(value) or any(strings(value))
