"""What the upstream says beside its replies: errors, headers, and the fields that must stay as they are."""

import asyncio
import json
import time

import httpx
import pytest
from fakes import DRIVING, BrokenEncoder, make_guard
from openai_attacks import BAD, FINE, GUARD, SECRET, ask_chat, ask_responses, put, request, shown, strategy
from openai_server import chat, chat_stream, message_item, response_events, response_object, sse

from guardrail import Guardrail
from guardrail.integrations.openai_api.transport import AsyncGuardTransport, GuardTransport

# ---------------------------------------------------------------- errors and headers

QUOTED = json.dumps({"error": {"message": "no call", "code": "bad_call", "failed_generation": BAD}}).encode()


@pytest.mark.parametrize("status", [302, 307, 400, 404, 429, 500])
@pytest.mark.parametrize("body", [QUOTED, BAD.encode(), QUOTED.replace(b"drive", b"\\u0064rive")])
@pytest.mark.parametrize("stream", [False, True])
def test_an_error_that_quotes_the_draft_is_not_told(status, body, stream):
    headers = {
        "location": "http://upstream/v1/models/m",
        "retry-after": "1",
        "content-type": "text/html; x=y",
    }

    response, data = ask_chat([body] if stream else body, status=status, headers=headers)

    assert SECRET not in shown(response, data)
    assert response.status_code == status
    assert response.headers["retry-after"] == "1"
    assert "location" not in response.headers
    assert json.loads(data)["error"]["type"] == "upstream_error"


def test_of_an_error_that_says_a_thing_twice_nothing_unjudged_is_told():
    twice = QUOTED.replace(b"failed_generation", b"message")

    response, data = ask_chat(twice[:-2] + b', "message": "no call"}}', status=400)

    assert SECRET not in shown(response, data)
    assert json.loads(data) == {"error": {"message": "no call", "code": "bad_call"}}


def test_an_error_in_a_whole_reply_that_quotes_the_draft_is_not_told():
    response, data = ask_chat(QUOTED)

    assert SECRET not in shown(response, data)
    assert response.status_code == 502
    # Where the client would not have asked again without the guard it must not with it.
    assert response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    "body", [b'{"error":{"message":"no model m","extra":[1]}}', b"<p>Bad gateway</p>", b""]
)
def test_other_errors_are_the_upstreams_own(body):
    response, data = ask_chat(
        body, status=500, headers={"content-type": "text/html", "x-ratelimit-reset": "1s"}
    )

    assert (response.status_code, data) == (500, body)
    assert response.headers["content-type"] == "text/html"
    assert response.headers["x-ratelimit-reset"] == "1s"


def test_where_the_guard_fails_errors_are_not_told():
    encoder = BrokenEncoder("raises")
    guard = Guardrail(encoder, [DRIVING])
    encoder.broken = True
    event = sse({"error": {"message": "out of memory"}})

    response, data = ask_chat(b'{"error": {"message": "out of memory"}}', status=500, guard=guard)
    _, streamed = ask_chat([event], guard=guard)

    assert b"out of memory" not in data + streamed


def test_headers_with_words_in_them_stay_behind():
    headers = {"x-draft": BAD, "x-request-id": "req-1", "date": "Fri, 21 Nov 2025 00:00:00 GMT"}

    response, _ = ask_chat(chat(FINE).body, headers=headers)

    assert "x-draft" not in response.headers
    assert response.headers["x-request-id"] == "req-1"
    assert response.headers["date"] == headers["date"]


