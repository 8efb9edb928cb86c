"""A malicious upstream: wherever it hides an unsafe draft, nothing of it comes out of the transport."""

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai_attacks import BAD, FINE, HALVES, SECRET, ask_chat, ask_responses, put, shown, strategy
from openai_server import (
    chat,
    chat_stream,
    chunk,
    function_item,
    message_item,
    reasoning_item,
    response_events,
    response_object,
    sse,
    tool_call,
)

# ---------------------------------------------------------------- whole replies

CHOICE = ("choices", 0)
MESSAGE = ("choices", 0, "message")
CALL = (*MESSAGE, "tool_calls", 0)
VALUES = {"text": BAD, "object": {"x": BAD}, "key": {BAD: 1}, "list": [BAD]}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("content", [FINE, BAD], ids=["shown", "replaced"])
@pytest.mark.parametrize(
    "path",
    [
        *((name,) for name in ("id", "object", "created", "model", "usage", "system_fingerprint")),
        *((name,) for name in ("service_tier", "provider", "error", "new", BAD)),
        *((*CHOICE, name) for name in ("index", "finish_reason", "logprobs", "content_filter_results")),
        *((*MESSAGE, name) for name in ("role", "name", "function_call", "audio", "reasoning", "new", BAD)),
        *((*CALL, name) for name in ("id", "type", "function", "index", "new")),
        *((*CALL, "function", name) for name in ("name", "arguments", "new")),
        CALL,
    ],
    ids=str,
)
def test_a_whole_chat_completion_hides_nothing(path, content, value):
    whole = json.loads(chat(content, tool_calls=[tool_call("{}")]).body)

    assert SECRET not in shown(*ask_chat(json.dumps(put(whole, path, value)).encode()))


PARTS = [{"type": "text", "text": half} for half in HALVES]
TOKENS = [{"token": half, "logprob": -1, "bytes": None, "top_logprobs": []} for half in HALVES]
OTHER = {"token": FINE, "logprob": -1, "bytes": None, "top_logprobs": [{"token": BAD}]}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((*MESSAGE, "content"), PARTS),
        ((*MESSAGE, "content"), [{"type": "text", "text": FINE, "id": BAD}]),
        ((*MESSAGE, "content"), [{"type": {"x": BAD}, "text": FINE}]),
        ((*MESSAGE, "content"), [{"type": "image", "image": BAD}]),
        ((*MESSAGE, "content"), '{"say": "another beer and \\u0064rive off"}'),
        ((*MESSAGE, "content"), '{"say": "another beer and\\ndrive off"}'),
        ((*CHOICE, "logprobs"), {"content": TOKENS}),
        ((*CHOICE, "logprobs"), {"content": [OTHER]}),
        ((*CHOICE, "logprobs"), {"content": [{**OTHER, "token": {"x": BAD}}]}),
        ((*MESSAGE, "audio"), {"id": "a", "transcript": FINE, "data": BAD}),
        ((*MESSAGE, "audio"), {"id": "a", "transcript": FINE, "new": BAD}),
        ((*MESSAGE, "reasoning_details"), [{"type": "redacted_thinking", "data": BAD}]),
        ((*MESSAGE, "reasoning_details"), [{"type": "reasoning.text", "signature": BAD}]),
        ((*CALL, "function", "arguments"), f'{{"q": "{BAD}", "q": "bread"}}'),
        ((*CALL, "function", "arguments"), '{"q": "{\\"say\\": \\"beer and \\\\u0064rive off\\"}"}'),
    ],
)
def test_nor_where_it_is_cut_coded_or_said_twice(path, value):
    whole = put(json.loads(chat(FINE, tool_calls=[tool_call("{}")]).body), path, value)

    response, data = ask_chat(json.dumps(whole).encode())

    assert strategy(response) in ("composed", "unavailable")
    assert SECRET not in shown(response, data)


def test_names_of_choices_that_pass_beside_one_that_is_replaced_hide_nothing():
    whole = json.loads(chat(FINE, BAD).body)
    whole["choices"][0]["logprobs"] = {"content": TOKENS}

    assert SECRET not in shown(*ask_chat(json.dumps({**whole, "id": BAD}).encode(), n=2))


