"""Messages in the shapes of the large providers: fine ones stay as they are, and no place hides words.

Unsafe words stand between tildes, which nothing else holds.
"""

from __future__ import annotations

import asyncio
from functools import reduce
from operator import add
from typing import Any

import pytest
from fakes import SAFE, SAFE_REPLY, make_guard
from langchain_core.load import dumps
from langchain_core.messages import AIMessage, message_chunk_to_message
from langchain_core.messages import AIMessageChunk as Chunk
from langchain_core.runnables import RunnableGenerator, RunnableLambda
from langchain_fakes import drain, in_one, scripted
from pydantic import BaseModel

from guardrail.integrations.langchain import guard_model

BAD = "~Have ~another ~beer ~and ~drive ~off~!"
STREAMS = {
    "stream": lambda model: list(model.stream(SAFE)),
    "astream": lambda model: asyncio.run(drain(model.astream(SAFE))),
}
every_stream = pytest.mark.parametrize("mode", STREAMS)


def saying(*drafts: list[Chunk]) -> Any:
    """Return a runnable that says one draft after the other, in these very chunks."""
    left = list(drafts)

    def say(given):
        for chunk in left.pop(0):
            yield chunk.model_copy(deep=True)

    async def asay(given):
        for chunk in say(given):
            yield chunk

    return RunnableGenerator(say, asay)


def added_up(chunks: list[Chunk]) -> AIMessage:
    return message_chunk_to_message(reduce(add, [chunk.model_copy(deep=True) for chunk in chunks]))


def block(kind: str, index: int, **more) -> Chunk:
    return Chunk([{"type": kind, "index": index, **more}])


def calling(index: int | None = None, **more) -> list[dict[str, Any]]:
    call = {"name": None, "args": "", "id": None, "index": index, "type": "tool_call_chunk"}
    return [{**call, **more}]


