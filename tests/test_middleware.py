"""The guard around an LLM call: every row of the table in docs, sync and async, and what never leaks."""

import asyncio
import functools
import gc
import inspect
import json
import threading
import time
from types import SimpleNamespace

import pytest
from fakes import (
    DRIVING,
    GRAVE,
    PRIVACY,
    SAFE,
    SAFE_REPLY,
    UNSAFE,
    UNSAFE_REPLY,
    BrokenEncoder,
    ScriptedLLM,
    WordEncoder,
    make_guard,
    word_id,
)

from guardrail import Action, ConfigError, Guardrail, InputError, ModelError, Rule
from guardrail.compose import NEUTRAL, UNAVAILABLE, Composer
from guardrail.config import GuardConfig
from guardrail.guidance import add_guidance
from guardrail.middleware import agenerate, generate, wrap
from guardrail.rules import load_bank, load_general

TOUCHING = "beer for a short way, however"
CASUAL = "had beer with my sister"
FINE_REPLY = "Lovely, tell me more!"
CALL = {"id": "1", "type": "function", "function": {"name": "start_car", "arguments": "{}"}}


class FailsOnWord(WordEncoder):
    """Works until a window holds a certain word."""

    def encode(self, windows):
        if any(word_id("zebra") in window for window in windows):
            raise RuntimeError("secret user text")
        return super().encode(windows)


def guard_failing_on_zebra(**settings):
    return Guardrail(FailsOnWord(), [DRIVING, PRIVACY], config=GuardConfig.of(**settings))


def broken_guard(**settings):
    encoder = BrokenEncoder("raises")
    guard = Guardrail(encoder, [DRIVING, PRIVACY], config=GuardConfig.of(**settings))
    encoder.broken = True
    return guard


def run_sync(guard, llm, messages, **options):
    return guard.generate(llm, messages, **options)


def run_async(guard, llm, messages, **options):
    async def acall(messages):
        return llm(messages)

    return asyncio.run(guard.agenerate(acall, messages, **options))


def run_async_on_sync_llm(guard, llm, messages, **options):
    return asyncio.run(guard.agenerate(llm, messages, **options))


@pytest.fixture(params=[run_sync, run_async, run_async_on_sync_llm])
def run(request):
    return request.param


def strategies(result):
    return [attempt.strategy for attempt in result.attempts]


def forever(event):
    def llm(messages):
        event.wait(30)
        return FINE_REPLY

    return llm


# ---------------------------------------------------------------- nothing is wrong


@pytest.mark.parametrize(
    "reply",
    [
        FINE_REPLY,
        "  caf\u0065\u0301 \u200b\n\n\n ok  ",
        {"role": "assistant", "content": FINE_REPLY, "tool_calls": [CALL]},
        SimpleNamespace(content=FINE_REPLY, extra=object()),
    ],
)
def test_a_fine_reply_passes_as_the_same_object(run, reply):
    llm = ScriptedLLM(reply)
    messages = [{"role": "user", "content": SAFE}]
    result = run(make_guard(), llm, messages)

    assert result.reply is reply
    assert llm.requests == [messages]
    assert llm.requests[0] is messages
    assert (result.strategy, result.changed, strategies(result)) == ("pass", False, ["pass"])
    assert result.verdict_in.action is result.verdict_out.action is Action.ALLOW


def test_a_fine_text_is_kept_byte_for_byte(run):
    text = "  caf\u0065\u0301 \u200b\n\n\n \ud800 ok  "

    assert run(make_guard(), ScriptedLLM(text), SAFE).text == text


def test_a_touched_rule_guides_and_blocks_nobody(run):
    llm = ScriptedLLM(FINE_REPLY)
    result = run(make_guard(), llm, [{"role": "user", "content": TOUCHING}])

    (request,) = llm.requests
    assert request[0]["role"] == "system"
    assert DRIVING.text in request[0]["content"]
    assert request[1] == {"role": "user", "content": TOUCHING}
    assert (result.text, result.strategy) == (FINE_REPLY, "guided")
    assert result.verdict_in.action is Action.ALLOW


# ---------------------------------------------------------------- something is wrong