ECHO = ("id", "object", "created_at", "model", "instructions", "metadata", "tools", "text", "user", "prompt")
ABOUT = ("status", "error", "incomplete_details", "completed_at", "usage", "output_text", "new", BAD)
ITEM = ("output", 0)


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("how", ["whole", "final event", "first event", "events"])
@pytest.mark.parametrize("text", [FINE, BAD], ids=["shown", "replaced"])
@pytest.mark.parametrize(
    "path",
    [
        *((name,) for name in (*ECHO, *ABOUT)),
        *((*ITEM, name) for name in ("id", "type", "role", "status", "phase", "content", "new", BAD)),
        *((*ITEM, "content", 0, name) for name in ("type", "refusal", "annotations", "logprobs", "new")),
        *(("output", 1, name) for name in ("id", "encrypted_content", "status", "summary", "new")),
        *(("output", 2, name) for name in ("id", "call_id", "name", "arguments", "type", "new")),
    ],
    ids=str,
)
def test_a_response_hides_nothing(path, text, how, value):
    items = [message_item(text), reasoning_item("Hm."), function_item("{}")]
    whole = put(response_object(*copy.deepcopy(items)), path, value)
    events = list(response_events(*items))
    if how == "whole":
        body = json.dumps(whole).encode()
    elif how == "final event":
        body = [sse({"type": "response.completed", "response": whole})]
    else:
        if how == "first event":
            events[0]["response"] = whole
        for event in events:
            index = event.get("output_index", -1)
            if (
                how == "events"
                and event["type"] == "response.output_item.done"
                and path[:2] == ("output", index)
            ):
                event["item"] = whole["output"][index]
        body = [sse(event) for event in events]

    assert SECRET not in shown(*ask_responses(body))


@pytest.mark.parametrize(
    "items",
    [
        [{**message_item(""), "content": [{**message_item(half)["content"][0]} for half in HALVES]}],
        [message_item(HALVES[0]), {**message_item(HALVES[1]), "id": "msg_2"}],
        [message_item(HALVES[0]), reasoning_item("Hm."), {**message_item(HALVES[1]), "id": "msg_2"}],
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_word_cut_between_two_answers_is_found(items, stream):
    events = [sse(event) for event in response_events(*items)]

    response, data = ask_responses(events if stream else json.dumps(response_object(*items)).encode())

    assert strategy(response) == "composed"
    assert SECRET not in shown(response, data)


# ---------------------------------------------------------------- streams


def stream_of(*pieces, at=1):
    """Return a fine stream with more pieces in it."""
    body = chat_stream(FINE).body
    return [*body[:at], *pieces, *body[at:]]


def tool(**function):
    return {"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": function}]}


@pytest.mark.parametrize(
    "body",
    [
        *([sse({**chunk({"content": FINE}, "stop"), name: value})]
          for name in "id created model system_fingerprint service_tier usage new error".split()
          for value in VALUES.values()),
        *(chat_stream(FINE, finish=value).body for value in VALUES.values()),
        *(chat_stream({name: value}).body
          for name in ("name", "id", "role", BAD) for value in VALUES.values()),
        chat_stream({"content": HALVES[0]}, {"refusal": "Hm."}, {"content": HALVES[1]}).body,
        chat_stream(*({"content": [part]} for part in PARTS)).body,
        chat_stream('{"say": "another beer and \\u00', '64rive off"}').body,
        # A later value takes the place of the first where it is judged, and so where it is shown.
        chat_stream({"new": BAD}, {"new": 5}).body,
        chat_stream({"new": {"name": BAD}}, {"new": {"name": "n"}}).body,
        chat_stream({"content": {"x": BAD}}, {"content": {"x": 1}}).body,
        chat_stream(tool(name=BAD, arguments="{}"), tool(name="look_up")).body,
        chat_stream(tool(name=HALVES[0], arguments="{}"), tool(name=HALVES[1])).body,
        chat_stream(tool(name="f", arguments=BAD), tool(arguments={})).body,
        chat_stream({"tool_calls": [{"index": 0, "id": BAD}]}, tool(name="f", arguments="{}")).body,
        chat_stream({"audio": {"id": BAD, "transcript": FINE}}, {"audio": {"id": "a"}}).body,
        chat_stream({"audio": {"transcript": FINE, "data": BAD}}).body,
        chat_stream({"audio": {"transcript": FINE, "data": {"x": BAD}}}, {"audio": {"data": "AAAA"}}).body,
        *(stream_of(sse({"choices": [{"index": index, "delta": {"content": BAD}}]}))
          for index in (0.0, None, "0", 7)),
        stream_of(sse({"choices": [{"delta": {"content": half}} for half in HALVES]})),
        stream_of(sse({"choices": [{"index": 0, "message": {"content": BAD}, "text": BAD}]})),
        stream_of(sse(chunk({"content": BAD})), at=3),  # behind the finish reason
        stream_of(sse(chunk({"content": BAD})), at=4),  # behind [DONE]
        stream_of(sse({"message": BAD}, "error")),
        stream_of(sse({"error": {"message": "busy", "type": BAD, "code": [BAD], BAD: 1}})),
        [b"".join(chat_stream(BAD).body).replace(b"\n", b"\r")],
    ],
)  # fmt: skip
@pytest.mark.parametrize("usage", [False, True])
def test_a_stream_of_chunks_hides_nothing(body, usage):
    assert SECRET not in shown(*ask_chat(body, stream_options={"include_usage": usage}))


