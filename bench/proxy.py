"""Load the proxy on loopback: latency that it adds, capacity, and three times as much as it can take.

Starts a scripted upstream that answers at once, and `guardrail serve` with the model that ships, each in a
process of its own. `wrk` drives both, closed loop; the overload comes from an open-loop client here, which
sends at a fixed rate whatever comes back, so that slow answers are not measured less often.

    python bench/proxy.py [--seconds 10] [--json build/proxy.json]
"""

import argparse
import asyncio
import json
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

TURNS = (
    ("user", "we want to grow tomatoes on the balcony this year, it faces south"),
    ("assistant", "Lovely! A south-facing balcony is ideal. How big are your pots?"),
    ("user", "about twenty litres each. how often should i water them in summer?"),
)
REPLY = (
    "In warm weather water them deeply every morning until some runs out of the bottom. On very hot days "
    "check again in the evening. Mulch keeps the soil moist, and a saucer helps when you are away."
)
BODY = {"model": "m", "messages": [{"role": role, "content": text} for role, text in TURNS]}
CHUNK_SECONDS = 0.02
HEADERS = [(b"content-type", b"application/json")]
CHOICE = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": REPLY}}
ANSWER = {"id": "c-1", "object": "chat.completion", "created": 1, "model": "m", "choices": [CHOICE]}


