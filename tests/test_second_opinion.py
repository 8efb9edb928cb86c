"""The second opinion: who is asked, what its answer does, and what happens when there is none."""

import asyncio
import gc
import json
import logging
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

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
)
from hypothesis import given
from hypothesis import strategies as st

from guardrail import Action, ConfigError, Guardrail, Level, ModelError
from guardrail.calibration import Band, Calibration, Thresholds, as_json
from guardrail.config import GuardConfig
from guardrail.decision import decide, revise
from guardrail.detector import Judgement, RuleScore
from guardrail.judging import Opinion, TooLongError
from guardrail.second_opinion import WAITING_PER_WORKER, SecondOpinion

ALL = {"uncertain_low": 0.0, "uncertain_high": 1.0}
FINE = Opinion(False, (), Level.CASUAL)
BAD = Opinion(True, (1,), Level.NEEDS_CAUTION)
WORST = Opinion(True, (), Level.NEEDS_INTERVENTION)
TALK = [
    UNSAFE,
    GRAVE,
    SAFE,
    ["four beer please", "Here you are!", "thanks, now i drive"],
    "  ",
    "i dr1ve, beer",
]


class ScriptedJudge:
    """Gives what it is told to, whatever it is asked: an opinion, an exception, or anything else."""

    def __init__(self, answer, *, seconds=0.0):
        self.answer = answer
        self.seconds = seconds
        self.asked = []
        self.running = self.most_running = 0
        self._lock = threading.Lock()

    def judge(self, question):
        with self._lock:
            self.asked.append(question)
            self.running += 1
            self.most_running = max(self.running, self.most_running)
        time.sleep(self.seconds)
        with self._lock:
            self.running -= 1
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer(question) if callable(self.answer) else self.answer


class AsyncScriptedJudge(ScriptedJudge):
    """The same, async only."""

    judge = None

    async def ajudge(self, question):
        self.asked.append(question)
        await asyncio.sleep(self.seconds)
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer(question) if callable(self.answer) else self.answer


def careful(question):
    """Say of a turn what a careful reader would: drive after beer is unsafe, in this order of rules."""
    text = " ".join(turn.text for turn in question.turns) + question.reads_as
    unsafe = "beer" in text and "drive" in text
    rule = question.rules.index(DRIVING.text) + 1
    return Opinion(True, (rule,), Level.NEEDS_CAUTION) if unsafe else FINE


def guard_with(judge, **settings):
    return Guardrail(
        WordEncoder(), [DRIVING, PRIVACY], config=GuardConfig.of(**(ALL | settings)), judge=judge
    )


def three_ways(guard, conversations):
    """Return the verdicts of check, acheck and check_batch."""

    async def all_at_once():
        return await asyncio.gather(*(guard.acheck(messages) for messages in conversations))

    return (
        [guard.check(messages) for messages in conversations],
        asyncio.run(all_at_once()),
        guard.check_batch(conversations),
    )


# ---------------------------------------------------------------- who is asked


def test_only_the_uncertain_are_sent_to_the_judge():
    judge = ScriptedJudge(FINE)
    sure = guard_with(judge, uncertain_low=0.3, uncertain_high=0.7)
    verdicts = sure.check_batch([UNSAFE, SAFE])

    assert judge.asked == []
    assert [(v.judged_by, v.flagged) for v in verdicts] == [("encoder", True), ("encoder", False)]
    low = guard_with(judge, uncertain_high=0.5)
    assert [v.judged_by for v in low.check_batch([UNSAFE, SAFE])] == ["encoder", "judge"]
    assert len(judge.asked) == 1


def test_the_ends_of_the_band_are_in_it():
    p = guard_with(None).check(UNSAFE).probability
    judge = ScriptedJudge(FINE)

    assert guard_with(judge, uncertain_low=p, uncertain_high=p).check(UNSAFE).judged_by == "judge"