def test_caution_guides_the_llm_first(run):
    llm = ScriptedLLM(SAFE_REPLY)
    result = run(make_guard(), llm, [{"role": "user", "content": UNSAFE}])

    assert len(llm.requests) == 1
    assert DRIVING.text in llm.requests[0][0]["content"]
    assert (result.text, result.strategy) == (SAFE_REPLY, "guided")
    assert result.verdict_in.action is Action.CAUTION


def test_an_unsafe_draft_is_made_again_with_the_rule(run):
    llm = ScriptedLLM(UNSAFE_REPLY, SAFE_REPLY)
    messages = [{"role": "user", "content": CASUAL}]
    result = run(make_guard(), llm, messages)

    assert llm.requests[0] is messages
    assert "Your last draft went against these rules" in llm.requests[1][0]["content"]
    assert DRIVING.text in llm.requests[1][0]["content"]
    assert (result.text, result.strategy, result.changed) == (SAFE_REPLY, "regenerated", True)
    assert [(a.strategy, a.flagged) for a in result.attempts] == [("pass", True), ("regenerated", False)]
    assert result.attempts[0].rules[0] == "driving-001"


@pytest.mark.parametrize("most", [1, 2, 5])
def test_attempts_are_bounded_and_the_last_resort_is_composed(run, most):
    llm = ScriptedLLM(UNSAFE_REPLY)
    guard = make_guard(max_attempts=most)
    result = run(guard, llm, CASUAL)

    assert len(llm.requests) == most
    assert strategies(result) == ["pass", *["regenerated"] * (most - 1), "composed"]
    assert result.strategy == "composed"
    assert DRIVING.text in result.text
    assert UNSAFE_REPLY not in result.text


def test_the_composed_reply_is_judged_in_its_context(run):
    guard = make_guard()
    result = run(guard, ScriptedLLM(UNSAFE_REPLY), CASUAL)

    assert result.verdict_out == guard.check([CASUAL, result.text])
    assert not result.verdict_out.flagged


class FlagsAllButNeutral(WordEncoder):
    """Finds every reply unsafe except the neutral sentence; users are judged as ever."""

    def encode(self, windows):
        output = super().encode(windows)
        for row, window in enumerate(windows):
            replies = word_id("assistant") in window[: window.index(self.sep_id)]
            if replies and word_id("further") not in window:
                output.level_logits[row] = [0.0, 6.0, -8.0]
        return output


def test_where_composed_replies_are_unfit_the_neutral_sentence_is_shown(run):
    guard = Guardrail(FlagsAllButNeutral(), [DRIVING])
    result = run(guard, ScriptedLLM(UNSAFE_REPLY), CASUAL)

    assert result.text == NEUTRAL
    composed = [attempt.flagged for attempt in result.attempts if attempt.strategy == "composed"]
    assert composed == [True] * (len(composed) - 1) + [False]
    assert len(composed) >= 3  # the rule, what may be said of anything, the neutral sentence


def test_a_rule_that_is_unfit_to_be_said_gives_way_to_what_may_be_said_of_anything(run):
    # Its text has "drive" and "beer" and no warning word: the fake encoder flags it as a reply.
    blunt = Rule.model_validate({"id": "blunt", "rule": "Never drive after beer."})
    result = run(Guardrail(WordEncoder(), [blunt]), ScriptedLLM(UNSAFE_REPLY), CASUAL)

    assert [(a.strategy, a.flagged) for a in result.attempts[-2:]] == [
        ("composed", True),
        ("composed", False),
    ]
    general = load_general()
    assert any(sentence in result.text for sentence in general["concerns"])
    assert any(sentence in result.text for sentence in general["offers"])


def test_a_blank_reply_is_made_again(run):
    llm = ScriptedLLM(" \n", FINE_REPLY)
    result = run(make_guard(), llm, SAFE)

    assert (len(llm.requests), result.text) == (2, FINE_REPLY)


def test_a_tool_call_is_judged_with_the_reply(run):
    calls = [{"name": "drive", "args": {"to": "home"}}]
    result = run(make_guard(), ScriptedLLM({"content": None, "tool_calls": calls}), CASUAL)

    assert result.strategy == "composed"
    assert "tool_calls" not in result.reply