async def upstream(scope, receive, send):
    """Answer at once, or word by word."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    if b'"stream": true' not in body and b'"stream":true' not in body:
        answer = json.dumps(ANSWER).encode()
        length = (b"content-length", str(len(answer)).encode())
        await send({"type": "http.response.start", "status": 200, "headers": [*HEADERS, length]})
        await send({"type": "http.response.body", "body": answer})
        return
    kind = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": kind})
    for word in re.findall(r"\S+\s*", REPLY):
        await send({"type": "http.response.body", "body": _event({"content": word}), "more_body": True})
        await asyncio.sleep(CHUNK_SECONDS)
    await send({"type": "http.response.body", "body": _event({}, "stop") + b"data: [DONE]\n\n"})


def _event(delta, finish=None):
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    head = {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return b"data: " + json.dumps({**head, "choices": [choice]}).encode() + b"\n\n"


@contextmanager
def process(command, log):
    with log.open("w") as out:
        running = subprocess.Popen(command, stderr=out, stdout=out)
    try:
        yield running
    finally:
        running.terminate()
        running.wait(30)


def wait_for(url):
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            return httpx.get(url, timeout=5)
        except httpx.HTTPError:
            time.sleep(0.1)
    raise SystemExit(f"nothing answers at {url}")


def milliseconds(text):
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text).groups()
    return float(number) * {"us": 0.001, "ms": 1, "s": 1000, "m": 60_000}[unit]


def wrk(url, connections, seconds, folder):
    """Drive a server closed loop."""
    script = folder / "post.lua"
    script.write_text(
        'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\n'
        f"wrk.body = [==[{json.dumps(BODY)}]==]\n"
    )
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "--latency"]
    command += ["-s", str(script), f"{url}/v1/chat/completions"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    shares = dict(re.findall(r"^\s+(50|99)%\s+(\S+)", out, re.MULTILINE))
    errors = re.search(r"Non-2xx or 3xx responses: (\d+)", out)
    return {
        "connections": connections,
        "per_second": float(re.search(r"Requests/sec:\s+([\d.]+)", out)[1]),
        "p50_ms": milliseconds(shares["50"]),
        "p99_ms": milliseconds(shares["99"]),
        "not_200": int(errors[1]) if errors else 0,
    }


async def at_rate(url, rate, seconds, connections):
    """Send at a fixed rate, open loop; return status and seconds of each answer, and the time it took."""
    found = []
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:

        async def one():
            started = time.perf_counter()
            try:
                status = (await client.post("/v1/chat/completions", json=BODY)).status_code
            except httpx.HTTPError as error:
                status = type(error).__name__
            found.append((status, time.perf_counter() - started))

        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number in range(int(rate * seconds)):
                await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
                group.create_task(one())
            sent = time.perf_counter() - began
        took = time.perf_counter() - began
    return found, sent, took


def overload(url, rate, seconds, pid):
    before = psutil.Process(pid).memory_info().rss
    found, sent, took = asyncio.run(at_rate(url, rate, seconds, connections=400))
    accepted = sorted(1000 * length for status, length in found if status == 200)
    shed = sorted(1000 * length for status, length in found if status == 503)
    stati = Counter(str(status) for status, _ in found)
    time.sleep(1)
    return {
        "offered_per_second": round(len(found) / sent, 1),
        "answers": dict(stati),
        "share_shed": round(stati["503"] / len(found), 3),
        "accepted_per_second": round(len(accepted) / took, 1),
        "accepted_p50_ms": round(percentile(accepted, 0.50), 1),
        "accepted_p99_ms": round(percentile(accepted, 0.99), 1),
        "shed_p50_ms": round(percentile(shed, 0.50), 1),
        "shed_p99_ms": round(percentile(shed, 0.99), 1),
        "memory_before_mib": round(before / 2**20, 1),
        "memory_after_mib": round(psutil.Process(pid).memory_info().rss / 2**20, 1),
    }


def percentile(values, share):
    return values[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def streams(url, times=5):
    """Return how long a paced stream takes to its first words and to its end, seconds."""
    firsts, totals = [], []
    for _ in range(times):
        started = time.perf_counter()
        first = None
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=BODY | {"stream": True}) as answer:
            for line in answer.iter_lines():
                if first is None and re.search(r'"content": ?"\w', line):
                    first = time.perf_counter() - started
        firsts.append(first)
        totals.append(time.perf_counter() - started)
    first, total = (round(statistics.median(values), 3) for values in (firsts, totals))
    return {"first_words_s": first, "total_s": total}


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def measure(options, folder):
    ports = free_port(), free_port()
    bare, proxy = (f"http://127.0.0.1:{port}" for port in ports)
    server = "import uvicorn, sys; sys.path.insert(0, sys.argv[1]); "
    server += "uvicorn.run('proxy:upstream', port=int(sys.argv[2]), log_level='warning', access_log=False)"
    serve = "from guardrail.cli import main; main()"
    llm = [sys.executable, "-c", server, str(Path(__file__).parent), str(ports[0])]
    guard = [sys.executable, "-c", serve, "serve", "--upstream", f"{bare}/v1", "--port", str(ports[1])]
    guard += ["--max-concurrency", str(options.concurrency), "--max-queue", str(options.queue)]
    with process(llm, folder / "llm.log"), process(guard, folder / "proxy.log") as running:
        wait_for(bare)
        assert wait_for(f"{proxy}/readyz").status_code == 200
        assert httpx.post(f"{proxy}/v1/chat/completions", json=BODY).json()["guardrail"]["strategy"] == "pass"
        seconds = options.seconds
        found = {"upstream, 1 connection": wrk(bare, 1, seconds, folder)}
        found["proxy, 1 connection"] = wrk(proxy, 1, seconds, folder)
        found["upstream, 16 connections"] = wrk(bare, 16, seconds, folder)
        full = found[f"proxy, {options.concurrency} connections"] = wrk(
            proxy, options.concurrency, seconds, folder
        )
        three = overload(proxy, 3 * full["per_second"], seconds, running.pid)
        after = wrk(proxy, 1, max(2, seconds // 2), folder)
        return {
            "closed_loop": found | {"proxy, 1 connection, after the overload": after},
            "overload": three,
            "streams": {"upstream": streams(bare), "proxy": streams(proxy)},
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--concurrency", type=int, default=16, help="of the proxy")
    parser.add_argument("--queue", type=int, default=16, help="of the proxy")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("expected wrk, found none; install it, e.g. with apt-get install wrk")
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options, Path(folder))
    print(f"{'closed loop':<42}{'req/s':>9}{'p50 ms':>9}{'p99 ms':>9}{'not 200':>9}")
    for name, row in found["closed_loop"].items():
        figures = f"{row['per_second']:>9.1f}{row['p50_ms']:>9.2f}{row['p99_ms']:>9.2f}{row['not_200']:>9}"
        print(f"{name:<42}{figures}")
    for part in ("overload", "streams"):
        print(f"\n{part}")
        for name, value in found[part].items():
            print(f"  {name:<28}{value}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