def test_the_question_is_the_conversation_with_the_retrieved_rules():
    judge = ScriptedJudge(FINE)
    guard = guard_with(judge)
    guard.check([{"role": "system", "content": "be kind"}, *TALK[3:4][0]])
    (asked,) = judge.asked

    assert [turn.text for turn in asked.turns] == TALK[3]
    assert [turn.role for turn in asked.turns] == ["user", "assistant", "user"]
    assert asked.rules == tuple(match.rule.text for match in guard.rank_rules(TALK[3]))


def test_a_disguise_is_undone_for_the_judge():
    judge = ScriptedJudge(FINE)
    guard_with(judge).check("four beer and now i dr1ve home")

    assert judge.asked[0].turns[-1].text == "four beer and now i dr1ve home"
    assert judge.asked[0].reads_as == "four beer and now i drive home"


def test_blank_and_failed_turns_are_not_asked():
    judge = ScriptedJudge(FINE)
    assert guard_with(judge).check("  ").judged_by == "encoder"
    encoder = BrokenEncoder("raises")
    guard = Guardrail(encoder, [DRIVING], config=GuardConfig.of(**ALL), judge=judge)
    encoder.broken = True
    verdict = guard.check(UNSAFE)

    assert (verdict.status, verdict.action, verdict.judged_by) == ("error", Action.INTERVENE, "encoder")
    assert judge.asked == []


def test_an_added_rule_is_asked_about():
    guard = guard_with(ScriptedJudge(lambda question: Opinion(True, (1,), Level.NEEDS_CAUTION)))
    guard.add_rules([{"id": "bread-1", "rule": "You shouldn't bake bread at night, it was lovely."}])

    assert [match.rule.id for match in guard.check("we bake bread at night").rules] == ["bread-1"]


def test_a_turn_too_long_to_ask_stays_with_the_encoder():
    judge = ScriptedJudge(FINE)
    for verdicts in three_ways(guard_with(judge), ["beer " * 2000 + "drive"]):
        assert verdicts[0].flagged
        assert verdicts[0].status == "degraded"
        assert "too long for a second opinion" in verdicts[0].reason
    assert judge.asked == []


# ---------------------------------------------------------------- what an answer does


def test_fine_clears_the_flag_and_keeps_what_is_touched():
    before = guard_with(None, touch_threshold=0.1).check(UNSAFE)
    after = guard_with(ScriptedJudge(FINE), touch_threshold=0.1).check(UNSAFE)

    assert before.flagged
    assert (after.action, after.level, after.status, after.reason) == (Action.ALLOW, Level.CASUAL, "ok", "")
    assert after.rules == ()
    assert after.touched == before.touched != ()
    assert after.probability < before.probability
    assert after.probability < Thresholds().caution
    assert after.coverage == before.coverage


def test_unsafe_flags_with_the_rule_that_is_named():
    before = guard_with(None).check(SAFE)
    after = guard_with(ScriptedJudge(lambda q: Opinion(True, (2, 1), Level.NEEDS_CAUTION))).check(SAFE)

    assert not before.flagged
    assert (after.action, after.level) == (Action.CAUTION, Level.NEEDS_CAUTION)
    ranked = [match.rule.id for match in guard_with(None).rank_rules(SAFE)]
    assert [match.rule.id for match in after.rules] == [ranked[1], ranked[0]]
    assert all(match.probability >= 0.95 for match in after.rules)
    assert after.probability >= Thresholds().caution
    assert (after.judged_by, after.to_dict()["judged_by"]) == ("judge", "judge")
    assert json.loads(after.to_json()) == after.to_dict()


def test_unsafe_without_a_rule_names_none():
    verdict = guard_with(ScriptedJudge(WORST)).check(SAFE)

    assert (verdict.action, verdict.level, verdict.rules) == (
        Action.INTERVENE,
        Level.NEEDS_INTERVENTION,
        (),
    )


@pytest.mark.parametrize(("text", "action"), [(UNSAFE, Action.CAUTION), (GRAVE, Action.INTERVENE)])
def test_a_judge_without_a_level_leaves_it_to_the_encoder(text, action):
    assert guard_with(ScriptedJudge(Opinion(True, (1,)))).check(text).action is action


