"""An upstream that fails on command behind HTTP, and every way to reach it through the guard."""

import json

import httpx
from faults import CASUAL, NAN, SECRET, FaultyLLM, in_loop, noted
from proxy_tools import chat_body, client_of, logged

from guardrail import ModelError
from guardrail.integrations.openai_api.transport import AsyncGuardTransport, GuardTransport
from guardrail.integrations.proxy import ProxySettings, create_app
from guardrail.integrations.proxy.logs import JsonFormatter

HEAD = {"id": "c-1", "created": 1, "model": "m"}
# Before there is an answer, or instead of one.
HEADS = {
    "refuses": httpx.ConnectError(SECRET),
    "times out": httpx.ReadTimeout(SECRET),
    "hangs": None,
    "answers 500": 500,
    "answers 429": 429,
}
# Bodies of whole replies.
BODIES = {
    "sends nothing": b"",
    "sends garbage": b"{nonsense",
    "sends HTML": b"<html>It works!</html>",
    "sends NaN": json.dumps({"choices": [{"message": {"content": NAN}}]}).encode(),
    "sends infinity": b'{"choices": [{"message": {"content": "Hi"}, "x": 1e999}]}',
    "sends a list": b"[]",
    "sends no choices": b'{"choices": []}',
    "sends a choice without a message": b'{"choices": [{"text": "Hi"}]}',
    "sends no UTF-8": b'{"choices": [{"message": {"content": "\xff\xfe"}}]}',
    "breaks off": httpx.ReadError(SECRET),
    "hangs in its body": None,
}
# What comes in a stream in place of the rest.
TAILS = {
    "sends nothing": b"",
    "sends garbage": b"data: {nonsense\n\n",
    "sends HTML": b"<html>It works!</html>\n\n",
    "sends NaN": b'data: {"choices": [{"index": 0, "delta": {"content": NaN}}]}\n\n',
    "sends a list": b"data: [1, 2]\n\n",
    "sends choices that are none": b'data: {"choices": [5]}\n\n',
    "sends no UTF-8": b"data: \xff\xfe\n\n",
    "sends half an event": b'data: {"choices": [{"index": 0, "del',
    "breaks off": httpx.ReadError(SECRET),
    "hangs in its body": None,
}
UPSTREAM = {
    "reply": {kind: (kind, None) for kind in HEADS | BODIES},
    "stream": {kind: (kind, None) for kind in HEADS | TAILS},
    "rest of a stream": {kind: (kind, None) for kind in TAILS},
}


