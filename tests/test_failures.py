"""Every part that can fail x every way to fail x every way to run the guard x every `on_error`.

A failure never looks like a pass, shows nothing that was not judged, tells nobody's text, is left within
its time limit, leaves nothing behind, and once it is lifted the same guard works again.
"""

import asyncio
import functools
import gc
import itertools
import math
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from fakes import DRIVING, GRAVE, PRIVACY, SAFE, SAFE_REPLY, UNSAFE, UNSAFE_REPLY, WordEncoder, make_guard
from faults import (
    CASUAL,
    CHECKS,
    LONG,
    NEEDED,
    PARTS,
    REPLIES,
    SECRET,
    SHORT,
    SHORT_FOR_HELPERS,
    Fault,
    FaultyLLM,
    Seen,
    eventually,
    guard_with,
    in_loop,
    threads,
)

from guardrail import Guardrail, InputError, ModelError
from guardrail.calling import MOST_CALLS
from guardrail.compose import UNAVAILABLE
from guardrail.lazy import Lazy
from guardrail.relevance import Relation

try:
    from faulty_http import HTTP, STREAMS, UPSTREAM, WHOLE, FaultyUpstream
except ImportError:  # the proxy extra is not installed
    HTTP, STREAMS, UPSTREAM, WHOLE, FaultyUpstream = {}, {}, {}, {}, FaultyLLM

PARTS = PARTS | UPSTREAM
ON_ERROR = ("closed", "raise", "allow")
FEW = ("check", "generate", "astream")  # one way of each kind
LATE = 5.0  # seconds; far more than any limit here, far less than what hangs
CELL = ("part", "kind", "way", "on_error")


