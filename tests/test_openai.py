"""The guarded client, with the real `openai` package against a scripted server: chat completions."""

import json
import subprocess
import sys

import httpx
import pytest
from fakes import DRIVING, GRAVE, SAFE, SAFE_REPLY, UNSAFE, UNSAFE_REPLY, BrokenEncoder, make_guard
from openai_server import BEER, FINE, SECRET, Answer, chat, chat_stream, tool_call, user

openai = pytest.importorskip("openai")

from openai.types.chat import ChatCompletion  # noqa: E402
from pydantic import BaseModel  # noqa: E402

from guardrail import Guardrail  # noqa: E402
from guardrail.errors import InputError  # noqa: E402
from guardrail.integrations.openai import guard_client  # noqa: E402
from guardrail.integrations.openai_api.transport import GuardTransport  # noqa: E402

# Only its second sentence is unsafe, once the user has spoken of beer.
TURNING = "Here is a thought. Just drive off! Nobody will see."


def ask(client, text=BEER, **options):
    return client.chat.completions.create(model="gpt-test", messages=user(text), **options)


def stream_text(chunks):
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


def dumped(items):
    return "".join(item.model_dump_json() for item in items)


def without_facts(model):
    return {name: value for name, value in model.model_dump().items() if name != "guardrail"}


# ---------------------------------------------------------------- whole replies


def test_a_fine_reply_is_the_bare_clients_field_by_field(server, bare, client):
    server.script = [chat(FINE, annotations=[], finish="length")]

    plain, guarded = ask(bare), ask(client)

    assert type(guarded) is ChatCompletion
    assert without_facts(guarded) == plain.model_dump()
    assert guarded.guardrail["strategy"] == "pass"
    assert guarded.guardrail["verdict_in"]["action"] == "allow"


def test_the_request_is_the_bare_clients_where_no_rule_is_in_play(server, bare):
    server.script = [chat(FINE)]
    guard = make_guard(touch_threshold=1.0)
    options = {"temperature": 0.5, "extra_body": {"seed": 3}, "extra_headers": {"x-own": "1"}}

    ask(bare, SAFE, **options)
    ask(guard_client(bare, guard=guard), SAFE, **options)

    (_, path, plain), (_, guarded_path, guarded) = server.requests
    assert (path, plain) == (guarded_path, guarded)
    unlike = {"content-length", "accept-encoding"}
    first, second = ({n: v for n, v in h.items() if n not in unlike} for h in server.headers)
    assert first == second
    assert server.headers[1]["accept-encoding"] == "identity"


def test_an_unsafe_reply_is_made_again_with_guidance(server, client):
    server.script = [chat(UNSAFE_REPLY), chat(SAFE_REPLY)]

    reply = ask(client)

    assert reply.choices[0].message.content == SAFE_REPLY
    assert reply.guardrail["strategy"] == "regenerated"
    assert [attempt["flagged"] for attempt in reply.guardrail["attempts"]] == [True, False]
    assert "drive after beer" in server.requests[1][2]["messages"][0]["content"]
    assert server.requests[1][2]["messages"][0]["role"] == "system"


def test_what_replaces_a_reply_keeps_nothing_of_it_but_its_names_and_usage(server, client):
    words = {"reasoning_content": UNSAFE_REPLY, "annotations": [{"type": "note", "title": UNSAFE_REPLY}]}
    server.script = [chat(UNSAFE_REPLY, tool_calls=[tool_call(UNSAFE_REPLY)], finish="tool_calls", **words)]

    reply = ask(client)

    assert len(server.requests) == 3
    assert SECRET not in reply.model_dump_json()
    assert reply.guardrail["strategy"] == "composed"
    assert reply.choices[0].finish_reason == "stop"
    assert (reply.id, reply.model, reply.usage.total_tokens) == ("chatcmpl-1", "gpt-test", 12)
    assert set(reply.choices[0].message.model_dump(exclude_none=True)) == {"role", "content"}


def test_on_an_intervention_the_upstream_is_not_asked(server, client):
    reply = ask(client, GRAVE)

    assert server.requests == []
    assert reply.choices[0].message.content
    assert reply.guardrail["verdict_in"]["action"] == "intervene"
    assert type(reply) is ChatCompletion
    assert reply.usage.total_tokens == 0


def test_the_hook_speaks_in_the_llms_place(bare):
    seen = []

    def hook(messages, verdict):
        seen.append((messages, verdict.action.value))
        return "Please call somebody."

    client = guard_client(bare, guard=make_guard(), on_intervention=hook)

    assert ask(client, GRAVE).choices[0].message.content == "Please call somebody."
    assert seen == [(user(GRAVE), "intervene")]


