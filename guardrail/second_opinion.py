"""Ask a judge within a deadline, remember its answers, and never let its failure become the guard's.

Knows judges and questions; knows nothing of encoders, probabilities or verdicts. Keeps no text: the
cache is keyed by a hash and holds numbers only.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, wait
from dataclasses import dataclass

from .errors import ModelError
from .judges import AnyJudge, AsyncJudge, is_async, is_sync
from .judging import Opinion, Question, checked


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
            workers: sync calls at a time; more wait in line. An async judge is not limited here.
            cache: answers kept, the least recently used is dropped first; 0 for none.
        """
        self._judge = judge
        self._deadline_ms = deadline_ms
        self._threads = _Threads(workers)
        self._cache: OrderedDict[str, Opinion] = OrderedDict()
        self._cache_size = cache
        self._lock = threading.Lock()

    def ask(self, question: Question) -> Answer:
        """Ask; returns within the deadline and never raises what the judge raises."""
        known = self._known(question)
        if known is not None:
            return Answer(known)
        future = self._start(question)
        try:
            wait([future], self._deadline_ms / 1000)
            return self._outcome(future, question)
        finally:
            future.cancel()

    async def aask(self, question: Question) -> Answer:
        """Do as `ask`, without blocking the event loop; if this is cancelled, so is the judge."""
        known = self._known(question)
        if known is not None:
            return Answer(known)
        future: asyncio.Future[Opinion]
        if is_async(self._judge):
            future = asyncio.ensure_future(_ask_async(self._judge, question))
        else:
            future = asyncio.wrap_future(self._start(question))
        future.add_done_callback(_look_at_error)
        try:
            # Not asyncio.timeout: that waits on for a judge that does not heed its cancellation.
            await asyncio.wait({future}, timeout=self._deadline_ms / 1000)
            return self._outcome(future, question)
        finally:
            future.cancel()

    def _start(self, question: Question) -> Future[Opinion]:
        judge = self._judge
        if is_sync(judge):
            return self._threads.submit(lambda: judge.judge(question))
        assert is_async(judge)
        return asyncio.run_coroutine_threadsafe(_ask_async(judge, question), _background_loop())

    def _outcome(self, future: Future[Opinion] | asyncio.Future[Opinion], question: Question) -> Answer:
        if not future.done():
            return _none(f"took longer than {self._deadline_ms:g} ms")
        error = CancelledError() if future.cancelled() else future.exception()
        if error is not None and not isinstance(error, ModelError):
            return _none(f"failed with {type(error).__name__}")
        try:
            opinion = checked(future.result(), question)
        except ModelError:
            return _none("was no valid answer")
        self._keep(question, opinion)
        return Answer(opinion)

    def _known(self, question: Question) -> Opinion | None:
        if not self._cache_size:
            return None
        key = question.key
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
            return self._cache.get(key)

    def _keep(self, question: Question, opinion: Opinion) -> None:
        with self._lock:
            self._cache[question.key] = opinion
            while len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)


class _Threads:
    """At most `most` daemon threads, each of which ends when there is nothing left to do.

    Unlike those of ThreadPoolExecutor they do not keep the interpreter from ending when a call hangs.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._running = 0
        self._waiting: deque[tuple[Future[Opinion], contextvars.Context, Callable[[], Opinion]]] = deque()
        self._lock = threading.Lock()

    def submit(self, call: Callable[[], Opinion]) -> Future[Opinion]:
        future: Future[Opinion] = Future()
        with self._lock:
            # What nobody waits for any more would pile up behind calls that hang.
            self._waiting = deque(job for job in self._waiting if not job[0].cancelled())
            self._waiting.append((future, contextvars.copy_context(), call))
            if self._running < self._most:
                threading.Thread(target=self._work, name="guardrail-judge", daemon=True).start()
                self._running += 1
        return future

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._running -= 1
                    return
                future, context, call = self._waiting.popleft()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(context.run(call))
                except BaseException as error:
                    future.set_exception(error)
            del future, context, call  # not to be held while waiting for the lock


async def _ask_async(judge: AsyncJudge, question: Question) -> Opinion:
    return await judge.ajudge(question)


def _look_at_error(future: asyncio.Future[Opinion]) -> None:
    """Retrieve the error of a judge that came too late, so that asyncio does not log it."""
    if not future.cancelled():
        future.exception()


def _none(what: str) -> Answer:
    return Answer(None, f"the second opinion {what}; the encoder decided")


_loop: asyncio.AbstractEventLoop | None = None
_loop_lock = threading.Lock()


def _background_loop() -> asyncio.AbstractEventLoop:
    """Return the loop on which async judges run when they are asked from sync code.

    One that stays: a client keeps connections that belong to the loop they were made in.
    """
    global _loop
    with _loop_lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="guardrail-judge-loop", daemon=True).start()
        return _loop
