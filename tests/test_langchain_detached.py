"""What runs inside a guarded chat model cannot be heard, or write, outside of it, by whatever way.

Unsafe words stand between tildes, which nothing else holds.
"""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any

import pytest
from fakes import DRIVING, GRAVE, SAFE, SAFE_REPLY, WordEncoder, make_guard
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import JsonOutputParser
from langchain_core.runnables import ConfigurableField, RunnableLambda
from langchain_fakes import MODES, Recorder, ScriptedChatModel, drain, in_one, scripted
from pydantic import TypeAdapter, ValidationError

from guardrail import Guardrail
from guardrail.config import GuardConfig
from guardrail.integrations.langchain import GuardedChatModel, guard_model

BAD = "~Have ~another ~beer ~and ~drive ~off~!"
every_mode = pytest.mark.parametrize("mode", MODES)


# --- LangGraph


def running_a_graph() -> Any:
    """Return a model that has a graph of its own write its drafts."""
    graph = pytest.importorskip("langgraph.graph", exc_type=ImportError)
    model = scripted(BAD, SAFE_REPLY)
    builder = graph.StateGraph(graph.MessagesState)
    builder.add_node("draft", lambda state: {"messages": [model.invoke(state["messages"])]})
    builder.add_edge(graph.START, "draft")
    inner = builder.compile()
    return RunnableLambda(lambda messages: inner.invoke({"messages": messages})["messages"][-1])


class WritingChatModel(ScriptedChatModel):
    """Writes what it says to the custom stream of the graph around it."""

    def _next(self, *args):
        from langgraph.config import get_stream_writer

        message = super()._next(*args)
        get_stream_writer()(message.content)
        return message


INNER = {
    "a graph": running_a_graph,
    "a stream writer": lambda: scripted(BAD, SAFE_REPLY, kind=WritingChatModel),
}


def seen_of_a_graph(model, *, async_api: bool) -> str:
    """Run a graph whose only node calls the model; return all that its streams and checkpoints hold."""
    graph = pytest.importorskip("langgraph.graph", exc_type=ImportError)
    memory = pytest.importorskip("langgraph.checkpoint.memory", exc_type=ImportError)

    def call(state):
        return {"messages": [model.invoke(state["messages"])]}

    async def acall(state):
        return {"messages": [await model.ainvoke(state["messages"])]}

    builder = graph.StateGraph(graph.MessagesState)
    builder.add_node("model", RunnableLambda(call, afunc=acall))
    builder.add_edge(graph.START, "model")
    saver = memory.InMemorySaver()
    compiled = builder.compile(checkpointer=saver)
    config = {"configurable": {"thread_id": "1"}}
    given = {"messages": [("user", SAFE)]}
    how = {
        "stream_mode": ["messages", "values", "updates", "custom", "debug", "tasks", "checkpoints"],
        "subgraphs": True,
    }
    if async_api:
        seen = asyncio.run(drain(compiled.astream(given, config, **how)))
    else:
        seen = list(compiled.stream(given, config, **how))
    assert compiled.get_state(config).values["messages"][-1].content in (SAFE_REPLY, BAD)
    written = [list(saver.list(None)), list(compiled.get_state_history(config))]
    return repr(seen) + repr(written)