@pytest.mark.parametrize(
    "message",
    [
        {"content": UNSAFE_REPLY},
        {"reasoning_content": UNSAFE_REPLY},
        {"reasoning": UNSAFE_REPLY},
        {"reasoning_details": [{"type": "reasoning.text", "text": UNSAFE_REPLY}]},
        {"refusal": UNSAFE_REPLY},
        {"audio": {"id": "a", "data": "AAAA", "transcript": UNSAFE_REPLY, "expires_at": 1}},
        {"content": [{"type": "text", "text": UNSAFE_REPLY}]},
        {"tool_calls": [tool_call(json.dumps({"say": UNSAFE_REPLY}))]},
        {"tool_calls": [tool_call('{"say": "more beer and \\u0064rive off"}')]},
        {"tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "say", "input": UNSAFE_REPLY}}]},
        {"function_call": {"name": "say", "arguments": UNSAFE_REPLY}},
        {"annotations": [{"type": "url_citation", "url_citation": {"title": UNSAFE_REPLY}}]},
        {"something_new": {"deep": [UNSAFE_REPLY]}},
    ],
)
def test_unsafe_words_are_found_wherever_they_stand(server, client, message):
    server.script = [chat(FINE, **{"content": FINE, **message})]

    reply = ask(client, max_tokens=20)

    assert reply.guardrail["strategy"] == "composed"
    assert SECRET not in reply.model_dump_json()
    assert "\\u0064rive" not in reply.model_dump_json()


def test_words_beside_the_message_are_judged_too(server, client):
    whole = json.loads(chat(FINE).body)
    server.script = [Answer(json.dumps({**whole, "search_results": [{"title": UNSAFE_REPLY}]}).encode())]

    assert SECRET not in ask(client).model_dump_json()


def test_a_picture_that_nobody_can_judge_is_not_shown(server, client):
    server.script = [chat([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}])]

    assert "AAAA" not in ask(client).model_dump_json()


def test_fine_tool_calls_pass_intact(server, bare, client):
    server.script = [chat(None, tool_calls=[tool_call('{"q": "bread"}')], finish="tool_calls")]

    assert without_facts(ask(client)) == ask(bare).model_dump()


def test_a_guard_behind_the_guard_speaks_for_itself_alone(server, bare, client):
    twice = guard_client(client, guard=make_guard())
    server.script = [chat(FINE)]

    raw = twice.chat.completions.with_raw_response.create(model="gpt-test", messages=user(BEER))

    assert raw.headers.get_list("x-guardrail-action") == ["allow"]
    assert without_facts(raw.parse()) == ask(bare).model_dump()
    assert raw.parse().guardrail["strategy"] == "pass"


def test_each_choice_is_judged_by_itself(server, client):
    server.script = [chat(FINE, UNSAFE_REPLY, SAFE_REPLY)]

    reply = ask(client, n=3)

    contents = [choice.message.content for choice in reply.choices]
    assert (contents[0], contents[2]) == (FINE, SAFE_REPLY)
    assert SECRET not in reply.model_dump_json()
    assert len(server.requests) == 1
    assert [c["strategy"] for c in reply.guardrail["choices"]] == ["pass", "composed", "pass"]
    assert [choice.index for choice in reply.choices] == [0, 1, 2]


def test_several_choices_are_there_also_where_the_upstream_is_not_asked(client):
    assert len(ask(client, GRAVE, n=2).choices) == 2


def test_choices_that_nobody_asked_for_are_dropped(server, client):
    server.script = [chat(FINE, UNSAFE_REPLY)]

    assert len(ask(client).choices) == 1


class Advice(BaseModel):
    text: str


def test_parse_returns_its_model(server, client):
    server.script = [chat('{"text": "Bread needs time."}')]

    reply = client.chat.completions.parse(model="gpt-test", messages=user(BEER), response_format=Advice)

    assert reply.choices[0].message.parsed == Advice(text="Bread needs time.")


def test_where_json_was_asked_for_text_of_ours_is_a_refusal(server, client):
    server.script = [chat(json.dumps({"text": UNSAFE_REPLY}))]

    reply = client.chat.completions.parse(model="gpt-test", messages=user(BEER), response_format=Advice)

    message = reply.choices[0].message
    assert message.parsed is None
    assert message.content is None
    assert message.refusal
    assert SECRET not in reply.model_dump_json()


