"""Scripted streams, and readers of guarded ones, for the tests of streaming."""

import asyncio
from dataclasses import replace

import pytest
from fakes import DRIVING, PRIVACY, WordEncoder

from guardrail import Guardrail
from guardrail.config import GuardConfig

ASK = "had beer and what now?"
TOUCHING = "beer for a short way, however"
GOOD = "Sure thing. That sounds  fine!\n\nTell me more about it.  ok "
BAD = "Sure thing. Now drive off! It is a fine night. Go go go."
OWN = ("pass", "guided", "regenerated")


def chunks(text, sizes):
    """Cut a text into pieces of these sizes, over and over; 0 makes an empty one."""
    out, at, turn = [], 0, 0
    while at < len(text):
        size = sizes[turn % len(sizes)] if any(sizes) else 1
        out.append(text[at : at + size])
        at, turn = at + size, turn + 1
    return out


class LoggingGuard(Guardrail):
    """Notes what it judges of the assistant in `log`, and whether that was fit."""

    log: list

    def check(self, messages, **limits):
        verdict = super().check(messages, **limits)
        if isinstance(messages, list) and messages[-1]["role"] == "assistant":
            (text,) = messages[-1]["content"]
            self.log.append(("unfit" if verdict.flagged else "fit", text))
        return verdict


def logging_guard(log, **settings):
    guard = LoggingGuard(WordEncoder(), [DRIVING, PRIVACY], config=GuardConfig.of(**settings))
    guard.log = log
    return guard


def llm(*drafts, log=None, sizes=(7,)):
    """Return a streaming LLM that writes its drafts in turn; an exception in one is raised there."""
    log = [] if log is None else log
    calls = iter([*drafts, *[drafts[-1]] * 9])

    def stream(messages):
        draft = next(calls)
        log.append(("called", messages))
        try:
            for part in draft if isinstance(draft, list) else chunks(draft, list(sizes)):
                if isinstance(part, BaseException):
                    raise part
                log.append(("read", part))
                yield part
        finally:
            log.append(("closed", ""))

    return stream


def run(guard, llm, messages=ASK, log=None, **options):
    """Read a stream to its end; notes what it shows."""
    stream = guard.stream(llm, messages, **options)
    shown = []
    for piece in stream:
        shown.append(piece)
        if log is not None:
            log.append(("shown", piece))
    return shown, stream.result


async def run_async(guard, llm, messages=ASK, log=None, **options):
    stream = guard.astream(llm, messages, **options)
    shown = []
    async for piece in stream:
        shown.append(piece)
        if log is not None:
            log.append(("shown", piece))
    return shown, stream.result


def as_async(llm):
    async def stream(messages):
        inner = llm(messages)
        try:
            for part in inner:
                yield part
        finally:
            inner.close()

    return stream


def outcome(result):
    """Return all of a result but what depends on the clock and on the mode."""
    attempts = [replace(attempt, seconds=0.0) for attempt in result.attempts]
    return result.strategy, result.verdict_in, result.verdict_out, attempts


def events(log, *kinds):
    return [event for event in log if event[0] in kinds]


def run_now(guard, llm, messages=ASK, log=None):
    return run(guard, llm, messages, log)


def run_on_a_loop(guard, llm, messages=ASK, log=None):
    return asyncio.run(run_async(guard, as_async(llm), messages, log))


both = pytest.mark.parametrize("run", [run_now, run_on_a_loop])
