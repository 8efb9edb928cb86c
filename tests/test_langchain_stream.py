"""Streams of a guarded chat model: what comes when, what it adds up to, and what is left behind."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest
from fakes import GRAVE, SAFE, SAFE_REPLY, UNSAFE_REPLY, make_guard
from langchain_core.callbacks import get_usage_metadata_callback
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.runnables import RunnableGenerator, RunnableLambda
from langchain_fakes import Recorder, drain, guarded, in_one, scripted

from guardrail.integrations.langchain import guard_model

STREAMS = {
    "stream": lambda model, given: list(model.stream(given)),
    "astream": lambda model, given: asyncio.run(drain(model.astream(given))),
}
every_stream = pytest.mark.parametrize("mode", STREAMS)

USAGE = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
METADATA = {"model_name": "scripted-1", "finish_reason": "stop", "logprobs": {"content": [{"token": "So"}]}}
CALL = {"name": "call_taxi", "args": {"seats": 2}, "id": "call-1"}
TEXT = "So. Take a taxi!\n\n  It's   cheap \t😀\r\nBye. "
SIGNED = {"type": "thinking", "thinking": "They baked. It was good.", "signature": "c2lnbmF0dXJl=="}
DRAFTS = {
    "text": AIMessage(TEXT),
    "all else": AIMessage(
        TEXT, id="msg-1", name="helper", usage_metadata=USAGE, response_metadata=METADATA, tool_calls=[CALL]
    ),
    "only a call": AIMessage("", tool_calls=[CALL, {**CALL, "id": "call-2"}]),
    "broken call": AIMessage(
        "Well.", invalid_tool_calls=[{"name": "call_taxi", "args": "[2]", "id": "call-1", "error": None}]
    ),
    "reasoning": AIMessage(TEXT, additional_kwargs={"reasoning_content": "Bread. So.", "refusal": None}),
    "blocks": AIMessage([SIGNED, {"type": "text", "text": TEXT}, {"type": "text", "text": TEXT}]),
    "block with an id": AIMessage([{"type": "text", "text": TEXT, "id": "msg_1", "annotations": []}]),
    "citation": AIMessage(
        [
            {"type": "text", "text": TEXT, "annotations": [{"title": "A page", "cited_text": "a taxi"}]},
            {"type": "text", "text": "Bye."},
        ]
    ),
    "summary": AIMessage(
        [
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Bread. So.", "index": 0}]},
            {"type": "text", "text": TEXT},
        ]
    ),
    "sealed": AIMessage([{"type": "redacted_thinking", "data": "c2VhbGVk"}, {"type": "text", "text": TEXT}]),
    "tool use": AIMessage(
        [
            {"type": "text", "text": "I call one. Now."},
            {"type": "tool_use", "id": "call-1", "name": "call_taxi", "input": {"seats": 2}},
        ],
        tool_calls=[CALL],
    ),
    "blocks that do not add up": AIMessage(
        [{"type": "text", "text": "Fine. So.", "index": "a"}, {"type": "text", "text": "Bye.", "index": "b"}]
    ),
}


def generator(*drafts):
    """Return a runnable that says its drafts in turn, piece by piece; an exception is raised."""
    left = list(drafts)

    def say(given):
        for piece in left.pop(0):
            if isinstance(piece, Exception):
                raise piece
            yield piece

    async def asay(given):
        for piece in say(given):
            yield piece

    return RunnableGenerator(say, asay)


def without_facts(message: AIMessage) -> dict:
    found = message.model_dump()
    found["response_metadata"].pop("guardrail", None)
    if str(found["id"]).startswith("lc_run-"):
        del found["id"]
    return found


@every_stream
@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("kind", DRAFTS)
@pytest.mark.parametrize("version", ["v0", "v1"])
def test_the_pieces_add_up_to_the_models_own_message(mode, size, kind, version):
    def model():
        # In "v1" each piece has standard blocks.
        return scripted(DRAFTS[kind], size=size).model_copy(update={"output_version": version})

    bare = in_one(STREAMS[mode](model(), SAFE))
    shown = in_one(STREAMS[mode](guard_model(model(), make_guard()), SAFE))
    assert shown.response_metadata["guardrail"]["strategy"] == "pass"
    assert without_facts(shown) == without_facts(bare)
    assert shown.content_blocks == bare.content_blocks


@pytest.mark.parametrize("kind", ["text", "all else", "only a call", "reasoning"])
def test_the_pieces_add_up_to_what_invoke_gives(kind):
    invoked = guarded(DRAFTS[kind]).invoke(SAFE)
    streamed = in_one(list(guarded(DRAFTS[kind]).stream(SAFE)))
    # Adding chunks up loses the name, with or without the guard.
    assert without_facts(streamed) == {**without_facts(invoked), "name": None}


@every_stream
def test_a_model_that_does_not_stream_says_all_in_one_piece(mode):
    for kind in ("all else", "broken call", "blocks"):
        draft = DRAFTS[kind]
        model = guard_model(RunnableLambda(lambda _, draft=draft: draft), make_guard())
        (piece,) = STREAMS[mode](model, SAFE)
        for name in ("content", "tool_calls", "invalid_tool_calls", "usage_metadata", "name"):
            assert getattr(piece, name) == getattr(draft, name), (kind, name)


@every_stream
def test_the_inner_model_may_stream_strings(mode):
    inner = generator(["Take a ", "taxi. ", "Bye."])
    pieces = STREAMS[mode](guard_model(inner, make_guard()), SAFE)
    assert in_one(pieces).content == "Take a taxi. Bye."


# --- what comes when


def test_a_sentence_comes_as_soon_as_it_is_whole():
    inner = scripted("One. Two. Three.")
    stream = guard_model(inner, make_guard()).stream(SAFE)
    assert next(stream).content == "One."
    assert next(stream).content == " Two."
    stream.close()
    assert inner.closed == [10]  # one character behind "Two.", which shows that it ended


def test_reasoning_comes_before_the_reply_and_as_it_is_judged():
    draft = AIMessage("Four. Five.", additional_kwargs={"reasoning_content": "One. Two."})
    pieces = list(guarded(draft).stream(SAFE))
    said = [(piece.additional_kwargs.get("reasoning_content"), piece.content) for piece in pieces]
    assert said[:3] == [("One.", ""), (" Two.", ""), (None, "Four.")]


def test_a_tool_call_waits_for_the_end():
    draft = AIMessage("Fine. So.", tool_calls=[{"name": "x", "args": {"a": "beer, drive"}, "id": "1"}])
    pieces = list(guarded(draft, max_attempts=1).stream(SAFE))
    assert pieces[0].content == "Fine."
    assert all(not piece.tool_call_chunks for piece in pieces)


def test_what_a_block_quotes_waits_for_the_end():
    quote = {"annotations": [{"cited_text": "Have beer and drive."}]}
    pieces = [
        AIMessageChunk([{"type": "text", "text": "They say. So.", "index": 0, **quote}]),
        AIMessageChunk([{"type": "text", "text": " There. It is.", "index": 1}]),
    ]
    shown = list(guard_model(generator(pieces), make_guard(max_attempts=1)).stream(SAFE))
    assert "Have beer" not in repr(shown)


def test_json_comes_in_one_piece_and_a_rejected_beginning_is_not_before_it():
    drafts = ['{"a": "Fine. So. Have beer and drive"}', '{"a": "Fine. So."}']
    model = guarded(*drafts)
    assert in_one(list(model.stream(SAFE))).content != drafts[1]
    for given in (
        guarded(*drafts).bind(response_format={"type": "json_object"}),
        guard_model(scripted(*drafts).bind(response_format={}), make_guard()),
        guard_model(
            scripted(*drafts).bind(response_format={}).with_fallbacks([scripted("none")]), make_guard()
        ),
        guarded(*drafts).model_copy(update={"whole": True}),
    ):
        (piece,) = given.stream(SAFE)
        assert piece.content == drafts[1]
        (piece,) = asyncio.run(drain(given.astream(SAFE)))
        assert piece.chunk_position == "last"


# --- a rejected draft


@every_stream
def test_another_draft_follows_what_was_shown_of_the_first(mode):
    first = AIMessage(f"Fine. {UNSAFE_REPLY} More.", id="msg-1", usage_metadata=USAGE, tool_calls=[CALL])
    second = AIMessage(SAFE_REPLY, id="msg-2", usage_metadata=USAGE)
    pieces = STREAMS[mode](guarded(first, second), SAFE)
    message = in_one(pieces)
    assert message.content == f"Fine.\n\n{SAFE_REPLY}"
    assert {piece.id for piece in pieces} == {"msg-1"}
    assert message.usage_metadata == USAGE
    assert message.tool_calls == []
    assert message.response_metadata["guardrail"]["strategy"] == "regenerated"


@every_stream
@pytest.mark.parametrize("index", [0, "lc_txt_0"])
def test_blocks_of_two_drafts_stay_apart(mode, index):
    def blocks(text, signature):
        thinking = {"type": "thinking", "thinking": "Well. So.", "signature": signature, "index": index}
        other = 1 if index == 0 else "lc_txt_1"
        return AIMessage([thinking, {"type": "text", "text": text, "index": other}])

    model = guarded(blocks(f"Fine. {UNSAFE_REPLY}", "Zmlyc3Q="), blocks(SAFE_REPLY, "c2Vjb25k"))
    content = in_one(STREAMS[mode](model, SAFE)).content
    assert [block["type"] for block in content] == ["thinking", "text", "thinking", "text"]
    assert [block["signature"] for block in content[::2]] == ["Zmlyc3Q=", "c2Vjb25k"]
    assert content[1]["text"] + content[3]["text"] == f"Fine.\n\n{SAFE_REPLY}"
    assert content[2]["thinking"] == "\n\nWell. So."


def test_a_repair_behind_blocks_is_a_block():
    draft = AIMessage([{"type": "text", "text": f"Fine. {UNSAFE_REPLY}"}])
    message = in_one(list(guarded(draft, max_attempts=1).stream(SAFE)))
    assert [block["type"] for block in message.content] == ["text", "text"]
    assert message.content[1]["text"].startswith("\n\n")


@every_stream
def test_the_inner_stream_is_closed_on_a_block(mode):
    inner = scripted(f"{UNSAFE_REPLY} And so on and on.", SAFE_REPLY)
    STREAMS[mode](guard_model(inner, make_guard()), SAFE)
    assert inner.closed[0] == len(UNSAFE_REPLY) + 1
    assert len(inner.closed) == 2


def test_the_inner_stream_is_closed_when_the_reader_leaves():
    inner = scripted("One. Two. Three.")
    model = guard_model(inner, make_guard())
    for _ in model.stream(SAFE):
        break
    gc.collect()
    assert inner.closed == [5]

    async def leave():
        stream = model.astream(SAFE)
        await anext(stream)
        await stream.aclose()
        for _ in range(10):
            gc.collect()
            await asyncio.sleep(0.01)

    asyncio.run(leave())
    assert inner.closed == [5, 5]


@every_stream
def test_an_intervention_calls_nobody(mode):
    inner = scripted(SAFE_REPLY)
    message = in_one(STREAMS[mode](guard_model(inner, make_guard()), GRAVE))
    assert "You shouldn't" in message.content
    assert message.id.startswith("lc_run-")
    assert inner.requests == []


@every_stream
def test_an_error_behind_a_shown_sentence_gives_a_repair(mode):
    inner = generator(["Fine. ", f"{UNSAFE_REPLY} So"], ["No. ", ConnectionError("down")])
    message = in_one(STREAMS[mode](guard_model(inner, make_guard()), SAFE))
    assert message.content.startswith("Fine.\n\n")
    attempts = message.response_metadata["guardrail"]["attempts"]
    assert [attempt["error"] for attempt in attempts[:2]] == ["", "ConnectionError"]
    assert "No." not in message.content  # what replaces something unsafe is judged as a whole


@every_stream
def test_an_error_of_the_first_call_is_seen_as_without_the_guard(mode):
    with pytest.raises(ConnectionError, match="down"):
        STREAMS[mode](guard_model(generator(["Fine. So", ConnectionError("down")]), make_guard()), SAFE)


# --- who hears what


@every_stream
def test_between_two_pieces_the_readers_own_calls_are_heard(mode):
    heard = Recorder()

    def read(given):
        for piece in guarded("One. Two.").stream(given):
            if piece.content:
                scripted(f"own words behind {piece.content}", size=99).invoke(given)
        return "done"

    async def aread(given):
        async for piece in guarded("One. Two.").astream(given):
            if piece.content:
                await scripted(f"own words behind {piece.content}", size=99).ainvoke(given)
        return "done"

    reader = RunnableLambda(read, afunc=aread)
    config = {"callbacks": [heard]}
    if mode == "stream":
        reader.invoke(SAFE, config)
    else:
        asyncio.run(reader.ainvoke(SAFE, config))
    ends = [item[0] for item in heard.heard if type(item[0]).__name__ == "LLMResult"]
    said = [end.generations[0][0].text for end in ends]
    assert said == ["own words behind One.", "own words behind  Two.", "One. Two."]


@pytest.mark.parametrize("mode", ["invoke", *STREAMS])
def test_tokens_are_counted_once(mode):
    draft = AIMessage(SAFE_REPLY, usage_metadata=USAGE, response_metadata={"model_name": "scripted-1"})
    with get_usage_metadata_callback() as counted:
        model = guarded(draft)
        if mode == "invoke":
            model.invoke(SAFE)
        else:
            STREAMS[mode](model, SAFE)
    assert counted.usage_metadata["scripted-1"]["total_tokens"] == 7


@every_stream
def test_a_deadline_holds_between_pieces(mode):
    gate = threading.Event()

    def slow(given):
        yield "Fine. So"
        gate.wait(5)
        yield " on."

    async def aslow(given):
        yield "Fine. So"
        await asyncio.sleep(5)
        yield " on."

    model = guard_model(RunnableGenerator(slow, aslow), make_guard(deadline_ms=200))
    message = in_one(STREAMS[mode](model, SAFE))
    gate.set()
    assert message.content.startswith("Fine.\n\n")
    assert message.response_metadata["guardrail"]["attempts"][0]["error"] == "TimeoutError"
