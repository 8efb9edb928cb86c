"""Bounded threads, and many callers at once: nothing grows or blocks the event loop, results are the same."""

import asyncio
import contextvars
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from fakes import DRIVING, PRIVACY, UNSAFE, WordEncoder, make_guard

from guardrail import Guardrail
from guardrail.threads import OverloadedError, Workers

NAME = "test-worker"
DRAFTS = [
    "Sure thing. Bake bread! Then eat it.",
    "Sure thing. Now drive off! It is a fine night.",
    "You shouldn't drive. Take a taxi.",
    "Have another beer.",
]
ASKED = ["had beer and what now?", "we baked bread", UNSAFE, "beer for a short way, however"]


def wait_for(condition):
    limit = time.monotonic() + 5
    while not condition() and time.monotonic() < limit:
        time.sleep(0.005)
    assert condition()


def threads(name=NAME):
    return [thread for thread in threading.enumerate() if thread.name.startswith(name)]


# ------------------------------------------------------------ the threads


def test_no_more_threads_run_than_may_and_they_end_when_idle():
    workers, gate = Workers(3, 100, NAME), threading.Event()
    futures = [workers.submit(gate.wait) for _ in range(20)]

    wait_for(lambda: sum(future.running() for future in futures) == 3)
    assert len(threads()) == 3
    assert all(thread.daemon for thread in threads())
    gate.set()
    assert all(future.result(5) for future in futures)
    wait_for(lambda: not threads())
    assert workers.submit(lambda: 7).result(5) == 7  # and come back


def test_a_full_line_refuses_at_once_and_what_was_given_up_makes_way():
    workers, gate = Workers(1, 2, NAME), threading.Event()
    running = workers.submit(gate.wait)
    wait_for(running.running)
    first, second = workers.submit(lambda: 1), workers.submit(lambda: 2)

    with pytest.raises(OverloadedError, match="at most 2 waiting calls"):
        workers.submit(lambda: 3)
    first.cancel()
    third = workers.submit(lambda: 3)
    gate.set()
    assert [second.result(5), third.result(5)] == [2, 3]


def test_a_call_has_the_context_of_who_asked():
    variable = contextvars.ContextVar("variable", default="none")
    workers = Workers(1, 10, NAME)
    variable.set("mine")

    assert workers.run(variable.get, 5) == "mine"
    workers.run(lambda: variable.set("theirs"), 5)
    assert variable.get() == "mine"


def test_errors_come_through_and_the_thread_goes_on():
    workers = Workers(1, 10, NAME)

    def exits():
        raise SystemExit(3)

    with pytest.raises(ZeroDivisionError):
        workers.run(lambda: 1 / 0, 5)
    with pytest.raises(SystemExit):
        workers.run(exits, 5)
    assert workers.run(lambda: 5, 5) == 5


def test_stop_iteration_does_not_hang_who_awaits():
    async def main():
        return await asyncio.wait_for(Workers(1, 10, NAME).arun(lambda: next(iter([]))), 5)

    with pytest.raises(RuntimeError, match="StopIteration"):
        asyncio.run(main())


def test_what_is_late_is_left_alone_and_what_has_not_begun_never_does():
    workers, gate, ran = Workers(1, 10, NAME), threading.Event(), []
    with pytest.raises(TimeoutError, match=r"within 0\.05 s"):
        workers.run(gate.wait, 0.05)
    with pytest.raises(TimeoutError):
        workers.run(lambda: ran.append(1), 0.05)
    gate.set()
    wait_for(lambda: not threads())
    assert ran == []


def test_a_cancelled_caller_takes_its_call_out_of_the_line():
    workers, gate, ran = Workers(1, 10, NAME), threading.Event(), []

    async def main():
        running = asyncio.create_task(workers.arun(gate.wait))
        await asyncio.sleep(0.02)
        waiting = asyncio.create_task(workers.arun(lambda: ran.append(1)))
        await asyncio.sleep(0.02)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        gate.set()
        assert await running

    asyncio.run(main())
    wait_for(lambda: not threads())
    assert ran == []