class FaultyUpstream(FaultyLLM, httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Says its replies in chat completions, whole or word by word; fails as its fault says."""

    def handle_request(self, request):
        reply, fault = self._next()
        streaming = json.loads(request.read()).get("stream", False)
        if fault is not None:
            answer = self._instead(fault)
            if answer is not None:
                return fault.strike(answer) if fault.kind == "hangs" else answer
        return _response(_Body(self, reply, streaming, fault))

    async def handle_async_request(self, request):
        reply, fault = self._next()
        streaming = json.loads(await request.aread()).get("stream", False)
        if fault is not None:
            answer = self._instead(fault)
            if answer is not None:
                return await fault.astrike(answer) if fault.kind == "hangs" else answer
        return _response(_Body(self, reply, streaming, fault))

    def _instead(self, fault):
        """Return what comes in place of any answer, or None if it is the body that is at fault."""
        if fault.kind not in HEADS:
            return None
        fault.struck.set()
        what = HEADS[fault.kind]
        if isinstance(what, Exception):
            raise what
        return httpx.Response(what or 200, json={"error": {"message": "no", "type": "x"}})


def _response(body):
    kind = "text/event-stream" if body.streaming else "application/json"
    return httpx.Response(200, headers={"content-type": kind}, stream=body)


class _Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    def __init__(self, upstream, reply, streaming, fault):
        self.upstream, self.streaming, self.fault = upstream, streaming, fault
        self.pieces = list(_events(reply)) if streaming else [_completion(reply)]
        if fault is not None:
            self.pieces = self.pieces[: upstream.piece_number]
        upstream.open += 1

    def __iter__(self):
        yield from self.pieces
        if self.fault is not None:
            if self.fault.kind == "hangs in its body":
                self.fault.hang()
            yield self._tail()

    async def __aiter__(self):
        for piece in self.pieces:
            yield piece
        if self.fault is not None:
            if self.fault.kind == "hangs in its body":
                await self.fault.ahang()
            yield self._tail()

    def _tail(self):
        self.fault.struck.set()
        tail = (TAILS if self.streaming else BODIES)[self.fault.kind]
        if isinstance(tail, Exception):
            raise tail
        return tail or b""

    def close(self):
        self.upstream.open = 0

    async def aclose(self):
        self.upstream.open = 0


def _completion(text):
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return json.dumps({**HEAD, "object": "chat.completion", "choices": [choice]}).encode()


def _events(text):
    for number, word in enumerate(text.split(" ")):
        yield _event({"content": f" {word}" if number else word})
    yield _event({}, "stop")
    yield b"data: [DONE]\n\n"


def _event(delta, reason=None):
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    chunk = {**HEAD, "object": "chat.completion.chunk", "choices": [choice]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


# ---------------------------------------------------------------- ways


class AnsweredError(ModelError):
    """The proxy has answered that the guard failed."""


def client(guard, llm, seen, *, stream=False):
    with (
        noted(seen),
        httpx.Client(transport=GuardTransport(guard, llm, owns_inner=False)) as http,
        http.stream("POST", "http://llm.invalid/v1/chat/completions", json=_asked(seen, stream)) as answer,
    ):
        for piece in answer.iter_bytes():
            _read(seen, piece, stream)
        _answered(seen, answer, stream)


def async_client(guard, llm, seen, *, stream=False):
    transport = AsyncGuardTransport(guard, llm, owns_inner=False)

    async def call():
        async with (
            httpx.AsyncClient(transport=transport) as http,
            http.stream(
                "POST", "http://llm.invalid/v1/chat/completions", json=_asked(seen, stream)
            ) as answer,
        ):
            async for piece in answer.aiter_bytes():
                _read(seen, piece, stream)
            _answered(seen, answer, stream)

    in_loop(call, seen)


def proxy(guard, llm, seen, *, stream=False):
    app = create_app(guard, ProxySettings.of(upstream="http://llm.invalid/v1"), upstream_transport=llm)

    async def call():
        async with client_of(app) as http:
            answer = await http.post("/v1/chat/completions", json=_asked(seen, stream))
        _read(seen, answer.content, stream)
        _answered(seen, answer, stream)

    with logged(JsonFormatter()) as lines:
        in_loop(call, seen)
    seen.raw += "".join(lines)


def client_stream(guard, llm, seen):
    client(guard, llm, seen, stream=True)


def async_client_stream(guard, llm, seen):
    async_client(guard, llm, seen, stream=True)


def proxy_stream(guard, llm, seen):
    proxy(guard, llm, seen, stream=True)


WHOLE = {"client": client, "async client": async_client, "proxy": proxy}
STREAMS = {
    "client stream": client_stream,
    "async client stream": async_client_stream,
    "proxy stream": proxy_stream,
}
HTTP = WHOLE | STREAMS


def _asked(seen, stream):
    seen.ended = False
    return chat_body(CASUAL, stream=stream)


def _read(seen, data, streaming):
    """Note the words that came, whatever comes after them."""
    seen.raw += data.decode()
    if streaming:
        seen.shown = "".join(_words(event) for event in _events_of(seen.raw))


def _answered(seen, answer, streaming):
    seen.code = answer.status_code
    seen.raw += str(answer.headers)
    found = answer.extensions.get("guardrail")
    seen.verdicts = [] if found is None else [found.verdict, *(r.verdict_out for r in found.replies)]
    bodies = _events_of(seen.raw) if streaming and seen.code == 200 else [_json(seen.raw)]
    for body in bodies:
        failed = body.get("error")
        if failed:
            seen.failure = failed.get("code")
            if seen.failure == "guard_failed":
                seen.error = AnsweredError(failed["message"].partition("(")[2].partition(")")[0], "answered")
        if "guardrail" in body:
            seen.strategy = body["guardrail"]["strategy"]
            seen.status = body["guardrail"]["verdict_out"]["status"]
            if not streaming:
                seen.shown = body["choices"][0]["message"]["content"]
    seen.ended = "data: [DONE]" in seen.raw if streaming else seen.code == 200


def _events_of(text):
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [_json(line) for line in lines if line != "[DONE]" and line.endswith("}")]


def _words(event):
    return "".join(choice["delta"].get("content") or "" for choice in event.get("choices", []))


def _json(text):
    """Read the first value of a text; no number may be NaN."""

    def refuse(name):
        raise AssertionError(f"{name} in an answer")

    return json.JSONDecoder(parse_constant=refuse).raw_decode(text or "{}")[0]
