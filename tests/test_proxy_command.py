"""`guardrail serve` as a process of its own: how it starts, and how it ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager

import httpx
import pytest

pytest.importorskip("starlette")
from proxy_tools import ScriptedUpstream, chat_body, on_socket, until

CHAT = "/v1/chat/completions"
SERVE = "from guardrail.cli import main; main()"


@contextmanager
def command(upstream_url, *options):
    """Run `guardrail serve` with the model that ships; yields the process, its URL and its lines."""
    lines = []
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, "serve", "--upstream", f"{upstream_url}/v1", "--port", "0", *options],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "GUARDRAIL_API_KEY": ""},
    )
    reader = threading.Thread(target=lambda: lines.extend(iter(process.stderr.readline, "")), daemon=True)
    reader.start()
    try:
        until(lambda: process.poll() is not None or any("listening on" in line for line in lines), 30)
        assert process.poll() is None, lines
        url = json.loads(next(line for line in lines if "listening on" in line))["event"].split()[-1]
        yield process, url, lines
    finally:
        process.kill()
        process.wait(10)
        reader.join(10)
        process.stderr.close()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_sigterm_finishes_streams_takes_nothing_new_and_exits_with_0():
    upstream = ScriptedUpstream("All of this is fine. " * 10, chunk_wait=0.04)
    with on_socket(upstream.app) as upstream_url, command(upstream_url) as (process, url, lines):
        assert httpx.get(f"{url}/readyz").status_code == 200
        with httpx.Client() as client:
            body = chat_body("A recipe for bread, please.", stream=True)
            with httpx.stream("POST", f"{url}{CHAT}", json=body, timeout=20) as answer:
                events = answer.iter_lines()
                assert "data:" in next(events)
                process.send_signal(signal.SIGTERM)
                until(lambda: client.get(f"{url}/readyz").status_code == 503)
                refused = client.post(f"{url}{CHAT}", json=body)
                assert refused.status_code == 503
                assert refused.json()["error"]["code"] == "shutting_down"
                assert process.poll() is None
                rest = "".join(events)
        assert rest.endswith("data: [DONE]")
        assert rest.count("fine") >= 9
        assert process.wait(10) == 0
    requests = [json.loads(line) for line in lines]
    streamed = [line for line in requests if line.get("path") == CHAT and line["status"] == 200]
    assert len(streamed) == 1
    assert "bread" not in "".join(lines)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_stream_that_does_not_end_is_cut_off_after_the_time_for_shutting_down():
    upstream = ScriptedUpstream("All of this is fine. " * 1000, chunk_wait=0.05)
    with (
        on_socket(upstream.app) as upstream_url,
        command(upstream_url, "--shutdown-seconds", "0.3") as (process, url, lines),
    ):
        body = chat_body("A recipe for bread, please.", stream=True)
        with httpx.stream("POST", f"{url}{CHAT}", json=body, timeout=20) as answer:
            assert "data:" in next(answer.iter_lines())
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
        until(lambda: upstream.closed_early == 1)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("signals", [1, 2])
def test_whoever_is_not_answered_when_it_ends_is_told_to_try_elsewhere(signals):
    upstream = ScriptedUpstream(wait=30)
    answers = []
    seconds = "0.3" if signals == 1 else "30"
    with (
        on_socket(upstream.app) as upstream_url,
        command(upstream_url, "--shutdown-seconds", seconds, "--max-concurrency", "1") as (
            process,
            url,
            lines,
        ),
    ):
        half = _half_a_request(url)
        callers = [
            threading.Thread(target=lambda: answers.append(httpx.post(f"{url}{CHAT}", json=chat_body("hi"))))
            for _ in range(2)
        ]
        for caller in callers:
            caller.start()
        until(lambda: "guardrail_queue_length 1.0" in httpx.get(f"{url}/metrics").text)
        process.send_signal(signal.SIGTERM)
        until(lambda: httpx.get(f"{url}/readyz").status_code == 503)
        with half:
            half.sendall(b"}")
            assert b"shutting_down" in half.makefile("rb").read()
        if signals == 2:
            process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0
        for caller in callers:
            caller.join(5)
    assert [(answer.status_code, answer.json()["error"]["code"]) for answer in answers] == [
        (503, "shutting_down")
    ] * 2
    assert all(answer.headers["retry-after"] for answer in answers)
    assert not any("exception" in json.loads(line) or "Traceback" in line for line in lines)


def _half_a_request(url):
    """Return a connection on which all of a request but its last byte was sent."""
    body = json.dumps(chat_body("hi"))
    connection = socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), 5)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body[:-1]}".encode())
    return connection


def test_an_address_in_use_is_one_line(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-c", SERVE, "serve", "--upstream", "http://x.invalid/v1", "--port", port],
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode in (2, 3)
    assert "in use" in done.stderr
    assert "Traceback" not in done.stderr
