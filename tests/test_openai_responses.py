"""The Responses API through the guarded client, with the real `openai` package against a scripted server."""

import asyncio
import json

import httpx
import pytest
from fakes import GRAVE, SAFE_REPLY, UNSAFE, UNSAFE_REPLY, make_guard
from openai_server import (
    BEER,
    FINE,
    SECRET,
    Answer,
    function_item,
    message_item,
    reasoning_item,
    response_object,
    response_stream,
    responses,
    sse,
)

openai = pytest.importorskip("openai")

from openai.types.responses import Response  # noqa: E402
from pydantic import BaseModel  # noqa: E402

from guardrail.integrations.openai import guard_client  # noqa: E402

# Older clients do not wrap what their HTTP library raises while a stream is read.
BROKEN_OFF = (openai.APIConnectionError, httpx.TransportError)
TURNING = "Here is a thought. Just drive off! Nobody will see."
UNSAFE_CALL = function_item(json.dumps({"say": UNSAFE_REPLY}))


def ask(client, text=BEER, **options):
    return client.responses.create(model="gpt-test", input=text, **options)


def events_of(client, text=BEER, **options):
    return list(ask(client, text, stream=True, **options))


def dumped(items):
    return "".join(item.model_dump_json(warnings=False) for item in items)


def without_facts(model):
    return {name: value for name, value in model.model_dump().items() if name != "guardrail"}


def deltas(events, kind="response.output_text.delta"):
    return "".join(event.delta for event in events if event.type == kind)


# ---------------------------------------------------------------- whole replies


@pytest.mark.parametrize(
    "items",
    [
        [message_item(FINE)],
        [reasoning_item("Let me think.", encrypted_content="gAAA"), message_item(FINE)],
        [function_item('{"q": "bread"}')],
        [message_item(FINE, annotations=[{"type": "url_citation", "url": "http://b", "title": "Bread"}])],
    ],
)
def test_a_fine_reply_is_the_bare_clients_field_by_field(server, bare, client, items):
    server.script = [responses(*items, status="incomplete", incomplete_details={"reason": "x"})]

    plain, guarded = ask(bare), ask(client)

    assert type(guarded) is Response
    assert without_facts(guarded) == plain.model_dump()
    assert guarded.guardrail["strategy"] == "pass"