def test_a_reply_too_long_to_be_read_is_not_shown(run):
    unread = "lovely " * 2000 + "drive"
    guard = make_guard(max_windows=1)
    result = run(guard, ScriptedLLM(unread, FINE_REPLY), CASUAL)

    assert result.text == FINE_REPLY
    allowed = run(make_guard(max_windows=1, on_error="allow"), ScriptedLLM(unread), CASUAL)
    assert (allowed.text, allowed.verdict_out.status) == (unread, "degraded")


# ---------------------------------------------------------------- intervention


def test_intervention_composes_without_calling_the_llm(run):
    llm = ScriptedLLM(SAFE_REPLY)
    result = run(make_guard(), llm, GRAVE)

    assert llm.requests == []
    assert (result.strategy, strategies(result)) == ("composed", ["composed"])
    assert DRIVING.text in result.text
    assert result.verdict_in.action is Action.INTERVENE


def test_intervention_can_guide_the_llm_instead(run):
    llm = ScriptedLLM(SAFE_REPLY)
    result = run(make_guard(on_intervention="guide"), llm, [{"role": "user", "content": GRAVE}])

    assert DRIVING.text in llm.requests[0][0]["content"]
    assert (result.text, result.strategy) == (SAFE_REPLY, "guided")


def test_intervention_can_be_answered_by_a_hook(run):
    seen = []

    def hook(messages, verdict):
        seen.append((messages, verdict.action))
        return "Please call me first: 555."

    llm = ScriptedLLM(SAFE_REPLY)
    result = run(make_guard(), llm, GRAVE, on_intervention=hook)

    assert (llm.requests, seen) == ([], [(GRAVE, Action.INTERVENE)])
    assert (result.text, result.strategy) == ("Please call me first: 555.", "hook")
    assert run(make_guard(), ScriptedLLM(FINE_REPLY), SAFE, on_intervention=hook).strategy == "pass"


@pytest.mark.parametrize("text", [UNSAFE_REPLY, "lovely " * 2000 + "drive"])
def test_what_a_hook_says_is_shown_only_if_it_was_read_and_is_fit(run, text):
    result = run(make_guard(max_windows=1), ScriptedLLM(SAFE_REPLY), GRAVE, on_intervention=lambda *_: text)

    assert result.strategy == "composed"
    assert text not in result.text
    assert [(a.strategy, a.flagged) for a in result.attempts] == [("hook", True), ("composed", False)]


# ---------------------------------------------------------------- the guard itself fails


def test_a_guard_that_fails_at_the_start_does_not_call_the_llm(run):
    llm = ScriptedLLM(FINE_REPLY)
    result = run(broken_guard(), llm, SAFE)

    assert llm.requests == []
    assert (result.text, result.strategy) == (UNAVAILABLE, "unavailable")
    assert result.verdict_in.status == result.verdict_out.status == "error"


def test_a_guard_that_fails_on_the_draft_does_not_show_it(run):
    result = run(guard_failing_on_zebra(), ScriptedLLM("zebra"), SAFE)

    assert "zebra" not in result.text
    assert result.attempts[0].flagged
    assert strategies(result)[:3] == ["pass", "regenerated", "regenerated"]


def test_a_guard_that_fails_on_everything_after_the_start_shows_a_fixed_sentence(run):
    class FailsOnAssistant(WordEncoder):
        def encode(self, windows):
            if any(window[1] == word_id("assistant") for window in windows):
                raise RuntimeError("secret user text")
            return super().encode(windows)

    guard = Guardrail(FailsOnAssistant(), [DRIVING, PRIVACY])
    result = run(guard, ScriptedLLM(FINE_REPLY), SAFE)

    assert (result.text, result.strategy) == (UNAVAILABLE, "unavailable")
    assert (result.verdict_in.status, result.verdict_out.status) == ("ok", "error")


def test_on_error_allow_shows_the_draft_and_says_so(run):
    result = run(broken_guard(on_error="allow"), ScriptedLLM(UNSAFE_REPLY), UNSAFE)

    assert result.text == UNSAFE_REPLY
    assert result.verdict_in.status == result.verdict_out.status == "error"
    assert "on_error='allow'" in result.verdict_out.reason


def test_on_error_raise_raises_at_the_start_and_on_the_draft(run):
    llm = ScriptedLLM(FINE_REPLY)
    with pytest.raises(ModelError, match="encoder: failed with RuntimeError"):
        run(broken_guard(on_error="raise"), llm, SAFE)
    assert llm.requests == []
    with pytest.raises(ModelError, match="encoder: failed with RuntimeError"):
        run(guard_failing_on_zebra(on_error="raise"), ScriptedLLM("zebra"), SAFE)