def delta(text, **fields):
    return {
        "type": "response.output_text.delta",
        "output_index": 0,
        "content_index": 0,
        "delta": text,
        **fields,
    }


@pytest.mark.parametrize(
    "events",
    [
        [{"type": "response.new_thing.delta", "delta": BAD, "text": BAD}],
        [delta(BAD, output_index=10**30, content_index=-5)],
        [delta(HALVES[0], output_index=7), delta(HALVES[1], output_index=8)],
        [delta(HALVES[0], content_index=1), delta(HALVES[1], content_index=2)],
        [delta(HALVES[0]), {**delta("Hm."), "type": "response.refusal.delta"}, delta(HALVES[1])],
        [{"type": "response.output_item.added", "output_index": 0, "item": {"id": BAD}}],
        [{"type": "error", "message": BAD, "code": BAD, "param": BAD}],
        [{"type": "response.failed", "response": {"error": {"message": BAD}}}],
        [
            {
                "type": "response.incomplete",
                "response": response_object(status=BAD, incomplete_details={"x": BAD}),
            }
        ],
        [{"type": "response.completed", "response": response_object()}, delta(BAD)],
    ],
)
def test_a_stream_of_events_hides_nothing(events):
    fine = list(response_events(message_item(FINE)))

    assert SECRET not in shown(*ask_responses([sse(event) for event in [*fine[:4], *events, *fine[4:]]]))


def places(value, path=()):
    """Return the path of every value within JSON."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for name, each in inner for found in [(*path, name), *places(each, (*path, name))]]


CALL_PIECES = [tool(name="f", arguments=""), tool(arguments='{"q"'), tool(arguments=": 1}")]
PLAIN = {
    "chat": [json.loads(chat(FINE, tool_calls=[tool_call("{}")], reasoning="Hm.").body)],
    "chat stream": [*map(chunk, [{"reasoning": "Hm. "}, {"content": FINE}, *CALL_PIECES]), chunk({}, "stop")],
    "response": [response_object(reasoning_item("Hm."), message_item(FINE), function_item("{}"))],
    "response stream": list(response_events(reasoning_item("Hm."), message_item(FINE), function_item("{}"))),
}  # fmt: skip
CHANGES = st.lists(
    st.tuples(st.integers(0), st.sampled_from([*VALUES.values(), *HALVES, None, 5, True, [], "", {}])),
    min_size=1,
    max_size=3,
)


@given(st.sampled_from(sorted(PLAIN)), CHANGES)
def test_whatever_is_changed_in_a_reply_it_hides_nothing(kind, changes):
    events = copy.deepcopy(PLAIN[kind])
    for place, value in changes:
        paths = places(events)
        events = put(events, paths[place % len(paths)], copy.deepcopy(value))
    body = [sse(event) for event in events] if "stream" in kind else json.dumps(events[0]).encode()

    assert SECRET not in shown(*(ask_chat if "chat" in kind else ask_responses)(body))