@pytest.fixture(scope="module", autouse=True)
def small_heap():
    """Leave what is there already out of `gc.collect`, which then takes no time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def nothing_is_left(caplog):
    """No thread, no complaint, and no text in a log, whatever went wrong."""
    before = threads()
    yield
    gc.collect()  # a coroutine or a task that nobody waited for complains now
    assert eventually(lambda: threads() <= before), threads() - before
    assert SECRET not in caplog.text
    assert "never" not in caplog.text


@pytest.fixture
def fault_of():
    """Make faults; all of them are lifted at the end."""
    made = []

    def make(part, kind):
        made.append(Fault(*PARTS[part][kind]))
        return made[-1]

    yield make
    for fault in made:
        fault.lift()


def cells(parts, ways):
    """Return rows of (part, kind, way, on_error): all that differ in more than a detail of what is returned.

    Behind HTTP the steps are those of other ways, so fewer rows are enough.
    """
    return [
        (part, kind, way, on_error)
        for part in parts
        for number, kind in enumerate(PARTS[part])
        for way in ways
        for on_error in ON_ERROR
        if _differs(part, number, way, on_error)
    ]


def _differs(part, number, way, on_error):
    closed = on_error == "closed"
    hangs = number == 1  # what takes time
    if part in UPSTREAM:
        return closed or number in (0, 6)
    if way in HTTP:
        return (
            number < 4 and (way in ("proxy", "client stream") or closed) and not (hangs and part != "encoder")
        )
    if number < 6:
        return closed or way in FEW or not hangs
    return way == "check" or (closed and way in FEW)


def limits(part, kind):
    """Return the settings to try: without time limits the work is done elsewhere than with them."""
    if kind.startswith("hangs"):
        return [SHORT if part in NEEDED else SHORT_FOR_HELPERS]
    return [{}, LONG] if kind in list(PARTS[part])[:5] and part not in UPSTREAM else [{}]


def patient(test):
    """Try what hangs up to three times: a machine may pause for longer than limits that are short."""

    @functools.wraps(test)
    def tried(**row):
        for last in (False, False, True):
            try:
                return test(**row)
            except AssertionError:
                if last or not row["kind"].startswith("hangs"):
                    raise

    return tried


def run(way, guard, llm=None):
    """Run it; what may never happen did not."""
    seen = Seen()
    way(guard, llm, seen)
    assert seen.left_behind == []
    for verdict in seen.verdicts:
        assert math.isfinite(verdict.probability)
        for match in (*verdict.rules, *verdict.touched):
            assert math.isfinite(match.probability)
            assert math.isfinite(match.similarity)
    if llm is None or llm.fault is None:  # the LLM's own error is the app's, with all its words
        assert SECRET not in seen.in_words()
    return seen


def works_again(guard, fault, llm=None):
    assert fault.kind.startswith("hangs") or llm is None or llm.open == 0
    fault.lift()
    assert eventually(lambda: llm is None or llm.open == 0)  # a thread that hung closes what it had open
    assert eventually(lambda: [guard.check(text).status for text in (SAFE, UNSAFE)] == ["ok", "ok"]), (
        "the guard did not recover"
    )
    assert [guard.check(text).flagged for text in (SAFE, UNSAFE)] == [False, True]
    # The first call after a hang may still meet a thread that is just coming back.
    assert eventually(lambda: guard.generate(FaultyLLM(SAFE_REPLY).call, CASUAL).text == SAFE_REPLY)


# ---------------------------------------------------------------- judging


@pytest.mark.parametrize(CELL, cells(["encoder", "index search", "index vectors"], CHECKS))
@patient
def test_a_judgement_without_a_part_it_needs_is_an_error(fault_of, part, kind, way, on_error):
    for settings in limits(part, kind):
        fault = fault_of(part, kind)
        guard = guard_with(part, fault, on_error=on_error, **settings)
        fault.on = True
        seen = run(CHECKS[way], guard)

        assert fault.struck.is_set()
        assert seen.seconds < LATE
        if on_error == "raise":
            assert isinstance(seen.error, ModelError)
        else:
            assert seen.error is None
            assert [(v.status, v.flagged) for v in seen.verdicts] == [("error", on_error == "closed")] * 2
            assert all(f"on_error='{on_error}' decided" in v.reason for v in seen.verdicts)
        works_again(guard, fault)


@pytest.mark.parametrize(CELL, cells(["judge", "async judge"], CHECKS))
@patient
def test_without_its_judge_the_encoder_decides_whatever_on_error_says(fault_of, part, kind, way, on_error):
    for settings in limits(part, kind):
        fault = fault_of(part, kind)
        guard = guard_with(part, fault, on_error=on_error, **settings)
        fault.on = True
        seen = run(CHECKS[way], guard)

        assert fault.struck.is_set()
        assert seen.seconds < LATE
        assert [(v.status, v.flagged) for v in seen.verdicts] == [("degraded", False), ("degraded", True)]
        works_again(guard, fault)


# ---------------------------------------------------------------- guarded replies


@pytest.mark.parametrize(CELL, cells(NEEDED, REPLIES | HTTP))
@patient
def test_a_reply_that_cannot_be_judged_is_not_shown(fault_of, part, kind, way, on_error):
    for settings in limits(part, kind):
        fault = fault_of(part, kind)
        guard = guard_with(part, fault, on_error=on_error, **settings)
        fault.on = True
        llm = FaultyUpstream(UNSAFE_REPLY)
        seen = run((REPLIES | HTTP)[way], guard, llm)

        assert fault.struck.is_set() or kind == "hangs"  # then nothing else was judged in time either
        assert seen.seconds < LATE
        if on_error == "raise":
            assert isinstance(seen.error, ModelError)
            assert seen.shown == ""
        elif on_error == "closed":
            assert (seen.shown, seen.strategy, seen.status) == (UNAVAILABLE, "unavailable", "error")
            assert "another beer" not in seen.raw
        else:
            assert (seen.shown, seen.status) == (UNSAFE_REPLY, "error")
        if on_error != "allow" and part != "encoder on replies":
            assert llm.calls == 0
        works_again(guard, fault, llm)


@pytest.mark.parametrize(CELL, cells(["relevance", "rewriter", "judge", "async judge"], REPLIES | HTTP))
@patient
def test_without_what_helps_to_repair_an_unsafe_reply_is_still_replaced(fault_of, part, kind, way, on_error):
    for settings in limits(part, kind):
        fault = fault_of(part, kind)
        guard = guard_with(part, fault, on_error=on_error, **settings)
        fault.on = True
        llm = FaultyUpstream(UNSAFE_REPLY)
        seen = run((REPLIES | HTTP)[way], guard, llm)

        assert fault.struck.is_set()
        assert seen.seconds < LATE
        if part == "relevance" and on_error == "raise":
            assert isinstance(seen.error, ModelError)
            assert seen.error.stage == "relevance"
            assert seen.shown == ""
        else:
            assert seen.error is None
            assert seen.strategy == "composed"
            assert "another beer" not in seen.shown
            assert seen.status == ("degraded" if part.endswith("judge") else "ok")
        works_again(guard, fault, llm)


# ---------------------------------------------------------------- the LLM itself


def is_the_llms_own(error, kind):
    """Return True if this is what an app would see without the guard, or the reason why it cannot be read."""
    if kind.startswith("returns"):
        return isinstance(error, InputError)
    # No coroutine, generator or future can raise StopIteration: Python makes a RuntimeError of it.
    expected = {"raises": RuntimeError, "stops": (StopIteration, RuntimeError)}
    return isinstance(error, expected.get(kind, asyncio.CancelledError))


@pytest.mark.parametrize(CELL, cells(["LLM"], REPLIES))
@patient
def test_the_first_error_of_the_llm_is_the_apps(fault_of, part, kind, way, on_error):
    for settings in limits(part, kind):
        fault = fault_of(part, kind)
        guard = make_guard(on_error=on_error, **settings)
        fault.on = True
        llm = FaultyLLM(SAFE_REPLY, fault=fault)
        seen = run(REPLIES[way], guard, llm)

        assert fault.struck.is_set()
        assert seen.seconds < LATE
        if kind == "hangs":
            assert (seen.shown, seen.strategy) == (UNAVAILABLE, "unavailable")
            assert seen.reply.attempts[0].error == "TimeoutError"
        else:
            assert is_the_llms_own(seen.error, kind)
            assert seen.shown == ""
        works_again(guard, fault, llm)


@pytest.mark.parametrize(CELL, cells(["LLM"], REPLIES))
@patient
def test_an_llm_that_fails_to_make_a_rejected_reply_again_is_done_without(
    fault_of, part, kind, way, on_error
):
    for settings in limits(part, kind):
        fault = fault_of(part, kind)
        guard = make_guard(on_error=on_error, **settings)
        fault.on = True
        llm = FaultyLLM(UNSAFE_REPLY, SAFE_REPLY, fault=fault, call_number=2)
        seen = run(REPLIES[way], guard, llm)

        assert fault.struck.is_set()
        assert seen.seconds < LATE
        if kind == "is cancelled" or kind.startswith("returns"):
            assert is_the_llms_own(seen.error, kind)
            assert seen.shown == ""
        else:
            assert (seen.strategy, seen.status) == ("composed", "ok")
            assert "another beer" not in seen.shown
        works_again(guard, fault, llm)


@pytest.mark.parametrize(CELL, cells(["LLM"], [way for way in REPLIES if "stream" in way]))
@patient
def test_of_a_stream_that_breaks_only_what_was_judged_is_shown(fault_of, part, kind, way, on_error):
    for settings in limits(part, kind):
        fault = fault_of(part, kind)
        guard = make_guard(on_error=on_error, **settings)
        fault.on = True
        llm = FaultyLLM(f"Lovely bread. {UNSAFE_REPLY}", fault=fault, piece_number=6)
        seen = run(REPLIES[way], guard, llm)

        assert fault.struck.is_set()
        assert seen.seconds < LATE
        if kind == "hangs":
            assert seen.shown == f"Lovely bread.\n\n{UNAVAILABLE}"
        else:
            assert is_the_llms_own(seen.error, kind)
            assert seen.shown == "Lovely bread."
        works_again(guard, fault, llm)


@pytest.mark.parametrize("on_error", ON_ERROR)
@pytest.mark.parametrize("way", REPLIES)
@pytest.mark.parametrize("reply", ["", " \n "])
def test_an_llm_that_says_nothing_is_asked_again_and_then_done_without(reply, way, on_error):
    llm = FaultyLLM(reply)
    seen = run(REPLIES[way], make_guard(on_error=on_error), llm)

    assert (seen.shown, seen.strategy, llm.calls) == (UNAVAILABLE, "unavailable", 3)


# ---------------------------------------------------------------- the upstream behind HTTP


def is_told(seen, kind, way):
    """Return True if the caller can see that the upstream failed, and how."""
    if kind.startswith("answers"):
        return (seen.code, seen.ended) == (int(kind.split()[1]), False)
    if "proxy" in way:
        late = kind == "times out"
        code = "upstream_timeout" if late else ("bad_upstream_reply", "upstream_failed")
        told = (seen.code, seen.failure in code) == (504 if late else 502, True)
        return told or ("stream" in way and seen.failure in code and not seen.ended)
    if kind in ("refuses", "times out", "breaks off"):
        return type(seen.error).__name__ in ("ConnectError", "ReadTimeout", "ReadError")
    if "stream" in way:
        return type(seen.error).__name__ == "RemoteProtocolError"
    return (seen.code, seen.failure) == (502, "bad_upstream_reply")


@pytest.mark.parametrize(CELL, cells(["reply"], WHOLE) + cells(["stream"], STREAMS))
@patient
def test_the_first_failure_of_the_upstream_is_told(fault_of, part, kind, way, on_error):
    (settings,) = limits(part, kind)
    fault = fault_of(part, kind)
    fault.on = True
    guard = make_guard(on_error=on_error, **settings)
    llm = FaultyUpstream(SAFE_REPLY, fault=fault)
    seen = run(HTTP[way], guard, llm)

    assert fault.struck.is_set()
    assert seen.seconds < LATE
    if kind.startswith("hangs"):
        assert (seen.shown, seen.strategy) == (UNAVAILABLE, "unavailable")
    else:
        assert is_told(seen, kind, way)
        assert seen.shown == ""
        if "proxy" in way:
            assert SECRET not in seen.raw
    works_again(guard, fault, llm)


@pytest.mark.parametrize(CELL, cells(["reply"], WHOLE) + cells(["stream"], STREAMS))
@patient
def test_an_upstream_that_fails_to_make_a_rejected_reply_again_is_done_without(
    fault_of, part, kind, way, on_error
):
    (settings,) = limits(part, kind)
    fault = fault_of(part, kind)
    fault.on = True
    guard = make_guard(on_error=on_error, **settings)
    llm = FaultyUpstream(UNSAFE_REPLY, SAFE_REPLY, fault=fault, call_number=2)
    seen = run(HTTP[way], guard, llm)

    assert fault.struck.is_set()
    assert seen.seconds < LATE
    assert (seen.code, seen.strategy, seen.status, seen.ended) == (200, "composed", "ok", True)
    assert "another beer" not in seen.raw
    assert SECRET not in seen.in_words()
    works_again(guard, fault, llm)


@pytest.mark.parametrize(CELL, cells(["rest of a stream"], STREAMS))
@patient
def test_of_an_upstreams_stream_that_breaks_only_what_was_judged_is_shown(
    fault_of, part, kind, way, on_error
):
    (settings,) = limits(part, kind)
    fault = fault_of(part, kind)
    fault.on = True
    guard = make_guard(on_error=on_error, **settings)
    llm = FaultyUpstream(f"Lovely bread. {UNSAFE_REPLY}", fault=fault, piece_number=6)
    seen = run(HTTP[way], guard, llm)

    assert fault.struck.is_set()
    assert seen.seconds < LATE
    assert "another" not in seen.raw
    if kind.startswith("hangs"):
        assert seen.shown == f"Lovely bread.\n\n{UNAVAILABLE}"
    else:
        assert is_told(seen, kind, way)
        assert (seen.shown, seen.ended) == ("Lovely bread.", False)
    works_again(guard, fault, llm)


# ---------------------------------------------------------------- the caller gives up


@pytest.mark.parametrize(
    ("part", "way"),
    [(part, "acheck") for part in ("encoder", "index search", "index vectors", "judge", "async judge")]
    + [(part, way) for part in PARTS if part not in UPSTREAM for way in REPLIES if way.startswith("a")],
)
def test_cancelling_a_task_cancels_it_and_leaves_nothing(fault_of, part, way):
    fault = fault_of(part, "hangs")
    works = part == "LLM"
    guard = make_guard() if works else guard_with(part, fault)
    fault.on = True
    llm = FaultyLLM(UNSAFE_REPLY, fault=fault if works else None)
    seen, taken = Seen(), []

    async def main():
        if way == "acheck":
            task = asyncio.create_task(guard.acheck(UNSAFE))
        elif "astream" in way:
            source = llm.stream if "sync" in way else llm.astream
            task = asyncio.create_task(collected(guard.astream(source, CASUAL)))
        else:
            source = llm.call if "sync" in way else llm.acall
            task = asyncio.create_task(guard.agenerate(source, CASUAL))
        while not fault.struck.is_set():
            await asyncio.sleep(0.002)
        started = time.monotonic()
        task.cancel()
        await asyncio.wait([task])
        taken.append(time.monotonic() - started)
        assert task.cancelled()

    in_loop(main, seen)
    assert (seen.error, seen.left_behind) == (None, [])
    assert taken[0] < LATE
    assert seen.seconds < LATE  # the loop ends, though the call in its thread goes on
    works_again(guard, fault, llm)


async def collected(pieces):
    return [piece async for piece in pieces]


# ---------------------------------------------------------------- what is left, and what comes back


def test_a_window_that_the_encoder_left_out_is_not_taken_for_safe():
    class ReadsTheFirstWindow(WordEncoder):
        def encode(self, windows):
            return super().encode(windows[:1])

    guard = Guardrail(ReadsTheFirstWindow(), [DRIVING])
    long = f"{SAFE} " * 40 + UNSAFE
    assert make_guard().check(long).flagged
    verdict = guard.check(long)

    assert (verdict.status, verdict.flagged) == ("error", True)
    assert guard.check(SAFE).status == "ok"


@pytest.mark.parametrize("kind", [kind for kind in PARTS["encoder"] if kind != "hangs"])
def test_a_rule_that_the_encoder_fails_on_is_not_added(fault_of, kind):
    fault = fault_of("encoder", kind)
    guard = guard_with("encoder", fault)
    fault.on = True
    with pytest.raises(ModelError) as caught:
        guard.add_rules(["Be fair.", "Be kind."])

    assert SECRET not in str(caught.value)
    assert guard.rules == (DRIVING, PRIVACY)
    fault.lift()
    guard.add_rules(["Be fair."])
    assert guard.search_rules("Be fair.", 1)[0][0].text == "Be fair."


@pytest.mark.parametrize("kind", [kind for kind in PARTS["index search"] if kind != "hangs"])
def test_rules_that_cannot_be_searched_are_an_error(fault_of, kind):
    fault = fault_of("index search", kind)
    guard = guard_with("index search", fault)
    fault.on = True
    for call in (guard.search_rules, guard.rank_rules):
        with pytest.raises(ModelError) as caught:
            call("beer")
        assert SECRET not in str(caught.value)


def test_judgements_that_hang_hold_few_threads_and_the_rest_is_refused_in_time(fault_of):
    fault = fault_of("encoder", "hangs")
    guard = guard_with("encoder", fault, check_deadline_ms=60, workers=3, max_waiting=5)
    before = len(threads())
    fault.on = True
    held = []

    async def crowd():
        verdicts = await asyncio.gather(*(guard.acheck(SAFE) for _ in range(50)))
        held.append(len(threads()) - before)
        return verdicts

    verdicts = asyncio.run(crowd())
    assert held == [3]
    assert {(v.status, v.flagged) for v in verdicts} == {("error", True)}
    assert len({v.reason for v in verdicts}) == 2  # too late, and too many
    works_again(guard, fault)


def test_sync_calls_of_an_llm_that_hang_are_bounded_too(fault_of):
    fault = fault_of("LLM", "hangs")
    guard = make_guard(deadline_ms=30)
    before = len(threads())
    fault.on = True

    def generated(_):
        return guard.generate(FaultyLLM(SAFE_REPLY, fault=fault).call, SAFE).strategy

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(generated, range(MOST_CALLS + 100))) == {"unavailable"}
    assert len(threads()) - before <= MOST_CALLS
    works_again(guard.with_judge(None, deadline_ms=None), fault)


@pytest.mark.parametrize("part", ["relevance", "rewriter"])
def test_a_repair_that_hangs_does_not_keep_other_replies_from_being_judged(fault_of, part):
    fault = fault_of(part, "hangs")
    guard = guard_with(part, fault, **SHORT_FOR_HELPERS, workers=1)
    fault.on = True
    for _ in range(3):
        result = guard.generate(FaultyLLM(UNSAFE_REPLY).call, CASUAL)
        assert result.strategy == "composed"
    assert guard.generate(FaultyLLM("Lovely!").call, SAFE).text == "Lovely!"
    works_again(guard, fault)


def test_a_relevance_model_that_hangs_is_left_under_a_limit_for_judgements_alone(fault_of):
    fault = fault_of("relevance", "hangs")
    guard = guard_with("relevance", fault, check_deadline_ms=2000, grace_ms=50, max_attempts=1)
    fault.on = True
    limited = guard.with_judge(None, check_deadline_ms=150)
    started = time.monotonic()
    assert limited.generate(FaultyLLM(UNSAFE_REPLY).call, CASUAL).strategy == "composed"
    assert time.monotonic() - started < LATE


def test_a_rewrite_model_that_does_not_stop_is_not_judged_for_ever(fault_of):
    fault = Fault("returns", [f"beer {number} drive" for number in range(10_000)])
    guard = guard_with("rewriter", fault)
    fault.on = True
    result = guard.generate(FaultyLLM(UNSAFE_REPLY).call, CASUAL)

    assert [attempt.strategy for attempt in result.attempts].count("rewritten") == 4
    assert result.strategy == "composed"


def test_a_hook_that_raises_stop_iteration_does_not_stop_the_loop_for_ever():
    async def main():
        async with asyncio.timeout(10):
            await make_guard().agenerate(FaultyLLM(SAFE_REPLY).acall, GRAVE, on_intervention=hook)

    def hook(messages, verdict):
        return next(iter(()))

    with pytest.raises(RuntimeError, match="the call raised StopIteration"):
        asyncio.run(main())


def test_what_could_not_be_loaded_is_tried_again_after_a_pause_and_its_error_does_not_grow():
    tries = []

    def load():
        tries.append(1)
        if len(tries) < 3:
            raise OSError("no file")
        return "model"

    def depth(lazy):
        with pytest.raises(OSError, match="no file") as caught:
            lazy.get()
        return len(caught.traceback)

    patient = Lazy(load, pause=60)
    depths = [depth(patient) for _ in range(20)]
    assert (len(tries), depths[-1]) == (1, depths[1])
    prompt = Lazy(load, pause=0)
    depth(prompt)
    assert [prompt.get() for _ in range(3)] == ["model"] * 3
    assert len(tries) == 3


# ---------------------------------------------------------------- many at once

MANY = [
    SAFE,
    UNSAFE,
    GRAVE,
    CASUAL,
    ["four beer please", "Here you are!", "now i drive"],
    "i dr1ve, beer",
    " ",
]
SCRIPTS = [(SAFE_REPLY,), (UNSAFE_REPLY,), (UNSAFE_REPLY, SAFE_REPLY), (f"Lovely. {UNSAFE_REPLY}", "Taxi?")]


def requests(number):
    """Return so many pairs of a conversation and an LLM."""
    pairs = itertools.cycle(itertools.product(MANY, SCRIPTS))
    return [(messages, FaultyLLM(*script)) for messages, script in itertools.islice(pairs, number)]


def outcome(reply):
    return reply.text, reply.strategy, reply.verdict_in, reply.verdict_out, len(reply.attempts)


def test_sixteen_threads_get_what_one_gets():
    guard = make_guard()

    def judged(request):
        return guard.check(request[0])

    def generated(request):
        return outcome(guard.generate(request[1].call, request[0]))

    def streamed(request):
        pieces = guard.stream(request[1].stream, request[0])
        return list(pieces), outcome(pieces.result)

    with ThreadPoolExecutor(16) as pool:
        for call in (judged, generated, streamed):
            assert list(pool.map(call, requests(160))) == list(map(call, requests(160)))


def test_five_hundred_coroutines_get_what_one_gets():
    guard = make_guard()

    async def judged(request):
        return await guard.acheck(request[0])

    async def generated(request):
        return outcome(await guard.agenerate(request[1].acall, request[0]))

    async def streamed(request):
        pieces = guard.astream(request[1].astream, request[0])
        return [piece async for piece in pieces], outcome(pieces.result)

    async def main():
        for call in (judged, generated, streamed):
            one_by_one = [await call(request) for request in requests(28)]
            all_at_once = await asyncio.gather(*map(call, requests(500)))
            assert all_at_once == list(itertools.islice(itertools.cycle(one_by_one), 500))

    asyncio.run(main())


def test_the_shipped_model_judges_the_same_beside_others():
    guard = Guardrail.load()
    texts = MANY[:4]
    alone = [guard.check(text) for text in texts]
    assert [verdict.status for verdict in alone] == ["ok"] * 4

    async def crowd():
        return await asyncio.gather(*(guard.acheck(text) for text in texts * 8))

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(guard.check, texts * 8)) == alone * 8
    assert asyncio.run(crowd()) == alone * 8


def test_the_event_loop_is_never_blocked_for_long():
    class Slow(WordEncoder):
        def encode(self, windows):
            time.sleep(0.05)
            return super().encode(windows)

    guard = Guardrail(Slow(), [DRIVING, PRIVACY], relevance=SlowRelevance())

    async def longest_pause():
        """Return the longest time that the loop did not come round while replies were judged."""
        tasks = [
            asyncio.create_task(guard.acheck(UNSAFE)),
            asyncio.create_task(guard.agenerate(FaultyLLM(UNSAFE_REPLY, SAFE_REPLY).acall, UNSAFE)),
            asyncio.create_task(collected(guard.astream(FaultyLLM(f"One. {SAFE_REPLY}").astream, SAFE))),
        ]
        longest, last = 0.0, time.perf_counter()
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
        return longest

    # A busy machine may keep the loop waiting now and then; what blocks it does so every time.
    assert eventually(lambda: asyncio.run(longest_pause()) < 0.02, 20)


class SlowRelevance:
    def relations(self, turns, statements):
        time.sleep(0.05)
        return [Relation(0.9, 0.1) for _ in statements]