def test_an_unsafe_reply_is_made_again_with_guidance_in_the_input(server, client):
    server.script = [responses(message_item(UNSAFE_REPLY)), responses(message_item(SAFE_REPLY))]

    reply = ask(client, [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": BEER}])

    assert reply.output_text == SAFE_REPLY
    first, guidance, last = server.requests[1][2]["input"]
    assert (first["role"], guidance["role"], last["content"]) == ("developer", "system", BEER)
    assert "drive after beer" in guidance["content"]


def test_guidance_turns_a_plain_input_into_items(server, client):
    server.script = [responses(message_item(SAFE_REPLY))]

    ask(client, UNSAFE)

    guidance, question = server.requests[0][2]["input"]
    assert guidance["role"] == "system"
    assert question == {"role": "user", "content": UNSAFE}


UNSAFE_ITEMS = [
    [message_item(UNSAFE_REPLY)],
    [reasoning_item(UNSAFE_REPLY), message_item(FINE)],
    [reasoning_item(content=[{"type": "reasoning_text", "text": UNSAFE_REPLY}]), message_item(FINE)],
    [UNSAFE_CALL],
    [message_item(FINE), {"id": "c", "type": "custom_tool_call", "call_id": "c", "name": "say",
                          "input": UNSAFE_REPLY}],
    [message_item(FINE), {"id": "w", "type": "web_search_call", "status": "completed",
                          "action": {"type": "search", "query": UNSAFE_REPLY}}],
    [message_item(FINE, annotations=[{"type": "url_citation", "url": "u", "title": UNSAFE_REPLY}])],
    [{**message_item(FINE), "content": [{"type": "refusal", "refusal": UNSAFE_REPLY}]}],
    [{**message_item(FINE), "content": [{"type": "new_part", "words": UNSAFE_REPLY}]}],
    [message_item(FINE), {"id": "n", "type": "new_item", "deep": {"words": [UNSAFE_REPLY]}}],
]  # fmt: skip


@pytest.mark.parametrize("items", UNSAFE_ITEMS)
def test_unsafe_words_are_found_wherever_they_stand(server, client, items):
    server.script = [responses(*items)]

    reply = ask(client)

    assert reply.guardrail["strategy"] in ("composed", "unavailable")
    assert SECRET not in reply.model_dump_json()
    assert [item.type for item in reply.output] == ["message"]
    assert (reply.id, reply.model, reply.usage.total_tokens) == ("resp_1", "gpt-test", 12)
    assert reply.status == "completed"
    assert reply.error is None


def test_a_picture_that_nobody_can_judge_is_not_shown(server, client):
    server.script = [responses({"id": "i", "type": "image_generation_call", "result": "AAAA"})]

    assert "AAAA" not in ask(client).model_dump_json()


def test_the_conversation_is_read_from_all_kinds_of_items(server, client):
    server.script = [responses(message_item(SAFE_REPLY))]
    turns = [
        {"role": "user", "content": [{"type": "input_text", "text": "what is on my list?"}]},
        reasoning_item("Let me look."),
        function_item("{}"),
        {"type": "function_call_output", "call_id": "call_1", "output": UNSAFE},
    ]

    reply = ask(client, turns)

    assert reply.guardrail["verdict_in"]["flagged"]
    assert reply.guardrail["verdict_in"]["role"] == "tool"
    assert "unread_history" not in reply.guardrail


def test_turns_that_the_upstream_alone_knows_are_told_of(server, client):
    server.script = [responses(message_item(FINE))]

    reply = ask(client, previous_response_id="resp_0")

    assert reply.guardrail["unread_history"]
    assert server.requests[0][2]["previous_response_id"] == "resp_0"


@pytest.mark.parametrize("body", [{"background": True}, {"input": None}, {"input": []}, {"input": [1]}])
def test_a_request_that_cannot_be_guarded_is_refused_and_not_sent(server, client, body):
    with pytest.raises(openai.BadRequestError, match="expected"):
        client.post("/responses", cast_to=object, body={"model": "m", "input": "hi", **body})
    assert server.requests == []


def test_on_an_intervention_the_upstream_is_not_asked(server, client):
    reply = ask(client, GRAVE, instructions="Be brief.")

    assert server.requests == []
    assert type(reply) is Response
    assert reply.output_text
    assert (reply.instructions, reply.status) == ("Be brief.", "completed")
    assert reply.guardrail["verdict_in"]["action"] == "intervene"


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"no",
        b'{"output": "hi"}',
        b'{"output": ["hi"]}',
        responses(status="failed", error={"code": "server_error", "message": "down"}).body,
    ],
)
def test_a_reply_that_is_none_is_an_error(server, client, body):
    server.script = [Answer(body)]

    with pytest.raises(openai.InternalServerError):
        ask(client)


class Advice(BaseModel):
    text: str


def test_parse_returns_its_model_or_a_refusal(server, client):
    server.script = [
        responses(message_item('{"text": "Bread needs time."}')),
        responses(message_item(json.dumps({"text": UNSAFE_REPLY}))),
    ]

    fine = client.responses.parse(model="m", input=BEER, text_format=Advice)
    unsafe = client.responses.parse(model="m", input=BEER, text_format=Advice)

    assert fine.output_parsed == Advice(text="Bread needs time.")
    assert unsafe.output_parsed is None
    assert unsafe.output[0].content[0].type == "refusal"
    assert SECRET not in unsafe.model_dump_json()


# ---------------------------------------------------------------- streams


FINE_ITEMS = [
    [message_item(FINE)],
    [reasoning_item("Let me think. Well.", "So."), message_item(FINE)],
    [reasoning_item(encrypted_content="gAAA"), message_item(FINE), function_item('{"q": "bread"}')],
    [{**message_item(FINE), "id": "msg_0"}, message_item("And this.")],
]