@pytest.mark.parametrize("async_api", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("kind", INNER)
def test_nothing_inside_reaches_the_graph_around(kind, async_api):
    assert "~" in seen_of_a_graph(INNER[kind](), async_api=async_api), "else this test shows nothing"
    guarded = guard_model(INNER[kind](), make_guard())
    assert "~" not in seen_of_a_graph(guarded, async_api=async_api)


def test_the_apps_own_context_of_a_graph_reaches_the_inner_model():
    graph = pytest.importorskip("langgraph.graph", exc_type=ImportError)
    runtime = pytest.importorskip("langgraph.runtime", exc_type=ImportError)
    found = []

    def say(messages):
        found.append(runtime.get_runtime().context)
        return SAFE_REPLY

    model = guard_model(RunnableLambda(say), make_guard())
    builder = graph.StateGraph(graph.MessagesState, context_schema=dict)
    builder.add_node("model", lambda state: {"messages": [model.invoke(state["messages"])]})
    builder.add_edge(graph.START, "model")
    builder.compile().invoke({"messages": [("user", SAFE)]}, context={"tenant": "bakery"})
    assert found == [{"tenant": "bakery"}]


# --- others that the guard calls


def heard_of(model, mode: str, said: str) -> str:
    recorder = Recorder()
    chain = (RunnableLambda(lambda given: given) | model).with_config(callbacks=[recorder])
    return repr(MODES[mode](chain, said)) + repr(recorder.heard)


@every_mode
def test_a_model_that_the_hook_calls_is_not_heard(mode):
    def hook(messages, verdict) -> str:
        return scripted(BAD).invoke("help").content

    model = GuardedChatModel(model=scripted(SAFE_REPLY), guard=make_guard(), on_intervention=hook)
    heard = heard_of(model, mode, GRAVE)
    assert "~" not in heard
    assert "'hook', 'flagged': True" in heard, "the hook's words were judged"


@every_mode
def test_a_model_that_a_judge_calls_is_not_heard(mode):
    def judge(messages) -> str:
        return scripted("~no answer").invoke(messages).content

    config = GuardConfig.of(uncertain_low=0.0, uncertain_high=1.0)
    guard = Guardrail(WordEncoder(), [DRIVING], judge=judge, config=config)
    heard = heard_of(guard_model(scripted(SAFE_REPLY), guard), mode, SAFE)
    assert "~" not in heard
    assert "degraded" in heard, "the judge was asked, and gave no answer that can be read"


# --- errors that quote


def parsed(model) -> Any:
    return model | RunnableLambda(lambda message: str(JsonOutputParser().invoke(message)))


def validated(model) -> Any:
    return model | RunnableLambda(lambda message: TypeAdapter(int).validate_python(message.content))


@every_mode
@pytest.mark.parametrize("make", [parsed, validated])
def test_an_error_of_the_inner_model_does_not_quote_its_draft(make, mode):
    def error_of(model) -> tuple[Exception, str]:
        recorder = Recorder()
        with pytest.raises((OutputParserException, ValidationError)) as caught:
            MODES[mode](model.with_config(callbacks=[recorder]), SAFE)
        return caught.value, repr(recorder.heard)

    error, _ = error_of(make(scripted(BAD)))
    assert "~" in str(error), "else this test shows nothing"
    error, heard = error_of(guard_model(make(scripted(BAD)), make_guard()))
    assert "~" not in str(error) + heard
    assert isinstance(error, OutputParserException)
    assert "it raised" in str(error)


# --- what does reach the inner model


class WarmChatModel(ScriptedChatModel):
    warmth: float = 0.0
    found: Any  # a call with a config copies the model, with its lists

    def _next(self, *args) -> AIMessage:
        self.found(self.warmth)
        return super()._next(*args)


@pytest.mark.parametrize("place", ["called itself", "in a chain", "with_config"])
@every_mode
def test_configurable_fields_reach_the_inner_model(mode, place):
    found: list[float] = []
    inner = WarmChatModel(replies=["One. Two."], found=found.append)
    model = guard_model(inner.configurable_fields(warmth=ConfigurableField("warmth")), make_guard())
    config = {"configurable": {"warmth": 0.7}}
    if place == "with_config":
        MODES[mode](model.with_config(config), SAFE)
    else:
        chain = model if place == "called itself" else RunnableLambda(lambda given: given) | model
        MODES[mode](Given(chain, config), SAFE)
    assert found == [0.7]
    model.invoke(SAFE)
    assert found == [0.7, 0.0]


class Given:
    """A chain that gets a config in each call, as an app hands it on."""

    def __init__(self, chain, config):
        self.chain, self.config = chain, config

    def __getattr__(self, name):
        return lambda given: getattr(self.chain, name)(given, self.config)


@every_mode
def test_context_variables_of_the_app_reach_the_inner_model(mode):
    tenant = contextvars.ContextVar("tenant", default="nobody")
    found = []

    def say(messages) -> str:
        found.append(tenant.get())
        return SAFE_REPLY

    model = guard_model(RunnableLambda(say), make_guard(deadline_ms=60_000))
    contextvars.copy_context().run(lambda: (tenant.set("bakery"), in_one(MODES[mode](model, SAFE))))
    assert found == ["bakery"]