# ---------------------------------------------------------------- the LLM fails or hangs


@pytest.mark.parametrize("error", [RuntimeError, ConnectionError, TimeoutError])
@pytest.mark.parametrize("messages", [SAFE, UNSAFE])
def test_the_llms_own_error_in_its_first_call_is_the_apps(run, error, messages):
    with pytest.raises(error, match="from the provider"):
        run(make_guard(deadline_ms=60_000), ScriptedLLM(error("from the provider")), messages)


@pytest.mark.parametrize("error", [RuntimeError, TimeoutError])
def test_the_llms_error_in_a_later_call_is_composed_away(run, error):
    result = run(make_guard(), ScriptedLLM(UNSAFE_REPLY, error("from the provider")), CASUAL)

    assert strategies(result) == ["pass", "regenerated", "composed"]
    assert result.attempts[1].error == error.__name__
    assert result.strategy == "composed"
    assert UNSAFE_REPLY not in result.text


def test_what_the_llm_returns_must_be_readable(run):
    with pytest.raises(InputError, match="expected the LLM to return a string.+got int"):
        run(make_guard(), ScriptedLLM(5), SAFE)


@pytest.mark.parametrize(("messages", "strategy"), [(SAFE, "unavailable"), (UNSAFE, "composed")])
def test_a_hanging_sync_llm_is_left_at_the_deadline(messages, strategy):
    event = threading.Event()
    started = time.monotonic()
    try:
        result = make_guard(deadline_ms=150).generate(forever(event), messages)
    finally:
        event.set()

    assert time.monotonic() - started < 3
    assert result.strategy == strategy
    assert result.attempts[0].error == "TimeoutError"


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_a_hanging_llm_under_async_is_left_at_the_deadline(kind):
    event = threading.Event()
    cancelled = []

    async def hangs(messages):
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def main():
        started = time.monotonic()
        try:
            result = await make_guard(deadline_ms=150).agenerate(
                hangs if kind == "async" else forever(event), UNSAFE
            )
            return result, time.monotonic() - started
        finally:
            event.set()  # asyncio.run waits for its threads

    result, seconds = asyncio.run(main())
    assert seconds < 3
    assert result.strategy == "composed"
    assert not result.verdict_out.flagged
    assert cancelled == ([True] if kind == "async" else [])


def test_the_deadline_covers_all_calls_together(run):
    def slow(messages):
        time.sleep(0.1)
        return UNSAFE_REPLY

    started = time.monotonic()
    result = run(make_guard(deadline_ms=250, max_attempts=10), slow, CASUAL)

    assert time.monotonic() - started < 3
    assert result.strategy == "composed"
    assert strategies(result).count("regenerated") < 9


def test_a_deadline_that_is_kept_changes_nothing(run):
    result = run(make_guard(deadline_ms=60_000), ScriptedLLM(UNSAFE_REPLY, SAFE_REPLY), CASUAL)

    assert (result.text, result.strategy) == (SAFE_REPLY, "regenerated")


# ---------------------------------------------------------------- the form of the reply


def test_a_replaced_dict_keeps_its_form_and_loses_its_tool_calls(run):
    draft = {
        "role": "assistant",
        "name": "bot",
        "content": UNSAFE_REPLY,
        "tool_calls": [CALL],
        "function_call": {"name": "start_car", "arguments": "{}"},
    }
    result = run(make_guard(), ScriptedLLM(draft), CASUAL)

    assert result.reply == {"role": "assistant", "name": "bot", "content": result.text}
    assert draft["tool_calls"] == [CALL]


@pytest.mark.parametrize("field", ["reasoning_content", "refusal", "reasoning"])
def test_nothing_of_the_draft_stays_in_a_replaced_dict(run, field):
    draft = {"role": "assistant", "content": UNSAFE_REPLY, field: "they should floor it, zanzibar"}
    result = run(make_guard(), ScriptedLLM(draft), CASUAL)

    assert result.strategy == "composed"
    assert "zanzibar" not in json.dumps(result.reply)


