"""The proxy's endpoints: what they answer, and that nothing leaks into answers, logs, metrics, spans."""

import json

import pytest

pytest.importorskip("starlette")
from fakes import DRIVING, GRAVE, SAFE, UNSAFE, BrokenEncoder, make_guard
from proxy_tools import (
    ASK,
    FINE,
    LEAK,
    SECRET,
    ScriptedUpstream,
    ask,
    chat_body,
    logged,
    proxy_app,
)

from guardrail import Guardrail
from guardrail.config import GuardConfig
from guardrail.integrations.proxy.logs import JsonFormatter

CHAT = "/v1/chat/completions"
POSTS = (CHAT, "/v1/responses", "/v1/moderations", "/check", "/repair")


def broken_guard(on_error):
    encoder = BrokenEncoder("raises")
    guard = Guardrail(encoder, [DRIVING], config=GuardConfig.of(on_error=on_error))
    encoder.broken = True
    return guard


def everything(answer):
    return answer.text + str(sorted(answer.headers.items()))


def test_a_fine_reply_passes_with_its_facts():
    answer = ask(proxy_app(make_guard(), ScriptedUpstream(FINE)), "POST", CHAT, json=chat_body("hello"))
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == FINE
    assert answer.json()["guardrail"]["strategy"] == "pass"
    assert answer.headers["x-guardrail-action"] == "allow"
    assert answer.headers["x-guardrail-strategy"] == "pass"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("text", [ASK, f"{GRAVE} {SECRET}"])
def test_a_leaky_llm_is_repaired_and_says_nothing_of_it_anywhere(stream, text):
    app = proxy_app(make_guard(), ScriptedUpstream(LEAK))
    with logged(JsonFormatter()) as lines:
        answer = ask(app, "POST", CHAT, json=chat_body(text, stream=stream))
    assert answer.status_code == 200
    assert "drive off" not in everything(answer)
    assert SECRET not in everything(answer)
    metrics = ask(app, "GET", "/metrics").text
    for said in (metrics, "\n".join(lines)):
        assert SECRET not in said
        assert "drive off" not in said
    assert json.loads(lines[-1])["strategy"] == "composed"
    assert "driving-001" in json.loads(lines[-1])["rules"]
    assert 'guardrail_replies_total{endpoint="/v1/chat/completions",strategy="composed"} 1.0' in metrics


def test_the_final_event_of_a_stream_tells_the_outcome():
    answer = ask(
        proxy_app(make_guard(), ScriptedUpstream(FINE)), "POST", CHAT, json=chat_body("hi", stream=True)
    )
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    found = [json.loads(line) for line in events[:-1]]
    assert "".join(one["choices"][0]["delta"].get("content") or "" for one in found if one["choices"]) == FINE
    assert any(one.get("guardrail", {}).get("strategy") == "pass" for one in found)


def test_responses_are_guarded_too():
    app = proxy_app(make_guard(), ScriptedUpstream(LEAK))
    answer = ask(app, "POST", "/v1/responses", json={"model": "m", "input": ASK})
    assert answer.status_code == 200
    assert "drive off" not in everything(answer)
    assert answer.json()["output"][0]["content"][0]["text"]
    assert answer.json()["guardrail"]["strategy"] == "composed"
    fine = ask(
        proxy_app(make_guard(), ScriptedUpstream(FINE)),
        "POST",
        "/v1/responses",
        json={"model": "m", "input": "hi"},
    )
    assert fine.json()["output"][0]["content"][0]["text"] == FINE