def test_sync_async_and_batch_agree_whoever_judges():
    for judge in (ScriptedJudge(careful), AsyncScriptedJudge(careful)):
        for settings in ({}, {"judge_cache": 0}, {"judge_workers": 1}):
            first, *others = three_ways(guard_with(judge, **settings), TALK)
            assert [v.judged_by for v in first] == ["judge"] * 4 + ["encoder", "judge"]
            assert [v.flagged for v in first] == [True, True, False, True, False, True]
            assert others == [first, first]


def test_no_representation_holds_the_users_text():
    guard = guard_with(ScriptedJudge(ValueError("zanzibar")))
    verdict = guard.check("zanzibar four beer and now i drive")

    for shown in (repr(verdict), verdict.to_json(), verdict.reason, repr(guard)):
        assert "zanzibar" not in shown


scores = st.builds(RuleScore, st.integers(0, 9), st.floats(-1, 1), st.floats(0, 1), st.just(0))
judgements = st.builds(Judgement, st.floats(0, 1), st.floats(0, 1), st.lists(scores, max_size=4).map(tuple))
limits = st.builds(
    Thresholds, caution=st.floats(0.01, 0.99), intervention=st.floats(0, 1), rule=st.floats(0, 1)
)


@given(judgements, limits, st.booleans(), st.floats(0.5, 1), st.integers(1, 4))
def test_what_holds_for_every_revised_decision(judged, thresholds, unsafe, confidence, most):
    before = decide(judged, thresholds, most)
    broken = tuple(range(len(judged.rules), 0, -1)) if unsafe else ()
    opinion = Opinion(unsafe, broken, confidence=confidence)
    after = revise(before, judged, opinion, judged.rules, thresholds, most)

    assert (after.action is not Action.ALLOW) is unsafe
    assert (after.level is not Level.CASUAL) is unsafe
    assert 0 <= after.probability <= 1
    assert (after.probability >= thresholds.caution) is unsafe
    assert after.touched == before.touched
    assert [rule.position for rule in after.broken] == [judged.rules[n - 1].position for n in broken[:most]]
    assert all(rule.probability >= confidence for rule in after.broken)
    surer = revise(before, judged, replace(opinion, confidence=1.0), judged.rules, thresholds, most)
    assert surer.probability >= after.probability if unsafe else surer.probability <= after.probability


def test_the_probability_follows_bayes_rule():
    before = decide(Judgement(0.4, 0.0, ()), Thresholds(), 3)

    def revised(opinion):
        return revise(before, Judgement(0.4, 0.0, ()), opinion, (), Thresholds(), 3).probability

    assert revised(Opinion(True, confidence=0.9)) == pytest.approx(0.4 * 0.9 / (0.4 * 0.9 + 0.6 * 0.1))
    assert revised(Opinion(False, confidence=0.9)) == pytest.approx(0.4 * 0.1 / (0.4 * 0.1 + 0.6 * 0.9))


# ---------------------------------------------------------------- when there is no answer

FAILURES = {
    "exception": (RuntimeError("secret user text"), "failed with RuntimeError"),
    "timeout of its own": (TimeoutError("secret"), "failed with TimeoutError"),
    "exit": (SystemExit("secret"), "failed with SystemExit"),
    "cancelled": (asyncio.CancelledError("secret"), "failed with CancelledError"),
    "nonsense": (ModelError("judge", "nonsense"), "was no valid answer"),
    "too long": (
        TooLongError("judge", "expected 9 tokens, got 10"),
        "was not given, as the question is too long for the judge",
    ),
    "none": (None, "was no valid answer"),
    "text": ("fine", "was no valid answer"),
    "bool": (True, "was no valid answer"),
    "wrong rule": (Opinion(True, (3,)), "was no valid answer"),
    "NaN": (lambda q: Opinion(True, confidence=float("nan")), "was no valid answer"),
}