def test_a_replaced_langchain_message_keeps_its_form_and_loses_its_tool_calls(run):
    messages = pytest.importorskip("langchain_core.messages")
    draft = messages.AIMessage(
        content=[{"type": "text", "text": UNSAFE_REPLY}, {"type": "tool_use", "id": "1", "name": "x"}],
        id="run-1",
        name="bot",
        tool_calls=[{"id": "1", "name": "start_car", "args": {}}],
        invalid_tool_calls=[{"id": "2", "name": "x", "args": "{", "error": None}],
        additional_kwargs={
            "tool_calls": [CALL],
            "function_call": {"name": "x", "arguments": ""},
            "reasoning_content": UNSAFE_REPLY,
        },
        response_metadata={"model": "m"},
        usage_metadata={"input_tokens": 1, "output_tokens": 2, "total_tokens": 3},
    )
    result = run(make_guard(), ScriptedLLM(draft), [messages.HumanMessage(CASUAL)])

    reply = result.reply
    assert type(reply) is messages.AIMessage
    assert (reply.content, reply.id, reply.name) == (result.text, "run-1", "bot")
    assert (reply.tool_calls, reply.invalid_tool_calls, reply.additional_kwargs) == ([], [], {})
    assert (reply.response_metadata, reply.usage_metadata["total_tokens"]) == ({"model": "m"}, 3)
    assert draft.tool_calls


def test_an_openai_style_message_loses_its_function_call_too(run):
    from pydantic import BaseModel

    class Message(BaseModel):
        role: str = "assistant"
        content: str | None = None
        tool_calls: list | None = None
        function_call: dict | None = None

    draft = Message(content=UNSAFE_REPLY, tool_calls=[CALL], function_call={"name": "x", "arguments": ""})
    reply = run(make_guard(), ScriptedLLM(draft), CASUAL).reply

    assert isinstance(reply, Message)
    assert not reply.tool_calls
    assert not reply.function_call


def test_a_langchain_message_that_is_fine_passes_as_the_same_object(run):
    messages = pytest.importorskip("langchain_core.messages")
    reply = messages.AIMessage(FINE_REPLY, tool_calls=[{"id": "1", "name": "look_up", "args": {}}])

    assert run(make_guard(), ScriptedLLM(reply), [messages.HumanMessage(SAFE)]).reply is reply


def test_without_a_draft_the_reply_is_text(run):
    result = run(make_guard(), ScriptedLLM({"content": SAFE_REPLY}), GRAVE)

    assert result.reply == result.text


# ---------------------------------------------------------------- the form of the request


def test_guidance_keeps_the_form_of_the_messages(run):
    def asked(messages):
        llm = ScriptedLLM(SAFE_REPLY)
        run(make_guard(), llm, messages)
        return llm.requests[0]

    text = asked(UNSAFE)
    assert isinstance(text, str)
    assert DRIVING.text in text
    assert text.endswith(UNSAFE)

    texts = asked(["hello", "hi!", UNSAFE])
    assert texts[:2] == ["hello", "hi!"]
    assert len(texts) == 3
    assert DRIVING.text in texts[2]
    assert texts[2].endswith(UNSAFE)

    dicts = [
        {"role": "system", "content": "be kind"},
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": UNSAFE, "name": "ann"},
    ]
    before = json.dumps(dicts)
    request = asked(dicts)
    assert [item["role"] for item in request] == ["system", "developer", "system", "user"]
    assert DRIVING.text in request[2]["content"]
    assert request[3] is dicts[2]
    assert json.dumps(dicts) == before

    (guidance, single) = asked({"role": "user", "content": UNSAFE})
    assert (guidance["role"], single["content"]) == ("system", UNSAFE)


def test_guidance_stands_behind_the_system_message_of_a_list_of_tuples():
    request = add_guidance([("system", "be kind"), ("user", UNSAFE)], "RULES")

    assert request[0] == ("system", "be kind")
    assert request[-1] == ("user", UNSAFE)
    assert "RULES" in str(request[1])


