"""Write responses of the Responses API, whole and as events, of what may be shown. Pure.

Every event is written anew, so that the events that close a part, an item or the response hold exactly the
text that was shown before them, and sequence numbers have no gaps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from guardrail.streaming import Breaks
from guardrail.words import is_name

from .responses_view import Kind, text_field
from .sse import encode_event
from .wire import dumps, every_string, made_up_id, without_words

# Fields of a response that are the request's, or name something. They are told before anything is judged.
ECHO = tuple(
    "id object created_at model background conversation instructions max_output_tokens max_tool_calls "
    "metadata parallel_tool_calls previous_response_id prompt prompt_cache_key prompt_cache_retention "
    "reasoning safety_identifier service_tier store temperature text tool_choice tools top_logprobs top_p "
    "truncation user".split()
)
_ITEM_TYPE = {"text": "message", "refusal": "message", "summary": "reasoning", "reasoning": "reasoning"}
_PARTS: dict[str, dict[str, Any]] = {
    "text": {"type": "output_text", "text": "", "annotations": [], "logprobs": []},
    "refusal": {"type": "refusal", "refusal": ""},
    "summary": {"type": "summary_text", "text": ""},
    "reasoning": {"type": "reasoning_text", "text": ""},
}
_EVENTS = {
    "text": "response.output_text",
    "refusal": "response.refusal",
    "summary": "response.reasoning_summary_text",
    "reasoning": "response.reasoning_text",
}
# Of a finished item, what may be told once its words are shown.
_CLOSING_FIELDS = ("encrypted_content", "status", "phase")
_CALLS = {
    "function_call": ("arguments", "response.function_call_arguments"),
    "custom_tool_call": ("input", "response.custom_tool_call_input"),
}


@dataclass(frozen=True, slots=True)
class Source:
    """Where words of the upstream stand: number of the draft, of the item, and its id."""

    draft: int
    item: int
    id: Any = None


def message_item(text: str, kind: Kind) -> dict[str, Any]:
    """Return a message item that holds text of ours."""
    part = {**_PARTS[kind], text_field(kind): text}
    return {
        "id": made_up_id("msg_"),
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [part],
    }


def made_up_response(body: Mapping[str, Any], now: int) -> dict[str, Any]:
    """Return a finished response without output to a request that no upstream was asked.

    Args:
        body: of the request.
        now: time, seconds since 1970.
    """
    empty: dict[str, Any] = {
        "id": made_up_id("resp_"),
        "object": "response",
        "created_at": now,
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "model": "",
        "instructions": None,
        "metadata": {},
        "output": [],
        "parallel_tool_calls": True,
        "temperature": None,
        "tool_choice": "auto",
        "tools": [],
        "top_p": None,
        "usage": {
            "input_tokens": 0,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 0,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 0,
        },
    }
    return empty | {name: body[name] for name in ECHO if body.get(name) is not None}


def echo(body: Mapping[str, Any], response: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of an upstream's response that are the request's, without words that are not.

    Args:
        body: of the request.
        response: the upstream's, perhaps unfinished.
    """
    found = {name: response[name] for name in ECHO if name in response}
    told: dict[str, Any] = without_words(found, set(every_string(body)))
    return told


