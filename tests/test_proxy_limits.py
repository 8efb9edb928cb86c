"""Who is let into the proxy: turns, the queue, keys, bodies, time."""

import asyncio
import json
import threading

import pytest

pytest.importorskip("starlette")
from fakes import DRIVING, WordEncoder, make_guard
from proxy_tools import FINE, SECRET, ScriptedUpstream, ask, chat_body, client_of, proxy_app

from guardrail import Guardrail
from guardrail.integrations.proxy.door import Keys
from guardrail.integrations.proxy.errors import ProxyError
from guardrail.integrations.proxy.limits import (
    Admission,
    ClientBusyError,
    QueueFullError,
    QueueTimeoutError,
)

CHAT = "/v1/chat/completions"


async def holding(admission, client, free):
    async with admission.turn(client):
        await free.wait()
    return client


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


def test_turns_come_in_order_and_one_beyond_the_queue_is_refused_at_once():
    async def run():
        admission, free, order = Admission(1, 2, 5.0), asyncio.Event(), []

        async def work(name):
            async with admission.turn(name):
                order.append(name)
                await free.wait()

        tasks = [asyncio.create_task(work(name)) for name in "abc"]
        await settle()
        assert (admission.running, admission.waiting) == (1, 2)
        with pytest.raises(QueueFullError):
            await work("d")
        free.set()
        await asyncio.gather(*tasks)
        assert order == ["a", "b", "c"]
        assert (admission.running, admission.waiting, admission.clients) == (0, 0, 0)

    asyncio.run(run())


def test_whoever_waits_too_long_is_refused_and_leaves_no_trace():
    async def run():
        admission, free = Admission(1, 2, 0.02), asyncio.Event()
        task = asyncio.create_task(holding(admission, "a", free))
        await settle()
        with pytest.raises(QueueTimeoutError):
            await holding(admission, "b", free)
        assert (admission.running, admission.waiting) == (1, 0)
        free.set()
        await task
        assert (admission.running, admission.clients) == (0, 0)

    asyncio.run(run())


def test_a_client_has_its_share_at_work_and_waiting_together():
    async def run():
        admission, free = Admission(1, 9, 5.0, per_client=2), asyncio.Event()
        tasks = [asyncio.create_task(holding(admission, "a", free)) for _ in range(2)]
        await settle()
        with pytest.raises(ClientBusyError):
            await holding(admission, "a", free)
        tasks.append(asyncio.create_task(holding(admission, "b", free)))
        free.set()
        assert await asyncio.gather(*tasks) == ["a", "a", "b"]
        await holding(admission, "a", free)

    asyncio.run(run())


@pytest.mark.parametrize("freed_first", [True, False])
def test_a_cancelled_wait_loses_no_turn(freed_first):
    async def run():
        admission, free = Admission(1, 9, 5.0), asyncio.Event()
        first = asyncio.create_task(holding(admission, "a", free))
        await settle()
        second, third = (asyncio.create_task(holding(admission, name, free)) for name in "bc")
        await settle()
        if freed_first:  # the turn is handed over in the same step in which the wait is given up
            free.set()
            await first
            second.cancel()
        else:
            second.cancel()
            await settle()
            free.set()
        await asyncio.wait([second])
        assert second.cancelled() or freed_first
        assert await third == "c"
        assert (admission.running, admission.waiting, admission.clients) == (0, 0, 0)

    asyncio.run(run())


def test_any_number_of_cancelled_and_late_ones_leaves_nothing():
    async def run():
        admission = Admission(3, 50, 0.01)

        async def work(number):
            async with admission.turn(str(number % 7)):
                await asyncio.sleep(0.001 * (number % 5))

        tasks = [asyncio.create_task(work(number)) for number in range(60)]
        await asyncio.sleep(0.003)
        for task in tasks[::3]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (admission.running, admission.waiting, admission.clients) == (0, 0, 0)

    asyncio.run(run())


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Bearer wrong-key", "Basic right-key", "right-key", "Bearer é"]
)
def test_a_wrong_key_is_refused(header):
    headers = {} if header is None else {"authorization": header}
    with pytest.raises(ProxyError) as caught:
        Keys(["right-key", "other-key"]).caller(headers, "1.2.3.4")
    assert caught.value.status == 401


def test_callers_are_told_apart_by_key_where_there_are_keys_and_by_address_elsewhere():
    keys = Keys(["right-key", "other-key"])
    names = {keys.caller({"authorization": f"Bearer {key}"}, "same") for key in ("right-key", "other-key")}
    assert len(names) == 2
    assert not any("key" in name for name in names)
    assert Keys([]).caller({"authorization": "Bearer x"}, "1.2.3.4") == "1.2.3.4"


