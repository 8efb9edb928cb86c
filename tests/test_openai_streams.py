"""Guarded streams of chat completions, with the real `openai` package against a scripted server."""

import asyncio
import gc
import json

import httpx
import pytest
from fakes import DRIVING, GRAVE, SAFE_REPLY, UNSAFE, UNSAFE_REPLY, BrokenEncoder, make_guard
from openai_server import (
    BEER,
    FINE,
    SECRET,
    USAGE,
    Answer,
    chat,
    chat_stream,
    chunk,
    sse,
    tool_call,
    user,
)

openai = pytest.importorskip("openai")

from openai.types.chat import ChatCompletionChunk  # noqa: E402
from pydantic import BaseModel  # noqa: E402

from guardrail import GuardConfig, Guardrail  # noqa: E402
from guardrail.errors import ModelError  # noqa: E402
from guardrail.integrations.openai import guard_client  # noqa: E402

# Older clients do not wrap what their HTTP library raises while a stream is read.
BROKEN_OFF = (openai.APIConnectionError, httpx.TransportError)
# Only its second sentence is unsafe, once the user has spoken of beer.
TURNING = ("Here is a thought. ", "Just drive", " off! Nobody", " will see.")


def ask(client, text=BEER, **options):
    return client.chat.completions.create(model="gpt-test", messages=user(text), stream=True, **options)


def text_of(chunks, field="content"):
    return "".join(getattr(c.choices[0].delta, field, None) or "" for c in chunks if c.choices)


def dumped(chunks):
    return "".join(found.model_dump_json() for found in chunks)


def final_of(client, **options):
    with client.chat.completions.stream(model="gpt-test", messages=user(BEER), **options) as stream:
        events = list(stream)
        return events, stream.get_final_completion()


def test_a_fine_stream_adds_up_to_the_bare_clients(server, bare, client):
    server.script = [chat_stream("Bread needs", " time. So do", " you, and that is fine.", usage=True)]
    options = {"stream_options": {"include_usage": True}}

    plain, guarded = list(ask(bare, **options)), list(ask(client, **options))

    assert {type(found) for found in guarded} == {ChatCompletionChunk}
    assert text_of(guarded) == text_of(plain) == FINE
    assert guarded[-1].usage == plain[-1].usage
    assert guarded[-1].choices == []
    assert all(found.usage is None for found in guarded[:-1])
    assert [c.choices[0].delta.role for c in guarded[:-1]] == ["assistant", None, None]
    assert [c.choices[0].finish_reason for c in guarded[:-1]] == [None, None, "stop"]
    for name in ("id", "model", "created", "object", "system_fingerprint"):
        assert {getattr(found, name) for found in guarded} == {getattr(plain[0], name)}
    assert guarded[-1].guardrail["strategy"] == "pass"
    assert "text" not in guarded[-1].guardrail


def test_the_streams_helper_ends_with_the_bare_clients_completion(server, bare, client):
    server.script = [chat_stream("Bread needs", " time. So do", " you, and that is fine.")]

    (_, plain), (_, guarded) = final_of(bare), final_of(client)

    left_out = {"guardrail", "usage"}
    assert {n: v for n, v in guarded.model_dump().items() if n not in left_out} == {
        n: v for n, v in plain.model_dump().items() if n not in left_out
    }


def test_sentences_come_before_the_stream_has_ended(server, client):
    server.script = [chat_stream("Bread needs time. ", "So do you", hang=True)]

    with ask(client) as stream:
        assert next(stream).choices[0].delta.content == "Bread needs time."
    assert server.closed.wait(5)


def test_an_unsafe_sentence_closes_the_upstream_and_is_never_seen(server, client):
    server.script = [chat_stream(*TURNING, hang=True), chat_stream(SAFE_REPLY)]

    chunks = list(ask(client))

    assert server.closed.wait(5)
    assert text_of(chunks) == f"Here is a thought.\n\n{SAFE_REPLY}"
    assert SECRET not in dumped(chunks)
    assert chunks[-1].guardrail["strategy"] == "regenerated"
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_the_raw_bytes_hold_nothing_of_it(server, client):
    server.script = [chat_stream(*TURNING, UNSAFE_REPLY)]

    with client.chat.completions.with_streaming_response.create(
        model="m", messages=user(UNSAFE), stream=True
    ) as response:
        data = response.read()

    assert SECRET.encode() not in data
    assert data.endswith(b"data: [DONE]\n\n")
    assert response.headers["x-guardrail-action"] == "caution"
    assert response.headers["content-type"].startswith("text/event-stream")
    assert "content-length" not in response.headers
    assert [reply.strategy for reply in response.http_response.extensions["guardrail"].replies] == [
        "composed"
    ]


