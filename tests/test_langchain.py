"""The LangChain chat model wrapper, with real langchain-core and fake models on both sides."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fakes import (
    DRIVING,
    GRAVE,
    SAFE,
    SAFE_REPLY,
    UNSAFE,
    UNSAFE_REPLY,
    BrokenEncoder,
    make_guard,
)
from langchain_core.caches import InMemoryCache
from langchain_core.globals import set_llm_cache
from langchain_core.language_models import BaseChatModel, GenericFakeChatModel
from langchain_core.load import dumps
from langchain_core.messages import (
    AIMessage,
    HumanMessage,
    ToolMessage,
    messages_from_dict,
    messages_to_dict,
)
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langchain_fakes import (
    MODES,
    Recorder,
    ScriptedChatModel,
    drain,
    guarded,
    guidance_in,
    in_one,
    message_without,
    scripted,
)
from pydantic import ValidationError

from guardrail import Guardrail, InputError
from guardrail.compose import UNAVAILABLE
from guardrail.integrations.langchain import GuardedChatModel, check_runnable, guard_model

EXAMPLE = Path(__file__).parents[1] / "examples" / "langchain_chain.py"
PROMPT = ChatPromptTemplate.from_messages([("system", "You are kind."), ("human", "{said}")])
HISTORY = [HumanMessage("we had beer with the soup"), AIMessage("Nice!")]
# A safe draft in which every byte counts.
EXACT = "Take a **taxi**!\n\n  - it's   cheap \t😀\r\n"
# How every rule that a reply is composed from begins.
COMPOSED = "You shouldn't"
CALLS = [{"name": "open_car", "args": {"then": "drive after beer"}, "id": "call-1"}]


LISTENING = {
    **MODES,
    "astream_events": lambda chain, given: asyncio.run(drain(chain.astream_events(given, version="v2"))),
}
every_mode = pytest.mark.parametrize("mode", MODES)


# --- the chain


@every_mode
@pytest.mark.parametrize(
    ("said", "replies", "shown"),
    [(SAFE, [EXACT], EXACT), (SAFE, [UNSAFE_REPLY, SAFE_REPLY], SAFE_REPLY), (UNSAFE, [EXACT], EXACT)],
    ids=["safe", "repaired", "guided"],
)
def test_a_chain_says_the_same_in_every_mode(mode, said, replies, shown):
    chain = PROMPT | guarded(*replies) | StrOutputParser()
    assert "".join(MODES[mode](chain, {"said": said})) == shown


def test_batch_guards_each_input_by_itself():
    chain = PROMPT | guarded(UNSAFE_REPLY, guided=SAFE_REPLY) | StrOutputParser()
    given = [{"said": said} for said in (SAFE, UNSAFE, GRAVE)]
    one_by_one = [chain.invoke(each) for each in given]
    assert one_by_one[:2] == [SAFE_REPLY, SAFE_REPLY]
    assert DRIVING.text in one_by_one[2]
    assert chain.batch(given) == one_by_one
    assert asyncio.run(chain.abatch(given)) == one_by_one


def test_langchains_own_fake_model_is_guarded():
    model = GenericFakeChatModel(messages=iter([UNSAFE_REPLY, SAFE_REPLY]))
    chain = PROMPT | GuardedChatModel(model=model, guard=make_guard()) | StrOutputParser()
    assert "".join(chain.stream({"said": SAFE})) == SAFE_REPLY


# --- nothing unjudged comes out


@pytest.mark.parametrize("mode", LISTENING)
def test_an_unsafe_draft_is_heard_nowhere(mode):
    recorder = Recorder()
    config = {"callbacks": [recorder]}

    def run(model) -> str:
        chain = (PROMPT | model | StrOutputParser()).with_config(config)
        return repr(LISTENING[mode](chain, {"said": SAFE})) + repr(recorder.heard)

    assert "another" in run(scripted(UNSAFE_REPLY, size=99)), "else this test shows nothing"
    recorder.heard.clear()
    collected = run(guarded(UNSAFE_REPLY, guided=SAFE_REPLY, size=99))
    assert "taxi" in collected
    for word in ("another", "drive off", "off!"):
        assert word not in collected


class RoutingChatModel(BaseChatModel):
    """Calls another model without a config, as models that route or retry do."""

    target: Any

    def _generate(self, messages, stop=None, run_manager=None, **kwargs) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self.target.invoke(messages))])

    async def _agenerate(self, messages, stop=None, run_manager=None, **kwargs) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=await self.target.ainvoke(messages))])

    @property
    def _llm_type(self) -> str:
        return "routing"


@pytest.mark.parametrize("mode", LISTENING)
def test_a_model_inside_the_inner_model_is_not_heard_either(mode):
    def run(wrap) -> str:
        routing = wrap(RoutingChatModel(target=scripted(UNSAFE_REPLY, guided=SAFE_REPLY, size=99)))
        recorder = Recorder()
        chain = (PROMPT | routing | StrOutputParser()).with_config(callbacks=[recorder])
        return repr(LISTENING[mode](chain, {"said": SAFE})) + repr(recorder.heard)

    assert "another" in run(lambda model: model)
    assert "another" not in run(lambda model: guard_model(model, make_guard()))


@pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")
def test_typed_stream_events_hear_only_the_vetted_reply():
    if not hasattr(BaseChatModel, "stream_events"):
        pytest.skip("came with a later langchain-core")

    def events(model) -> str:
        return repr(list(model.stream_events(SAFE, version="v3")))

    assert "another" in events(scripted(UNSAFE_REPLY))
    heard = events(guarded(UNSAFE_REPLY, SAFE_REPLY))
    assert "another" not in heard
    assert "taxi" in heard


def test_langgraph_streams_only_the_vetted_reply_and_keeps_one_message():
    graph = pytest.importorskip("langgraph.graph", exc_type=ImportError)

    def run(model) -> tuple[str, list[Any]]:
        builder = graph.StateGraph(graph.MessagesState)
        builder.add_node("model", lambda state: {"messages": [model.invoke(state["messages"])]})
        builder.add_edge(graph.START, "model")
        pieces = list(
            builder.compile().stream({"messages": [("user", SAFE)]}, stream_mode=["messages", "values"])
        )
        return repr(pieces), pieces[-1][1]["messages"]

    assert "another" in run(scripted(UNSAFE_REPLY))[0]
    heard, messages = run(guarded(UNSAFE_REPLY, SAFE_REPLY))
    assert "another" not in heard
    assert [message.content for message in messages] == [SAFE, SAFE_REPLY]


def test_the_context_is_as_before_after_a_call():
    heard = Recorder()
    model = guarded(SAFE_REPLY)

    def twice(text: str) -> str:
        model.invoke(text)
        return scripted("after it").invoke(text).content

    RunnableLambda(twice).invoke(SAFE, {"callbacks": [heard]})
    assert "after it" in repr(heard.heard)


@pytest.mark.parametrize("how", ["raises", "nan", "shape"])
@every_mode
def test_a_broken_guard_says_the_fixed_sentence(how, mode):
    encoder = BrokenEncoder(how)
    model = scripted(UNSAFE_REPLY)
    chain = PROMPT | GuardedChatModel(model=model, guard=Guardrail(encoder, [DRIVING])) | StrOutputParser()
    encoder.broken = True
    assert in_one(MODES[mode](chain, {"said": SAFE})) == UNAVAILABLE
    assert model.requests == []


@every_mode
def test_a_guard_that_breaks_behind_the_draft_keeps_it_back(mode):
    encoder = BrokenEncoder("raises")

    def draft(messages) -> AIMessage:
        encoder.broken = True
        return AIMessage(UNSAFE_REPLY, id="draft-1")

    model = GuardedChatModel(model=RunnableLambda(draft), guard=Guardrail(encoder, [DRIVING]))
    message = in_one(MODES[mode](model, SAFE))
    assert (message.content, message.id) == (UNAVAILABLE, "draft-1")
    assert message.response_metadata["guardrail"]["verdict_out"]["status"] == "error"
    assert "another" not in repr(message)


# --- guidance


@every_mode
def test_a_flagged_turn_brings_the_rule_to_the_inner_model(mode):
    model = guarded(SAFE_REPLY)
    MODES[mode](PROMPT | model, {"said": UNSAFE})
    (request,) = model.model.requests
    assert [message.type for message in request] == ["system", "system", "human"]
    assert guidance_in(request) == [request[1]]


@every_mode
def test_an_untouched_conversation_reaches_the_inner_model_as_it_is(mode):
    model = guarded(SAFE_REPLY)
    MODES[mode](PROMPT | model, {"said": SAFE})
    assert model.model.requests == [PROMPT.invoke({"said": SAFE}).to_messages()]


def test_a_reply_is_judged_in_its_conversation():
    draft = "Then drive home and sleep well."
    assert guarded(draft).invoke([HumanMessage(SAFE)]).content == draft
    model = guarded(draft, SAFE_REPLY)
    assert model.invoke([*HISTORY, HumanMessage("i am tired")]).content == SAFE_REPLY
    assert guidance_in(model.model.requests[1])


def test_parts_that_are_not_text_reach_the_inner_model_unchanged():
    parts = [
        {"type": "text", "text": SAFE},
        {"type": "image_url", "image_url": {"url": "https://example.org/bread.png"}},
    ]
    model = guarded(SAFE_REPLY)
    model.invoke([HumanMessage(parts)])
    assert model.model.requests[0][0].content == parts


def test_stop_words_and_options_reach_the_inner_model():
    model = guarded(SAFE_REPLY)
    model.invoke(SAFE, stop=["END"], temperature=0.5)
    list(model.stream(SAFE, stop=["END"], temperature=0.5))
    assert model.model.options == [{"stop": ["END"], "temperature": 0.5}] * 2


def test_stop_words_that_are_bound_to_the_inner_model_hold():
    inner = scripted(SAFE_REPLY)
    guard_model(inner.bind(stop=["END"]), make_guard()).invoke(SAFE)
    assert inner.options == [{"stop": ["END"]}]


# --- the message


def rich(text: str, **more) -> AIMessage:
    return AIMessage(
        text,
        id="msg-7",
        name="helper",
        usage_metadata={"input_tokens": 3, "output_tokens": 4, "total_tokens": 7},
        response_metadata={
            "model_name": "scripted-1",
            "finish_reason": "tool_calls",
            "token_usage": {"total_tokens": 7},
            "logprobs": {"content": [{"token": word} for word in text.split()]},
            "note": text,
        },
        **more,
    )


@every_mode
def test_a_fine_message_keeps_all_it_has(mode):
    draft = rich(SAFE_REPLY, tool_calls=[{"name": "call_taxi", "args": {"seats": 2}, "id": "call-2"}])
    pieces = MODES[mode](guarded(draft), SAFE)
    message = in_one(pieces)
    for name in ("content", "id", "usage_metadata", "tool_calls", "additional_kwargs"):
        assert getattr(message, name) == getattr(draft, name), name
    assert {piece.name for piece in pieces} == {"helper"}  # LangChain loses it when it adds up
    metadata = dict(message.response_metadata)
    assert metadata.pop("guardrail")["strategy"] == "pass"
    assert metadata == draft.response_metadata
    assert "guardrail" not in draft.response_metadata, "the inner model's own message is not written to"


@every_mode
def test_a_replaced_message_keeps_its_name_tag_and_none_of_its_words(mode):
    pieces = MODES[mode](guarded(rich(UNSAFE_REPLY), max_attempts=1), SAFE)
    message = in_one(pieces)
    assert COMPOSED in message.content
    assert message.id == "msg-7"
    assert {piece.name for piece in pieces} == {"helper"}
    assert message.usage_metadata["total_tokens"] == 7
    metadata = dict(message.response_metadata)
    assert metadata.pop("guardrail")["strategy"] == "composed"
    assert metadata == {"model_name": "scripted-1", "token_usage": {"total_tokens": 7}}


RAW_CALLS = [
    {"id": "call-1", "type": "function", "function": {"name": "open_car", "arguments": '{"then": "drive"}'}}
]


@every_mode
@pytest.mark.parametrize(
    "draft",
    [
        rich(UNSAFE_REPLY, tool_calls=CALLS),
        rich(UNSAFE_REPLY, additional_kwargs={"tool_calls": RAW_CALLS}),
        rich(UNSAFE_REPLY, additional_kwargs={"function_call": RAW_CALLS[0]["function"]}),
        rich(UNSAFE_REPLY, invalid_tool_calls=[{"name": "open_car", "args": "{", "id": "1", "error": None}]),
        AIMessage(
            [
                {"type": "text", "text": UNSAFE_REPLY},
                {"type": "tool_use", "id": "call-1", "name": "open_car", "input": {}},
            ],
            tool_calls=CALLS,
        ),
    ],
    ids=["tool_calls", "additional_kwargs", "function_call", "invalid", "tool_use"],
)
def test_a_blocked_message_has_no_tool_calls_anywhere(mode, draft):
    message = in_one(MODES[mode](guarded(draft, max_attempts=1), SAFE))
    written = dumps(message)
    assert "open_car" not in written
    (again,) = messages_from_dict(json.loads(json.dumps(messages_to_dict([message]))))
    for shown in (message, again):
        assert shown.tool_calls == shown.invalid_tool_calls == []
        assert getattr(shown, "tool_call_chunks", []) == []
        assert shown.additional_kwargs == {}
        assert [block["type"] for block in shown.content_blocks] == ["text"]


def test_fine_reasoning_stays_where_it_was():
    draft = AIMessage("Fine.", additional_kwargs={"reasoning_content": "they baked bread"})
    shown = guarded(draft).invoke(SAFE)
    assert (shown.content, shown.additional_kwargs) == (draft.content, draft.additional_kwargs)


def test_the_facts_hold_no_text_of_the_conversation():
    shown = guarded(UNSAFE_REPLY, SAFE_REPLY).invoke(SAFE)
    facts = shown.response_metadata["guardrail"]
    assert [attempt["strategy"] for attempt in facts["attempts"]] == ["pass", "regenerated"]
    assert (facts["strategy"], facts["changed"]) == ("regenerated", True)
    assert facts["verdict_in"]["role"] == "user"
    assert facts["verdict_out"]["role"] == "assistant"
    written = json.dumps(facts)
    for text in (SAFE, SAFE_REPLY, UNSAFE_REPLY):
        assert text not in written


def test_an_intervention_needs_no_call_and_is_still_a_message():
    model = guarded(SAFE_REPLY)
    shown = model.invoke(GRAVE)
    assert isinstance(shown, AIMessage)
    assert DRIVING.text in shown.content
    assert shown.id.startswith("lc_run-")
    assert model.model.requests == []


def test_the_hook_writes_the_reply_to_an_intervention():
    seen = []

    def hook(messages, verdict) -> str:
        seen.append((messages, verdict.action.value))
        return "I'm calling somebody who can help."

    model = GuardedChatModel(model=scripted(SAFE_REPLY), guard=make_guard(), on_intervention=hook)
    assert model.invoke(GRAVE).content == "I'm calling somebody who can help."
    assert seen == [([HumanMessage(GRAVE)], "intervene")]


# --- tools and structured output


@tool
def call_taxi(seats: int) -> str:
    """Call a taxi."""
    return f"a taxi with {seats} seats"


def test_bound_tools_reach_the_inner_model_behind_the_guard():
    call = AIMessage("", tool_calls=[{"name": "call_taxi", "args": {"seats": 2}, "id": "call-2"}])
    model = guarded(call)
    bound = model.bind_tools([call_taxi], tool_choice="any")
    assert isinstance(bound, GuardedChatModel)
    assert bound.guard is model.guard
    assert bound.invoke(SAFE).tool_calls[0]["args"] == {"seats": 2}
    assert model.model.options == [{"stop": None, "tools": ["call_taxi"], "tool_choice": "any"}]
    assert guarded(UNSAFE_REPLY, guided=SAFE_REPLY).bind_tools([call_taxi]).invoke(SAFE).content == SAFE_REPLY


def test_tools_cannot_be_bound_to_a_runnable_without_them():
    model = guard_model(RunnableLambda(lambda messages: "hi"), make_guard())
    with pytest.raises(NotImplementedError, match="inner model with bind_tools, got RunnableLambda"):
        model.bind_tools([call_taxi])


def test_a_tools_result_is_judged_like_a_users_turn():
    asked = AIMessage("", tool_calls=[{"name": "search", "args": {}, "id": "call-3"}])
    model = guarded(SAFE_REPLY)
    model.invoke([HumanMessage(SAFE), asked, ToolMessage(UNSAFE, tool_call_id="call-3")])
    assert guidance_in(model.model.requests[0])


# --- what the inner model may be, and what it may do wrong


@pytest.mark.parametrize(
    "output", [SAFE_REPLY, AIMessage(SAFE_REPLY), HumanMessage(SAFE_REPLY)], ids=["str", "ai", "human"]
)
def test_the_inner_model_may_be_a_runnable(output):
    model = guard_model(RunnableLambda(lambda messages: output), make_guard())
    for shown in (model.invoke(SAFE), asyncio.run(model.ainvoke(SAFE))):
        assert (shown.type, shown.content) == ("ai", SAFE_REPLY)


def test_an_output_that_is_no_message_is_refused():
    model = guard_model(RunnableLambda(lambda messages: {"secret": 1}), make_guard())
    with pytest.raises(InputError, match="return a message or a string, got dict; wrap the chat model"):
        model.invoke(SAFE)


@every_mode
def test_the_inner_models_error_is_seen_as_without_the_guard(mode):
    chain = PROMPT | guarded(ConnectionError("the provider is down"))
    with pytest.raises(ConnectionError, match="the provider is down"):
        MODES[mode](chain, {"said": SAFE})


def test_an_error_behind_an_unsafe_draft_gives_a_composed_reply():
    shown = guarded(UNSAFE_REPLY, ConnectionError("down")).invoke(SAFE)
    assert COMPOSED in shown.content
    assert shown.response_metadata["guardrail"]["attempts"][1]["error"] == "ConnectionError"


@pytest.mark.parametrize("mode", ["invoke", "ainvoke"])
def test_a_deadline_holds_for_the_inner_model(mode):
    def slow(messages) -> str:
        time.sleep(0.5)
        return SAFE_REPLY

    model = guard_model(RunnableLambda(slow), make_guard(deadline_ms=50))
    (shown,) = MODES[mode](model, SAFE)
    assert shown.content != SAFE_REPLY
    assert shown.response_metadata["guardrail"]["attempts"][0]["error"] == "TimeoutError"


# --- the rest of a chat model


def test_no_answer_is_cached():
    set_llm_cache(InMemoryCache())
    try:
        model = guard_model(RunnableLambda(lambda messages: "Then drive!"), make_guard())
        assert model.invoke(SAFE).content == "Then drive!"
        model.guard.add_rules([{"id": "new-001", "rule": "we baked bread today and it was lovely"}])
        assert "new-001" in repr(model.invoke(SAFE).response_metadata)
        with pytest.raises(ValidationError, match="should be False"):
            GuardedChatModel(model=model.model, guard=model.guard, cache=True)
    finally:
        set_llm_cache(None)


def test_what_is_shown_of_the_model_has_no_guard_and_no_text():
    model = GuardedChatModel(model=scripted("private words").bind(stop=["x"]), guard=make_guard())
    assert "Guardrail" not in repr(model)
    assert "guard" not in model.model_dump()
    assert model._identifying_params == {"inner": "scripted"}
    assert model._llm_type == "guarded-chat-model"


def test_traces_and_token_counts_are_the_inner_models():
    class CountingChatModel(ScriptedChatModel):
        model_name: str = "counting-1"

        def get_token_ids(self, text):
            return list(range(len(text.split())))

    inner = CountingChatModel(replies=["hi"], requests=[], options=[])
    model = guard_model(inner.bind(stop=["x"]), make_guard())
    events = asyncio.run(drain(model.astream_events(SAFE, version="v2")))
    assert events[0]["metadata"]["ls_model_name"] == "counting-1"
    assert model.get_num_tokens_from_messages([HumanMessage("one two")]) == 3


def test_check_runnable_gives_the_verdict():
    check = PROMPT | check_runnable(make_guard())
    assert check.invoke({"said": UNSAFE}).flagged
    assert asyncio.run(check.ainvoke({"said": UNSAFE})) == check.invoke({"said": UNSAFE})
    assert [verdict.flagged for verdict in check.batch([{"said": SAFE}, {"said": UNSAFE}])] == [False, True]


def test_a_missing_langchain_is_named_with_the_pip_line(tmp_path):
    told = message_without("langchain_core", "guardrail.integrations.langchain", tmp_path)

    assert "'langchain-core', which is not installed" in told
    assert "pip install 'prosocial-guardrail[langchain]'" in told


def test_the_example_runs_with_the_shipped_model():
    done = subprocess.run([sys.executable, str(EXAMPLE)], capture_output=True, text=True, check=True)
    assert "strategy regenerated" in done.stdout
    assert "kettle" not in done.stdout


def test_settings_come_with_the_guard():
    guard = make_guard(max_attempts=2)
    inner = scripted(UNSAFE_REPLY)
    guard_model(inner, guard).invoke(SAFE)
    assert len(inner.requests) == 2