def test_langchain_messages_and_prompts_get_a_system_message_that_langchain_reads():
    messages = pytest.importorskip("langchain_core.messages")
    prompts = pytest.importorskip("langchain_core.prompts")
    given = [messages.SystemMessage("be kind"), messages.HumanMessage(UNSAFE)]
    prompt = prompts.ChatPromptTemplate.from_messages([("system", "be kind"), ("user", "{x}")]).invoke(
        {"x": UNSAFE}
    )
    for form in (given, prompt):
        llm = ScriptedLLM(SAFE_REPLY)
        make_guard().generate(llm, form)
        request = messages.convert_to_messages(llm.requests[0])
        assert [message.type for message in request] == ["system", "system", "human"]
        assert DRIVING.text in request[1].content


# ---------------------------------------------------------------- sync and async are one


SCRIPTS = {
    "fine": (SAFE, [FINE_REPLY], {}),
    "touched": (TOUCHING, [FINE_REPLY], {}),
    "caution": (UNSAFE, [SAFE_REPLY], {}),
    "made again": (CASUAL, [UNSAFE_REPLY, SAFE_REPLY], {}),
    "composed": (CASUAL, [UNSAFE_REPLY], {}),
    "later error": (CASUAL, [UNSAFE_REPLY, RuntimeError("x")], {}),
    "grave": (GRAVE, [FINE_REPLY], {}),
    "grave, guided": (GRAVE, [UNSAFE_REPLY, SAFE_REPLY], {"on_intervention": "guide"}),
    "dicts": ([{"role": "user", "content": CASUAL}], [{"content": UNSAFE_REPLY}], {"max_attempts": 1}),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_sync_and_async_agree(name):
    messages, replies, settings = SCRIPTS[name]
    outcomes = []
    for runner in (run_sync, run_async, run_async_on_sync_llm):
        llm = ScriptedLLM(*replies)
        outcome = runner(make_guard(**settings), llm, messages).to_dict()
        for attempt in outcome["attempts"]:
            assert attempt.pop("seconds") >= 0
        outcomes.append((outcome, llm.requests))

    assert outcomes[0] == outcomes[1] == outcomes[2]
    json.dumps(outcomes[0][0])


def test_async_judging_leaves_the_event_loop_free():
    released = threading.Event()

    class WaitsForTheLoop(WordEncoder):
        armed = False

        def encode(self, windows):
            if self.armed and not released.wait(10):
                raise RuntimeError("the event loop never ran")
            return super().encode(windows)

    async def main():
        encoder = WaitsForTheLoop()
        guard = Guardrail(encoder, [DRIVING, PRIVACY])
        encoder.armed = True
        task = asyncio.create_task(guard.agenerate(ScriptedLLM(FINE_REPLY), SAFE))
        await asyncio.sleep(0.01)
        assert not task.done()
        released.set()
        return await task

    assert asyncio.run(main()).strategy == "pass"


# ---------------------------------------------------------------- wrap


def test_a_wrapped_sync_llm_returns_what_may_be_shown():
    guard = make_guard()
    safe_llm = guard.wrap(ScriptedLLM({"content": UNSAFE_REPLY}, {"content": SAFE_REPLY}))

    assert safe_llm(CASUAL) == {"content": SAFE_REPLY}


def test_a_wrapped_async_llm_stays_async():
    async def my_llm(messages):
        """Answer."""
        return UNSAFE_REPLY

    safe_llm = make_guard().wrap(my_llm)

    assert inspect.iscoroutinefunction(safe_llm)
    assert (safe_llm.__name__, safe_llm.__doc__, safe_llm.__wrapped__) == ("my_llm", "Answer.", my_llm)
    assert DRIVING.text in asyncio.run(safe_llm(CASUAL))


def test_an_object_with_an_async_call_and_a_partial_of_one_are_async():
    class Client:
        async def __call__(self, messages, model=""):
            return FINE_REPLY + model

    guard = make_guard()
    for llm, expected in ((Client(), FINE_REPLY), (functools.partial(Client(), model="m"), FINE_REPLY + "m")):
        assert asyncio.run(guard.wrap(llm)(SAFE)) == expected


def test_further_arguments_reach_the_llm():
    seen = []

    def llm(messages, *args, **kwargs):
        seen.append((args, kwargs))
        return FINE_REPLY

    async def allm(messages, *args, **kwargs):
        return llm(messages, *args, **kwargs)

    guard = make_guard()
    guard.wrap(llm)(SAFE, 1, temperature=0.5)
    asyncio.run(guard.wrap(allm)(SAFE, 1, temperature=0.5))
    generate(guard, llm, SAFE, 1, temperature=0.5)
    asyncio.run(agenerate(guard, llm, SAFE, 1, temperature=0.5))

    assert seen == [((1,), {"temperature": 0.5})] * 4


def test_a_wrapped_llm_uses_the_hook():
    safe_llm = wrap(make_guard(), ScriptedLLM(FINE_REPLY), on_intervention=lambda *_: "Call me.")

    assert safe_llm(GRAVE) == "Call me."


@pytest.mark.parametrize("llm", [None, "gpt", 5])
def test_what_cannot_be_called_is_refused(llm):
    with pytest.raises(InputError, match=r"expected a callable that takes messages, got \w+"):
        make_guard().wrap(llm)


@pytest.mark.parametrize("settings", [{}, {"deadline_ms": 60_000}])
def test_a_sync_callable_that_returns_a_coroutine_is_refused_without_a_warning(settings):
    async def answer(messages):
        return FINE_REPLY

    with pytest.raises(InputError, match="expected a sync LLM, its call returned an awaitable"):
        make_guard(**settings).wrap(lambda messages: answer(messages))(SAFE)
    gc.collect()  # a coroutine that was never awaited would warn here, and warnings are errors


def test_messages_that_cannot_be_read_are_refused_before_the_llm_is_called(run):
    llm = ScriptedLLM(FINE_REPLY)
    with pytest.raises(InputError, match="got an empty list"):
        run(make_guard(), llm, [])
    assert llm.requests == []


def test_one_guard_serves_sixteen_threads():
    from concurrent.futures import ThreadPoolExecutor

    guard = make_guard()

    def one(number):
        llm = ScriptedLLM(UNSAFE_REPLY, f"{number}: {SAFE_REPLY}")
        return guard.generate(llm, CASUAL).text

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(one, range(64))) == [f"{number}: {SAFE_REPLY}" for number in range(64)]