def test_where_something_unsafe_was_said_nothing_is_shown_before_all_is_judged(server, client):
    server.script = [chat_stream("I see. ", "Please take a taxi tonight.")]

    chunks = list(ask(client, UNSAFE))

    assert len([c for c in chunks if c.choices and c.choices[0].delta.content]) == 1


def test_on_an_intervention_the_upstream_is_not_asked(server, client):
    chunks = list(ask(client, GRAVE, stream_options={"include_usage": True}))

    assert server.requests == []
    assert text_of(chunks)
    assert chunks[-1].usage.total_tokens == 0
    assert {c.model for c in chunks} == {"gpt-test"}


@pytest.mark.parametrize("where", ["reasoning_content", "reasoning", "refusal"])
def test_words_of_other_fields_are_let_go_by_sentence_too(server, client, where):
    server.script = [chat_stream({where: "Let me "}, {where: "think. Well"}, FINE)]

    chunks = list(ask(client))

    assert text_of(chunks, where) == "Let me think. Well"
    assert text_of(chunks) == FINE


@pytest.mark.parametrize("where", ["reasoning_content", "reasoning", "refusal"])
def test_unsafe_reasoning_is_never_seen_and_the_repair_starts_the_content(server, client, where):
    server.script = [chat_stream({where: "Let me think. "}, {where: UNSAFE_REPLY}, FINE), chat_stream(FINE)]

    chunks = list(ask(client))

    assert SECRET not in dumped(chunks)
    assert text_of(chunks, where) == "Let me think."
    assert text_of(chunks) == FINE  # no blank line, as it is the first of its field


def test_a_break_stands_between_drafts_of_the_same_field(server, client):
    think = {"reasoning_content": "Let me think. "}
    server.script = [chat_stream(think, *TURNING), chat_stream(think, SAFE_REPLY)]

    chunks = list(ask(client))

    assert text_of(chunks) == f"Here is a thought.\n\n{SAFE_REPLY}"
    assert text_of(chunks, "reasoning_content") == "Let me think. \n\nLet me think. "


def call_deltas(arguments):
    start = {**tool_call(""), "index": 0}
    pieces = [arguments[n : n + 5] for n in range(0, len(arguments), 5)]
    return [
        {"tool_calls": [start]},
        *({"tool_calls": [{"index": 0, "function": {"arguments": p}}]} for p in pieces),
    ]


def test_fine_tool_calls_pass_intact(server, bare, client):
    server.script = [chat_stream("One moment. ", *call_deltas('{"q": "bread"}'), finish="tool_calls")]

    (_, plain), (_, guarded) = final_of(bare), final_of(client)

    assert guarded.choices[0].model_dump() == plain.choices[0].model_dump()
    assert guarded.choices[0].message.tool_calls[0].function.arguments == '{"q": "bread"}'


def test_unsafe_arguments_of_a_tool_are_never_seen(server, client):
    arguments = json.dumps({"say": UNSAFE_REPLY})
    server.script = [chat_stream("One moment. ", *call_deltas(arguments), finish="tool_calls")]

    chunks = list(ask(client))

    assert "look_up" not in dumped(chunks)
    assert "tool_calls" not in dumped(chunks).replace('"tool_calls":null', "")
    assert text_of(chunks).startswith("One moment.\n\n")
    assert chunks[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    "delta",
    [
        {"function_call": {"name": "say", "arguments": UNSAFE_REPLY}},
        {"annotations": [{"title": UNSAFE_REPLY}]},
        {"reasoning_details": [{"type": "reasoning.text", "text": UNSAFE_REPLY}]},
        {"content": [{"type": "text", "text": UNSAFE_REPLY}]},
        {"audio": {"id": "a", "transcript": UNSAFE_REPLY}},
        {"audio": {"id": "a", "data": "AAAA"}},
        {"something_new": {"deep": [UNSAFE_REPLY]}},
    ],
)
def test_what_is_not_words_waits_for_the_end_and_is_judged(server, client, delta):
    server.script = [chat_stream("One moment. ", delta, " Fine.")]

    chunks = list(ask(client))

    assert SECRET not in dumped(chunks)
    assert "AAAA" not in dumped(chunks)
    assert chunks[-1].guardrail["strategy"] in ("composed", "unavailable")


