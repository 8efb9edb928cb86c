"""What goes from the proxy to the upstream and comes back: paths, headers, fields, failures, judges."""

import asyncio
import json

import httpx
import pytest

pytest.importorskip("starlette")
from fakes import UNSAFE, make_guard
from proxy_tools import ASK, FINE, ScriptedUpstream, ask, chat_body, client_of, logged, proxy_app

from guardrail.integrations.proxy import ProxySettings, create_app, upstream_judge
from guardrail.integrations.proxy.logs import JsonFormatter

CHAT = "/v1/chat/completions"


def test_a_key_that_stands_twice_reaches_the_upstream_once():
    upstream = ScriptedUpstream(FINE)
    one, two = (json.dumps([{"role": "user", "content": text}]) for text in ("one", "two"))
    body = f'{{"model": "m", "messages": {one}, "messages": {two}}}'.encode()
    ask(
        proxy_app(make_guard(), upstream),
        "POST",
        CHAT,
        content=body,
        headers={"content-type": "application/json"},
    )
    assert upstream.bodies[0]["messages"] == [{"role": "user", "content": "two"}]


def test_models_are_the_upstreams():
    answer = ask(proxy_app(make_guard(), ScriptedUpstream()), "GET", "/v1/models")
    assert answer.json()["data"][0]["id"] == "m"


@pytest.mark.parametrize("name", ["m", "ft:gpt-4o-mini:org::id", "meta-llama/Llama-3.1-8B", "qwen3:0.6b"])
def test_one_model_is_the_upstreams_too(name):
    upstream = ScriptedUpstream()
    assert ask(proxy_app(make_guard(), upstream), "GET", f"/v1/models/{name}").text == "not guarded"
    assert upstream.requests[0].url.path == f"/v1/models/{name}"


@pytest.mark.parametrize(
    "name",
    ["", "a//b", "..%2Fadmin", "%2e%2e/admin", "a%3Fb=c", "a%23b", "a%0d%0aX:b", "a%20b", "é", "x" * 257],
)
def test_what_is_no_name_of_a_model_does_not_reach_the_upstream(name):
    upstream = ScriptedUpstream()
    answer = ask(proxy_app(make_guard(), upstream), "GET", f"/v1/models/{name}")
    assert answer.status_code in (400, 404)
    assert not upstream.requests