def test_raw_and_streaming_responses_are_guarded_and_tell_the_verdict(server, client):
    server.script = [chat(UNSAFE_REPLY)]

    raw = client.chat.completions.with_raw_response.create(model="m", messages=user(UNSAFE))
    with client.chat.completions.with_streaming_response.create(model="m", messages=user(BEER)) as streaming:
        body = streaming.read()

    assert SECRET.encode() not in raw.content + body
    assert raw.headers["x-guardrail-action"] == "caution"
    assert float(raw.headers["x-guardrail-probability"]) > 0.5
    assert raw.headers["x-guardrail-rules"].split(",")[0] == "driving-001"
    assert raw.headers["x-guardrail-strategy"] == "composed"
    assert raw.headers["x-guardrail-reply-action"] == "allow"
    assert raw.headers["x-request-id"] == "req-1"
    assert int(raw.headers["content-length"]) == len(raw.content)
    guarded = raw.http_response.extensions["guardrail"]
    assert [reply.strategy for reply in guarded.replies] == ["composed"]


# ---------------------------------------------------------------- failures


def test_errors_of_the_first_call_are_the_clients_own(server, client):
    server.script = [Answer(b'{"error": {"message": "no such model"}}', 404)]

    with pytest.raises(openai.NotFoundError, match="no such model"):
        ask(client)
    with pytest.raises(openai.NotFoundError, match="no such model"):
        ask(client, stream=True)


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize("stream", [False, True])
def test_the_client_tries_again_as_ever(server, client, status, stream):
    busy = Answer(b'{"error": {"message": "busy"}}', status, {"retry-after-ms": "1"})
    server.script = [busy, chat_stream(FINE) if stream else chat(FINE)]

    reply = ask(client.with_options(max_retries=2), stream=stream)

    assert (stream_text(reply) if stream else reply.choices[0].message.content) == FINE
    assert len(server.requests) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_of_a_later_call_leads_to_a_repair(server, client, stream):
    first = chat_stream(UNSAFE_REPLY) if stream else chat(UNSAFE_REPLY)
    server.script = [first, Answer(b"{}", 500)]

    reply = ask(client, stream=stream)

    text = stream_text(reply) if stream else reply.choices[0].message.content
    assert text
    assert SECRET not in text


GARBAGE = [
    b"",
    b"<html>oops</html>",
    b"[]",
    b"{}",
    b'{"choices": []}',
    b'{"choices": [{"message": "hi"}]}',
    b'{"choices": [{"message": {"content": "hi"}}], "x": NaN}',
    b'{"choices": [{"message": {"content": "hi"}}], "x": 1e999}',
    b'{"error": {"message": "overloaded", "code": 1}}',
    b"\xff\xfe",
    b"[" * 100_000,
]


@pytest.mark.parametrize("body", GARBAGE)
def test_a_reply_that_is_none_is_an_error(server, client, body):
    server.script = [Answer(body)]

    with pytest.raises(openai.InternalServerError) as caught:
        ask(client)
    assert caught.value.status_code == 502


@pytest.mark.parametrize("body", GARBAGE)
def test_garbage_of_a_later_call_leads_to_a_repair(server, client, body):
    server.script = [chat(UNSAFE_REPLY), Answer(body)]

    reply = ask(client)

    assert reply.guardrail["strategy"] == "composed"
    assert reply.guardrail["attempts"][1]["error"] == "UpstreamError"


def test_a_silent_llm_is_no_pass(server, client):
    server.script = [chat("")]

    reply = ask(client)

    assert reply.choices[0].message.content
    assert reply.guardrail["strategy"] != "pass"


def test_a_guard_that_fails_shows_nothing_of_the_llm(server, bare):
    encoder = BrokenEncoder("raises")
    guard = Guardrail(encoder, [DRIVING])
    encoder.broken = True
    server.script = [chat(FINE)]

    reply = ask(guard_client(bare, guard=guard))

    assert reply.guardrail["strategy"] == "unavailable"
    assert FINE not in reply.model_dump_json()


@pytest.mark.parametrize(
    "body",
    [
        {"n": 2, "stream": True},
        {"n": "2"},
        {"messages": None},
        {"messages": ["hi"]},
        {"messages": []},
        {"messages": [{"role": "king", "content": "hi"}]},
        {"stream": "yes"},
    ],
)
def test_a_request_that_cannot_be_guarded_is_refused_and_not_sent(server, client, body):
    whole = {"model": "m", "messages": user(SAFE), **body}

    with pytest.raises(openai.BadRequestError, match="expected"):
        client.post("/chat/completions", cast_to=object, body=whole)
    assert server.requests == []