def test_token_probabilities_do_not_tell_the_words(server, client):
    logprobs = {"content": [{"token": SECRET, "logprob": -1.0, "bytes": None, "top_logprobs": []}]}
    piece = chunk({"content": "Fine."})
    piece["choices"][0]["logprobs"] = logprobs
    server.script = [chat_stream("Fine. ")]
    server.script[0].body.insert(1, sse(piece))

    assert SECRET not in dumped(list(ask(client, logprobs=True)))


class Advice(BaseModel):
    text: str


def test_the_streams_helper_parses_json(server, client):
    server.script = [chat_stream('{"text": "Bread ', 'needs time."}')]

    _, final = final_of(client, response_format=Advice)

    assert final.choices[0].message.parsed == Advice(text="Bread needs time.")


def test_where_json_was_asked_for_text_of_ours_is_a_refusal(server, client):
    server.script = [chat_stream('{"text": "Just drive', ' off!"}')]

    events, final = final_of(client, response_format=Advice)

    assert final.choices[0].message.refusal
    assert final.choices[0].message.parsed is None
    assert SECRET not in dumped([final, *events])


# ---------------------------------------------------------------- streams that fail


def test_a_stream_that_breaks_off_is_an_error_and_shows_what_was_judged(server, client):
    server.script = [chat_stream("Bread needs time. ", "So do you, and", cut=True)]

    shown = []
    with pytest.raises(BROKEN_OFF):  # noqa: PT012
        for found in ask(client):
            shown.append(found)
    assert text_of(shown) == "Bread needs time."


@pytest.mark.parametrize(
    "tail",
    [
        [],
        [sse("{oops")],
        [sse("[1]")],
        [sse('{"choices": [{"delta": {"content": "hm"}, "logprobs": NaN}]}')],
        [sse('{"choices": {"delta": {}}}')],
        [sse('{"choices": ["x"]}')],
        [b"data: \xff\xfe\n\n"],
        [sse("[" * 100_000)],
    ],
)
def test_garbage_in_a_stream_is_no_pass(server, client, tail):
    answer = chat_stream("Bread needs time. ", "So do you")
    answer.body = [*answer.body[:3], *tail]
    server.script = [answer]
    shown = []

    with pytest.raises(BROKEN_OFF):  # noqa: PT012
        for found in ask(client):
            shown.append(found)
    assert text_of(shown) == "Bread needs time."
    assert all(found.choices[0].finish_reason is None for found in shown)


@pytest.mark.parametrize("tail", [[], [sse("{oops")]])
def test_garbage_in_a_later_stream_leads_to_a_repair(server, client, tail):
    later = chat_stream(FINE)
    later.body = [*later.body[:2], *tail]
    server.script = [chat_stream(UNSAFE_REPLY), later]

    chunks = list(ask(client))

    assert chunks[-1].guardrail["strategy"] == "composed"
    assert chunks[-1].guardrail["attempts"][1]["error"] == "UpstreamError"


def test_a_failure_that_the_upstream_tells_of_is_told_on(server, client):
    answer = chat_stream("Bread needs time. ", "So do you")
    answer.body = [*answer.body[:3], sse({"error": {"message": "out of memory", "code": "oom"}})]
    server.script = [answer]

    with pytest.raises(openai.APIError, match="out of memory"):
        list(ask(client))


def test_a_guard_that_fails_in_the_middle_raises_if_told_to(server, bare):
    encoder = BrokenEncoder("raises")
    guard = Guardrail(encoder, [DRIVING], config=GuardConfig.of(on_error="raise"))
    server.script = [chat_stream("Bread needs time. ", "So do you. ", hang=True)]
    stream = ask(guard_client(bare, guard=guard))
    encoder.broken = True

    with pytest.raises(ModelError):
        list(stream)
    assert server.closed.wait(5)


@pytest.mark.parametrize("begun", [False, True])
def test_a_stream_that_is_left_closes_the_upstream(server, client, begun):
    server.script = [chat_stream("Bread needs time. ", "So do you", hang=True)]

    stream = ask(client)
    if begun:
        next(stream)
    stream.close()

    assert server.closed.wait(5)


def test_more_than_one_choice_is_refused(server, client):
    with pytest.raises(openai.BadRequestError, match="expected n to be 1"):
        ask(client, n=2)


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_however_the_bytes_are_cut_the_same_comes_out(server, client, step):
    text = "Brötchen, 麺麭 und 🍞. Und noch ein Satz? Ja."
    whole = b": hello\r\n\r\n" + b"".join(chat_stream(*text, usage=True).body).replace(b"\n", b"\r\n")
    answer = chat_stream()
    answer.body = [whole[n : n + step] for n in range(0, len(whole), step)]
    server.script = [answer]

    assert text_of(list(ask(client))) == text