USAGE = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
FOUND = {
    "type": "web_search_result",
    "title": "Rye at home",
    "url": "https://a.b/c d",
    "encrypted_content": "Eo8=",
}
QUOTE = {"type": "web_search_result_location", "cited_text": "Rye is very good", "title": "Rye"}
# Each is a fine reply, piece by piece.
PROVIDERS = {
    "anthropic": [
        Chunk([], id="msg_1", usage_metadata=USAGE, response_metadata={"model_provider": "anthropic"}),
        block("thinking", 0, thinking="They baked. "),
        block("thinking", 0, thinking="Nice."),
        block("thinking", 0, signature="EqQB+/="),
        block("text", 1, text="Bread is good. So"),
        block("text", 1, text=" is soup."),
        Chunk(
            [{"type": "tool_use", "id": "toolu_1", "name": "search", "input": {}, "index": 2}],
            tool_call_chunks=calling(2, name="search", id="toolu_1"),
        ),
        Chunk(
            [{"type": "input_json_delta", "partial_json": '{"q": "rye"}', "index": 2}],
            tool_call_chunks=calling(2, args='{"q": "rye"}'),
        ),
        Chunk([], usage_metadata=USAGE, response_metadata={"stop_reason": "tool_use"}, chunk_position="last"),
    ],
    "anthropic's search": [
        block("server_tool_use", 0, id="srv_1", name="web_search", input={}),
        block("input_json_delta", 0, partial_json='{"query": "rye bread"}'),
        block("web_search_tool_result", 1, tool_use_id="srv_1", content=[FOUND]),
        block("text", 2, text="Rye is good."),
        block("text", 2, text="", citations=[QUOTE]),
    ],
    "openai's responses": [
        Chunk([], id="resp_1", response_metadata={"model_provider": "openai"}),
        block("reasoning", 0, id="rs_1", summary=[]),
        block("reasoning", 0, summary=[{"index": 0, "type": "summary_text", "text": "**Bread.** They"}]),
        block("reasoning", 0, summary=[{"index": 1, "type": "summary_text", "text": "Then."}]),
        block("web_search_call", 1, id="ws_1", status="completed", action={"query": "rye bread"}),
        block("text", 2, text="", annotations=[], id="msg_1", phase="final_answer"),
        block("text", 2, text="Rye is good. So"),
        block("text", 2, annotations=[{"type": "url_citation", "title": "Rye at home", "url": "https://x"}]),
        Chunk(
            [{"type": "function_call", "name": "search", "arguments": "", "call_id": "c1", "index": 3}],
            tool_call_chunks=calling(3, name="search", id="c1"),
        ),
        Chunk(
            [{"type": "function_call", "arguments": '{"q":"rye"}', "index": 3}],
            tool_call_chunks=calling(3, args='{"q":"rye"}'),
        ),
        Chunk([], usage_metadata=USAGE, response_metadata={"status": "completed"}, chunk_position="last"),
    ],
    "openai's code interpreter": [
        block("code_interpreter_call", 0, code="print('rye')", outputs=[{"type": "logs", "logs": "a rye"}]),
        block("text", 1, text="It is rye."),
    ],
    "openai's chat": [
        Chunk("", id="chatcmpl-1", additional_kwargs={"refusal": None}),
        Chunk("Rye. ", id="chatcmpl-1"),
        Chunk("So it is.", id="chatcmpl-1"),
        Chunk("", tool_call_chunks=calling(0, name="bake", id="c1", args="{}")),
        Chunk("", tool_call_chunks=calling(1, name="eat", id="c2")),
        Chunk("", tool_call_chunks=calling(1, args='{"what": "rye"}')),
        Chunk("", response_metadata={"finish_reason": "tool_calls"}),
        Chunk("", usage_metadata=USAGE),
    ],
    "gemini": [
        Chunk("Rye is ", usage_metadata=USAGE, response_metadata={"model_provider": "google_genai"}),
        Chunk("good. So it is.", usage_metadata=USAGE),
        Chunk(
            "",
            additional_kwargs={
                "function_call": {"name": "search", "arguments": '{"q": "rye"}'},
                "__gemini_function_call_thought_signatures__": {"c1": "CsEBAdHtim8="},
            },
            tool_call_chunks=calling(name="search", args='{"q": "rye"}', id="c1"),
        ),
    ],
    "gemini's thinking": [
        Chunk([{"type": "thinking", "thinking": "They baked. So."}]),
        Chunk([{"type": "text", "text": "Rye is good.", "extras": {"signature": "Ab+="}}]),
        Chunk("It is. Yes."),
        Chunk(["It is."]),
    ],
    "gemini's code": [
        Chunk([{"type": "executable_code", "executable_code": "print('a rye')", "language": "PYTHON"}]),
        Chunk([{"type": "code_execution_result", "code_execution_result": "a rye\n", "outcome": 1}]),
        Chunk("Rye it is. Yes."),
    ],
    "bedrock": [
        block("reasoning_content", 0, reasoning_content={"text": "They baked. "}),
        block("reasoning_content", 0, reasoning_content={"signature": "Ab="}),
        block("text", 1, text="Rye. So."),
        Chunk([{"index": 1}]),
    ],
    "deepseek": [
        Chunk("", additional_kwargs={"reasoning_content": "They baked. "}),
        Chunk("", additional_kwargs={"reasoning_content": "Fine."}),
        Chunk("Rye. So."),
    ],
    "perplexity": [
        Chunk(
            "Rye. So", additional_kwargs={"citations": ["https://a"], "related_questions": ["What is rye?"]}
        ),
        Chunk(" it is."),
    ],
}


def plain(message: AIMessage) -> dict[str, Any]:
    found = message.model_dump()
    found["response_metadata"].pop("guardrail", None)
    if str(found["id"]).startswith("lc_run-"):
        found["id"] = None  # LangChain's own, where the provider gives none
    return found


@every_stream
@pytest.mark.parametrize("kind", PROVIDERS)
def test_a_fine_stream_adds_up_to_the_same_message(mode, kind):
    bare = added_up(PROVIDERS[kind])
    chunks = STREAMS[mode](guard_model(saying(PROVIDERS[kind]), make_guard()))
    message = added_up(chunks)
    assert message.response_metadata["guardrail"]["strategy"] == "pass"
    assert plain(message) == plain(bare)
    assert message.content_blocks == bare.content_blocks
    assert len({chunk.id for chunk in chunks}) == 1