def test_check_judges_the_last_turn_or_every_turn():
    app = proxy_app(make_guard(), ScriptedUpstream())
    messages = [
        {"role": "system", "content": "be nice"},
        {"role": "user", "content": "had a beer"},
        {"role": "assistant", "content": "nice"},
        {"role": "user", "content": "now i drive home"},
    ]
    one = ask(app, "POST", "/check", json={"messages": messages}).json()
    assert (one["action"], one["turn"]) == ("caution", 3)
    every = ask(app, "POST", "/check", json={"messages": messages, "every_turn": True}).json()["verdicts"]
    assert [(verdict["turn"], verdict["flagged"]) for verdict in every] == [(1, False), (2, False), (3, True)]
    assert every[-1] == one
    strings = ask(app, "POST", "/check", json={"messages": [SAFE, "ok", UNSAFE], "every_turn": True}).json()
    assert [verdict["flagged"] for verdict in strings["verdicts"]] == [False, False, True]


def test_check_is_bounded_and_takes_no_unknown_field():
    app = proxy_app(make_guard(), ScriptedUpstream(), max_checks=2)
    turns = ["a", "b", "c"]
    assert ask(app, "POST", "/check", json={"messages": turns}).status_code == 200
    for body in (
        {"messages": turns, "every_turn": True},
        {"messages": turns, "everyturn": True},
        {"messages": turns, "every_turn": 1},
        {"messages": 7},
    ):
        assert ask(app, "POST", "/check", json=body).status_code == 400
    assert ask(app, "POST", "/v1/moderations", json={"input": turns}).status_code == 400


def test_repair_gives_a_reply_with_facts():
    app = proxy_app(make_guard(), ScriptedUpstream())
    answer = ask(app, "POST", "/repair", json={"messages": [UNSAFE], "draft": LEAK})
    assert answer.status_code == 200
    assert answer.json()["strategy"] == "composed"
    assert answer.json()["verdict_in"]["flagged"]
    assert answer.json()["text"]
    assert SECRET not in answer.text
    assert "drive off" not in answer.text


def test_moderations_answer_in_openais_shape():
    app = proxy_app(make_guard(), ScriptedUpstream())
    answer = ask(app, "POST", "/v1/moderations", json={"input": [SAFE, UNSAFE], "model": "any"}).json()
    assert answer["id"].startswith("modr-")
    safe, unsafe = answer["results"]
    assert (safe["flagged"], unsafe["flagged"]) == (False, True)
    assert safe["categories"] == {"unsafe": False, "driving": False, "privacy": False}
    assert unsafe["categories"]["unsafe"]
    assert unsafe["categories"]["driving"]
    assert unsafe["category_scores"].keys() == unsafe["categories"].keys()
    assert unsafe["category_scores"]["unsafe"] == unsafe["guardrail"]["probability"] > 0.5
    assert unsafe["guardrail"]["rules"][0]["rule_id"] == "driving-001"
    parts = [{"type": "text", "text": UNSAFE}]
    assert ask(app, "POST", "/v1/moderations", json={"input": parts}).json()["results"][0]["flagged"]


@pytest.mark.parametrize(
    "given",
    [
        None,
        "x",
        [],
        [1],
        [["x"]],
        {},
        [{"type": "image_url", "image_url": {"url": "data:"}}],
        [{"type": "text"}],
    ],
)
def test_what_cannot_be_moderated_is_refused(given):
    answer = ask(
        proxy_app(make_guard(), ScriptedUpstream()), "POST", "/v1/moderations", json={"input": given}
    )
    assert answer.status_code == (200 if given == "x" else 400)


def test_a_text_too_long_to_be_read_counts_as_flagged_in_moderations():
    app = proxy_app(make_guard(max_windows=1), ScriptedUpstream())
    answer = ask(app, "POST", "/v1/moderations", json={"input": "bread " * 5000}).json()["results"][0]
    assert answer["flagged"]
    assert not answer["guardrail"]["coverage"]["judged_turn_read"]


def test_rules_are_searched():
    app = proxy_app(make_guard(), ScriptedUpstream())
    found = ask(app, "GET", "/rules", params={"q": "beer drive", "k": "1"}).json()
    assert found["count"] == 2
    assert [rule["rule_id"] for rule in found["rules"]] == ["driving-001"]
    for wrong in ({}, {"q": " "}, {"q": "x", "k": "0"}, {"q": "x", "k": "51"}, {"q": "x", "k": "²"}):
        assert ask(app, "GET", "/rules", params=wrong).status_code == 400


