"""The guard as a middleware of LangChain's agents; `test_langchain_matrix.py` looks for leaks."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import SAFE, SAFE_REPLY, UNSAFE, UNSAFE_REPLY, make_guard
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import tool
from langchain_fakes import drain, guidance_in, message_without, scripted
from pydantic import BaseModel

from guardrail import ConfigError
from guardrail.integrations.langchain import guard_model

agents = pytest.importorskip("langchain.agents", exc_type=ImportError)
middleware = pytest.importorskip("langchain.agents.middleware", exc_type=ImportError)
structure = pytest.importorskip("langchain.agents.structured_output", exc_type=ImportError)
memory = pytest.importorskip("langgraph.checkpoint.memory", exc_type=ImportError)

from guardrail.integrations.langchain_agent import GuardrailMiddleware  # noqa: E402

EXAMPLE = Path(__file__).parents[1] / "examples" / "langchain_agent.py"


class Ride(BaseModel):
    """A ride."""

    seats: int
    to: str = ""


@tool
def search(words: str) -> str:
    """Search."""
    return UNSAFE if words == "badly" else f"found {words}"


def call(name: str, **args) -> AIMessage:
    return AIMessage("", id=f"id-{name}", tool_calls=[{"name": name, "args": args, "id": f"call-{name}"}])


def agent(model, *more, guard=None, tools=(search,), **options):
    ours = GuardrailMiddleware(guard=guard or make_guard())
    return agents.create_agent(model, list(tools), middleware=[*more, ours], **options)


def run(made, said=SAFE, *, async_api=False, config=None):
    given = {"messages": [("user", said)]}
    config = {"recursion_limit": 12, **(config or {})}
    return asyncio.run(made.ainvoke(given, config)) if async_api else made.invoke(given, config)


both = pytest.mark.parametrize("async_api", [False, True], ids=["sync", "async"])


@both
def test_tools_are_called_and_the_answer_comes(async_api):
    inner = scripted(call("search", words="bread"), AIMessage(SAFE_REPLY, id="id-2"))
    messages = run(agent(inner), async_api=async_api)["messages"]
    assert [type(message).__name__ for message in messages] == [
        "HumanMessage",
        "AIMessage",
        "ToolMessage",
        "AIMessage",
    ]
    assert [messages[1].id, messages[2].content, messages[3].content] == [
        "id-search",
        "found bread",
        SAFE_REPLY,
    ]
    assert [options["tools"] for options in inner.options] == [["search"], ["search"]]


@both
def test_a_call_with_unsafe_arguments_is_not_made(async_api):
    inner = scripted(call("search", words="beer, then drive"), SAFE_REPLY)
    messages = run(agent(inner), async_api=async_api)["messages"]
    assert [message.content for message in messages] == [SAFE, SAFE_REPLY]


def test_a_tools_result_is_judged_like_a_users_turn():
    inner = scripted(call("search", words="badly"), SAFE_REPLY)
    run(agent(inner))
    assert not guidance_in(inner.requests[0])
    assert guidance_in(inner.requests[1])


@both
def test_a_replaced_reply_keeps_its_id_and_is_the_only_one(async_api):
    saver = memory.InMemorySaver()
    made = agent(
        scripted(AIMessage(UNSAFE_REPLY, id="id-1")), guard=make_guard(max_attempts=1), checkpointer=saver
    )
    config = {"configurable": {"thread_id": "1"}}
    run(made, async_api=async_api, config=config)
    messages = made.get_state(config).values["messages"]
    assert [message.id for message in messages][1:] == ["id-1"]
    assert "You shouldn't" in messages[1].content
    assert messages[1].response_metadata["guardrail"]["strategy"] == "composed"


def test_a_system_prompt_and_guidance_reach_the_model():
    inner = scripted(SAFE_REPLY)
    run(agent(inner, system_prompt="You are kind."), UNSAFE)
    assert [message.type for message in inner.requests[0]] == ["system", "system", "human"]


def test_a_model_that_is_guarded_already_is_not_guarded_twice():
    inner = scripted(UNSAFE_REPLY)
    guard = make_guard(max_attempts=2)
    shown = run(agent(guard_model(inner, guard), guard=guard))["messages"][-1]
    assert len(inner.requests) == 2
    # An outer guard would have found nothing wrong with the inner one's reply.
    assert shown.response_metadata["guardrail"]["strategy"] == "composed"
    inner = scripted(UNSAFE_REPLY)
    made = agents.create_agent(
        inner, [search], middleware=[_Second(guard=guard), GuardrailMiddleware(guard=guard)]
    )
    shown = run(made)["messages"][-1]
    assert len(inner.requests) == 2
    assert shown.response_metadata["guardrail"]["strategy"] == "composed"


class _Second(GuardrailMiddleware):
    """An agent takes one middleware of a name."""


# --- structured output


@both
@pytest.mark.parametrize("strategy", ["ToolStrategy", "ProviderStrategy", "plain"])
def test_structured_output_comes_through(strategy, async_api):
    schema = Ride if strategy == "plain" else getattr(structure, strategy)(Ride)
    said = '{"seats": 2}' if strategy == "ProviderStrategy" else call("Ride", seats=2)
    made = agent(scripted(said), response_format=schema)
    assert run(made, async_api=async_api)["structured_response"] == Ride(seats=2)


@both
@pytest.mark.parametrize("strategy", ["ToolStrategy", "ProviderStrategy"])
def test_a_replaced_reply_ends_the_turn_without_structure(strategy, async_api):
    said = json.dumps({"seats": 2, "to": "beer, then drive"})
    if strategy == "ToolStrategy":
        said = call("Ride", seats=2, to="beer, then drive")
    elif "ai_message" not in structure.StructuredOutputError.__annotations__:
        pytest.skip("this version does not say which message it could not parse")
    guard = make_guard(max_attempts=1)
    made = agent(scripted(said), guard=guard, response_format=getattr(structure, strategy)(Ride))
    state = run(made, async_api=async_api)
    assert state.get("structured_response") is None
    assert "You shouldn't" in state["messages"][-1].content
    assert not any(isinstance(message, ToolMessage) for message in state["messages"])


def test_structure_that_the_model_itself_gets_wrong_is_its_own_error():
    made = agent(scripted("no JSON"), response_format=structure.ProviderStrategy(Ride))
    with pytest.raises((structure.StructuredOutputError, ValueError), match="Ride"):
        run(made)


def test_a_stream_of_json_has_no_half_draft_before_it():
    unsafe = '{"seats": 2, "to": "Fine. So. Have beer and drive"}'
    made = agent(scripted(unsafe, '{"seats": 2}'), response_format=structure.ProviderStrategy(Ride))
    given = {"messages": [("user", SAFE)]}
    pieces = list(made.stream(given, stream_mode="messages"))
    assert "".join(piece.text for piece, _ in pieces) == '{"seats": 2}'


# --- its place among others


class Other(middleware.AgentMiddleware):
    """Takes another model, or answers itself."""

    def __init__(self, model=None, answer=None):
        super().__init__()
        self.model, self.answer = model, answer

    def wrap_model_call(self, request, handler):
        if self.answer is not None:
            return middleware.ModelResponse(result=[AIMessage(self.answer)])
        return handler(request.override(model=self.model))

    async def awrap_model_call(self, request, handler):
        if self.answer is not None:
            return middleware.ModelResponse(result=[AIMessage(self.answer)])
        return await handler(request.override(model=self.model))


@both
def test_another_model_that_an_outer_one_takes_is_guarded(async_api):
    other = scripted(UNSAFE_REPLY, SAFE_REPLY)
    made = agent(scripted("unused"), Other(other))
    assert run(made, async_api=async_api)["messages"][-1].content == SAFE_REPLY


@both
@pytest.mark.parametrize("inner", [{"model": scripted(UNSAFE_REPLY)}, {"answer": UNSAFE_REPLY}])
def test_one_behind_the_guard_that_goes_round_it_is_an_error(inner, async_api):
    ours = GuardrailMiddleware(guard=make_guard())
    made = agents.create_agent(scripted("unused"), [search], middleware=[ours, Other(**inner)])
    with pytest.raises(ConfigError, match="make GuardrailMiddleware the last"):
        run(made, async_api=async_api)


def test_the_hook_writes_the_reply_to_an_intervention():
    ours = GuardrailMiddleware(guard=make_guard(), on_intervention=lambda messages, verdict: "I call help.")
    made = agents.create_agent(scripted("unused"), [search], middleware=[ours])
    said = "four beer and now i drive the kids home"
    assert run(made, said)["messages"][-1].content == "I call help."


def test_messages_stream_sentence_by_sentence():
    made = agent(scripted("One. Two. Three."))

    async def read():
        given = {"messages": [("user", SAFE)]}
        return await drain(made.astream(given, stream_mode="messages"))

    pieces = [piece.content for piece, _ in asyncio.run(read()) if piece.content]
    assert pieces == ["One.", " Two.", " Three."]


# --- the rest


def test_a_missing_langchain_is_named_with_the_pip_line(tmp_path):
    told = message_without("langchain", "guardrail.integrations.langchain_agent", tmp_path)

    assert "'langchain', which is not installed" in told
    assert "pip install 'prosocial-guardrail[agent]'" in told


def test_the_example_runs_with_the_shipped_model():
    done = subprocess.run([sys.executable, str(EXAMPLE)], capture_output=True, text=True, check=True)
    assert "strategy regenerated" in done.stdout
    assert "kettle" not in done.stdout