# ------------------------------------------------------------ many at once


def told(result):
    return (result.text, result.strategy, result.verdict_in, result.verdict_out) + tuple(
        replace(attempt, seconds=0.0) for attempt in result.attempts
    )


CASES = [(asked, draft) for asked in ASKED for draft in DRAFTS]


def stream_of(draft):
    def stream(messages):
        yield from (draft[at : at + 5] for at in range(0, len(draft), 5))

    return stream


def astream_of(draft):
    async def stream(messages):
        for piece in stream_of(draft)(messages):
            await asyncio.sleep(0)
            yield piece

    return stream


def one_by_one(guard):
    found = []
    for asked, draft in CASES:
        stream = guard.stream(stream_of(draft), asked)
        found.append(("".join(stream), told(stream.result)))
    return found


def test_sixteen_threads_stream_what_one_does():
    guard = make_guard(max_attempts=2)
    expected = one_by_one(guard)
    assert len({text for text, _ in expected}) > 4

    with ThreadPoolExecutor(16) as pool:
        for found in pool.map(lambda _: one_by_one(guard), range(16)):
            assert found == expected


def test_five_hundred_coroutines_stream_what_one_does_and_leave_no_thread():
    guard = make_guard(max_attempts=2)
    expected = one_by_one(guard)
    most = 0

    async def one(number):
        nonlocal most
        asked, draft = CASES[number % len(CASES)]
        llm = astream_of(draft) if number % 2 else stream_of(draft)
        stream = guard.astream(llm, asked)
        text = "".join([piece async for piece in stream])
        most = max(most, len(threads("guardrail-")))
        return text, told(stream.result)

    async def main():
        return await asyncio.gather(*(one(number) for number in range(500)))

    before = threading.active_count()
    for number, found in enumerate(asyncio.run(main())):
        assert found == expected[number % len(CASES)]
    assert most <= 2 * guard.config.workers
    wait_for(lambda: threading.active_count() <= before)


def test_nothing_is_judged_or_repaired_on_the_event_loop():
    seen = set()

    class Where(WordEncoder):
        def encode(self, windows):
            seen.add(threading.get_ident())
            return super().encode(windows)

    guard = Guardrail(Where(), [DRIVING, PRIVACY])
    seen.clear()

    async def main():
        for asked, draft in CASES:
            async for _ in guard.astream(astream_of(draft), asked):
                pass
            await guard.agenerate(lambda _, draft=draft: draft, asked)
            await guard.acheck([asked, draft])
        return threading.get_ident()

    loop_thread = asyncio.run(main())
    assert seen
    assert loop_thread not in seen


@pytest.fixture(scope="module")
def shipped():
    return Guardrail.load()


def test_five_hundred_coroutines_leave_the_event_loop_free(shipped):
    """Measured as the loop's own work between two heartbeats: other processes may keep it waiting."""
    conversations = [[asked, draft] for asked in ASKED for draft in DRAFTS]
    expected = [shipped.check(messages) for messages in conversations]

    async def main():
        work = []

        async def beat():
            while True:
                began = time.thread_time()
                await asyncio.sleep(0)
                work.append(time.thread_time() - began)

        tasks = [asyncio.create_task(shipped.acheck(conversations[n % 16])) for n in range(500)]
        await asyncio.sleep(0)  # who starts 500 tasks at once pays for that
        heart = asyncio.create_task(beat())
        found = await asyncio.gather(*tasks)
        heart.cancel()
        assert found == [expected[n % 16] for n in range(500)]
        assert len(work) > 100
        return max(work)

    before = threading.active_count()
    assert any(asyncio.run(main()) < 0.020 for _ in range(3))
    wait_for(lambda: threading.active_count() <= before)