def test_an_app_with_a_key_lets_in_who_has_it():
    upstream = ScriptedUpstream()
    app = proxy_app(make_guard(), upstream, api_keys=["right-key"], upstream_key="upstream-key")
    refused = ask(app, "POST", CHAT, json=chat_body())
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    assert refused.json()["error"]["code"] == "invalid_api_key"
    assert not upstream.requests
    allowed = ask(app, "POST", CHAT, json=chat_body(), headers={"authorization": "Bearer right-key"})
    assert allowed.status_code == 200
    assert upstream.requests[0].headers["authorization"] == "Bearer upstream-key"


@pytest.mark.parametrize("path", ["/metrics", "/check", "/rules?q=beer", "/v1/models"])
def test_everything_but_health_asks_for_the_key(path):
    app = proxy_app(make_guard(), ScriptedUpstream(), api_keys=["right-key"])
    method = "POST" if path == "/check" else "GET"
    assert ask(app, method, path).status_code == 401
    assert ask(app, "GET", "/healthz").status_code == 200
    assert ask(app, "GET", "/readyz").status_code == 200


@pytest.mark.parametrize(
    ("host", "settings", "status"),
    [
        ("localhost:8642", {}, 200),
        ("LocalHost:8642", {}, 200),
        ("127.0.0.1:8642", {}, 200),
        ("[::1]:8642", {}, 200),
        ("[::1]", {}, 200),
        ("attacker.example", {}, 403),
        ("attacker.example:8642", {}, 403),
        ("localhost.attacker.example", {}, 403),
        ("", {}, 403),
        ("my-host", {"insecure": True}, 200),
        ("my-host", {"api_keys": ["right-key"]}, 200),
    ],
)
@pytest.mark.parametrize("path", ["/v1/models", "/metrics"])
def test_another_name_for_this_machine_is_refused_where_no_key_is_asked_for(path, host, settings, status):
    app = proxy_app(make_guard(), ScriptedUpstream(), **settings)
    headers = {"host": host, "authorization": "Bearer right-key"}
    assert ask(app, "GET", path, headers=headers).status_code == status


def test_the_key_of_the_proxy_never_reaches_the_upstream():
    upstream = ScriptedUpstream()
    app = proxy_app(make_guard(), upstream, api_keys=["right-key"])
    ask(app, "GET", "/v1/models", headers={"authorization": "Bearer right-key"})
    assert "authorization" not in upstream.requests[0].headers


def test_a_long_body_is_refused_with_and_without_a_length():
    upstream = ScriptedUpstream()
    app = proxy_app(make_guard(), upstream, max_body_kib=1)

    async def pieces():
        for _ in range(8):
            yield b"x" * 512

    for body in (b"x" * 1025, pieces()):
        answer = ask(app, "POST", CHAT, content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "body_too_long"
        assert answer.headers["connection"] == "close"
    exactly = json.dumps(chat_body("hello")).encode().ljust(1024)
    answer = ask(app, "POST", CHAT, content=exactly, headers={"content-type": "application/json"})
    assert answer.status_code == 200


def test_a_body_that_does_not_arrive_is_given_up():
    app = proxy_app(make_guard(), ScriptedUpstream(), body_seconds=0.05)

    async def slow():
        yield b"{"
        await asyncio.sleep(0.5)
        yield b"}"

    answer = ask(app, "POST", CHAT, content=slow(), headers={"content-type": "application/json"})
    assert answer.status_code == 408


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"[]", "invalid_json"),
        (b"\xff\xfe", "invalid_json"),
        (b'{"messages": NaN}', "invalid_json"),
        (b'{"messages": ' + b"[" * 100_000, "invalid_json"),
        (b'{"messages": ' + b"[" * 150 + b"]" * 150 + b"}", "invalid_json"),
        (b'{"messages": 1e999}', "invalid_json"),
        (b'{"messages": ' + b"9" * 5000 + b"}", "invalid_json"),
        (
            json.dumps(chat_body() | {"messages": [{"role": "user", "content": "x"}] * 4}).encode(),
            "too_many_turns",
        ),
        (b'{"messages": [{"role": "wizard", "content": "zebra-marker-4711"}]}', "invalid_request"),
        (b'{"messages": []}', "invalid_request"),
        (b"{}", "invalid_request"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, "/check"])