@pytest.mark.parametrize("allowed", [{"allow_rules": True}, {"playground": True}])
def test_a_rule_is_added_at_once_where_that_is_allowed(allowed):
    guard = make_guard()
    body = {"rules": ["Don't juggle with axes."]}
    fixed = ask(proxy_app(guard, ScriptedUpstream()), "POST", "/rules", json=body)
    assert (fixed.status_code, len(guard.rules)) == (403, 2)
    app = proxy_app(guard, ScriptedUpstream(), **allowed)
    added = ask(app, "POST", "/rules", json=body).json()
    assert added["count"] == len(guard.rules) == 3
    assert added["added"][0]["rule"] == "Don't juggle with axes."
    found = ask(app, "GET", "/rules", params={"q": "juggle axes"}).json()["rules"]
    assert found[0]["rule_id"] == added["added"][0]["rule_id"]
    for wrong in ({}, {"rules": []}, {"rules": "x"}, {"rules": [1]}, {"rules": ["x"] * 101}, body):
        assert ask(app, "POST", "/rules", json=wrong).status_code == 400
    assert len(guard.rules) == 3


def test_the_page_is_served_only_where_it_is_asked_for():
    app = proxy_app(make_guard(), ScriptedUpstream(), playground=True, api_keys=["right-key"])
    page = ask(app, "GET", "/")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert ask(app, "GET", "/playground/app.js").status_code == 200
    assert ask(app, "GET", "/playground/../app.py").status_code == 404
    assert ask(app, "POST", "/rules", json={"rules": ["x"]}).status_code == 401


def test_health_and_readiness():
    app = proxy_app(make_guard(), ScriptedUpstream())
    assert ask(app, "GET", "/healthz").json() == {"status": "ok"}
    assert ask(app, "GET", "/readyz").json() == {"status": "ready"}
    broken = proxy_app(broken_guard("closed"), ScriptedUpstream())
    assert ask(broken, "GET", "/healthz").status_code == 200
    answer = ask(broken, "GET", "/readyz")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "guard_failed")


@pytest.mark.parametrize(("status", "ready"), [(200, 200), (401, 200), (500, 503)])
def test_readiness_asks_the_upstream_if_told_so(status, ready):
    upstream = ScriptedUpstream(status=status)
    assert ask(proxy_app(make_guard(), upstream), "GET", "/readyz").status_code == 200
    assert not upstream.requests
    assert ask(proxy_app(make_guard(), upstream, ready_upstream=True), "GET", "/readyz").status_code == ready


def test_a_proxy_whose_key_the_upstream_refuses_is_not_ready():
    app = proxy_app(make_guard(), ScriptedUpstream(status=401), ready_upstream=True, upstream_key="wrong")
    answer = ask(app, "GET", "/readyz")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "upstream_key")


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("on_error", ["closed", "raise", "allow"])
def test_a_guard_that_fails_never_looks_like_a_pass(path, on_error):
    app = proxy_app(broken_guard(on_error), ScriptedUpstream(LEAK))
    body = {
        CHAT: chat_body(),
        "/v1/responses": {"model": "m", "input": ASK},
        "/v1/moderations": {"input": ASK},
        "/check": {"messages": ASK},
        "/repair": {"messages": ASK},
    }[path]
    with logged(JsonFormatter()) as lines:
        answer = ask(app, "POST", path, json=body)
    line = json.loads(lines[-1])
    if on_error == "raise":
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "guard_failed")
        return
    assert answer.status_code == 200
    assert '"status":"error"' in answer.text.replace(" ", "")
    assert line["verdict_status"] == "error"
    if on_error == "closed":
        assert "drive off" not in answer.text
        assert line["action"] == "intervene"
    assert "secret user text" not in everything(answer) + "".join(lines)