@pytest.mark.parametrize(("answer", "reason"), FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize("kind", [ScriptedJudge, AsyncScriptedJudge])
def test_without_an_answer_the_encoder_decides_and_says_so(kind, answer, reason):
    judge = kind(answer)
    guard = guard_with(judge)
    alone = guard_with(None).check_batch([UNSAFE, SAFE])
    for verdicts in three_ways(guard, [UNSAFE, SAFE]):
        assert [(v.status, v.reason, v.judged_by) for v in verdicts] == [
            ("degraded", f"the second opinion {reason}; the encoder decided", "encoder")
        ] * 2
        assert [replace(v, status="ok", reason="") for v in verdicts] == alone
    assert len(judge.asked) == 6  # a failure is not remembered


@pytest.mark.parametrize("on_error", ["closed", "allow", "raise"])
def test_a_failing_judge_is_no_failing_guard(on_error):
    verdict = guard_with(ScriptedJudge(RuntimeError()), on_error=on_error).check(SAFE)

    assert (verdict.status, verdict.action) == ("degraded", Action.ALLOW)


@pytest.mark.parametrize("kind", [ScriptedJudge, AsyncScriptedJudge])
def test_a_hung_judge_is_not_waited_for(kind):
    guard = guard_with(kind(FINE, seconds=3), judge_deadline_ms=150, judge_workers=2)
    started = time.monotonic()
    first, second, third = three_ways(guard, [UNSAFE, SAFE])

    assert time.monotonic() - started < 2
    assert first == second == third
    assert [v.reason for v in first] == [
        "the second opinion took longer than 150 ms; the encoder decided"
    ] * 2
    assert [v.flagged for v in first] == [True, False]


def test_a_judge_that_ignores_its_cancellation_is_not_waited_for():
    class Stubborn:
        async def ajudge(self, question):
            end = time.monotonic() + 0.6
            while time.monotonic() < end:
                try:
                    await asyncio.sleep(0.05)
                except asyncio.CancelledError:
                    continue
            return FINE

    async def timed():
        started = time.monotonic()
        verdict = await guard_with(Stubborn(), judge_deadline_ms=100).acheck(UNSAFE)
        taken = time.monotonic() - started
        await asyncio.sleep(0.7)
        return verdict, taken

    verdict, taken = asyncio.run(timed())
    assert taken < 0.5
    assert verdict.status == "degraded"


def test_calls_that_hang_do_not_pile_up_and_the_judge_comes_back():
    release = threading.Event()

    def hang(question):
        release.wait(10)
        return FINE

    guard = guard_with(ScriptedJudge(hang), judge_deadline_ms=60, judge_workers=2, judge_cache=0)
    before = threading.active_count()
    verdicts = [guard.check(UNSAFE) for _ in range(6)]
    assert threading.active_count() <= before + 2
    assert {v.status for v in verdicts} == {"degraded"}
    release.set()
    verdict = guard.check(UNSAFE)
    for _ in range(20):
        if verdict.status == "ok":
            break
        verdict = guard.check(UNSAFE)
    assert (verdict.status, verdict.judged_by) == ("ok", "judge")


def test_an_answer_that_comes_too_late_is_kept_for_the_next_time():
    answered = threading.Event()

    def slow(question):
        time.sleep(0.3)
        answered.set()
        return BAD

    judge = ScriptedJudge(slow)
    guard = guard_with(judge, judge_deadline_ms=50)
    assert guard.check(SAFE).status == "degraded"
    assert answered.wait(5)
    verdict = guard.check(SAFE)
    for _ in range(50):  # from its return to the cache it is a step yet
        if verdict.judged_by == "judge":
            break
        verdict = guard.check(SAFE)
    assert (verdict.judged_by, verdict.flagged) == ("judge", True)


def test_a_line_that_is_too_long_is_not_joined():
    release = threading.Event()

    def hang(question):
        release.wait(10)
        return FINE

    judge = ScriptedJudge(hang)
    guard = guard_with(judge, judge_workers=1, judge_deadline_ms=1500)

    async def crowd():
        first = asyncio.create_task(guard.acheck(SAFE))
        while not judge.asked:
            await asyncio.sleep(0.01)
        texts = [f"{UNSAFE} {n}" for n in range(WAITING_PER_WORKER + 5)]
        return await asyncio.gather(first, *map(guard.acheck, texts))

    reasons = [verdict.reason for verdict in asyncio.run(crowd())]
    late = "the second opinion took longer than 1500 ms; the encoder decided"
    assert reasons.count(late) == 1 + WAITING_PER_WORKER
    refused = "the second opinion was not asked for, as too many are waiting; the encoder decided"
    assert reasons.count(refused) == 5
    release.set()
    assert guard.check(UNSAFE).judged_by == "judge"  # those that gave up waiting have made way


@pytest.mark.parametrize("kind", [ScriptedJudge, AsyncScriptedJudge])
@pytest.mark.parametrize("on_error", ["closed", "raise"])
def test_without_a_thread_for_the_judge_the_encoder_decides(kind, on_error):
    # In a process of its own. Sync only: `acheck` needs a thread for the encoder first.
    script = f"""
import sys, threading
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_second_opinion import {kind.__name__}, FINE, UNSAFE, guard_with
guard = guard_with({kind.__name__}(FINE), on_error={on_error!r})
def refuse(thread):
    raise RuntimeError("can't start new thread")
threading.Thread.start = refuse
verdict = guard.check(UNSAFE)
print(verdict.status, verdict.flagged, verdict.reason)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (
        "degraded True the second opinion failed with RuntimeError; the encoder decided"
    )


@pytest.mark.parametrize("on_error", ["closed", "allow", "raise"])
def test_whatever_goes_wrong_with_an_answer_on_error_decides(on_error):
    opinion = Opinion(True, (1,))
    guard = guard_with(ScriptedJudge(opinion), on_error=on_error)
    assert guard.check(UNSAFE).judged_by == "judge"
    object.__setattr__(opinion, "broken", (99,))  # what is remembered is no good any more
    if on_error == "raise":
        with pytest.raises(ModelError, match="failed with IndexError"):
            guard.check(UNSAFE)
        with pytest.raises(ModelError, match="failed with IndexError"):
            asyncio.run(guard.acheck(UNSAFE))
    else:
        for (verdict,) in three_ways(guard, [UNSAFE]):
            assert (verdict.status, verdict.flagged) == ("error", on_error == "closed")


def test_a_judge_that_fails_after_its_deadline_leaves_nothing_in_the_log(caplog):
    class Late:
        async def ajudge(self, question):
            try:
                await asyncio.sleep(5)
            except asyncio.CancelledError:
                raise ValueError(question.turns[-1].text) from None

    async def run(guard):
        verdict = await guard.acheck("zanzibar beer")
        await asyncio.sleep(0.1)
        return verdict

    with caplog.at_level(logging.DEBUG):
        guard = guard_with(Late(), judge_deadline_ms=50)
        verdicts = [asyncio.run(run(guard)), guard.check("zanzibar beer")]
        time.sleep(0.1)
        gc.collect()
    assert [verdict.status for verdict in verdicts] == ["degraded"] * 2
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []


def test_no_more_time_is_given_than_the_caller_has():
    judge = ScriptedJudge(FINE, seconds=1)
    guard = guard_with(judge)
    started = time.monotonic()
    verdict = guard.check(UNSAFE, judge_seconds=0.1)
    other = asyncio.run(guard.acheck(SAFE, judge_seconds=0.1))

    assert time.monotonic() - started < 0.9
    assert verdict.reason == other.reason == "the second opinion took longer than 100 ms; the encoder decided"
    asked = len(judge.asked)
    none = "the second opinion was not asked for, as no time was left; the encoder decided"
    assert guard.check(GRAVE, judge_seconds=0.0).reason == none
    assert len(judge.asked) == asked


def test_what_is_remembered_is_known_without_any_time():
    guard = guard_with(ScriptedJudge(FINE))
    first = guard.check(UNSAFE)

    assert guard.check(UNSAFE, judge_seconds=0.0) == first
    assert first.judged_by == "judge"


def test_the_event_loop_stays_free_and_questions_go_side_by_side():
    ticks = []

    async def run(judge):
        guard = guard_with(judge)

        async def tick():
            while True:
                ticks.append(time.monotonic())
                await asyncio.sleep(0.01)

        ticking = asyncio.create_task(tick())
        started = time.monotonic()
        verdicts = await asyncio.gather(*(guard.acheck(f"{UNSAFE} {n}") for n in range(6)))
        taken = time.monotonic() - started
        ticking.cancel()
        return verdicts, taken

    for kind in (ScriptedJudge, AsyncScriptedJudge):
        ticks.clear()
        verdicts, taken = asyncio.run(run(kind(FINE, seconds=0.3)))
        assert {v.judged_by for v in verdicts} == {"judge"}
        assert taken < 1.2
        assert len(ticks) > 10


def test_a_cancelled_check_cancels_the_judge_and_stays_cancelled():
    seen = []

    class Judge:
        async def ajudge(self, question):
            seen.append("started")
            try:
                await asyncio.sleep(5)
            except asyncio.CancelledError:
                seen.append("cancelled")
                raise
            return FINE

    async def run():
        task = asyncio.create_task(guard_with(Judge()).acheck(UNSAFE))
        while not seen:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.05)

    asyncio.run(run())
    assert seen == ["started", "cancelled"]


def test_a_batch_asks_several_at_a_time_but_no_more_than_it_may():
    judge = ScriptedJudge(FINE, seconds=0.1)
    ticks = []
    started = time.monotonic()
    guard_with(judge, judge_workers=4).check_batch(
        [f"{UNSAFE} {n}" for n in range(12)], progress=ticks.append
    )

    assert time.monotonic() - started < 1.0
    assert judge.most_running == 4
    assert ticks == [1] * 12


def test_callers_share_the_limit():
    judge = ScriptedJudge(FINE, seconds=0.05)
    guard = guard_with(judge, judge_workers=3)
    with ThreadPoolExecutor(16) as pool:
        verdicts = list(pool.map(guard.check, [f"{UNSAFE} {n}" for n in range(16)]))

    assert {v.judged_by for v in verdicts} == {"judge"}
    assert judge.most_running == 3


# ---------------------------------------------------------------- memory


def test_the_same_question_is_asked_once():
    for kind in (ScriptedJudge, AsyncScriptedJudge):
        judge = kind(careful)
        guard = guard_with(judge)
        first, *others = three_ways(guard, [UNSAFE])
        assert others == [first, first]
        assert len(judge.asked) == 1
        guard.check([UNSAFE, "Oh", UNSAFE])
        guard.add_rules(["You shouldn't bake beer."])
        guard.check(UNSAFE)
        assert len(judge.asked) == 3


def test_a_cache_of_none_asks_every_time():
    judge = ScriptedJudge(FINE)
    guard = guard_with(judge, judge_cache=0)
    guard.check(UNSAFE)
    guard.check(UNSAFE)

    assert len(judge.asked) == 2


def test_the_least_recently_used_answer_goes_first():
    judge = ScriptedJudge(FINE)
    guard = guard_with(judge, judge_cache=2)
    for text in ("a beer", "b beer", "a beer", "c beer", "a beer", "b beer"):
        guard.check(text)

    assert [question.turns[-1].text[0] for question in judge.asked] == ["a", "b", "c", "b"]


def test_the_cache_keeps_no_text():
    second = SecondOpinion(ScriptedJudge(FINE), deadline_ms=1000, workers=1, cache=9)
    guard = guard_with(None)
    judge = ScriptedJudge(FINE)
    guard.with_judge(judge, **ALL).check("zanzibar")
    second.ask(judge.asked[0])

    assert "zanzibar" not in repr(vars(second))
    assert all(re.fullmatch("[0-9a-f]{64}", key) for key in second._cache)


def test_sixteen_threads_give_the_sequential_results():
    guard = guard_with(ScriptedJudge(careful), judge_cache=3)
    expected = [guard.check(messages) for messages in TALK] * 16
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(guard.check, TALK * 16)) == expected


# ---------------------------------------------------------------- band and settings


def test_the_band_comes_from_calibration_settings_or_the_threshold():
    def band(calibration=None, **settings):
        return Guardrail(
            WordEncoder(), [DRIVING], calibration=calibration, config=GuardConfig.of(**settings)
        ).band

    fitted = Calibration(band=Band(low=0.2, high=0.7))
    assert band() == Band.around(0.5)
    assert (band().low, band().high) == pytest.approx((0.1192, 0.8808), abs=1e-4)
    assert band(fitted) == Band(low=0.2, high=0.7)
    assert band(fitted, uncertain_low=0.3) == Band(low=0.3, high=0.7)
    assert band(fitted, caution_threshold=0.9) == Band.around(0.9)  # a fitted one belongs to its threshold
    assert band(caution_threshold=0.9).low > 0.5
    with pytest.raises(ConfigError, match="expected uncertain_low <= uncertain_high, got 0.8 and 0.7"):
        band(fitted, uncertain_low=0.8)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("uncertain_low", -0.1),
        ("uncertain_high", 1.1),
        ("judge_deadline_ms", 0),
        ("judge_workers", 0),
        ("judge_cache", -1),
    ],
)
def test_a_setting_out_of_range_is_named(name, value):
    with pytest.raises(ConfigError, match=rf"^setting '{name}': .+, got {value!r}$"):
        GuardConfig.of(**{name: value})


def test_a_band_survives_the_calibration_file_and_old_files_have_none():
    calibration = Calibration(band=Band(low=0.1, high=0.8))

    assert Calibration.parse(json.dumps(as_json(calibration)), "x") == calibration
    old = as_json(Calibration())
    del old["band"]
    assert Calibration.parse(json.dumps(old), "x").band is None
    with pytest.raises(Exception, match="expected low <= high, got 0.8 and 0.1"):
        Calibration.parse('{"band": {"low": 0.8, "high": 0.1}}', "x")


def test_with_judge_cannot_change_how_the_model_was_loaded():
    with pytest.raises(ConfigError, match=r"expected threads=1, .+ got 2; load a guard with that setting"):
        guard_with(None).with_judge(None, threads=2)


def test_with_judge_shares_the_model_and_changes_nothing_in_the_first_guard():
    guard = guard_with(None)
    other = guard.with_judge(ScriptedJudge(FINE), caution_threshold=0.3, max_rules=1)
    guard.add_rules(["You shouldn't bake beer."])

    assert (guard.check(UNSAFE).flagged, other.check(UNSAFE).flagged) == (True, False)
    assert (guard.thresholds.caution, other.thresholds.caution) == (0.5, 0.3)
    assert (len(guard.rules), len(other.rules)) == (3, 2)
    assert other.with_judge(None).check(UNSAFE) == replace(
        guard_with(None, max_rules=1, caution_threshold=0.3).check(UNSAFE)
    )


def test_load_takes_a_judge_and_its_canary_does_not_ask_it(folder):
    judge = ScriptedJudge(FINE)
    guard = Guardrail.load(folder, judge=judge, **ALL)

    assert judge.asked == []
    assert guard.check(UNSAFE).judged_by == "judge"
    assert not guard.check(UNSAFE).flagged
    assert Guardrail.load(folder).check(UNSAFE).flagged


def test_what_is_no_judge_is_refused(folder):
    with pytest.raises(ConfigError, match="expected a judge, a callable .+, got int"):
        Guardrail.load(folder, judge=5)


# ---------------------------------------------------------------- the middleware


def test_wrap_and_generate_ask_the_judge_about_both_sides():
    judge = ScriptedJudge(careful)
    guard = guard_with(judge)
    llm = ScriptedLLM(UNSAFE_REPLY, SAFE_REPLY)
    result = guard.generate(llm, "had beer")

    assert result.text == SAFE_REPLY
    assert (result.verdict_in.judged_by, result.verdict_out.judged_by) == ("judge", "judge")
    assert [attempt.flagged for attempt in result.attempts] == [True, False]
    assert guard.wrap(ScriptedLLM(UNSAFE_REPLY, SAFE_REPLY))("had beer") == SAFE_REPLY
    assert asyncio.run(guard.agenerate(ScriptedLLM(SAFE_REPLY).acall, "had beer")).text == SAFE_REPLY


def test_a_judge_that_says_fine_lets_a_flagged_draft_pass():
    guard = guard_with(ScriptedJudge(FINE))

    assert guard.wrap(ScriptedLLM(UNSAFE_REPLY))("had beer") == UNSAFE_REPLY


def test_a_judge_that_says_unsafe_keeps_a_draft_back():
    guard = guard_with(ScriptedJudge(lambda q: BAD if q.turns[-1].role == "assistant" else FINE))
    shown = guard.generate(ScriptedLLM("Lovely bread!"), SAFE)

    assert shown.text != "Lovely bread!"
    assert shown.strategy == "composed"


def test_without_a_second_opinion_on_error_allow_shows_what_the_encoder_lets_pass():
    guard = guard_with(ScriptedJudge(RuntimeError()), on_error="allow")
    shown = guard.generate(ScriptedLLM(UNSAFE_REPLY, SAFE_REPLY), "had beer")

    assert shown.text == SAFE_REPLY
    assert (shown.verdict_out.status, shown.verdict_out.judged_by) == ("degraded", "encoder")


@pytest.mark.parametrize("on_error", ["closed", "raise", "allow"])
@pytest.mark.parametrize("side", ["assistant", "user"])
def test_where_the_second_opinion_is_missing_the_encoder_decides_what_is_shown(side, on_error):
    def fails(question):
        if question.turns[-1].role == side:
            raise RuntimeError
        return FINE

    guard = guard_with(ScriptedJudge(fails), on_error=on_error)
    shown = guard.generate(ScriptedLLM(SAFE_REPLY), "had beer")
    assert (shown.text, shown.changed) == (SAFE_REPLY, False)
    verdicts = {"user": shown.verdict_in, "assistant": shown.verdict_out}
    assert (verdicts[side].status, verdicts[side].judged_by) == ("degraded", "encoder")
    if side == "assistant":
        kept_back = guard.generate(ScriptedLLM(UNSAFE_REPLY, SAFE_REPLY), "had beer")
        assert [attempt.flagged for attempt in kept_back.attempts] == [True, False]
        assert kept_back.text == SAFE_REPLY


def test_a_draft_with_unread_parts_is_not_shown_though_its_judge_fails_too():
    draft = {"role": "assistant", "content": [{"type": "text", "text": SAFE_REPLY}, {"type": "image"}]}
    shown = guard_with(ScriptedJudge(RuntimeError())).generate(ScriptedLLM(draft, "Take a taxi."), "had beer")

    assert [attempt.flagged for attempt in shown.attempts] == [True, False]
    assert shown.text == "Take a taxi."


def test_the_deadline_of_a_reply_holds_for_its_judge_too():
    guard = guard_with(ScriptedJudge(FINE, seconds=2), deadline_ms=300)
    started = time.monotonic()
    shown = guard.generate(ScriptedLLM(SAFE_REPLY), SAFE)

    assert time.monotonic() - started < 1.2
    assert shown.verdict_in.status == "degraded"
    started = time.monotonic()
    asyncio.run(guard.agenerate(ScriptedLLM(SAFE_REPLY).acall, SAFE))
    assert time.monotonic() - started < 1.2
