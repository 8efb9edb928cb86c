"""Server-sent events, and the guard's transport without the `openai` package."""

import asyncio
import json

import httpx
import pytest
from fakes import SAFE_REPLY, UNSAFE_REPLY, make_guard
from hypothesis import given
from hypothesis import strategies as st
from openai_server import chat, chat_stream

from guardrail.errors import ConfigError, InputError
from guardrail.integrations.openai_api.endpoints import endpoint
from guardrail.integrations.openai_api.exchange import StreamExchange, read_request
from guardrail.integrations.openai_api.sse import MOST_EVENT_BYTES, Event, EventDecoder, encode_event
from guardrail.integrations.openai_api.transport import AsyncGuardTransport, GuardTransport
from guardrail.integrations.openai_api.wire import MOST_BYTES, RequestError, UpstreamError

URL = "http://upstream/v1/chat/completions"
BEER = "we had a beer with our bread"
SECRET = b"drive off"


def decoded(data, cuts=()):
    decoder = EventDecoder()
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [
        event
        for start, end in zip(places, places[1:], strict=False)
        for event in decoder.feed(data[start:end])
    ]


# ---------------------------------------------------------------- server-sent events


def test_events_are_read_as_the_standard_says():
    data = (
        b"\xef\xbb\xbf: a comment\n\nevent: first\ndata: one\ndata:two\ndata\nid: 7\nretry: 10\n\n"
        b"event: nothing\n\ndata:  kept\r\n\r\ndata: last\r\rdata: never ended\n"
    )

    assert decoded(data) == [Event("first", "one\ntwo\n"), Event("", " kept"), Event("", "last")]


LINES = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]))
CUTS = st.lists(st.integers(0, 10_000), max_size=12)


@given(st.lists(st.tuples(LINES, st.lists(LINES, min_size=1))), CUTS, st.sampled_from(["\n", "\r\n", "\r"]))
def test_however_the_bytes_are_cut_the_same_events_come_out(events, cuts, end):
    lines = [
        line
        for name, data in events
        for line in (f"event: {name}", ": note", *(f"data: {piece}" for piece in data), "")
    ]
    whole = "".join(line + end for line in lines).encode()

    assert decoded(whole, cuts) == [Event(name, "\n".join(data)) for name, data in events]


@given(st.binary(), CUTS)
def test_any_bytes_are_read_or_refused_alike(data, cuts):
    def outcome(cuts):
        try:
            return decoded(data, cuts)
        except UpstreamError:
            return "refused"

    assert outcome(cuts) == outcome(())


def test_events_that_are_written_can_be_read():
    assert decoded(encode_event(b'{"a": 1}', "name")) == [Event("name", '{"a": 1}')]