# ---------------------------------------------------------------- no text where none belongs


def test_no_representation_holds_text(run):
    result = run(make_guard(), ScriptedLLM("zanzibar beer drive", "zanzibar taxi"), "quokka had beer")

    for shown in (repr(result), str(result), *map(repr, result.attempts), repr(result.verdict_out)):
        assert "zanzibar" not in shown
        assert "quokka" not in shown
    assert result.text == "zanzibar taxi"
    assert result.to_dict()["text"] == "zanzibar taxi"


# ---------------------------------------------------------------- composed words


def test_the_same_inputs_give_the_same_composed_words(run):
    first = run(make_guard(), ScriptedLLM(UNSAFE_REPLY), CASUAL).text

    assert run(make_guard(), ScriptedLLM(UNSAFE_REPLY), CASUAL).text == first
    assert run(make_guard(), ScriptedLLM(UNSAFE_REPLY), CASUAL + " and my aunt").text != first


def test_fifty_contexts_give_fifty_texts_of_what_was_written_for_their_rules():
    bank = load_bank()
    composer = Composer(bank)
    chosen = bank[:: len(bank) // 50][:50]
    texts = [composer.compose(rule, rule.violations[0].turns) for rule in chosen]

    assert len(set(texts)) == 50
    for rule, text in zip(chosen, texts, strict=True):
        assert any(sentence in text for sentence in rule.concerns), rule.id
        assert any(sentence in text for sentence in rule.offers), rule.id


def test_fifty_contexts_without_a_rule_give_fifty_texts():
    composer = Composer(load_bank())

    assert len({composer.general([f"context {number}"]) for number in range(50)}) == 50


def test_a_rule_without_sentences_of_its_own_is_said_itself():
    text = Composer(load_bank()).compose(DRIVING, [UNSAFE])

    assert DRIVING.text in text


def test_the_violations_of_one_rule_rarely_get_the_same_words():
    bank = load_bank()
    composer = Composer(bank)
    texts = [composer.compose(rule, violation.turns) for rule in bank for violation in rule.violations]

    assert len(set(texts)) / len(texts) > 0.97


def test_a_composed_reply_takes_no_number_from_another_dialogue():
    composer = Composer(load_bank())
    for rule in load_bank():
        text = composer.compose(rule, ["something else entirely"])
        assert not any(character.isdigit() for character in text.replace(rule.text, "")), rule.id


# ---------------------------------------------------------------- words beside the content, and other places


@pytest.mark.parametrize(
    "draft",
    [
        {"content": "Nice!", "reasoning_content": UNSAFE_REPLY},
        {"content": "Nice!", "refusal": UNSAFE_REPLY},
        {"content": "Nice!", "audio": {"transcript": UNSAFE_REPLY}},
        {"content": "Nice!", "additional_kwargs": {"reasoning_content": UNSAFE_REPLY}},
        {
            "content": [
                {"type": "text", "text": "Nice!"},
                {"type": "tool_use", "input": {"say": UNSAFE_REPLY}},
            ]
        },
    ],
    ids=["reasoning", "refusal", "audio", "additional_kwargs", "tool_use"],
)
def test_words_beside_the_content_are_judged_and_go_with_the_draft(run, draft):
    result = run(make_guard(), ScriptedLLM(draft), SAFE)

    assert result.strategy == "composed"
    assert UNSAFE_REPLY not in str(result.reply)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "tool_use", "id": "1", "name": "look_up", "input": {"city": "Oslo"}},
        {"type": "function_call", "name": "look_up", "arguments": '{"city": "Oslo"}'},
        {"type": "reasoning", "summary": []},
        {"type": "redacted_thinking", "data": "x"},
    ],
    ids=lambda part: part["type"],
)
def test_ordinary_parts_of_providers_pass(run, part):
    draft = {"content": [{"type": "text", "text": SAFE_REPLY}, part]}

    assert run(make_guard(), ScriptedLLM(draft), SAFE).reply is draft


