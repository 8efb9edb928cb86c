"""Ask a judge within a deadline, remember its answers, and never let its failure become the guard's.

Knows judges and questions; knows nothing of encoders, probabilities or verdicts. Keeps no text: the
cache is keyed by a hash and holds numbers only.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from concurrent.futures import Future, wait
from dataclasses import dataclass

from .errors import ModelError
from .judges import AnyJudge, AsyncJudge, Judge, is_async, is_sync
from .judging import Opinion, Question, TooLongError, checked
from .threads import OverloadedError, Workers

# Calls that may wait in line for each thread; one more is refused at once.
WAITING_PER_WORKER = 64


@dataclass(frozen=True, slots=True)
class Answer:
    """An opinion, or why there is none; the reason holds no user text."""

    opinion: Opinion | None
    reason: str = ""


class SecondOpinion:
    """A judge with a deadline, a bounded number of threads and a cache. Safe to use from many threads."""

    def __init__(self, judge: AnyJudge, *, deadline_ms: float, workers: int, cache: int) -> None:
        """Make it.

        Args:
            judge: sync, async or both.
            deadline_ms: longest wait for an answer, milliseconds, queueing included.
            workers: sync calls at a time; more wait in line, up to `WAITING_PER_WORKER` for each. An
                async judge is not limited here.
            cache: answers kept, the least recently used is dropped first; 0 for none.
        """
        self._judge = judge
        self._deadline = deadline_ms / 1000
        self._threads = Workers(workers, WAITING_PER_WORKER * workers, "guardrail-judge")
        self._cache: OrderedDict[str, Opinion] = OrderedDict()
        self._cache_size = cache
        self._lock = threading.Lock()

    def ask(self, question: Question, seconds: float | None = None) -> Answer:
        """Ask; returns within the deadline and never raises what the judge raises.

        A sync call that outlasts it cannot be stopped: it goes on in its thread, and its answer is
        kept for the next time.

        Args:
            question: what to ask.
            seconds: longest wait, if that is shorter than the deadline.
        """
        limit = self._limit(seconds)
        known = self._known(question, limit)
        if known is not None:
            return known
        future = self._start(question)
        try:
            wait([future], limit)
            return _outcome(future, limit)
        finally:
            future.cancel()

    async def aask(self, question: Question, seconds: float | None = None) -> Answer:
        """Do as `ask`, without blocking the event loop; if this is cancelled, so is the judge."""
        limit = self._limit(seconds)
        known = self._known(question, limit)
        if known is not None:
            return known
        future: asyncio.Future[Answer]
        if is_async(self._judge):
            future = asyncio.ensure_future(self._acall(self._judge, question))
        else:
            future = asyncio.wrap_future(self._start(question))
        try:
            # Not asyncio.timeout: that waits on for a judge that does not heed its cancellation.
            await asyncio.wait({future}, timeout=limit)
            return _outcome(future, limit)
        finally:
            future.cancel()

    def _start(self, question: Question) -> Future[Answer]:
        judge = self._judge
        try:
            if is_sync(judge):
                return self._threads.submit(lambda: self._call(judge, question))
            assert is_async(judge)
            loop = _background_loop()
            return asyncio.run_coroutine_threadsafe(self._acall(judge, question), loop)
        except OverloadedError:
            return _done(_none("was not asked for, as too many are waiting"))
        except Exception as error:  # there is no thread to be had
            return _done(_failed(error))

    # Errors of a judge become values here: as errors of a task or a thread they would be logged with
    # their text if nobody waits for them any more.

    def _call(self, judge: Judge, question: Question) -> Answer:
        try:
            return self._read(judge.judge(question), question)
        except BaseException as error:
            return _failed(error)

    async def _acall(self, judge: AsyncJudge, question: Question) -> Answer:
        try:
            return self._read(await judge.ajudge(question), question)
        except (Exception, SystemExit) as error:
            return _failed(error)

    def _read(self, answer: object, question: Question) -> Answer:
        """Check and remember an answer, in time or not.

        Raises:
            ModelError: it is none.
        """
        opinion = checked(answer, question)
        with self._lock:
            self._cache[question.key] = opinion
            while len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)
        return Answer(opinion)

    def _limit(self, seconds: float | None) -> float:
        return self._deadline if seconds is None else min(self._deadline, seconds)

    def _known(self, question: Question, limit: float) -> Answer | None:
        """Return what can be said without asking."""
        with self._lock:
            if question.key in self._cache:
                self._cache.move_to_end(question.key)
                return Answer(self._cache[question.key])
        return None if limit > 0 else _none("was not asked for, as no time was left")


def _outcome(future: Future[Answer] | asyncio.Future[Answer], limit: float) -> Answer:
    if not future.done():
        return _none(f"took longer than {1000 * limit:.0f} ms")
    return _failed(asyncio.CancelledError()) if future.cancelled() else future.result()


def _failed(error: BaseException) -> Answer:
    if isinstance(error, TooLongError):
        return _none("was not given, as the question is too long for the judge")
    if isinstance(error, ModelError):
        return _none("was no valid answer")
    return _none(f"failed with {type(error).__name__}")


def _none(what: str) -> Answer:
    return Answer(None, f"the second opinion {what}; the encoder decided")


def _done(answer: Answer) -> Future[Answer]:
    future: Future[Answer] = Future()
    future.set_result(answer)
    return future


class _LoopThread(threading.Thread):
    """An event loop that runs until the program ends."""

    def __init__(self) -> None:
        super().__init__(name="guardrail-judge-loop", daemon=True)
        self.loop = asyncio.new_event_loop()
        try:
            self.start()
        except RuntimeError:
            self.loop.close()
            raise

    def run(self) -> None:
        try:
            self.loop.run_forever()
        finally:
            self.loop.close()


_loop_thread: _LoopThread | None = None
_loop_lock = threading.Lock()


def _background_loop() -> asyncio.AbstractEventLoop:
    """Return the loop on which async judges run when they are asked from sync code.

    One that stays: a client keeps connections that belong to the loop they were made in.
    """
    global _loop_thread
    with _loop_lock:
        # A fork leaves the thread behind, and a judge may stop the loop that it runs on.
        if _loop_thread is None or not _loop_thread.is_alive():
            _loop_thread = _LoopThread()
        return _loop_thread.loop