@pytest.mark.parametrize("items", FINE_ITEMS)
def test_a_fine_stream_ends_with_the_bare_clients_response(server, bare, client, items):
    server.script = [response_stream(*items)]

    plain, guarded = events_of(bare), events_of(client)

    assert {type(event) for event in guarded} == {type(event) for event in plain}
    assert without_facts(guarded[-1].response) == plain[-1].response.model_dump()
    assert [event.sequence_number for event in guarded] == list(range(len(guarded)))
    assert deltas(guarded) == deltas(plain)
    done = [event for event in guarded if event.type.endswith(".done")]
    plain_done = [event for event in plain if event.type.endswith(".done")]
    assert len(done) == len(plain_done)
    for ours, theirs in zip(done, plain_done, strict=True):
        unlike = {"sequence_number", "name"}
        assert ours.model_dump(exclude=unlike) == theirs.model_dump(exclude=unlike)


@pytest.mark.parametrize("items", FINE_ITEMS)
def test_the_streams_helper_accepts_the_events(server, client, items):
    server.script = [response_stream(*items)]

    with client.responses.stream(model="m", input=BEER) as stream:
        events = list(stream)
        final = stream.get_final_response()

    assert final.output_text == "".join(
        part["text"] for item in items if item["type"] == "message" for part in item["content"]
    )
    assert events[-1].response.guardrail["strategy"] == "pass"


def test_annotations_come_with_their_text(server, client):
    note = {"type": "url_citation", "url": "http://b", "title": "Bread", "start_index": 0, "end_index": 5}
    server.script = [response_stream(message_item(FINE, annotations=[note]))]

    events = events_of(client)

    added = [e for e in events if e.type == "response.output_text.annotation.added"]
    assert [dict(event.annotation) for event in added] == [note]
    assert events[-1].response.output[0].content[0].annotations[0].title == "Bread"


def test_sentences_come_before_the_stream_has_ended(server, client):
    server.script = [response_stream(message_item(FINE), keep=9, hang=True)]

    seen = []
    with ask(client, stream=True) as stream:
        for event in stream:
            seen.append(event.type)
            if event.type == "response.output_text.delta":
                break
    assert event.delta == "Bread needs time."
    assert seen[:3] == ["response.created", "response.in_progress", "response.output_item.added"]
    assert server.closed.wait(5)


def check_consistent(events):
    """Whatever closes a part, an item or the response tells exactly what was shown before."""
    texts, items = {}, {}
    for event in events:
        if event.type == "response.output_text.delta":
            key = event.output_index, event.content_index
            texts[key] = texts.get(key, "") + event.delta
        elif event.type == "response.output_text.done":
            assert event.text == texts[event.output_index, event.content_index]
        elif event.type == "response.output_item.done":
            items[event.output_index] = event.item
    assert [items[index] for index in sorted(items)] == events[-1].response.output
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_an_unsafe_sentence_closes_the_upstream_and_is_never_seen(server, client):
    # Enough of it for the unsafe sentence, which is never finished.
    server.script = [
        response_stream(message_item(TURNING), keep=11, hang=True),
        response_stream(message_item(SAFE_REPLY)),
    ]

    events = events_of(client)

    assert server.closed.wait(5)
    assert deltas(events) == events[-1].response.output_text == f"Here is a thought.\n\n{SAFE_REPLY}"
    assert SECRET not in dumped(events)
    assert events[-1].response.guardrail["strategy"] == "regenerated"
    assert len({event.response.id for event in events if hasattr(event, "response")}) == 1
    check_consistent(events)


@pytest.mark.parametrize("items", UNSAFE_ITEMS)
def test_unsafe_words_are_never_seen_wherever_they_stand(server, client, items):
    if "text" not in items[0].get("content", [{"text": ""}])[0]:
        whole = [{"type": "response.completed", "response": response_object(*items)}]
        server.script = [Answer([sse(event, event["type"]) for event in whole])]
    else:
        server.script = [response_stream(*items)]

    with client.responses.with_streaming_response.create(model="m", input=BEER, stream=True) as response:
        raw = response.read()
    events = events_of(client)

    assert SECRET.encode() not in raw
    assert SECRET not in dumped(events)
    assert events[-1].response.guardrail["strategy"] in ("composed", "unavailable")
    check_consistent(events)


