"""The proxy on real sockets: real clients, callers that leave or dawdle, and its end."""

import asyncio
import json
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager

import httpx
import pytest

pytest.importorskip("starlette")
from fakes import make_guard
from proxy_tools import (
    ASK,
    FINE,
    LEAK,
    SECRET,
    ScriptedUpstream,
    chat_body,
    event,
    logged,
    on_socket,
    proxy_on_socket,
    until,
)

from guardrail.integrations.proxy.logs import JsonFormatter

CHAT = "/v1/chat/completions"
SLOW = "This is a sentence that is fine. " * 20


@contextmanager
def proxied(upstream, **settings):
    with on_socket(upstream.app) as url, proxy_on_socket(make_guard(), url, **settings) as (proxy, app):
        yield proxy, app


def raw(url, data, seconds=5.0):
    """Send bytes, return all bytes that come back until the connection is closed."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), seconds) as connection:
        connection.sendall(data)
        found = b""
        while piece := connection.recv(65536):
            found += piece
        return found


def request_bytes(body, extra=b""):
    text = json.dumps(body).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    )
    return head.encode() + extra + b"Content-Length: %d\r\n\r\n" % len(text) + text


def openai_client(url, kind="OpenAI"):
    openai = pytest.importorskip("openai")
    return getattr(openai, kind)(base_url=f"{url}/v1", api_key="of-the-caller", max_retries=0)


def test_the_openai_client_whole_and_streaming():
    with proxied(ScriptedUpstream(FINE)) as (url, _), openai_client(url) as client:
        assert [model.id for model in client.models.list()] == ["m"]
        messages = [{"role": "user", "content": "hello"}]
        whole = client.chat.completions.create(model="m", messages=messages)
        assert whole.choices[0].message.content == FINE
        assert whole.usage.total_tokens == 8
        assert whole.guardrail["strategy"] == "pass"
        pieces = client.chat.completions.create(model="m", messages=messages, stream=True)
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices) == FINE
        assert client.responses.create(model="m", input="hello").output_text == FINE
        checked = client.moderations.create(input=[ASK, "four beer and now i drive home"])
        assert [result.flagged for result in checked.results] == [False, True]


def test_the_async_openai_client_never_hears_a_leaky_llm():
    async def run(url):
        async with openai_client(url, "AsyncOpenAI") as client:
            messages = [{"role": "user", "content": ASK}]
            whole = await client.chat.completions.create(model="m", messages=messages)
            stream = await client.chat.completions.create(model="m", messages=messages, stream=True)
            said = [piece.to_json() async for piece in stream]
            return whole.to_json(), "".join(said)

    with proxied(ScriptedUpstream(f"All is well. {LEAK}")) as (url, _):
        for said in asyncio.run(run(url)):
            assert "drive off" not in said
            assert SECRET not in said
            assert '"composed"' in said


def test_the_openai_client_gets_errors_as_it_knows_them():
    openai = pytest.importorskip("openai")
    with proxied(ScriptedUpstream(), api_keys=["right-key"]) as (url, _), openai_client(url) as client:
        with pytest.raises(openai.AuthenticationError, match="valid API key"):
            client.models.list()
    with proxied(ScriptedUpstream(), max_turns=1) as (url, _), openai_client(url) as client:
        with pytest.raises(openai.BadRequestError, match="at most 1 messages"):
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}] * 2)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl():
    def curl(*arguments, data=None):
        command = ["curl", "-sS", "-i", "--max-time", "10", *arguments]
        if data is not None:
            command += ["-H", "Content-Type: application/json", "--data-binary", "@-"]
        done = subprocess.run(
            command, input=data and json.dumps(data).encode(), capture_output=True, check=True
        )
        out = done.stdout.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
        head, _, body = out.partition(b"\r\n\r\n")
        return head.decode(), body

    with proxied(ScriptedUpstream(LEAK), max_body_kib=64) as (url, _):
        head, body = curl(f"{url}{CHAT}", data=chat_body())
        assert " 200 " in head.splitlines()[0]
        assert "x-guardrail-strategy: composed" in head
        assert b"drive off" not in body
        head, body = curl("-N", f"{url}{CHAT}", data=chat_body(stream=True))
        assert "text/event-stream" in head
        assert body.rstrip().endswith(b"data: [DONE]")
        assert b"drive off" not in body
        assert b'"composed"' in body
        assert b'"flagged": true' in curl(f"{url}/check", data={"messages": ["beer", "ok", "i drive"]})[
            1
        ].replace(b'":true', b'": true')
        assert b"guardrail_requests_total" in curl(f"{url}/metrics")[1]
        # A long body, with and without its length announced: the answer arrives whole.
        for more in ([], ["-H", "Transfer-Encoding: chunked"]):
            head, body = curl(*more, f"{url}{CHAT}", data=chat_body("x" * 5_000_000))
            assert " 413 " in head
            assert json.loads(body)["error"]["code"] == "body_too_long"


@pytest.mark.parametrize("stream", [False, True])
def test_no_byte_of_a_leaky_llm_comes_out(stream):
    upstream = ScriptedUpstream(f"Good evening to you. {LEAK} And more.")
    with proxied(upstream) as (url, _):
        found = raw(url, request_bytes(chat_body(stream=stream)))
    assert found.startswith(b"HTTP/1.1 200 OK\r\n")
    assert SECRET.encode() not in found
    assert b"drive off" not in found
    assert len(upstream.bodies) == 3  # the guard's attempts


def test_a_stream_comes_while_it_is_written():
    upstream = ScriptedUpstream(SLOW, chunk_wait=0.01)
    with proxied(upstream) as (url, _):
        with httpx.stream("POST", f"{url}{CHAT}", json=chat_body("hello", stream=True)) as answer:
            began = time.monotonic()
            text, first = "", None
            for line in answer.iter_lines():
                if "sentence" in line and first is None:
                    first = time.monotonic() - began
                text += line
            assert first < (time.monotonic() - began) / 2
    assert text.endswith("[DONE]")


def test_a_caller_that_leaves_ends_the_upstreams_stream():
    upstream = ScriptedUpstream(SLOW, chunk_wait=0.02)
    with logged(JsonFormatter()) as lines, proxied(upstream) as (url, app):
        with httpx.stream("POST", f"{url}{CHAT}", json=chat_body("hello", stream=True)) as answer:
            assert "data:" in next(answer.iter_lines())
            assert app.state.door.admission.running == 1
        until(lambda: upstream.closed_early == 1)
        until(lambda: app.state.door.admission.running == 0)
    until(lambda: any(json.loads(line).get("error") == "client_gone" for line in lines))


def test_a_stream_of_the_upstream_that_breaks_off_ends_with_an_error_event():
    async def breaks_off(scope, receive, send):
        head = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        delta = {"content": f"All is well. And {SECRET}"}
        piece = event(
            {"id": "c", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta}]}
        )
        await send({"type": "http.response.body", "body": piece.encode(), "more_body": False})

    with on_socket(breaks_off) as upstream_url, proxy_on_socket(make_guard(), upstream_url) as (url, _):
        answer = httpx.post(f"{url}{CHAT}", json=chat_body("hello", stream=True))
    assert answer.status_code == 200
    assert "All is well." in answer.text
    assert SECRET not in answer.text  # no sentence that was judged
    last = answer.text.strip().split("\n\n")[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "upstream_failed"


def test_a_caller_that_leaves_early_or_from_the_queue_frees_its_place():
    upstream = ScriptedUpstream(FINE, wait=30)
    with proxied(upstream, max_concurrency=1) as (url, app):
        admission = app.state.door.admission
        host, port = url.removeprefix("http://").split(":")
        first, second = (socket.create_connection((host, int(port))) for _ in range(2))
        first.sendall(request_bytes(chat_body("hello")))
        until(lambda: upstream.running == 1)
        second.sendall(request_bytes(chat_body("hello")))
        until(lambda: admission.waiting == 1)
        second.close()
        until(lambda: admission.waiting == 0)
        assert admission.running == 1
        first.close()
        until(lambda: admission.running == 0)
        assert admission.clients == 0


def test_an_upload_without_end_is_cut_off():
    with proxied(ScriptedUpstream(), max_body_kib=16) as (url, _):
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), 5) as connection:
            connection.sendall(
                f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                "Transfer-Encoding: chunked\r\n\r\n".encode()
            )
            began, answer, cut_off = time.monotonic(), b"", False
            connection.settimeout(0.01)
            while not cut_off and time.monotonic() < began + 5:
                try:
                    connection.sendall(b"400\r\n" + b"x" * 1024 + b"\r\n")
                    answer += connection.recv(4096)
                except TimeoutError:
                    pass
                except OSError:
                    cut_off = True
        assert cut_off
        assert b" 413 " in answer
        assert time.monotonic() - began < 4


@pytest.mark.parametrize("data", [b"", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: "])
def test_a_head_that_does_not_arrive_is_given_up(data):
    with proxied(ScriptedUpstream(), header_seconds=0.2) as (url, _):
        began = time.monotonic()
        raw(url, data)
        assert 0.1 < time.monotonic() - began < 3


def test_a_head_that_dawdles_on_a_connection_in_use_is_given_up_too():
    with proxied(ScriptedUpstream(), header_seconds=0.2, keep_alive_seconds=1) as (url, _):
        began = time.monotonic()
        found = raw(url, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea")
        assert b'"ok"' in found
        assert time.monotonic() - began < 3


def test_a_head_that_is_too_long_is_refused():
    with proxied(ScriptedUpstream()) as (url, _):
        found = raw(url, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000)
    assert b" 400 " in found.splitlines()[0]


def test_a_body_of_two_lengths_is_refused_and_nothing_behind_it_is_read():
    upstream = ScriptedUpstream()
    body = json.dumps(chat_body("hello")).encode()
    hidden = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    lengths = b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n" % len(chunked + hidden)
    with proxied(upstream) as (url, _):
        found = raw(url, head.encode() + lengths + chunked + hidden)
    assert found.startswith(b"HTTP/1.1 400 ")
    assert found.count(b"HTTP/1.1 ") == 1
    assert b"two_lengths" in found
    assert not upstream.requests


def test_connections_are_bounded():
    with proxied(ScriptedUpstream(), max_connections=3) as (url, _):
        host, port = url.removeprefix("http://").split(":")
        idle = [socket.create_connection((host, int(port))) for _ in range(3)]
        until(lambda: httpx.get(f"{url}/healthz").status_code == 503)
        for connection in idle:
            connection.close()
        until(lambda: httpx.get(f"{url}/healthz").status_code == 200)


def test_a_stream_beyond_the_deadline_ends_with_an_error_event():
    upstream = ScriptedUpstream(SLOW, chunk_wait=0.02)
    with proxied(upstream, deadline_seconds=0.6) as (url, app):
        answer = httpx.post(f"{url}{CHAT}", json=chat_body("hello", stream=True))
        until(lambda: upstream.closed_early == 1)
    assert answer.status_code == 200
    assert "This is a sentence" in answer.text
    last = answer.text.strip().split("\n\n")[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "deadline"
    assert "[DONE]" not in answer.text


def test_a_caller_that_does_not_read_is_given_up_at_the_deadline():
    upstream = ScriptedUpstream("This is a sentence that is fine. " * 30_000)
    with proxied(upstream, deadline_seconds=1.0) as (url, app):
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(request_bytes(chat_body("hello", stream=True)))
            until(lambda: app.state.door.admission.running == 1)
            until(lambda: app.state.door.admission.running == 0)


def test_an_upstream_that_is_not_there_is_an_error():
    with proxy_on_socket(make_guard(), "http://127.0.0.1:9", ready_upstream=True) as (url, _):
        answer = httpx.post(f"{url}{CHAT}", json=chat_body("hello"))
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_failed")
        assert httpx.get(f"{url}/readyz").json()["error"]["code"] == "upstream_unreachable"


def test_many_at_once_are_answered_as_each_alone():
    async def run(url):
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            bodies = [chat_body(text, stream=stream) for text in (ASK, "hello") for stream in (False, True)]
            alone = [await client.post(CHAT, json=body) for body in bodies]
            together = await asyncio.gather(*(client.post(CHAT, json=body) for body in bodies * 20))
            return alone, together

    def said(answer):
        if "event-stream" not in answer.headers["content-type"]:
            return answer.json()["choices"][0]["message"]["content"]
        events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        return "".join(one["choices"][0]["delta"].get("content") or "" for one in events if one["choices"])

    with proxied(ScriptedUpstream(LEAK), max_queue=100) as (url, _):
        alone, together = asyncio.run(run(url))
    assert {answer.text for answer in together if answer.status_code != 200} == set()
    assert [said(answer) for answer in together] == [said(answer) for answer in alone] * 20