@pytest.mark.parametrize("piece", [b"x" * 65536, b"data: x\n" * 8192])
def test_an_event_without_an_end_is_refused(piece):
    decoder = EventDecoder()

    with pytest.raises(UpstreamError, match="expected events of at most"):  # noqa: PT012
        for _ in range(MOST_EVENT_BYTES // len(piece) + 1):
            list(decoder.feed(piece))


def test_a_stream_without_an_end_is_refused():
    decoder = EventDecoder()

    with pytest.raises(UpstreamError, match="expected a stream of at most"):  # noqa: PT012
        for _ in range(MOST_BYTES // 2**20 + 1):
            list(decoder.feed(b"data: " + b"x" * 2**20 + b"\n\n"))


# ---------------------------------------------------------------- the stream's exchange, without I/O

TEXTS = st.lists(
    st.sampled_from(
        [
            "Bread",
            " needs time. ",
            "I had a beer",
            ". ",
            "drive ",
            "Is it so? ",
            "\n",
            "Brötchen 🍞 ",
            ", and ",
        ]
    ),
    max_size=12,
)


def played(guard, data, cuts):
    """Return what a client sees of a stream that arrives cut at these places; the LLM is asked once."""
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": BEER}]}
    exchange = StreamExchange(guard, read_request("chat", json.dumps(body).encode()), "reply")
    reply = exchange.reply
    reply.start()
    upstream, shown = exchange.upstream(), []
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for start, end in zip(places, places[1:], strict=False):
        for item in upstream.feed(data[start:end]):
            if not reply.closed and reply.feed(item):
                reply.judge()
            shown += reply.take()
    if reply.closed:
        reply.go_on()
    else:
        upstream.finish()
        reply.finish()
    shown += reply.take()
    return b"".join(exchange.write(item) for item in shown), reply.result


def text_in(data):
    events = [json.loads(event.data) for event in decoded(data) if event.data != "[DONE]"]
    return "".join(event["choices"][0]["delta"].get("content") or "" for event in events)


GUARD = make_guard(max_attempts=1)


@given(TEXTS, CUTS)
def test_any_split_of_a_stream_shows_the_same_text(texts, cuts):
    data = b"".join(chat_stream(*texts).body)

    whole, first = played(GUARD, data, ())
    cut, second = played(GUARD, data, cuts)

    assert text_in(whole) == text_in(cut) == first.text == second.text
    assert (first.strategy, len(first.attempts)) == (second.strategy, len(second.attempts))


# ---------------------------------------------------------------- the transport


class Upstream(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Sends its bodies one after the other; counts what is open."""

    def __init__(self, *bodies):
        self.bodies = list(bodies)
        self.requests = []
        self.open = 0
        self.closed = False

    def respond(self, request, stream):
        self.requests.append(request)
        body = self.bodies.pop(0)
        self.open += 1
        kind = "text/event-stream" if isinstance(body, list) else "application/json"
        pieces = body if isinstance(body, list) else [body]
        return httpx.Response(200, headers={"content-type": kind}, stream=stream(self, pieces))

    def handle_request(self, request):
        return self.respond(request, Pieces)

    async def handle_async_request(self, request):
        return self.respond(request, AsyncPieces)

    def close(self):
        self.closed = True

    async def aclose(self):
        self.closed = True


class Pieces(httpx.SyncByteStream):
    def __init__(self, upstream, pieces):
        self.upstream, self.pieces, self.read, self.closed = upstream, pieces, 0, False

    def __iter__(self):
        for piece in self.pieces:
            self.read += 1
            yield piece

    def close(self):
        self.upstream.open -= not self.closed
        self.closed = True


class AsyncPieces(Pieces, httpx.AsyncByteStream):
    async def __aiter__(self):
        for piece in self.pieces:
            yield piece

    async def aclose(self):
        self.close()


def request(stream=False, **headers):
    body = {"model": "m", "messages": [{"role": "user", "content": BEER}], "stream": stream}
    return httpx.Request("POST", URL, json=body, headers=headers, extensions={"timeout": {"read": 3.0}})


def test_a_sync_transport_needs_no_client():
    upstream = Upstream(chat(UNSAFE_REPLY).body, chat(SAFE_REPLY).body)
    transport = GuardTransport(make_guard(), upstream)

    response = transport.handle_request(request(**{"idempotency-key": "k", "accept-encoding": "gzip"}))

    assert response.json()["choices"][0]["message"]["content"] == SAFE_REPLY
    assert [reply.strategy for reply in response.extensions["guardrail"].replies] == ["regenerated"]
    assert not response.extensions["guardrail"].streaming
    assert upstream.open == 0
    first, second = upstream.requests
    # Another try must not be answered with the first answer.
    assert (first.headers.get("idempotency-key"), second.headers.get("idempotency-key")) == ("k", None)
    assert first.headers["accept-encoding"] == "identity"
    assert first.extensions["timeout"] == {"read": 3.0}
    assert int(second.headers["content-length"]) == len(second.content)


def test_an_async_transport_needs_no_client():
    upstream = Upstream(chat_stream("Fine. ", UNSAFE_REPLY, " And so on.").body, chat_stream(SAFE_REPLY).body)
    transport = AsyncGuardTransport(make_guard(), upstream)

    async def main():
        response = await transport.handle_async_request(request(stream=True))
        assert response.extensions["guardrail"].replies == []
        data = b"".join([piece async for piece in response.aiter_bytes()])
        await response.aclose()
        return response, data

    response, data = asyncio.run(main())

    assert SECRET not in data
    assert text_in(data) == f"Fine.\n\n{SAFE_REPLY}"
    assert [reply.strategy for reply in response.extensions["guardrail"].replies] == ["regenerated"]
    assert upstream.open == 0


@pytest.mark.parametrize("read", [0, 1])
def test_a_stream_that_nobody_reads_on_is_closed(read):
    upstream = Upstream(chat_stream("Fine. ", "And more. ", "And so on.").body)
    response = GuardTransport(make_guard(), upstream).handle_request(request(stream=True))
    pieces = response.iter_bytes()
    for _ in range(read):
        next(pieces)

    response.close()

    assert upstream.open == 0


def test_an_async_stream_that_nobody_reads_is_closed():
    upstream = Upstream(chat_stream("Fine. ", "And more.").body)

    async def main():
        transport = AsyncGuardTransport(make_guard(), upstream)
        response = await transport.handle_async_request(request(stream=True))
        await response.aclose()

    asyncio.run(main())

    assert upstream.open == 0


@pytest.mark.parametrize("owns", [False, True])
def test_the_inner_transport_is_closed_if_it_is_owned(owns):
    inner, async_inner = Upstream(), Upstream()

    with GuardTransport(make_guard(), inner, owns_inner=owns):
        pass
    asyncio.run(AsyncGuardTransport(make_guard(), async_inner, owns_inner=owns).aclose())

    assert (inner.closed, async_inner.closed) == (owns, owns)


def test_a_whole_reply_without_an_end_is_refused():
    upstream = Upstream([b" " * 2**20] * (MOST_BYTES // 2**20 + 1))

    response = GuardTransport(make_guard(), upstream).handle_request(request())

    assert (response.status_code, response.json()["error"]["type"]) == (502, "upstream_error")
    assert upstream.open == 0


def test_a_request_that_is_too_long_is_refused():
    upstream = Upstream()
    long = httpx.Request("POST", URL, content=b" " * (MOST_BYTES + 1))

    response = GuardTransport(make_guard(), upstream).handle_request(long)

    assert response.status_code == 400
    assert "expected a request of at most" in response.json()["error"]["message"]


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"[" * 10_000, b'{"messages": NaN}', b"\xff"])
def test_a_request_that_is_no_json_object_is_refused(body):
    response = GuardTransport(make_guard(), Upstream()).handle_request(
        httpx.Request("POST", URL, content=body)
    )

    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_refusals_hold_nothing_of_what_was_said():
    body = {"messages": [{"role": "my secret", "content": "my secret"}]}

    response = GuardTransport(make_guard(), Upstream()).handle_request(httpx.Request("POST", URL, json=body))

    assert response.status_code == 400
    assert "secret" not in response.text


def test_other_objects_are_no_transports():
    with pytest.raises(InputError, match="expected a client or a transport of httpx"):
        GuardTransport(make_guard(), object())
    with pytest.raises(ConfigError, match="on_intervention"):
        GuardTransport(make_guard(), Upstream(), on_intervention="never")


# ---------------------------------------------------------------- endpoints


@pytest.mark.parametrize(
    ("method", "path", "found"),
    [
        ("POST", b"/v1/chat/completions", "chat"),
        ("POST", b"/chat/completions/", "chat"),
        ("POST", b"/openai/deployments/d/chat/completions?api-version=1", "chat"),
        ("POST", b"/v1/responses", "responses"),
        ("GET", b"/v1/models", "pass"),
        ("GET", b"/v1/models/org%2Fname", "pass"),
        ("POST", b"/v1/embeddings", "pass"),
        ("DELETE", b"/v1/responses/r", "pass"),
    ],
)
def test_endpoints_are_known_by_their_end(method, path, found):
    assert endpoint(method, path) == found


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", b"/v1/chat/completions"),
        ("GET", b"/v1/chat/completions/c"),
        ("GET", b"/v1/responses/r"),
        ("POST", b"/v1/responses/r/cancel"),
        ("POST", b"/v1/completions"),
        ("POST", b"/v1/threads/t/runs"),
        ("POST", b"/v1/models/m"),
        ("GET", b"/v1/files/f/content"),
        ("GET", b"/v1/models/..%2Fresponses%2Fr"),
        ("GET", b"/v1/models/%2e%2e/responses/r"),
        ("POST", b"/v1/chat%2Fcompletions"),
        ("POST", b"/v1/CHAT/COMPLETIONS"),
        ("POST", b"/"),
        ("PUT", b"/v1/chat/completions"),
    ],
)
def test_every_other_endpoint_is_refused(method, path):
    with pytest.raises(RequestError, match="send it with a client that is not guarded"):
        endpoint(method, path)