@pytest.mark.parametrize("kind", PROVIDERS)
def test_a_fine_message_stays_as_it_is(kind):
    bare = added_up(PROVIDERS[kind])
    shown = guard_model(RunnableLambda(lambda _: bare), make_guard()).invoke(SAFE)
    assert shown.response_metadata["guardrail"]["strategy"] == "pass"
    assert plain(shown) == plain(bare)


class Parsed(BaseModel):
    """What a client makes of JSON."""

    note: str


TEXT = {"type": "text", "text": "Fine. So."}
CALL = {"name": "search", "args": {}, "id": "call-1"}
RAW = {"id": "call-2", "type": "function", "function": {"name": "search", "arguments": BAD}}
# Each holds unsafe words somewhere.
PLACES = {
    "document title": AIMessage([{**TEXT, "citations": [{"type": "char_location", "document_title": BAD}]}]),
    "search result": AIMessage(
        [TEXT, {"type": "web_search_tool_result", "content": [{"type": "web_search_result", "title": BAD}]}]
    ),
    "search": AIMessage([TEXT, {"type": "web_search_call", "action": {"type": "search", "query": BAD}}]),
    "server tool": AIMessage(
        [TEXT, {"type": "server_tool_use", "id": "1", "name": "x", "input": {"a": BAD}}]
    ),
    "piece of JSON": AIMessage([TEXT, {"type": "server_tool_use", "input": {}, "partial_json": BAD}]),
    "code": AIMessage([TEXT, {"type": "code_interpreter_call", "code": "1", "outputs": [{"logs": BAD}]}]),
    "custom tool": AIMessage([TEXT, {"type": "custom_tool_call", "name": "x", "input": BAD}]),
    "remote tool": AIMessage([TEXT, {"type": "mcp_call", "name": "x", "arguments": "{}", "output": BAD}]),
    "snippet": AIMessage([{**TEXT, "annotations": [{"type": "file_citation", "snippet": BAD}]}]),
    "unknown field": AIMessage([{**TEXT, "comment": BAD}]),
    "extras": AIMessage([{**TEXT, "extras": {"note": BAD}}]),
    "wrapped": AIMessage([TEXT, {"type": "non_standard", "value": {**TEXT, "comment": BAD}}]),
    "signature": AIMessage([{"type": "thinking", "thinking": "Well.", "signature": BAD}, TEXT]),
    "block id": AIMessage([{**TEXT, "id": BAD}]),
    "block of the call's id": AIMessage(
        [{**TEXT, "id": "call-1", "citations": [{"cited_text": BAD}]}], tool_calls=[CALL]
    ),
    "input beside args": AIMessage(
        [{"type": "tool_use", "name": "x", "args": {"a": 1}, "input": {"b": BAD}}]
    ),
    "calls": AIMessage("Fine.", tool_calls=[{**CALL, "args": {"then": BAD}}]),
    "call id": AIMessage("Fine.", tool_calls=[{**CALL, "id": BAD}]),
    "invalid call": AIMessage(
        "Fine.", invalid_tool_calls=[{"name": "x", "args": BAD, "id": "1", "error": None}]
    ),
    "error of a call": AIMessage(
        "Fine.", invalid_tool_calls=[{"name": "x", "args": "{", "id": "1", "error": BAD}]
    ),
    "raw call beside another": AIMessage("Fine.", tool_calls=[CALL], additional_kwargs={"tool_calls": [RAW]}),
    "function call": AIMessage("Fine.", additional_kwargs={"function_call": RAW["function"]}),
    "reasoning": AIMessage("Fine.", additional_kwargs={"reasoning_content": BAD}),
    "summary": AIMessage([{"type": "reasoning", "summary": [{"type": "summary_text", "text": BAD}]}]),
    "thinking": AIMessage([{"type": "thinking", "thinking": BAD, "signature": "abc"}]),
    "questions": AIMessage("Fine.", additional_kwargs={"related_questions": [BAD]}),
    "parsed": AIMessage("Fine.", additional_kwargs={"parsed": Parsed(note=BAD)}),
    "unknown name": AIMessage("Fine.", additional_kwargs={"analysis": {"notes": [{"note": BAD}]}}),
    "field of a message": AIMessage("Fine.", thoughts=BAD),
}


