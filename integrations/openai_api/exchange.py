"""One guarded request, whole or streaming: the steps between the codec and the guard. Pure, no I/O.

`transport` sends the requests and reads the answers, sync and async.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from guardrail.errors import InputError
from guardrail.outcome import GuardedReply
from guardrail.session import OnIntervention, Session
from guardrail.streaming import ReplyStream

from .chat import ChatCodec
from .codec import Codec, StreamReader, View
from .endpoints import Endpoint
from .facts import reply_headers
from .responses import ResponsesCodec
from .sse import EventDecoder, encode_event
from .wire import RequestError, UpstreamError, dumps, error_body, loads, strings

if TYPE_CHECKING:
    from guardrail import Guardrail


def read_request(endpoint: Endpoint, data: bytes) -> Codec:
    """Return what a request asks for.

    Raises:
        RequestError: it cannot be read, or asks for what cannot be guarded.
    """
    try:
        body = loads(data)
    except ValueError:
        body = None
    if not isinstance(body, Mapping):
        raise RequestError("expected a JSON object as the body of the request")
    return ChatCodec(body) if endpoint == "chat" else ResponsesCodec(body)


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole reply of the upstream that was read."""

    response: Mapping[str, Any] = field(repr=False)
    views: list[View] = field(repr=False)


class Exchange:
    """What requests for whole replies and for streams have in common: errors of the upstream.

    Some upstreams quote the draft that they could not read in their error, so these are judged, too.
    """

    def __init__(self, guard: Guardrail, codec: Codec) -> None:
        self._guard = guard
        self._codec = codec

    def error_body(self, data: bytes) -> bytes | None:
        """Return the body of an error if it may be shown.

        Raises:
            ModelError: a stage failed and `on_error` is "raise".
        """
        try:
            said = loads(data)
            data = dumps(said)  # what was judged: a key may stand there twice
        except ValueError:
            said = data.decode("utf-8", "replace")
        return data if self._is_fit(said) else None

    def error_answer(self, error: UpstreamError) -> bytes:
        """Return the body that tells of an answer that is no reply.

        Raises:
            ModelError: a stage failed and `on_error` is "raise".
        """
        told = error_body(str(error), "upstream_error", code="bad_upstream_reply")["error"]
        return dumps({"error": {**told, **(self._payload(error) or {})}})

    def error_event(self, error: UpstreamError) -> bytes | None:
        """Return the event that tells of a failure of which the upstream told in its stream; else None.

        Raises:
            ModelError: a stage failed and `on_error` is "raise".
        """
        if error.payload is None:
            return None
        said = self._payload(error) or {}
        told = {name: said.get(name) for name in ("message", "type", "param", "code")}
        told["message"] = str(told["message"] or "the upstream failed within its stream")
        return encode_event(dumps({**told, "type": "error", "error": told}), "error")

    def _payload(self, error: UpstreamError) -> Mapping[str, Any] | None:
        return error.payload if self._is_fit(error.payload) else None

    def _is_fit(self, said: Any) -> bool:
        text = "\n".join(strings(said))
        if not text.strip():
            return True
        verdict = self._guard.check([*self._codec.messages, {"role": "assistant", "content": text}])
        unread = not verdict.coverage.judged_turn_read and self._guard.config.on_error != "allow"
        return not (verdict.flagged or unread)