def test_what_is_judged_is_what_is_sent():
    twice = b'{"model": "m", "messages": [{"role": "user", "content": "hi"}], "messages": MORE}'
    bodies = []

    def upstream(request):
        bodies.append(request.content)
        return httpx.Response(200, content=chat(FINE).body)

    with httpx.Client(transport=GuardTransport(make_guard(), httpx.MockTransport(upstream))) as http:
        http.post(
            "http://u/chat/completions", content=twice.replace(b"MORE", json.dumps(user(SAFE)).encode())
        )

    assert SAFE.encode() in bodies[0]
    assert b'"hi"' not in bodies[0]


def test_the_timeout_of_the_client_holds(server, client):
    server.script = [Answer(chat(FINE).body, delay=0.5)]

    with pytest.raises(openai.APITimeoutError):
        ask(client.with_options(timeout=0.05))


# ---------------------------------------------------------------- other endpoints, other clients


def test_harmless_endpoints_pass(server, client):
    models = {"object": "list", "data": [{"id": "m", "object": "model", "created": 1, "owned_by": "o"}]}
    server.script = [Answer(json.dumps(models).encode())]

    assert [model.id for model in client.models.list()] == ["m"]


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.completions.create(model="m", prompt="hi"),
        lambda c: c.chat.completions.retrieve("x"),
        lambda c: list(c.chat.completions.list()),
        lambda c: c.responses.retrieve("x"),
        lambda c: c.responses.cancel("x"),
        lambda c: c.files.content("x"),
        lambda c: c.batches.create(
            completion_window="24h", endpoint="/v1/chat/completions", input_file_id="f"
        ),
        lambda c: c.images.generate(prompt="hi"),
        lambda c: c.get("/models/..%2Fresponses%2Fx", cast_to=object),
    ],
)
def test_endpoints_that_nobody_judges_are_refused(server, client, call):
    with pytest.raises(openai.BadRequestError, match="not guarded"):
        call(client)
    assert server.requests == []


def test_websockets_are_refused(client):
    with pytest.raises(TypeError, match="websockets pass the guard by"):
        client.realtime.connect(model="m").enter()
    with pytest.raises(TypeError, match="websockets pass the guard by"):
        client.with_options(timeout=3).realtime.connect(model="m").enter()


def test_copies_stay_guarded_and_the_original_stays_bare(server, bare, client):
    server.script = [chat(UNSAFE_REPLY)]

    copies = [client, client.with_options(timeout=3), client.copy(api_key="other").with_options()]

    assert all(SECRET not in ask(copy).model_dump_json() for copy in copies)
    assert all(type(copy) is type(bare) for copy in copies)
    assert SECRET in ask(bare).model_dump_json()


def test_closing_the_guarded_client_leaves_the_original_open(server, bare):
    server.script = [chat(FINE)]
    client = guard_client(bare, guard=make_guard())

    client.close()

    assert ask(bare).choices[0].message.content == FINE
    with pytest.raises((RuntimeError, openai.APIConnectionError)):  # the class depends on the version
        ask(client)


def test_azure_works_by_itself(server):
    azure = openai.AzureOpenAI(
        azure_endpoint=server.url.removesuffix("/v1"), api_key="k", api_version="2024-10-21", max_retries=0
    )
    server.script = [chat(UNSAFE_REPLY)]
    client = guard_client(azure, guard=make_guard())

    assert isinstance(client, openai.AzureOpenAI)
    assert SECRET not in ask(client).model_dump_json()
    assert server.requests[0][1].startswith("/openai/deployments/gpt-test/chat/completions?api-version=")
    client.close()
    azure.close()


def test_the_older_http_library_works_too(server):
    with httpx.Client(headers={"x-own": "1"}) as http:
        bare = openai.OpenAI(base_url=server.url, api_key="k", http_client=http)
        client = guard_client(bare, guard=make_guard())
        server.script = [chat(UNSAFE_REPLY), chat_stream(FINE)]

        assert ask(client, stream=False).choices[0].message.content
        assert stream_text(ask(client, stream=True)) == FINE
        assert server.headers[0]["x-own"] == "1"
        client.close()


@pytest.mark.parametrize("other", [None, "client", object(), openai.OpenAI])
def test_other_objects_are_refused(other):
    with pytest.raises(InputError, match=r"expected a client made by openai\.OpenAI"):
        guard_client(other, guard=make_guard())


def test_without_the_openai_package_the_error_says_what_to_install():
    script = "import sys; sys.modules['openai'] = None; import guardrail.integrations.openai"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert "pip install 'prosocial-guardrail[openai]'" in done.stderr


def test_the_transport_needs_no_openai_package():
    script = (
        "import sys; sys.modules['openai'] = None; import guardrail.integrations.openai_api.transport; "
        "print({'torch', 'openai'} & {name for name, module in sys.modules.items() if module})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "set()"