@pytest.mark.parametrize("place", PLACES)
def test_no_place_hides_words(place):
    for model in (scripted(PLACES[place], SAFE_REPLY), RunnableLambda(lambda _: PLACES[place])):
        guarded = guard_model(model, make_guard())
        for pieces in ([guarded.invoke(SAFE)], list(guarded.stream(SAFE))):
            assert "~" not in repr(pieces) + dumps(pieces)
    shown = guard_model(scripted(PLACES[place], SAFE_REPLY), make_guard()).invoke(SAFE)
    assert shown.content == SAFE_REPLY
    assert shown.response_metadata["guardrail"]["attempts"][0]["flagged"]


def test_a_picture_is_not_shown_as_nobody_has_seen_it():
    picture = {"type": "image_generation_call", "result": "iVBORw0KGgo="}
    drawn = {
        "type": "code_interpreter_call",
        "code": "plot()",
        "outputs": [{"type": "image", "url": "data:a"}],
    }
    for held in (picture, drawn):
        shown = guard_model(scripted(AIMessage([TEXT, held])), make_guard()).invoke(SAFE)
        assert isinstance(shown.content, str)
        assert shown.response_metadata["guardrail"]["strategy"] == "unavailable"


def test_names_of_numbers_may_be_words():
    draft = AIMessage(BAD, response_metadata={"logprobs": {"~drive": -0.1}, "usage": {"total": 3}})
    shown = guard_model(scripted(draft), make_guard(max_attempts=1)).invoke(SAFE)
    assert "~" not in repr(shown)
    assert shown.response_metadata["usage"] == {"total": 3}


# --- two drafts in one stream


def in_a_string(text: str) -> list[Chunk]:
    return [Chunk(letter) for letter in text]


def in_a_block(text: str, index: int = 0) -> list[Chunk]:
    return [Chunk([{"type": "text", "text": letter, "index": index}], id="msg_1") for letter in text]


def behind_thinking(text: str) -> list[Chunk]:
    return [
        Chunk([{"type": "thinking", "thinking": "Hm. So.", "index": 0}], id="msg_2"),
        *in_a_block(text, 1),
    ]


def behind_reasoning(text: str) -> list[Chunk]:
    return [Chunk("", additional_kwargs={"reasoning_content": "Hm. So."}, id="msg_3"), *in_a_string(text)]


STRINGS, BLOCKS = [in_a_string, behind_reasoning], [in_a_block, behind_thinking]
# The oldest LangChain writes to the chunks that it adds up where a string comes behind blocks.
PAIRS = [(first, second) for first in STRINGS for second in (*STRINGS, *BLOCKS, None)]
PAIRS += [(first, second) for first in BLOCKS for second in (*BLOCKS, None)]


@every_stream
@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_blank_line_stands_between_two_texts(mode, first, second):
    drafts = [first(f"Fine. {BAD} More."), *([] if second is None else [second(SAFE_REPLY)])]
    chunks = STREAMS[mode](guard_model(saying(*drafts), make_guard(max_attempts=len(drafts))))
    assert "~" not in repr(chunks)
    text = str(in_one(chunks).text)
    if second is None:
        assert text.startswith("Fine.\n\n")
        assert "You shouldn't" in text
    else:
        assert text == f"Fine.\n\n{SAFE_REPLY}"
    assert len({chunk.id for chunk in chunks}) == 1, "readers tell messages apart by their ids"


def test_no_blank_line_begins_a_text_that_follows_reasoning_alone():
    first = [Chunk("", additional_kwargs={"reasoning_content": f"Hm. {BAD} So."}, id="msg_3")]
    message = in_one(list(guard_model(saying(first, in_a_string(SAFE_REPLY)), make_guard()).stream(SAFE)))
    assert (message.additional_kwargs["reasoning_content"], message.content) == ("Hm.", SAFE_REPLY)