class LateError(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Answers with an error, behind the deadline; counts what is open."""

    def __init__(self):
        self.open = 0

    def handle_request(self, request):
        time.sleep(0.2)
        return self._answer()

    async def handle_async_request(self, request):
        await asyncio.sleep(0.2)
        return self._answer()

    def _answer(self):
        self.open += 1
        return httpx.Response(429, stream=Counted(self))


class Counted(httpx.SyncByteStream, httpx.AsyncByteStream):
    def __init__(self, upstream):
        self.upstream = upstream

    def __iter__(self):
        yield b"{}"

    def close(self):
        self.upstream.open -= 1


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_behind_the_deadline_is_closed(stream):
    upstream = LateError()
    transport = GuardTransport(make_guard(deadline_ms=20), upstream)

    transport.handle_request(request("chat/completions", stream)).close()
    time.sleep(0.4)

    assert upstream.open == 0


# ---------------------------------------------------------------- what is harmless stays

HARMLESS = {
    "provider": "Some Host",
    "usage": {"prompt_tokens": 7, "details": {"cached": 0}},
    "prompt_filter_results": [{"hate": {"filtered": False, "severity": "safe"}}],
    "citations": ["http://bread"],
}
CODED = [  # one letter in two tokens, as they are told
    {"token": token, "logprob": -1.5, "bytes": [195], "top_logprobs": [{"token": " the", "logprob": -9}]}
    for token in ("Br", "\\xc3", "\\xb6", "tchen")
]


def test_a_fine_chat_completion_keeps_every_field():
    whole = json.loads(chat("Brötchen", name="bot", annotations=[{"type": "t", "title": "A title"}]).body)
    whole = put({**whole, **HARMLESS}, ("choices", 0, "logprobs"), {"content": CODED, "refusal": None})

    response, data = ask_chat(json.dumps(whole).encode())
    found = json.loads(data)
    del found["guardrail"]

    assert strategy(response) == "pass"
    assert found == whole


TOOL = {"type": "function", "name": "f", "description": "Look a word up.", "parameters": {"a b": {}}}
ASKED = {"instructions": "Be brief.", "metadata": {"my key": "my value"}, "tools": [TOOL], "user": "A B"}


@pytest.mark.parametrize("stream", [False, True])
def test_a_fine_response_keeps_what_the_request_said(stream):
    told = {
        **ASKED,
        "tools": [{**TOOL, "strict": True}],
        "truncation": "disabled",
        "reasoning": {"effort": None},
    }
    whole = response_object(message_item(FINE), **told)
    events = [sse({"type": "response.completed", "response": whole})]

    response, data = ask_responses(events if stream else json.dumps(whole).encode(), **ASKED)
    lines = data.decode().split("\n")
    found = json.loads(lines[-3][6:])["response"] if stream else json.loads(data)
    del found["guardrail"]

    assert strategy(response) == "pass"
    assert found == whole


def test_the_usage_of_a_replaced_response_is_told():
    _, data = ask_responses([sse(event) for event in response_events(message_item(BAD))])
    final = json.loads(data.decode().split("\n")[-3][6:])["response"]

    assert final["guardrail"]["strategy"] == "composed"
    assert final["usage"]["total_tokens"] == 12


def test_sound_comes_in_its_pieces_and_calls_in_one():
    sound = [
        {"audio": {"id": "a", "transcript": "Fi"}},
        {"audio": {"data": "AA=="}},
        {"audio": {"data": "BB=="}},
    ]

    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}
    more = [{"index": 0, "function": {"arguments": piece}} for piece in ('{"q"', ": 1}")]
    calls = [{"tool_calls": [each]} for each in (call, *more)]

    _, data = ask_chat(chat_stream(*sound, {"audio": {"transcript": "ne."}}, *calls).body)
    events = [json.loads(line[6:]) for line in data.decode().split("\n") if line.startswith("data: {")]
    deltas = [event["choices"][0]["delta"] for event in events]

    assert [each["audio"]["data"] for each in deltas if "data" in each.get("audio", {})] == ["AA==", "BB=="]
    assert deltas[0]["audio"] == {"id": "a", "transcript": "Fine."}
    assert deltas[0]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"q": 1}'}


def test_an_async_client_hears_no_quoted_draft_either():
    upstream = httpx.MockTransport(lambda _: httpx.Response(400, content=QUOTED))
    failing = httpx.MockTransport(
        lambda _: httpx.Response(200, content=sse({"error": {"message": BAD}}), headers={})
    )

    async def main():
        first = await AsyncGuardTransport(GUARD, upstream).handle_async_request(request("responses", False))
        second = await AsyncGuardTransport(GUARD, failing).handle_async_request(request("responses", True))
        return await first.aread() + await second.aread()

    data = asyncio.run(main())

    assert SECRET.encode() not in data
    assert b"not fit to show" in data
