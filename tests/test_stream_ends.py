"""Guarded streams that are left, that break or that hang: upstreams are closed, nothing unjudged is shown."""

import asyncio
import gc
import threading
import time

import pytest
from fakes import DRIVING, WordEncoder, make_guard, word_id
from streams import (
    ASK,
    BAD,
    GOOD,
    as_async,
    both,
    events,
    llm,
    run,
    run_async,
)

from guardrail import Guardrail, InputError, ModelError
from guardrail.compose import UNAVAILABLE
from guardrail.config import GuardConfig
from guardrail.streaming import BREAK


def test_a_consumer_that_leaves_closes_the_upstream():
    for leave in (lambda stream: stream.close(), lambda stream: stream.__exit__(None, None, None)):
        log = []
        stream = make_guard().stream(llm(GOOD, log=log), ASK)
        next(stream)
        read = len(events(log, "read"))
        leave(stream)
        assert log[-1][0] == "closed"
        assert len(events(log, "read")) == read
        assert next(stream, None) is None


def test_a_forgotten_stream_closes_the_upstream():
    log = []
    for _ in make_guard().stream(llm(GOOD, log=log), ASK):
        break
    gc.collect()
    assert log[-1][0] == "closed"


def test_nothing_happens_before_the_first_piece_is_asked_for():
    log = []
    stream = make_guard().stream(llm(GOOD, log=log), ASK)
    stream.close()
    assert log == []


def test_a_stream_that_is_open_already_is_closed_though_nobody_reads_it():
    class Opened:
        closed = False

        def __iter__(self):
            return iter(["never read"])

        def close(self):
            self.closed = True

    def answer(messages):
        return opened

    async def aanswer(messages):
        return opened

    opened = Opened()
    make_guard().wrap(answer)(ASK).close()
    assert opened.closed

    async def leave():
        await (await make_guard().wrap(aanswer)(ASK)).aclose()

    opened = Opened()
    asyncio.run(leave())
    assert opened.closed


class Items:
    """An iterator that notes its end, as SDKs have them; `log` is set by the test."""

    def __init__(self, log):
        self.log = log
        self.items = iter(["One. ", "Now drive off! ", "Never read. "])

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.items)

    def __aiter__(self):
        return self

    async def __anext__(self):
        return next(self.items)

    def close(self):
        self.log.append("iterator")


class Response:
    def __init__(self, log, asked="__iter__"):
        self.log = log
        setattr(type(self), asked, lambda self: Items(self.log))

    def close(self):
        self.log.append("response")


def test_the_iterator_of_a_stream_is_closed_too():
    log = []
    run(make_guard(max_attempts=1), lambda _: type("R", (Response,), {})(log))
    asyncio.run(run_async(make_guard(max_attempts=1), lambda _: type("R", (Response,), {})(log, "__aiter__")))

    assert log == ["iterator", "response"] * 2


def test_a_stream_that_comes_after_the_deadline_is_closed():
    def late(messages):
        release.wait(20)
        return response

    for run_it in (run, lambda *args: asyncio.run(run_async(*args))):
        release, log = threading.Event(), []
        response = type("R", (Response,), {})(log)
        _, result = run_it(make_guard(deadline_ms=50), late)
        assert result.text == UNAVAILABLE
        release.set()
        wait_for(lambda log=log: log == ["response"])


def wait_for(condition):
    limit = time.monotonic() + 5
    while not condition() and time.monotonic() < limit:
        time.sleep(0.01)
    assert condition()


def test_async_consumers_that_leave_close_the_upstream():
    async def by_aclose(stream):
        await anext(stream)
        await stream.aclose()

    async def by_with(stream):
        async with stream:
            await anext(stream)

    async def by_forgetting(stream):
        await anext(stream)
        del stream
        gc.collect()
        await asyncio.sleep(0.05)

    async def main(leave, log):
        await leave(make_guard().astream(as_async(llm(GOOD, log=log)), ASK))

    for leave in (by_aclose, by_with, by_forgetting):
        log = []
        asyncio.run(main(leave, log))
        assert log[-1][0] == "closed", leave.__name__


