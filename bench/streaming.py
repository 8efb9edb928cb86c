"""What the guard adds to a stream: `python bench/streaming.py` (model that ships, one thread, no network).

A simulated LLM writes 30 replies of 1 to 12 sentences at 50 tokens a second. Its time is counted and not
slept: an item is there at its own time, or when the guard comes back for it if that is later; the time that
the guard works is real. `--real` sleeps instead, for a few of the replies.

Figures: the time from the moment at which the bare stream shows that its first sentence is over (the space
behind it, mostly one token behind its end) to the first character that the guard lets out; the time by which
the last character comes later, in percent of the bare stream's; checks and milliseconds of work per reply.
All replies pass: one that is blocked costs what its repair costs.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import statistics
import time
import tomllib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guardrail import Guardrail
from guardrail.sentences import next_cut

TOKENS_PER_SECOND = 50
# About four characters a token, a space in front, as LLMs have it.
TOKEN = re.compile(r"\s?\w{1,7}|\s?[^\w\s]|\s")


@dataclass
class Clock:
    """Counts the LLM's time as it should be and the guard's as it is."""

    real: bool = False
    now: float = 0.0
    work: float = 0.0
    since: float = field(default_factory=time.perf_counter)

    def read(self) -> float:
        """Return the time, seconds, with the work since it was last read."""
        elapsed, self.since = self.since, time.perf_counter()
        self.now += self.since - elapsed
        self.work += self.since - elapsed
        return self.now

    def wait_until(self, moment: float) -> None:
        """Pass the time until an item is there."""
        if self.real and moment > self.read():
            time.sleep(moment - self.now)
        self.passed(moment)

    async def await_until(self, moment: float) -> None:
        """Do as `wait_until`."""
        if self.real and moment > self.read():
            await asyncio.sleep(moment - self.now)
        self.passed(moment)

    def passed(self, moment: float) -> None:
        work = self.work
        self.now = max(self.read(), moment)
        if self.real:
            self.work = work  # of which most was sleep


@dataclass(frozen=True)
class Run:
    """One reply, guarded: seconds by the clock of its stream."""

    first: float
    last: float
    work: float
    checks: int


class CountingGuard:
    """Counts the checks of a guard."""

    def __init__(self, guard: Guardrail) -> None:
        self.guard = guard
        self.checks = 0
        check = guard.check

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.checks += 1
            return check(*args, **kwargs)

        guard.check = counted  # type: ignore[method-assign]


def tokens(text: str) -> list[str]:
    found = TOKEN.findall(text)
    assert "".join(found) == text
    return found


def stream_of(text: str, clock: Clock) -> Iterator[str]:
    for number, token in enumerate(tokens(text), 1):
        clock.wait_until(number / TOKENS_PER_SECOND)
        yield token
    clock.read()


async def astream_of(text: str, clock: Clock) -> AsyncIterator[str]:
    for number, token in enumerate(tokens(text), 1):
        await clock.await_until(number / TOKENS_PER_SECOND)
        yield token
    clock.read()


def run_sync(counter: CountingGuard, messages: list[str], text: str, real: bool) -> Run:
    before, clock = counter.checks, Clock(real)
    shown: list[float] = []
    stream = counter.guard.stream(lambda _: stream_of(text, clock), messages)
    pieces = []
    for piece in stream:
        shown.append(clock.read())
        pieces.append(piece)
    return _run(stream.result, pieces, text, shown, clock, counter.checks - before)


async def run_async(counter: CountingGuard, messages: list[str], text: str, real: bool) -> Run:
    before, clock = counter.checks, Clock(real)
    shown: list[float] = []
    stream = counter.guard.astream(lambda _: astream_of(text, clock), messages)
    pieces = []
    async for piece in stream:
        shown.append(clock.read())
        pieces.append(piece)
    return _run(stream.result, pieces, text, shown, clock, counter.checks - before)


def _run(result: Any, pieces: list[str], text: str, shown: list[float], clock: Clock, checks: int) -> Run:
    assert result.strategy in ("pass", "guided"), f"a reply did not pass: {result!r}"
    assert "".join(pieces) == text
    return Run(shown[0], shown[-1], clock.work, checks)


def sentence_known(text: str) -> float:
    """Return when the bare stream shows that its first sentence is over; its end if it is the only one."""
    cut = next_cut(text)
    arrived, items = "", tokens(text)
    for number, token in enumerate(items, 1):
        arrived += token
        if cut is not None and len(arrived) > cut:
            return number / TOKENS_PER_SECOND
    return len(items) / TOKENS_PER_SECOND


def report(name: str, runs: list[Run], texts: list[str]) -> None:
    added_first = [1000 * (run.first - sentence_known(text)) for run, text in zip(runs, texts, strict=True)]
    bare = [len(tokens(text)) / TOKENS_PER_SECOND for text in texts]
    added = [100 * (run.last / seconds - 1) for run, seconds in zip(runs, bare, strict=True)]
    total = 100 * (sum(run.last for run in runs) / sum(bare) - 1)
    worst = f"{max(added):.2f} % (worst, {bare[added.index(max(added))]:.1f} s)"
    print(
        f"{name}: first character {statistics.median(added_first):.1f} ms behind its sentence (median), "
        f"{sorted(added_first)[int(0.95 * len(added_first))]:.1f} (95 %); end {total:.2f} % later over all, "
        f"{statistics.median(added):.2f} % (median), {worst}; "
        f"{statistics.mean(run.checks for run in runs):.1f} checks and "
        f"{1000 * statistics.mean(run.work for run in runs):.0f} ms of work per reply"
    )


def whole_replies(counter: CountingGuard, items: list[tuple[list[str], str]]) -> None:
    """Time `generate` on whole replies against one check of the conversation and one of the reply."""
    guard = counter.guard
    guarded = plain = 0.0
    for messages, text in items:
        start = time.perf_counter()
        guard.generate(lambda _, text=text: text, messages)
        middle = time.perf_counter()
        guard.check(messages)
        guard.check([*messages, text])
        guarded += middle - start
        plain += time.perf_counter() - middle
    print(
        f"whole replies: {1000 * guarded / len(items):.1f} ms each, judged sentence by sentence; "
        f"{1000 * plain / len(items):.1f} ms for one check of each turn; {guarded / plain:.1f} times as much"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--real", action="store_true", help="sleep as the LLM would, for 5 replies")
    args = parser.parse_args()
    data = tomllib.loads((Path(__file__).parent / "streaming.toml").read_text("utf-8"))["reply"]
    items = [(entry["turns"], entry["text"].strip()) for entry in data]
    if args.real:
        items = items[::6]
    counter = CountingGuard(Guardrail.load())
    texts = [text for _, text in items]
    whole_replies(counter, items)
    runs = [run_sync(counter, messages, text, args.real) for messages, text in items]
    report("sync", runs, texts)

    async def run_all() -> list[Run]:
        return [await run_async(counter, messages, text, args.real) for messages, text in items]

    report("async", asyncio.run(run_all()), texts)


if __name__ == "__main__":
    main()