def test_a_silent_llm_reproaches_nobody(run):
    result = run(make_guard(), ScriptedLLM(""), SAFE)

    assert result.strategy == "unavailable"
    assert "couldn't check" in result.text


def test_an_intervention_takes_the_form_that_the_caller_asks_for():
    def form(text):
        return {"role": "assistant", "content": text}

    reply = make_guard().wrap(ScriptedLLM({"content": SAFE_REPLY}), form=form)(GRAVE)

    assert reply["role"] == "assistant"
    assert "drive" in reply["content"]


@pytest.mark.parametrize("value", ["guid", 5])
def test_an_unknown_intervention_is_refused_at_once(value):
    with pytest.raises(
        ConfigError, match="expected on_intervention to be 'reply', 'guide' or a sync function"
    ):
        make_guard().wrap(ScriptedLLM(SAFE_REPLY), on_intervention=value)


def test_an_intervention_may_be_guided_for_one_call(run):
    llm = ScriptedLLM(SAFE_REPLY)
    result = run(make_guard(), llm, GRAVE, on_intervention="guide")

    assert (result.strategy, result.text, len(llm.requests)) == ("guided", SAFE_REPLY, 1)


def test_a_blank_hook_is_not_shown(run):
    result = run(make_guard(), ScriptedLLM(SAFE_REPLY), GRAVE, on_intervention=lambda messages, verdict: " ")

    assert result.strategy == "composed"


def test_a_turn_too_long_to_read_is_not_handed_on(run):
    llm = ScriptedLLM(SAFE_REPLY)
    result = run(make_guard(max_windows=2), llm, " " * 5000 + GRAVE)

    assert (result.strategy, llm.requests) == ("unavailable", [])
    assert result.verdict_in.status == "degraded"


def test_an_iterator_of_messages_reaches_guard_and_llm(run):
    llm = ScriptedLLM(SAFE_REPLY)
    run(make_guard(), llm, iter([{"role": "user", "content": SAFE}]))

    assert llm.requests == [[{"role": "user", "content": SAFE}]]


def test_guidance_is_of_the_messages_kind():
    messages = pytest.importorskip("langchain_core.messages")
    llm = ScriptedLLM(SAFE_REPLY)
    make_guard().generate(llm, [("system", "be kind"), ("user", UNSAFE)])
    make_guard().generate(llm, [messages.SystemMessage("be kind"), messages.HumanMessage(UNSAFE)])

    assert [role for role, _ in llm.requests[0]] == ["system", "system", "user"]
    assert [type(item).__name__ for item in llm.requests[1]] == [
        "SystemMessage",
        "SystemMessage",
        "HumanMessage",
    ]