def test_a_cancelled_task_closes_the_upstream():
    log = []

    async def hangs(messages):
        try:
            yield "One. Two. "
            await asyncio.sleep(60)
        finally:
            log.append("closed")

    async def main():
        seen = asyncio.Event()

        async def consume():
            async for _ in make_guard().astream(hangs, ASK):
                seen.set()

        task = asyncio.create_task(consume())
        await seen.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert log == ["closed"]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


@both
def test_the_app_sees_the_error_of_the_first_stream(run):
    log = []
    broken = llm(["One. Now dri", ConnectionError("gone")], log=log)

    with pytest.raises(ConnectionError, match="gone"):
        run(make_guard(), broken, log=log)
    assert events(log, "shown") == [("shown", "One.")]
    assert log[-1][0] == "closed"


@both
def test_a_later_stream_that_breaks_is_repaired(run):
    log = []
    shown, result = run(make_guard(), llm(BAD, ["Two. Thr", ConnectionError("gone")], log=log))

    assert shown[0] == "Sure thing."
    assert "Two" not in "".join(shown)
    assert [attempt.error for attempt in result.attempts][:2] == ["", "ConnectionError"]
    assert result.strategy == "composed"
    assert len(events(log, "closed")) == 2


@both
def test_an_item_that_cannot_be_read_is_the_apps_error(run):
    log = []
    with pytest.raises(InputError, match="int"):
        run(make_guard(), llm(["One. Two", 7], log=log), log=log)
    assert events(log, "shown") == [("shown", "One.")]
    assert log[-1][0] == "closed"


class FailsOnWord(WordEncoder):
    """Works until a window holds a certain word."""

    def encode(self, windows):
        if any(word_id("zebra") in window for window in windows):
            raise RuntimeError("secret user text")
        return super().encode(windows)


@both
@pytest.mark.parametrize("on_error", ["closed", "raise", "allow"])
def test_a_guard_that_fails_in_the_middle(run, on_error):
    log = []
    config = GuardConfig.of(on_error=on_error, max_attempts=1)
    guard = Guardrail(FailsOnWord(), [DRIVING], config=config)
    broken = llm("One. A zebra runs. Three", log=log)

    if on_error == "raise":
        with pytest.raises(ModelError):
            run(guard, broken, log=log)
        assert events(log, "shown") == [("shown", "One.")]
    else:
        shown, result = run(guard, broken, log=log)
        assert result.verdict_out.status == "error" or result.strategy == "composed"
        if on_error == "closed":
            assert "zebra" not in "".join(shown)
            assert shown[0] == "One."
            assert result.strategy in ("composed", "unavailable")
        else:
            assert "".join(shown) == "One. A zebra runs. Three"
            assert result.verdict_out.status == "error"
    assert log[-1][0] in ("closed", "shown")
    assert len(events(log, "closed")) == 1


def hanging(release, log):
    def stream(messages):
        try:
            yield "One. Two"
            release.wait(20)
            yield " three. Four. "
        finally:
            log.append("closed")

    return stream


def test_a_deadline_in_the_middle_of_a_stream():
    release, log = threading.Event(), []
    started = time.monotonic()
    shown, result = run(make_guard(deadline_ms=150), hanging(release, log))
    took = time.monotonic() - started
    release.set()

    assert shown == ["One.", BREAK + UNAVAILABLE]
    assert result.attempts[0].error == "TimeoutError"
    assert took < 5
    wait_for(lambda: log == ["closed"])  # when it comes round


def test_a_deadline_in_the_middle_of_an_async_stream():
    log = []

    async def hangs(messages):
        try:
            yield "One. Two"
            await asyncio.sleep(60)
        finally:
            log.append("closed")

    shown, result = asyncio.run(run_async(make_guard(deadline_ms=150), hangs))

    assert shown == ["One.", BREAK + UNAVAILABLE]
    assert result.attempts[0].error == "TimeoutError"
    assert log == ["closed"]


def test_a_deadline_while_a_sync_stream_hangs_in_async_code():
    """Nothing waits for the thread, the end of the event loop neither."""
    release, log = threading.Event(), []
    started = time.monotonic()
    shown, _ = asyncio.run(run_async(make_guard(deadline_ms=150), hanging(release, log)))
    took = time.monotonic() - started
    release.set()
    wait_for(lambda: log == ["closed"])

    assert shown == ["One.", BREAK + UNAVAILABLE]
    assert took < 5