def test_what_cannot_be_read_is_refused(path, body, code):
    upstream = ScriptedUpstream()
    app = proxy_app(make_guard(), upstream, max_turns=3)
    if path == "/check" and code == "too_many_turns":
        body = body.replace(b'"model": "m", ', b"")
    answer = ask(app, "POST", path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == code
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert SECRET not in answer.text
    assert not upstream.requests


@pytest.mark.parametrize(
    "headers",
    [{"content-type": "text/plain"}, {"content-type": "application/json", "content-encoding": "gzip"}, {}],
)
def test_another_type_of_body_is_refused(headers):
    app = proxy_app(make_guard(), ScriptedUpstream())
    answer = ask(app, "POST", CHAT, content=json.dumps(chat_body()).encode(), headers=headers)
    assert answer.status_code == 415


@pytest.mark.parametrize("path", [CHAT, "/check", "/rules", "/v1/models"])
def test_a_page_of_another_site_is_let_in_by_no_browser(path):
    """A browser sends JSON to another site only if that says yes when asked first."""
    upstream = ScriptedUpstream()
    app = proxy_app(make_guard(), upstream, allow_rules=True)
    page = {"origin": "http://page.example", "access-control-request-method": "POST"}
    asked = ask(app, "OPTIONS", path, headers={**page, "access-control-request-headers": "content-type"})
    body = json.dumps(chat_body("hello")).encode()
    sent = ask(app, "POST", path, content=body, headers={**page, "content-type": "text/plain"})
    read = ask(app, "GET", "/metrics", headers=page)
    assert asked.status_code == 405
    assert sent.status_code in (405, 415)
    assert not any(name.startswith("access-control") for one in (asked, sent, read) for name in one.headers)
    assert not upstream.requests


def test_three_times_the_capacity_is_shed_and_the_rest_is_right():
    upstream = ScriptedUpstream(FINE, wait=0.05)
    app = proxy_app(make_guard(), upstream, max_concurrency=4, max_queue=4)

    async def run():
        async with client_of(app) as client:
            answers = await asyncio.gather(*(client.post(CHAT, json=chat_body("hello")) for _ in range(24)))
            return answers, await client.post(CHAT, json=chat_body("hello"))

    answers, after = asyncio.run(run())
    right = [answer for answer in answers if answer.status_code == 200]
    shed = [answer for answer in answers if answer.status_code == 503]
    assert len(right) == 8
    assert len(shed) == 16
    assert upstream.most_running == 4
    assert all(answer.json()["choices"][0]["message"]["content"] == FINE for answer in right)
    assert all(answer.headers["retry-after"] == "1" for answer in shed)
    assert all(answer.json()["error"]["code"] == "overloaded" for answer in shed)
    assert after.status_code == 200


def test_a_client_beyond_its_share_gets_429_and_others_are_served():
    upstream = ScriptedUpstream(FINE, wait=0.05)
    app = proxy_app(
        make_guard(), upstream, per_client=1, api_keys=["first-key", "second-key"], upstream_key="up"
    )

    async def run():
        async with client_of(app) as client:
            return await asyncio.gather(
                *(
                    client.post(CHAT, json=chat_body("hello"), headers={"authorization": f"Bearer {key}-key"})
                    for key in ("first", "first", "second")
                )
            )

    first, again, second = asyncio.run(run())
    assert (first.status_code, again.status_code, second.status_code) == (200, 429, 200)
    assert again.headers["retry-after"] == "1"
    assert again.json()["error"]["type"] == "rate_limit_error"


def test_waiting_in_the_queue_has_an_end():
    upstream = ScriptedUpstream(FINE, wait=0.3)
    app = proxy_app(make_guard(), upstream, max_concurrency=1, queue_seconds=0.05)

    async def run():
        async with client_of(app) as client:
            return await asyncio.gather(*(client.post(CHAT, json=chat_body("hello")) for _ in range(2)))

    assert sorted(answer.status_code for answer in asyncio.run(run())) == [200, 503]


def test_a_request_has_a_deadline():
    app = proxy_app(make_guard(), ScriptedUpstream(FINE, wait=5), deadline_seconds=0.1)
    answer = ask(app, "POST", CHAT, json=chat_body("hello"))
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "deadline"
    assert not app.state.door.admission.running


def test_a_guard_that_hangs_does_not_hold_a_request_beyond_the_deadline():
    release = threading.Event()

    class Hanging(WordEncoder):
        def encode(self, windows):
            if hanging:
                release.wait(5)
            return super().encode(windows)

    hanging = False
    guard = Guardrail(Hanging(), [DRIVING])
    app = proxy_app(guard, ScriptedUpstream(), deadline_seconds=0.1, ready_seconds=0.1)
    hanging = True
    try:
        assert ask(app, "POST", CHAT, json=chat_body("hello")).status_code == 504
        assert ask(app, "GET", "/readyz").json()["error"]["code"] == "guard_slow"
        assert ask(app, "GET", "/healthz").status_code == 200
    finally:
        release.set()


def test_an_app_that_drains_takes_nothing_new():
    app = proxy_app(make_guard(), ScriptedUpstream())
    app.state.door.draining = True
    answer = ask(app, "POST", CHAT, json=chat_body("hello"))
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "shutting_down"
    assert answer.headers["connection"] == "close"
    assert "retry-after" in answer.headers
    assert ask(app, "GET", "/readyz").status_code == 503
    assert ask(app, "GET", "/healthz").status_code == 200
