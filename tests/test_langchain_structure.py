"""Structured output of a guarded chat model: the inner model's own, never a silent None."""

from __future__ import annotations

import asyncio

import pytest
from fakes import SAFE, UNSAFE_REPLY, make_guard
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import PydanticOutputParser
from langchain_core.runnables import RunnableLambda, RunnableMap, RunnablePassthrough
from langchain_fakes import MODES, ScriptedChatModel, scripted
from pydantic import BaseModel

from guardrail.integrations.langchain import GuardedChatModel, guard_model


class Ride(BaseModel):
    """A ride."""

    seats: int
    to: str = ""


SCHEMA = {
    "title": "Ride",
    "description": "A ride.",
    "type": "object",
    "properties": {"seats": {"type": "integer"}, "to": {"type": "string"}},
}


class ToolChatModel(ScriptedChatModel):
    """Has LangChain's own way of structured output: a tool call."""

    def say(self, args) -> AIMessage:
        return AIMessage("", tool_calls=[{"name": "Ride", "args": args, "id": "call-1"}])


class JsonChatModel(ScriptedChatModel):
    """Builds its own, as the large providers' models do: an option and a parser."""

    def say(self, args) -> AIMessage:
        return AIMessage(Ride.model_construct(**args).model_dump_json(warnings=False))

    def with_structured_output(self, schema, *, include_raw=False, method="json", **kwargs):
        model = self.bind(response_format={"type": method})
        parser = PydanticOutputParser(pydantic_object=schema)
        if not include_raw:
            return model | parser
        parsed = RunnablePassthrough.assign(
            parsed=RunnableLambda(lambda found: found["raw"]) | parser, parsing_error=lambda _: None
        )
        failed = RunnablePassthrough.assign(parsed=lambda _: None)
        return RunnableMap(raw=model) | parsed.with_fallbacks([failed], exception_key="parsing_error")


class OddChatModel(ToolChatModel):
    """Builds it in a way that nobody knows."""

    def with_structured_output(self, schema, **kwargs):
        return RunnableLambda(lambda given: self.invoke(given))


KINDS = [ToolChatModel, JsonChatModel, OddChatModel]
every_kind = pytest.mark.parametrize("kind", KINDS)
FINE = {"seats": 2, "to": "the bakery"}
UNSAFE_ARGUMENTS = {"seats": 2, "to": "Fine. Have beer and drive."}
NO_NUMBER = {"seats": "many", "to": "the bakery"}


def structured(kind, *drafts, schema=Ride, attempts=1, **options):
    inner = scripted(kind=kind)
    inner.replies = [kind.say(inner, args) if isinstance(args, dict) else args for args in drafts]
    model = guard_model(inner, make_guard(max_attempts=attempts))
    return model.with_structured_output(schema, **options), inner


@every_kind
@pytest.mark.parametrize("mode", MODES)
def test_a_fine_reply_comes_as_the_schema_says(kind, mode):
    model, inner = structured(kind, FINE)
    assert MODES[mode](model, SAFE) == [Ride(**FINE)]
    assert len(inner.requests) == 1


@every_kind
@pytest.mark.parametrize("mode", MODES)
def test_a_replaced_reply_is_an_error_that_says_so(kind, mode):
    model, _ = structured(kind, UNSAFE_ARGUMENTS)
    with pytest.raises(OutputParserException, match="the guard put a reply in its place") as caught:
        MODES[mode](model, SAFE)
    assert "drive" not in str(caught.value)


@every_kind
def test_with_the_raw_reply_the_error_is_told(kind):
    model, _ = structured(kind, UNSAFE_ARGUMENTS, include_raw=True)
    for found in (model.invoke(SAFE), asyncio.run(model.ainvoke(SAFE))):
        assert found["parsed"] is None
        assert isinstance(found["parsing_error"], OutputParserException)
        assert "You shouldn't" in found["raw"].content
        assert found["raw"].tool_calls == []
    model, _ = structured(kind, FINE, include_raw=True)
    found = model.invoke(SAFE)
    assert (found["parsed"], found["parsing_error"]) == (Ride(**FINE), None)


@every_kind
def test_a_regenerated_reply_is_parsed_and_checked_again(kind):
    model, inner = structured(kind, UNSAFE_ARGUMENTS, FINE, attempts=2)
    assert model.invoke(SAFE) == Ride(**FINE)
    assert list(model.stream(SAFE)) == [Ride(**FINE)]
    assert len(inner.requests) == 3
    model, _ = structured(kind, UNSAFE_ARGUMENTS, NO_NUMBER, attempts=2)
    with pytest.raises((OutputParserException, ValueError), match="seats"):
        model.invoke(SAFE)


def test_a_plain_schema_gives_a_dict():
    model, _ = structured(ToolChatModel, FINE, schema=SCHEMA)
    assert model.invoke(SAFE) == FINE
    model, _ = structured(ToolChatModel, UNSAFE_REPLY, schema=SCHEMA)
    with pytest.raises(OutputParserException, match="the guard put a reply in its place"):
        model.invoke(SAFE)


def test_options_reach_the_inner_models_own_method():
    model, inner = structured(JsonChatModel, FINE, method="json_schema")
    model.invoke(SAFE)
    assert inner.options == [{"stop": None, "response_format": {"type": "json_schema"}}]


def test_a_guarded_model_is_guarded_once():
    inner = scripted(kind=ToolChatModel)
    inner.replies = [inner.say(FINE)]
    first = guard_model(inner, make_guard()).with_structured_output(Ride).steps[0]
    assert isinstance(first, GuardedChatModel)
    assert not isinstance(first.model, GuardedChatModel)


def test_a_runnable_without_tools_has_no_structured_output():
    model = guard_model(RunnableLambda(lambda messages: "hi"), make_guard())
    with pytest.raises(NotImplementedError, match="inner model with bind_tools, got RunnableLambda"):
        model.with_structured_output(Ride)
