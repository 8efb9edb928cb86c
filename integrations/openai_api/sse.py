"""Server-sent events: read them out of bytes that come in any pieces, and write them. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from .wire import MOST_BYTES, UpstreamError

# Longest line, and longest event, bytes.
MOST_EVENT_BYTES = 8 * 2**20


@dataclass(frozen=True, slots=True)
class Event:
    """One event.

    Attributes:
        name: its type, or "".
        data: its lines of data, joined by line breaks.
    """

    name: str
    data: str = field(repr=False)


class EventDecoder:
    """Reads events as the HTML standard says; bounded, and strict about UTF-8."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []  # of a line that is not complete
        self._pending = 0  # bytes of the event that is not complete
        self._total = 0
        self._skip_line_feed = False
        self._first = True
        self._name = ""
        self._data: list[str] = []

    def feed(self, data: bytes) -> Iterator[Event]:
        """Take the next bytes; return the events that are complete with them.

        Raises:
            UpstreamError: a line, an event or the whole is too long, or it is not UTF-8.
        """
        self._total += len(data)
        if self._total > MOST_BYTES:
            raise UpstreamError(f"expected a stream of at most {MOST_BYTES} bytes, got more")
        if self._skip_line_feed and data:
            self._skip_line_feed = False
            data = data.removeprefix(b"\n")
        for line in data.splitlines(keepends=True):
            self._pending += len(line)
            if self._pending > MOST_EVENT_BYTES:
                raise UpstreamError(f"expected events of at most {MOST_EVENT_BYTES} bytes, got a longer one")
            self._pieces.append(line)
            if line.endswith((b"\n", b"\r")):
                self._skip_line_feed = line.endswith(b"\r")
                whole, self._pieces = b"".join(self._pieces).rstrip(b"\r\n"), []
                event = self._line(self._text(whole))
                if event is not None:
                    yield event

    def _text(self, line: bytes) -> str:
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            raise UpstreamError("expected a stream of UTF-8 text, got other bytes") from None
        text = text.removeprefix("\ufeff") if self._first else text
        self._first = False
        return text

    def _line(self, line: str) -> Event | None:
        if not line:
            event = Event(self._name, "\n".join(self._data)) if self._data else None
            self._name, self._data, self._pending = "", [], 0
            return event
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._name = value
        elif name == "data":
            self._data.append(value)
        elif not self._data and not self._name:
            self._pending = 0  # a comment that keeps the connection alive
        return None


def encode_event(data: bytes, name: str = "") -> bytes:
    """Return one event; its data must be on one line."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + data + b"\n\n"
