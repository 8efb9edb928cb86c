"""Every way to consume a guarded model, with a model that leaks: its unsafe words are to be seen in none.

The model streams character by character. Each of its unsafe words stands between tildes, which nothing else
holds: so one of them in anything that was collected is a leak, however finely the words are cut.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from inspect import signature
from typing import Any

import pytest
from fakes import SAFE, SAFE_REPLY, make_guard
from langchain_core.language_models import BaseChatModel
from langchain_core.load import dumps, loads
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langchain_fakes import MODES, Recorder, drain, in_one, scripted

from guardrail import Guardrail
from guardrail.integrations.langchain import guard_model

graph = pytest.importorskip("langgraph.graph", exc_type=ImportError)
agents = pytest.importorskip("langchain.agents", exc_type=ImportError)
memory = pytest.importorskip("langgraph.checkpoint.memory", exc_type=ImportError)

pytestmark = [
    pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning"),
    pytest.mark.filterwarnings("ignore:astream_log is deprecated"),
]

BAD = "~Have ~another ~beer ~and ~drive ~off~!"
USAGE = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
ARGUMENTS = {"then": BAD}
CALL = {"name": "open_car", "args": ARGUMENTS, "id": "call-1", "type": "tool_call"}
RAW_CALL = {
    "id": "call-1",
    "type": "function",
    "function": {"name": "open_car", "arguments": json.dumps(ARGUMENTS)},
}


def draft(content: Any = "Of course.", **more: Any) -> AIMessage:
    metadata = {"model_name": "scripted-1", "logprobs": {"content": [{"token": BAD}]}}
    return AIMessage(content, usage_metadata=USAGE, response_metadata=metadata, **more)


DRAFTS = {
    "text": draft(BAD),
    "behind a fine sentence": draft(f"That sounds lovely. {BAD}"),
    "text blocks": draft([{"type": "text", "text": "Lovely. "}, {"type": "text", "text": BAD}]),
    "reasoning block": draft(
        [{"type": "reasoning", "reasoning": f"Well. {BAD}"}, {"type": "text", "text": "Fine."}]
    ),
    "thinking block": draft(
        [
            {"type": "thinking", "thinking": f"Well. {BAD}", "signature": "c2lnbmF0dXJl"},
            {"type": "text", "text": "Fine."},
        ]
    ),
    "reasoning summary": draft(
        [
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": BAD, "index": 0}]},
            {"type": "text", "text": "Fine."},
        ]
    ),
    "reasoning beside the content": draft(additional_kwargs={"reasoning_content": BAD}),
    "tool call": draft(tool_calls=[CALL]),
    "tool call behind text": draft("I open it.", tool_calls=[CALL]),
    "invalid tool call": draft(
        invalid_tool_calls=[{"name": "open_car", "args": f'"{BAD}"', "id": "1", "error": None}]
    ),
    "tool use block": draft(
        [
            {"type": "text", "text": "I open it."},
            {"type": "tool_use", "id": "call-1", "name": "open_car", "input": ARGUMENTS},
        ],
        tool_calls=[CALL],
    ),
    "raw tool call": draft(additional_kwargs={"tool_calls": [RAW_CALL]}),
    "function call": draft(additional_kwargs={"function_call": RAW_CALL["function"]}),
    "tool use between texts": draft(
        [
            {"type": "text", "text": "I open it. So. "},
            {"type": "tool_use", "id": "call-1", "name": "open_car", "input": ARGUMENTS},
            {"type": "text", "text": " There. It is open."},
        ]
    ),
    "citation between texts": draft(
        [
            {"type": "text", "text": "They say. So. ", "annotations": [{"cited_text": BAD}]},
            {"type": "text", "text": " There. It is open."},
        ]
    ),
    "unknown block": draft([{"type": "text", "text": "Fine."}, {"type": "note", "content": BAD}]),
}


@tool
def open_car(then: str) -> str:
    """Open the car."""
    return f"opened, then {then}"


# --- the ways; each takes a model, a guard or None, and a recorder; returns all it saw and the reply's text

Way = Callable[[Any, Guardrail | None, Recorder], tuple[Any, str]]
WAYS: dict[str, Way] = {}


def way(name: str) -> Callable[[Way], Way]:
    def keep(function: Way) -> Way:
        WAYS[name] = function
        return function

    return keep


def with_guard(model: Any, guard: Guardrail | None) -> Any:
    return model if guard is None else guard_model(model, guard)


def written_and_read(messages: Any) -> Any:
    # Older versions load every class that they know, newer ones want to be told which.
    known = {"allowed_objects": "messages"} if "allowed_objects" in signature(loads).parameters else {}
    return loads(dumps(messages), **known)


def text_of(messages: list[Any]) -> str:
    """Return the text of the pieces of one message."""
    return "".join(str(message.text) for message in messages if isinstance(message, AIMessage))


def _mode(mode: str) -> Way:
    def run(model: Any, guard: Guardrail | None, recorder: Recorder) -> tuple[Any, str]:
        listened = with_guard(model, guard).with_config(callbacks=[recorder])
        pieces = MODES[mode](listened, SAFE)
        whole = in_one(pieces)
        return [pieces, dumps(whole), written_and_read(whole)], str(whole.text)

    return run


WAYS |= {mode: _mode(mode) for mode in MODES}


@way("astream_events v2")
def events(model: Any, guard: Guardrail | None, recorder: Recorder) -> tuple[Any, str]:
    stream = with_guard(model, guard).astream_events(SAFE, {"callbacks": [recorder]}, version="v2")
    seen = asyncio.run(drain(stream))
    return seen, text_of([each["data"].get("chunk") for each in seen])


@way("astream_events v2 of invoke")
def events_of_invoke(model: Any, guard: Guardrail | None, recorder: Recorder) -> tuple[Any, str]:
    """A listener makes a model stream that was only invoked."""
    chain = with_guard(model, guard) | (lambda message: message)
    seen = asyncio.run(drain(chain.astream_events(SAFE, {"callbacks": [recorder]}, version="v2")))
    pieces = [each["data"]["chunk"] for each in seen if each["event"] == "on_chat_model_stream"]
    return seen, text_of(pieces)


if hasattr(BaseChatModel, "stream_events"):

    @way("stream_events v3")
    def typed_events(model: Any, guard: Guardrail | None, recorder: Recorder) -> tuple[Any, str]:
        stream = with_guard(model, guard).stream_events(SAFE, {"callbacks": [recorder]}, version="v3")
        seen = list(stream)
        return [seen, stream.output], str(stream.output.text)

    @way("astream_events v3")
    def async_typed_events(model: Any, guard: Guardrail | None, recorder: Recorder) -> tuple[Any, str]:
        async def run() -> tuple[Any, str]:
            listened = with_guard(model, guard)
            stream = await listened.astream_events(SAFE, {"callbacks": [recorder]}, version="v3")
            seen = await drain(stream)
            output = await stream
            return [seen, output], str(output.text)

        return asyncio.run(run())


if hasattr(BaseChatModel, "astream_log"):

    @way("astream_log")
    def log(model: Any, guard: Guardrail | None, recorder: Recorder) -> tuple[Any, str]:
        listened = with_guard(model, guard)
        seen = asyncio.run(drain(listened.astream_log(SAFE, {"callbacks": [recorder]})))
        pieces = [op["value"] for patch in seen for op in patch.ops if op["path"] == "/streamed_output/-"]
        return seen, text_of(pieces)


STREAM_MODES = ["messages", "values", "updates", "custom", "debug", "tasks", "checkpoints"]


def _graph(model: Any, *, stream: bool = False) -> Any:
    """Return a graph whose only node calls the model."""

    def call(state: Any) -> Any:
        given = state["messages"]
        return {"messages": [in_one(list(model.stream(given))) if stream else model.invoke(given)]}

    async def acall(state: Any) -> Any:
        given = state["messages"]
        if stream:
            return {"messages": [in_one(await drain(model.astream(given)))]}
        return {"messages": [await model.ainvoke(given)]}

    builder = graph.StateGraph(graph.MessagesState)
    builder.add_node("model", RunnableLambda(call, afunc=acall))
    builder.add_edge(graph.START, "model")
    return builder.compile(checkpointer=memory.InMemorySaver())


def _agent(model: Any, guard: Guardrail | None) -> Any:
    from guardrail.integrations.langchain_agent import GuardrailMiddleware

    middleware = [] if guard is None else [GuardrailMiddleware(guard=guard)]
    return agents.create_agent(model, [open_car], middleware=middleware, checkpointer=memory.InMemorySaver())


def _run_graph(compiled: Any, recorder: Recorder, *, async_api: bool) -> tuple[Any, str]:
    """Stream a graph in every mode at once, then read its checkpoints back."""
    config = {"configurable": {"thread_id": "1"}, "callbacks": [recorder], "recursion_limit": 6}
    given = {"messages": [("user", SAFE)]}
    if async_api:
        seen = asyncio.run(drain(compiled.astream(given, config, stream_mode=STREAM_MODES)))
    else:
        seen = list(compiled.stream(given, config, stream_mode=STREAM_MODES))
    state = compiled.get_state(config)
    final = state.values["messages"]
    assert len({message.id for message in final}) == len(final)
    streamed = [item[0] for mode, item in seen if mode == "messages"]
    assert {message.id for message in streamed} <= {message.id for message in final}
    history = list(compiled.get_state_history(config))
    again = written_and_read(final)
    return [seen, state, history, again], text_of([each for each in streamed if each.text])


for _api in (False, True):
    _kind = "async" if _api else "sync"

    @way(f"graph that invokes, {_kind}")
    def _invoking(model: Any, guard: Any, recorder: Recorder, api: bool = _api) -> tuple[Any, str]:
        return _run_graph(_graph(with_guard(model, guard)), recorder, async_api=api)

    @way(f"graph that streams, {_kind}")
    def _streaming(model: Any, guard: Any, recorder: Recorder, api: bool = _api) -> tuple[Any, str]:
        return _run_graph(_graph(with_guard(model, guard), stream=True), recorder, async_api=api)

    @way(f"agent, {_kind}")
    def _acting(model: Any, guard: Any, recorder: Recorder, api: bool = _api) -> tuple[Any, str]:
        return _run_graph(_agent(model, guard), recorder, async_api=api)


@way("agent, astream_events v2")
def agent_events(model: Any, guard: Guardrail | None, recorder: Recorder) -> tuple[Any, str]:
    config = {"configurable": {"thread_id": "1"}, "callbacks": [recorder], "recursion_limit": 6}
    given = {"messages": [("user", SAFE)]}
    seen = asyncio.run(drain(_agent(model, guard).astream_events(given, config, version="v2")))
    pieces = [each["data"]["chunk"] for each in seen if each["event"] == "on_chat_model_stream"]
    return seen, text_of(pieces)


# --- what they show


def written(collected: Any) -> str:
    """Return all that was collected, as its repr and as JSON."""
    return repr(collected) + json.dumps(_plain(collected), ensure_ascii=False, default=repr)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseMessage):
        return {**value.model_dump(), "blocks": value.content_blocks}
    if hasattr(value, "model_dump"):
        return _plain(value.model_dump())
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(inner) for inner in value]
    return value


every_way = pytest.mark.parametrize("name", WAYS)


@every_way
@pytest.mark.parametrize("kind", DRAFTS)
def test_an_unsafe_draft_is_seen_nowhere(name, kind):
    recorder = Recorder()
    model = scripted(DRAFTS[kind], SAFE_REPLY)
    collected, text = WAYS[name](model, make_guard(), recorder)
    assert "~" not in written([collected, recorder.heard])
    assert text.endswith(SAFE_REPLY)
    assert len(model.requests) == 2


@every_way
@pytest.mark.parametrize("kind", ["text", "tool call", "thinking block"])
def test_a_composed_reply_has_nothing_of_the_draft(name, kind):
    recorder = Recorder()
    collected, text = WAYS[name](scripted(DRAFTS[kind]), make_guard(max_attempts=1), recorder)
    assert "~" not in written([collected, recorder.heard])
    assert "You shouldn't" in text


@every_way
def test_the_bare_model_is_seen_or_these_tests_show_nothing(name):
    recorder = Recorder()
    collected, _ = WAYS[name](scripted(DRAFTS["text"]), None, recorder)
    assert "~" in written(collected)
    assert "~" in written(recorder.heard)


FINE = 'Take a **taxi**!\n\n  - it\'s   cheap \t😀\r\n\n1. Dr. Who e.g. says: "Ok."  Bye . '
FINE_DRAFTS = {
    "text": AIMessage(FINE, usage_metadata=USAGE, response_metadata={"model_name": "scripted-1"}),
    "blocks": AIMessage(
        [
            {"type": "reasoning", "reasoning": "They baked bread. It was good."},
            {"type": "text", "text": FINE},
            {"type": "text", "text": FINE},
        ],
        usage_metadata=USAGE,
    ),
    "reasoning": AIMessage(FINE, additional_kwargs={"reasoning_content": "Bread. How nice."}),
}


@every_way
@pytest.mark.parametrize("kind", FINE_DRAFTS)
def test_a_fine_reply_is_the_same_as_without_the_guard(name, kind):
    _, bare = WAYS[name](scripted(FINE_DRAFTS[kind]), None, Recorder())
    _, text = WAYS[name](scripted(FINE_DRAFTS[kind]), make_guard(), Recorder())
    assert text == bare
    assert FINE in text


@pytest.mark.parametrize("mode", ["batch", "abatch"])
def test_a_batch_guards_each_input_by_itself(mode):
    given = [SAFE, "four beer and now i drive home", SAFE]
    model = guard_model(scripted(DRAFTS["text"], guided=SAFE_REPLY), make_guard())
    outputs = model.batch(given) if mode == "batch" else asyncio.run(model.abatch(given))
    assert [message.content for message in outputs] == [SAFE_REPLY] * 3
    assert "~" not in written(outputs)


def test_pieces_of_a_stream_are_chunks():
    pieces = list(guard_model(scripted(FINE), make_guard()).stream(SAFE))
    assert {type(piece) for piece in pieces} == {AIMessageChunk}
    assert [piece.chunk_position for piece in pieces] == [None] * (len(pieces) - 1) + ["last"]
    assert len(pieces) > 3