@pytest.mark.parametrize(
    "wrong",
    [
        {"messages": [{"role": "user", "Content": ASK}]},
        {"messages": [{"role": "user", "content": "hello", "CONTENT": ASK}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hello", "Text": ASK}]}]},
        {"messages": [{"role": "user", "content": "hello"}], "Messages": [{"role": "user", "content": ASK}]},
        {"messages": [{"role": "user", "content": "hello"}], "me\u017f\u017fages": ASK},
        {"messages": [{"role": "user", "content": "hello"}], "Stream": True},
    ],
)
def test_a_field_that_only_some_upstreams_would_read_is_refused(wrong):
    upstream = ScriptedUpstream()
    answer = ask(proxy_app(make_guard(), upstream), "POST", CHAT, json={"model": "m", **wrong})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")
    assert "lower case" in answer.json()["error"]["message"]
    assert not upstream.requests


def test_names_that_an_app_gives_itself_may_be_spelled_in_any_way():
    function = {"name": "f", "parameters": {"type": "object", "properties": {"Name": {"type": "string"}}}}
    body = chat_body("hello", tools=[{"type": "function", "function": function}], metadata={"Role": "x"})
    assert ask(proxy_app(make_guard(), ScriptedUpstream()), "POST", CHAT, json=body).status_code == 200


def test_the_upstream_is_told_no_other_character_set_than_the_guard_read():
    upstream = ScriptedUpstream()
    for kind in ("application/json; charset=utf-7", "application/json;charset=utf-16"):
        body = json.dumps(chat_body("hello")).encode()
        ask(proxy_app(make_guard(), upstream), "POST", CHAT, content=body, headers={"content-type": kind})
    assert {request.headers["content-type"] for request in upstream.requests} == {"application/json"}


def test_a_header_of_the_upstream_in_any_letters_comes_through():
    def answer(request):
        return httpx.Response(200, headers=[("x-ratelimit-reset", "fünf \u20ac".encode())], json={})

    app = create_app(
        make_guard(),
        ProxySettings.of(upstream="http://llm.invalid/v1"),
        upstream_transport=httpx.MockTransport(answer),
    )
    found = ask(app, "GET", "/v1/models")
    assert found.status_code == 200
    assert dict(found.headers.raw)[b"x-ratelimit-reset"] == "fünf \u20ac".encode()


def test_only_known_headers_go_and_come():
    upstream = ScriptedUpstream(
        FINE,
        headers={
            "set-cookie": "session=leaky",
            "server": "inner",
            "x-powered-by": "inner",
            "x-ratelimit-remaining-requests": "7",
            "openai-processing-ms": "12",
        },
    )
    app = proxy_app(make_guard(), upstream)

    async def run():
        async with client_of(app) as client:
            sent = {
                "authorization": "Bearer of-the-caller",
                "cookie": "mine=1",
                "openai-organization": "org",
                "x-forwarded-for": "6.6.6.6",
                "x-api-key": "another",
                "te": "trailers",
                "proxy-authorization": "Basic x",
            }
            one = await client.post(CHAT, json=chat_body("hi"), headers=sent)
            two = await client.get("/v1/models")
            return one, two

    for answer in asyncio.run(run()):
        assert not {"set-cookie", "server", "x-powered-by"} & set(answer.headers)
        assert answer.headers["x-ratelimit-remaining-requests"] == "7"
        assert answer.headers["openai-processing-ms"] == "12"
    first, second = (request.headers for request in upstream.requests)
    assert first["authorization"] == "Bearer of-the-caller"
    assert first["openai-organization"] == "org"
    assert first["host"] == "llm.invalid"
    assert first["accept-encoding"] == "identity"
    assert not {"cookie", "x-forwarded-for", "x-api-key", "te", "proxy-authorization"} & set(first)
    assert not {"cookie", "authorization"} & set(second)


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize(
    "path",
    [
        "/v1/embeddings",
        "/v1/files",
        "/v1/responses/resp_1",
        "/v1/chat/completions/c-1",
        "/v1/../admin",
        "/v1//chat/completions",
        "/v1/chat/completions/",
        "/http://elsewhere.invalid/v1/models",
        "/",
        "/playground/app.js",
        "/docs",
    ],
)
def test_no_other_path_reaches_the_upstream(method, path):
    upstream = ScriptedUpstream()
    answer = ask(proxy_app(make_guard(), upstream), method, path)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"
    assert not upstream.requests


def test_another_method_is_refused():
    answer = ask(proxy_app(make_guard(), ScriptedUpstream()), "GET", CHAT)
    assert answer.status_code == 405
    assert answer.json()["error"]["code"] == "method_not_allowed"
    assert answer.headers["allow"] == "POST"


def test_a_redirect_is_not_followed():
    upstream = ScriptedUpstream(status=307)
    answer = ask(proxy_app(make_guard(), upstream), "GET", "/v1/models")
    assert answer.status_code == 502
    assert "location" not in answer.headers
    assert "elsewhere" not in answer.text


@pytest.mark.parametrize("status", [401, 404, 429, 500])
def test_the_upstreams_own_refusal_comes_through(status):
    upstream = ScriptedUpstream(status=status, headers={"retry-after": "3"})
    answer = ask(proxy_app(make_guard(), upstream), "POST", CHAT, json=chat_body("hi"))
    assert answer.status_code == status
    assert answer.headers["retry-after"] == "3"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (httpx.ConnectError("secret"), 502, "upstream_failed"),
        (httpx.RemoteProtocolError("secret"), 502, "upstream_failed"),
        (httpx.ConnectTimeout("secret"), 504, "upstream_timeout"),
        (httpx.ReadTimeout("secret"), 504, "upstream_timeout"),
        (OSError("secret"), 500, "internal_error"),
        (asyncio.CancelledError("secret"), 500, "internal_error"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, "/v1/models"])
def test_a_failing_upstream_is_an_error_and_its_words_are_not_said(path, error, status, code):
    def fail(request):
        raise error

    app = create_app(
        make_guard(),
        ProxySettings.of(upstream="http://llm.invalid/v1"),
        upstream_transport=httpx.MockTransport(fail),
    )
    with logged(JsonFormatter()) as lines:
        if path == CHAT:
            answer = ask(app, "POST", CHAT, json=chat_body("hi"))
        else:
            answer = ask(app, "GET", path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.json()["error"]["type"] == "server_error"
    assert "secret" not in answer.text + "".join(lines)


@pytest.mark.parametrize(("upstream_key", "status"), [("upstream-key", 502), (None, 401)])
@pytest.mark.parametrize("path", [CHAT, "/v1/models"])
def test_an_upstream_that_refuses_the_proxys_key_is_no_fault_of_the_caller(path, upstream_key, status):
    def refuse(request):
        return httpx.Response(401, json={"error": {"message": f"bad key {request.headers['authorization']}"}})

    app = create_app(
        make_guard(),
        ProxySettings.of(upstream="http://llm.invalid/v1", upstream_key=upstream_key),
        upstream_transport=httpx.MockTransport(refuse),
    )
    method, body = ("POST", chat_body("hi")) if path == CHAT else ("GET", None)
    answer = ask(app, method, path, json=body, headers={"authorization": "Bearer of-the-caller"})
    assert answer.status_code == status
    assert ("upstream_key" in answer.text) == (upstream_key is not None)
    assert "upstream-key" not in answer.text


def test_the_upstream_may_give_a_second_opinion():
    def judge(request):
        body = json.loads(request.content)
        asked.append((str(request.url), request.headers.get("authorization"), body["model"]))
        code = body["messages"][1]["content"].partition("Code of this question: ")[2].split()[0]
        answer = {"question": code, "broken": [], "unsafe": False, "level": "casual"}
        return httpx.Response(200, json={"choices": [{"message": {"content": json.dumps(answer)}}]})

    asked = []
    settings = ProxySettings.of(upstream="http://llm.invalid/v1", upstream_key="upstream-key")
    transport = httpx.MockTransport(judge)
    guard = make_guard(uncertain_low=0, uncertain_high=1).with_judge(
        upstream_judge(settings, "big", seconds=5, transport=transport)
    )
    verdict = ask(create_app(guard, settings), "POST", "/check", json={"messages": UNSAFE}).json()
    assert (verdict["judged_by"], verdict["flagged"]) == ("judge", False)
    assert asked == [("http://llm.invalid/v1/chat/completions", "Bearer upstream-key", "big")]


@pytest.mark.parametrize(
    "answer", [httpx.Response(500), httpx.Response(200, text="x"), httpx.Response(200, json={})]
)
def test_without_a_second_opinion_the_guard_decides_alone(answer):
    settings = ProxySettings.of(upstream="http://llm.invalid/v1")
    transport = httpx.MockTransport(lambda request: answer)
    guard = make_guard(uncertain_low=0, uncertain_high=1).with_judge(
        upstream_judge(settings, "big", seconds=5, transport=transport)
    )
    verdict = ask(create_app(guard, settings), "POST", "/check", json={"messages": UNSAFE}).json()
    assert (verdict["status"], verdict["flagged"]) == ("degraded", True)