@dataclass(slots=True)
class _Open:
    """An item that is being written."""

    item: dict[str, Any]
    index: int
    source: Source
    kind: Kind | None = None  # of the part that is being written
    place: int = 0  # its number in the upstream's item

    @property
    def parts(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.item["summary" if self.kind == "summary" else "content"]
        return found


class ResponsesWriter:
    """Writes the events of one response."""

    def __init__(self) -> None:
        self._sequence = 0
        self._output: list[dict[str, Any]] = []
        self._open: _Open | None = None
        self._ids: set[str] = set()
        self._breaks = Breaks()
        self._response: dict[str, Any] | None = None

    def restart(self) -> None:
        """Take note that what comes is of another draft."""
        self._breaks.restart()

    def begin(self, response: Mapping[str, Any]) -> Iterator[bytes]:
        """Return the first events, once.

        Args:
            response: one without output; its id and model stay.
        """
        if self._response is None:
            unfinished: dict[str, Any] = {"status": "in_progress", "output": [], "usage": None}
            self._response = {**response, **unfinished}
            yield self._event("response.created", response=self._response)
            yield self._event("response.in_progress", response=self._response)

    def say(self, source: Source, kind: Kind, place: int, text: str) -> Iterator[bytes]:
        """Return the events for words; what another draft says in their place goes into the same part."""
        found = self._open
        goes_on = found is not None and found.source.draft != source.draft
        if found is not None and (
            found.item["type"] != _ITEM_TYPE[kind] or not (goes_on or found.source.item == source.item)
        ):
            yield from self._close_item()
        if self._open is None:
            yield from self._open_item(_ITEM_TYPE[kind], source)
        assert self._open is not None
        if self._open.kind is not None and (
            self._open.kind != kind or not (goes_on or self._open.place == place)
        ):
            yield from self._close_part()
        if self._open.kind is None:
            yield from self._open_part(kind)
        self._open.source, self._open.place = source, place
        text = self._breaks.placed(kind, text)
        self._open.parts[-1][text_field(kind)] += text
        more: dict[str, Any] = {"logprobs": []} if kind == "text" else {}
        yield self._event(f"{_EVENTS[kind]}.delta", **self._where(), delta=text, **more)

    def annotate(self, source: Source, annotations: Mapping[int, list[Any]]) -> Iterator[bytes]:
        """Return the events for annotations (by number of the part) of text that was shown."""
        found = self._open
        if found is None or found.source.draft != source.draft or found.source.item != source.item:
            return
        if found.kind == "text":
            for number, annotation in enumerate(annotations.get(found.place, [])):
                found.parts[-1]["annotations"].append(annotation)
                yield self._event(
                    "response.output_text.annotation.added",
                    **self._where(),
                    annotation=annotation,
                    annotation_index=number,
                )

    def close(self, source: Source, item: Mapping[str, Any]) -> Iterator[bytes]:
        """Return the events that close an item; one of reasoning may hold no words."""
        found = self._open
        if found is None or found.source.draft != source.draft or found.source.item != source.item:
            if item.get("type") != "reasoning":
                return
            yield from self._close_item()
            yield from self._open_item("reasoning", source)
        yield from self._close_item({name: item[name] for name in _CLOSING_FIELDS if name in item})

    def call(self, item: Mapping[str, Any]) -> Iterator[bytes]:
        """Return the events for an item that is no words, as it is."""
        yield from self._close_item()
        words, event = _CALLS.get(str(item.get("type")), ("", ""))
        index, item = len(self._output), {**item, "id": self._id(item.get("id"), "item_")}
        begun = {**item, "status": "in_progress"} if "status" in item else item
        yield self._event(
            "response.output_item.added", output_index=index, item={**begun, words: ""} if words else begun
        )
        if words:
            where = {"item_id": item["id"], "output_index": index}
            yield self._event(f"{event}.delta", **where, delta=item.get(words) or "")
            yield self._event(f"{event}.done", **where, **{words: item.get(words) or ""})
        yield self._event("response.output_item.done", output_index=index, item=item)
        self._output.append(dict(item))

    def end(self, event: str, fields: Mapping[str, Any]) -> Iterator[bytes]:
        """Return the last events.

        Args:
            event: "response.completed" or "response.incomplete".
            fields: of the finished response.
        """
        yield from self._close_item()
        yield self._event(event, response={**(self._response or {}), **fields, "output": self._output})

    def _open_item(self, type_: str, source: Source) -> Iterator[bytes]:
        item: dict[str, Any]
        if type_ == "message":
            item = {"status": "in_progress", "role": "assistant", "content": []}
        else:
            item = {"summary": []}
        item = {"id": self._id(source.id, "msg_" if type_ == "message" else "rs_"), "type": type_, **item}
        self._open = _Open(item, len(self._output), source)
        yield self._event("response.output_item.added", output_index=self._open.index, item=item)

    def _close_item(self, fields: Mapping[str, Any] | None = None) -> Iterator[bytes]:
        if self._open is None:
            return
        yield from self._close_part()
        item, index = self._open.item, self._open.index
        self._open = None
        if item["type"] == "message":
            item["status"] = "completed"
        item |= fields or {}
        self._output.append(item)
        yield self._event("response.output_item.done", output_index=index, item=item)

    def _open_part(self, kind: Kind) -> Iterator[bytes]:
        assert self._open is not None
        self._open.kind = kind
        if kind == "reasoning":
            self._open.item.setdefault("content", [])
        part = {name: [] if isinstance(value, list) else value for name, value in _PARTS[kind].items()}
        self._open.parts.append(part)
        yield self._event(f"{_part_event(kind)}.added", **self._where(), part=part)

    def _close_part(self) -> Iterator[bytes]:
        if self._open is None or self._open.kind is None:
            return
        kind, part = self._open.kind, self._open.parts[-1]
        field = text_field(kind)
        more: dict[str, Any] = {"logprobs": []} if kind == "text" else {}
        yield self._event(f"{_EVENTS[kind]}.done", **self._where(), **{field: part[field]}, **more)
        yield self._event(f"{_part_event(kind)}.done", **self._where(), part=part)
        self._open.kind = None

    def _where(self) -> dict[str, Any]:
        """Return the place of the part that is being written."""
        found = self._open
        assert found is not None
        number = "summary_index" if found.kind == "summary" else "content_index"
        return {"item_id": found.item["id"], "output_index": found.index, number: len(found.parts) - 1}

    def _id(self, given: Any, prefix: str) -> str:
        """Return the upstream's id of an item, or one of our own if it gave none or the same one twice."""
        name = given if given and is_name(given) and given not in self._ids else made_up_id(prefix)
        self._ids.add(name)
        return name

    def _event(self, name: str, **fields: Any) -> bytes:
        data = dumps({"type": name, "sequence_number": self._sequence, **fields})
        self._sequence += 1
        return encode_event(data, name)


def _part_event(kind: str) -> str:
    return "response.reasoning_summary_part" if kind == "summary" else "response.content_part"
