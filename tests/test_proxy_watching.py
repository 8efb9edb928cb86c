"""What the proxy tells about a request: its id, a log line, metrics, a span. Never a text, never a key."""

import json

import pytest

pytest.importorskip("starlette")
from fakes import UNSAFE, make_guard
from proxy_tools import ASK, FINE, LEAK, SECRET, ScriptedUpstream, ask, chat_body, logged, proxy_app

from guardrail.integrations.proxy.logs import JsonFormatter, TextFormatter

CHAT = "/v1/chat/completions"


def test_every_answer_has_a_request_id():
    app = proxy_app(make_guard(), ScriptedUpstream())
    assert (
        ask(app, "GET", "/healthz", headers={"x-request-id": "abc-1.2_3"}).headers["x-request-id"]
        == "abc-1.2_3"
    )
    for wrong in ("with space", "x" * 65, "a\tb", "é"):
        found = ask(app, "GET", "/nowhere", headers={"x-request-id": wrong.encode()}).headers["x-request-id"]
        assert len(found) == 32
        assert found != wrong


def test_a_line_for_each_request_without_text_and_keys():
    app = proxy_app(
        make_guard(), ScriptedUpstream(LEAK), api_keys=["right-key"], upstream_key="the-upstreams"
    )
    with logged(JsonFormatter()) as lines:
        for path, body in (
            (CHAT, chat_body()),
            ("/check", {"messages": ASK}),
            ("/repair", {"messages": ASK, "draft": LEAK}),
            (f"/v1/{SECRET}", {}),
            ("/check", {"messages": {SECRET: 1}}),
        ):
            ask(app, "POST", path, json=body, headers={"authorization": "Bearer right-key"})
        ask(app, "GET", f"/rules?q={SECRET}", headers={"authorization": f"Bearer wrong-{SECRET}"})
    found = [json.loads(line) for line in lines]
    paths = [CHAT, "/check", "/repair", "other", "/check", "/rules"]
    assert [line["path"] for line in found] == paths
    assert [line["status"] for line in found] == [200, 200, 200, 404, 400, 401]
    assert all(line["seconds"] >= line["judging_seconds"] >= 0 for line in found)
    assert found[0]["bytes_in"] > 0 < found[0]["bytes_out"]
    for secret in (SECRET, "right-key", "the-upstreams", "drive off", "127.0.0.1"):
        assert secret not in "".join(lines)
    with logged(TextFormatter()) as lines:
        ask(app, "GET", "/nowhere")
    assert " info request request_id=" in lines[0]


def test_probes_leave_no_line_while_all_is_well():
    app = proxy_app(make_guard(), ScriptedUpstream())
    with logged(JsonFormatter()) as lines:
        for path in ("/healthz", "/readyz", "/metrics"):
            ask(app, "GET", path)
        assert not lines
        app.state.door.draining = True
        ask(app, "GET", "/readyz")
    assert [(json.loads(line)["path"], json.loads(line)["status"]) for line in lines] == [("/readyz", 503)]


def test_a_line_tells_the_upstreams_answer_from_the_proxys():
    with logged(JsonFormatter()) as lines:
        for status in (429, 307):
            ask(proxy_app(make_guard(), ScriptedUpstream(status=status)), "GET", "/v1/models")
    found = [json.loads(line) for line in lines]
    assert [(line["status"], line["upstream_status"]) for line in found] == [(429, 429), (502, 307)]


def test_metrics_have_few_labels():
    app = proxy_app(make_guard(), ScriptedUpstream(FINE), max_body_kib=1)
    ask(app, "POST", CHAT, json=chat_body("hello"))
    ask(app, "POST", "/check", json={"messages": UNSAFE})
    for number in range(20):
        ask(app, "GET", f"/nowhere/{number}")
    ask(app, "BREW", "/check")
    text = ask(app, "GET", "/metrics").text
    assert 'guardrail_requests_total{endpoint="/v1/chat/completions",error="",status="200"} 1.0' in text
    assert 'guardrail_requests_total{endpoint="other",error="not_found",status="404"} 20.0' in text
    assert 'guardrail_verdicts_total{action="caution",endpoint="/check",status="ok"} 1.0' in text
    assert 'guardrail_judging_seconds_count{endpoint="/check"} 1.0' in text
    assert 'guardrail_upstream_seconds_count{endpoint="/v1/chat/completions"} 1.0' in text
    assert "guardrail_in_flight 0.0" in text
    assert "guardrail_queue_length 0.0" in text
    assert "guardrail_rules 2.0" in text
    assert "nowhere" not in text
    assert "BREW" not in text


def test_spans_hold_no_text():
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    from opentelemetry import trace
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    upstream = ScriptedUpstream(LEAK)
    ask(proxy_app(make_guard(), upstream), "POST", CHAT, json=chat_body(), headers={"traceparent": parent})
    (span,) = exporter.get_finished_spans()
    assert span.name == f"POST {CHAT}"
    assert span.attributes["http.response.status_code"] == 200
    assert span.attributes["guardrail.strategy"] == "composed"
    assert f"{span.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    sent = upstream.requests[0].headers["traceparent"]
    assert sent.split("-")[2] == f"{span.context.span_id:016x}"
    assert SECRET not in span.to_json()
    assert "drive off" not in span.to_json()