def test_drafts_with_reasoning_leave_a_consistent_response(server, client):
    thought = reasoning_item("Let me think. ")
    server.script = [
        response_stream(thought, message_item(TURNING)),
        response_stream(thought, message_item(SAFE_REPLY)),
    ]

    with client.responses.stream(model="m", input=BEER) as stream:
        events = list(stream)

    assert events[-1].response.output_text == f"Here is a thought.\n\n{SAFE_REPLY}"
    assert SECRET not in dumped(events)
    ids = [item.id for item in events[-1].response.output]
    assert len(ids) == len(set(ids))


def test_where_json_was_asked_for_text_of_ours_is_a_refusal(server, client):
    server.script = [response_stream(message_item(json.dumps({"text": UNSAFE_REPLY})))]

    with client.responses.stream(model="m", input=BEER, text_format=Advice) as stream:
        events = list(stream)
        final = stream.get_final_response()

    assert final.output_parsed is None
    assert final.output[-1].content[-1].refusal
    assert SECRET not in dumped(events)


def test_on_an_intervention_a_stream_is_made_up(server, client):
    events = events_of(client, GRAVE)

    assert server.requests == []
    assert events[-1].response.output_text == deltas(events) != ""
    check_consistent(events)


def test_an_upstream_that_tells_its_items_at_the_end_alone_is_understood(server, client):
    event = {"type": "response.completed", "response": response_object(message_item(FINE))}
    server.script = [Answer([sse(event)])]

    assert events_of(client)[-1].response.output_text == FINE


@pytest.mark.parametrize(
    "tail",
    [
        [],
        [b"data: {oops\n\n"],
        [b"data: [1]\n\n"],
        [sse({"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "delta": 1})],
        [sse({"type": "response.output_text.delta", "output_index": [], "delta": "hm"})],
        [sse({"type": "response.output_item.done", "output_index": 0, "item": message_item("Other.")})],
        [sse({"type": "response.output_item.done", "output_index": 0, "item": "x"})],
        [sse({"type": "response.completed", "response": None})],
    ],
)
def test_garbage_in_a_stream_is_no_pass(server, client, tail):
    answer = response_stream(message_item(FINE), keep=9)
    answer.body += tail
    server.script = [answer]
    seen = []

    with pytest.raises(BROKEN_OFF):  # noqa: PT012
        for event in ask(client, stream=True):
            seen.append(event)
    assert deltas(seen) == "Bread needs time."
    assert not any(event.type.endswith((".done", ".completed")) for event in seen)


def test_a_failure_that_the_upstream_tells_of_is_told_on(server, client):
    failed = response_object(status="failed", error={"code": "server_error", "message": "out of memory"})
    server.script = [response_stream(message_item(FINE), keep=9)]
    server.script[0].body.append(sse({"type": "response.failed", "response": failed}))

    with pytest.raises(openai.APIError, match="out of memory"):
        events_of(client)


def test_async_whole_and_streamed_replies_are_guarded(server):
    server.script = [
        responses(message_item(UNSAFE_REPLY)),
        responses(message_item(SAFE_REPLY)),
        response_stream(message_item(TURNING), keep=11, hang=True),
        response_stream(message_item(SAFE_REPLY)),
    ]

    async def main():
        async with openai.AsyncOpenAI(base_url=server.url, api_key="k", max_retries=0) as bare:
            client = guard_client(bare, guard=make_guard())
            whole = await client.responses.create(model="m", input=BEER)
            async with client.responses.stream(model="m", input=BEER) as stream:
                events = [event async for event in stream]
            await client.close()
            return whole, events

    whole, events = asyncio.run(main())

    assert whole.output_text == SAFE_REPLY
    assert events[-1].response.output_text == f"Here is a thought.\n\n{SAFE_REPLY}"
    assert SECRET not in dumped([whole, *events])
    assert server.closed.wait(5)