class WholeExchange(Exchange):
    """One request for a whole reply. Call `start`, then `offer` or `fail` until `request` is None.

    Of several choices each is judged by a session of its own, which repairs without another call.
    """

    def __init__(self, guard: Guardrail, codec: Codec, on_intervention: OnIntervention | None) -> None:
        """Prepare; nothing is judged yet.

        Raises:
            RequestError: the messages cannot be read.
        """
        super().__init__(guard, codec)
        self._on_intervention = on_intervention
        self._first = self._session()
        self._others: list[Session] = []
        self._response: Mapping[str, Any] | None = None

    @property
    def session(self) -> Session:
        """The session that decides what the LLM is asked."""
        return self._first

    @property
    def request(self) -> dict[str, Any] | None:
        """The body to send to the upstream; None once the answer is there."""
        return None if self._first.result is not None else self._codec.request(self._first.request)

    def start(self) -> None:
        """Judge the conversation.

        Raises:
            ModelError: a stage failed and `on_error` is "raise".
        """
        self._first.start()

    def read(self, data: bytes) -> Whole:
        """Return what the upstream answered; to be called where its failures are looked for.

        Raises:
            UpstreamError: it is no reply.
        """
        try:
            response = loads(data)
        except ValueError:
            raise UpstreamError("expected a reply in JSON, got something else") from None
        if isinstance(response, dict):
            response.pop("guardrail", None)  # of another guard behind this one
        return Whole(response, self._codec.views(response))

    def offer(self, whole: Whole) -> None:
        """Judge a reply.

        Raises:
            ModelError: a stage failed and `on_error` is "raise".
        """
        self._response = whole.response
        self._first.offer(whole.views[0])
        for more in whole.views[1:]:
            session = self._session()
            session.start()
            if session.result is None:
                session.offer(more)
            self._others.append(session)

    @property
    def replies(self) -> list[GuardedReply]:
        """The outcome of each choice, once `request` is None."""
        found = [session.result for session in (self._first, *self._others) if session.result is not None]
        # Where the LLM was not asked, each choice is the same.
        return found * self._codec.choices if self._response is None else found

    def answer(self) -> tuple[bytes, dict[str, str]]:
        """Return the body to show and headers about it, once `request` is None."""
        replies = self.replies
        return dumps(self._codec.answer(self._response, replies)), reply_headers(replies)

    def _session(self) -> Session:
        attempts = 1 if self._codec.choices > 1 else None
        return _session(self._guard, self._codec, self._on_intervention, attempts)


class StreamExchange(Exchange):
    """One request for a stream: hand `reply` and `body` to a driver, write what it shows with `write`."""

    def __init__(self, guard: Guardrail, codec: Codec, on_intervention: OnIntervention | None) -> None:
        """Prepare; nothing is judged yet.

        Raises:
            RequestError: the messages cannot be read.
        """
        super().__init__(guard, codec)
        self._form = codec.form()
        self.session = _session(guard, codec, on_intervention, None)
        self.reply = ReplyStream(self.session, self._form)

    def body(self, request: Any) -> dict[str, Any]:
        """Return the body to send to the upstream for messages."""
        return self._codec.request(request)

    def upstream(self) -> UpstreamItems:
        """Return a reader for one stream of the upstream."""
        return UpstreamItems(self._codec.reader())

    def write(self, item: Any) -> bytes:
        """Return the bytes for an item that may be shown."""
        return b"".join(self._form.write(item))


class UpstreamItems:
    """Reads the bytes of one stream into items for the form."""

    def __init__(self, reader: StreamReader) -> None:
        self._events = EventDecoder()
        self._reader = reader

    @property
    def done(self) -> bool:
        """True once the upstream has said that nothing follows."""
        return self._reader.done

    def feed(self, data: bytes) -> Iterator[Any]:
        """Return the items that are complete with these bytes.

        Raises:
            UpstreamError: they are garbage, or tell of a failure.
        """
        for event in self._events.feed(data):
            yield from self._reader.feed(event)

    def finish(self) -> None:
        """Take note that the stream has ended.

        Raises:
            UpstreamError: it ended too early.
        """
        self._reader.finish()


def _session(
    guard: Guardrail, codec: Codec, on_intervention: OnIntervention | None, max_attempts: int | None
) -> Session:
    try:
        return Session(guard, codec.messages, on_intervention, form=str, max_attempts=max_attempts)
    except InputError as error:
        raise RequestError(str(error), "messages") from None
