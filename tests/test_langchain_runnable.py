"""`chain | guard`: what a chain returns and streams is judged, within the limits of that place."""

from __future__ import annotations

import asyncio

import pytest
from fakes import GRAVE, SAFE, SAFE_REPLY, BrokenEncoder, make_guard
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import RunnableGenerator, RunnableLambda
from langchain_fakes import MODES, in_one, scripted

from guardrail import Guardrail, InputError, ModelError
from guardrail.compose import UNAVAILABLE
from guardrail.integrations.langchain import GuardrailRunnable

BAD = "Have beer and drive off!"
# Unsafe only behind what was said.
AGREES = "Then drive home and sleep well."
TALK = [HumanMessage("I had beer"), AIMessage("Nice!"), HumanMessage("I am tired")]
every_mode = pytest.mark.parametrize("mode", MODES)


def step(**fields) -> GuardrailRunnable:
    return GuardrailRunnable(guard=make_guard(), **fields)


def chains(*replies):
    """Return chains that say the same as messages and as strings."""
    first, second = scripted(*replies), scripted(*replies)
    return [(first | step(), first), (second | StrOutputParser() | step(), second)]


def text_of(pieces) -> str:
    whole = in_one(pieces)
    return whole if isinstance(whole, str) else whole.content


@every_mode
def test_a_fine_reply_passes_in_the_form_that_it_came_in(mode):
    text = "Take a **taxi**!\n\n  It's   cheap \t😀\r\nBye. "
    for chain, _ in chains(text):
        pieces = MODES[mode](chain, SAFE)
        assert text_of(pieces) == text
    assert isinstance(pieces[0], str)
    message = in_one(MODES[mode](chains(AIMessage(text, id="msg-1"))[0][0], SAFE))
    assert (message.id, message.response_metadata["guardrail"]["strategy"]) == ("msg-1", "pass")


@every_mode
def test_an_unfit_reply_is_replaced(mode):
    for chain, model in chains(BAD):
        text = text_of(MODES[mode](chain, SAFE))
        assert "off!" not in text
        assert "You shouldn't" in text
        assert len(model.requests) == 1  # nobody to ask again


def test_sentences_come_as_they_are_judged_and_a_block_closes_the_chain():
    for chain, model in chains(f"Fine. {BAD} And so on and on."):
        stream = chain.stream(SAFE)
        first = next(stream)
        assert getattr(first, "content", first) == "Fine."
        rest = list(stream)
        assert "off!" not in repr(rest)
        # A parser between the two reads on, as LangChain has it.
        behind_a_parser = isinstance(first, str)
        assert behind_a_parser or model.closed == [len(f"Fine. {BAD} ")]


def test_the_chain_is_closed_when_the_reader_leaves():
    chain, model = chains("One. Two. Three.")[0]
    stream = chain.stream(SAFE)
    next(stream)
    stream.close()
    assert model.closed == [5]

    async def leave():
        stream = chain.astream(SAFE)
        await anext(stream)
        await stream.aclose()
        await asyncio.sleep(0.05)

    asyncio.run(leave())
    assert model.closed == [5, 5]


def test_a_reply_is_judged_in_the_conversation_that_it_is_told():
    for given in ({}, {"configurable": {}}):
        assert step().invoke(AGREES, given) == AGREES
    told = {"configurable": {"messages": TALK}}
    for reply in (
        step(messages=TALK).invoke(AGREES),
        step().invoke(AGREES, told),
        asyncio.run(step().ainvoke(AGREES, told)),
        "".join((RunnableLambda(lambda _: AGREES) | step()).stream(SAFE, told)),
        "".join(step(messages=TALK).stream(AGREES)),
        step().invoke([*TALK, AIMessage(AGREES)])[-1].content,
    ):
        assert "You shouldn't" in reply


def test_a_list_is_a_conversation_whose_last_message_is_replaced():
    given = [*TALK, AIMessage(AGREES, id="msg-4")]
    judged = step().invoke(given)
    assert judged[:3] == TALK
    assert judged[3].id == "msg-4"
    assert list(step().stream(given))[0][3].id == "msg-4"
    for wrong in ([], TALK):
        with pytest.raises(InputError, match="ends with the AI's reply"):
            step().invoke(wrong)


def test_an_intervention_is_answered_whatever_the_chain_says():
    assert "You shouldn't" in step(messages=GRAVE).invoke(SAFE_REPLY)
    assert "You shouldn't" in "".join(step(messages=GRAVE).stream(SAFE_REPLY))


@every_mode
def test_a_chain_that_says_nothing_is_not_taken_for_a_reply(mode):
    silent = RunnableGenerator(_nothing, _anothing) if "stream" in mode else RunnableLambda(lambda _: "")
    assert text_of(MODES[mode](silent | step(), SAFE)) == UNAVAILABLE


def _nothing(given):
    list(given)
    yield from ()


async def _anothing(given):
    async for _ in given:
        pass
    for piece in ():
        yield piece


@every_mode
def test_what_is_no_reply_is_refused(mode):
    chain = RunnableLambda(lambda _: {"secret": 1}) | step()
    with pytest.raises(InputError, match="got dict"):
        MODES[mode](chain, SAFE)


@every_mode
def test_a_broken_guard_lets_nothing_through(mode):
    encoder = BrokenEncoder("raises")
    guard = Guardrail(encoder, make_guard().rules)
    encoder.broken = True
    chain = scripted(SAFE_REPLY) | GuardrailRunnable(guard=guard)
    assert text_of(MODES[mode](chain, SAFE)) == UNAVAILABLE


def test_what_is_shown_of_the_step_has_no_guard_and_no_text():
    shown = repr(step(messages=TALK))
    assert "beer" not in shown
    assert "Guardrail(" not in shown
    assert step(messages=TALK).model_dump() == {"name": None}


def test_pieces_of_messages_add_up_with_their_facts():
    pieces = list((scripted(f"Fine. {BAD}") | step()).stream(SAFE))
    assert {type(piece) for piece in pieces} == {AIMessageChunk}
    assert in_one(pieces).response_metadata["guardrail"]["strategy"] == "composed"


def test_a_guard_that_is_to_raise_raises():
    encoder = BrokenEncoder("raises")
    from guardrail.config import GuardConfig

    guard = Guardrail(encoder, make_guard().rules, config=GuardConfig.of(on_error="raise"))
    encoder.broken = True
    with pytest.raises(ModelError):
        GuardrailRunnable(guard=guard).invoke(SAFE_REPLY)