# ---------------------------------------------------------------- async


def arun(server, use, **settings):
    async def main():
        async with openai.AsyncOpenAI(base_url=server.url, api_key="k", max_retries=0) as bare:
            async with guard_client(bare, guard=make_guard(**settings)) as client:
                return await use(client)

    return asyncio.run(main())


def test_async_whole_and_streamed_replies_are_guarded(server):
    server.script = [
        chat(UNSAFE_REPLY),
        chat(SAFE_REPLY),
        chat_stream(*TURNING, hang=True),
        chat_stream(FINE),
    ]

    async def use(client):
        whole = await client.chat.completions.create(model="m", messages=user(BEER))
        stream = await client.chat.completions.create(model="m", messages=user(BEER), stream=True)
        return whole, [found async for found in stream]

    whole, chunks = arun(server, use)

    assert whole.choices[0].message.content == SAFE_REPLY
    assert text_of(chunks) == f"Here is a thought.\n\n{FINE}"
    assert SECRET not in dumped([whole, *chunks])
    assert server.closed.wait(5)


def test_async_connections_are_used_again(server):
    server.script = [chat_stream(FINE)]
    texts = set()

    async def use(client):
        for _ in range(3):
            stream = await client.chat.completions.create(model="m", messages=user(BEER), stream=True)
            texts.add(text_of([found async for found in stream]))

    arun(server, use)

    assert texts == {FINE}
    assert len(server.peers) == 1


def test_async_streams_that_break_off_or_are_left(server):
    server.script = [
        chat_stream("Bread needs time. ", "So do", cut=True),
        chat_stream("Bread needs time. ", "So", hang=True),
    ]

    async def use(client):
        shown = []
        with pytest.raises(BROKEN_OFF):  # noqa: PT012
            async for found in await client.chat.completions.create(
                model="m", messages=user(BEER), stream=True
            ):
                shown.append(found)
        stream = await client.chat.completions.create(model="m", messages=user(BEER), stream=True)
        await anext(stream)
        await stream.close()
        return shown

    assert text_of(arun(server, use)) == "Bread needs time."
    assert server.closed.wait(5)


def test_an_async_stream_that_is_cancelled_closes_the_upstream(server):
    server.script = [chat_stream("Bread needs time", hang=True)]

    async def use(client):
        async def read():
            async for _ in await client.chat.completions.create(model="m", messages=user(BEER), stream=True):
                pass

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(read(), 0.2)

    arun(server, use)
    gc.collect()
    assert server.closed.wait(5)


@pytest.mark.parametrize("stream", [False, True])
def test_errors_reach_async_clients_as_ever(server, stream):
    server.script = [Answer(b'{"error": {"message": "no such model"}}', 404)]

    async def use(client):
        with pytest.raises(openai.NotFoundError, match="no such model"):
            await client.chat.completions.create(model="m", messages=user(BEER), stream=stream)

    arun(server, use)


@pytest.mark.parametrize("stream", [False, True])
def test_behind_the_deadline_a_slow_llm_is_given_up(server, stream):
    answer = chat_stream(FINE, delay=1.0) if stream else chat(FINE)
    answer.delay = 1.0
    server.script = [answer]

    async def use(client):
        reply = await client.chat.completions.create(model="m", messages=user(BEER), stream=stream)
        return [found async for found in reply] if stream else [reply]

    found = arun(server, use, deadline_ms=100)

    assert found[-1].guardrail["attempts"][0]["error"] == "TimeoutError"
    assert FINE not in dumped(found)


def test_usage_is_kept_where_nobody_asked_for_it(server, client):
    server.script = [chat_stream(FINE, usage=True)]

    chunks = list(ask(client))

    assert chunks[-1].usage.model_dump(exclude_none=True) == USAGE
    assert all(found.choices for found in chunks)  # no chunk without choices that nobody expects


def test_many_streams_at_once_are_like_one(server):
    server.script = [chat_stream(*FINE.split(" "))]

    async def use(client):
        async def one():
            stream = await client.chat.completions.create(model="m", messages=user(BEER), stream=True)
            return text_of([found async for found in stream])

        return await asyncio.gather(*(one() for _ in range(50)))

    assert set(arun(server, use)) == {FINE.replace(" ", "")}
