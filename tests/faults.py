"""Parts of a guard that fail on command, and every way to run a guard with them; nothing is patched.

A `Fault` is shared by a part and the test: while it is on, the part raises, hangs, or returns something
wrong; once it is lifted the part works again.
"""

import asyncio
import contextlib
import gc
import threading
import time
from dataclasses import dataclass, field

import numpy as np
from fakes import DRIVING, PRIVACY, SAFE, UNSAFE, WordEncoder, word_id

from guardrail import Guardrail
from guardrail.config import GuardConfig
from guardrail.judging import Opinion
from guardrail.protocols import EncoderOutput
from guardrail.relevance import Relation
from guardrail.rule_index import RuleIndex
from guardrail.types import Level

SECRET = "secret user text"
CASUAL = "had beer with my sister"
NAN = float("nan")
FINE = Opinion(False, (), Level.CASUAL)
ALL = {"uncertain_low": 0.0, "uncertain_high": 1.0}
# Time limits under which a call that hangs is left, milliseconds: of a judgement, and of what helps a reply.
# The latter leave a slow machine enough for the judgements, which do not hang there.
SHORT = {"check_deadline_ms": 60, "deadline_ms": 300, "grace_ms": 60}
SHORT_FOR_HELPERS = {"judge_deadline_ms": 60, "deadline_ms": 120, "grace_ms": 150}
LONG = {"check_deadline_ms": 60_000, "deadline_ms": 60_000}
# A thread that stays for good, by design: the loop on which async judges run for sync callers.
STAYING = {"guardrail-judge-loop"}


class Fault:
    """What goes wrong, and whether it does at present."""

    def __init__(self, kind, wrong=None):
        self.kind, self.wrong = kind, wrong
        self.on = False
        self.lifted = threading.Event()
        self.struck = threading.Event()

    def lift(self):
        self.on = False
        self.lifted.set()

    def strike(self, good):
        """Raise, hang, or return something wrong in place of `good`."""
        if not self.on:
            return good
        self.struck.set()
        if self.kind == "hangs":
            self.hang()
            return good
        return self._now(good)

    async def astrike(self, good):
        """Do as `strike`; what hangs heeds its cancellation."""
        if self.on and self.kind == "hangs":
            await self.ahang()
        return self.strike(good)

    def hang(self):
        self.struck.set()
        self.lifted.wait(30)

    async def ahang(self):
        self.struck.set()
        while not self.lifted.is_set():
            await asyncio.sleep(0.01)

    def _now(self, good):
        if self.kind == "raises":
            raise RuntimeError(SECRET)
        if self.kind == "is cancelled":
            raise asyncio.CancelledError(SECRET)
        if self.kind == "stops":
            raise StopIteration(SECRET)
        return self.wrong(good) if callable(self.wrong) else self.wrong


# ---------------------------------------------------------------- parts that fail


class FaultyEncoder(WordEncoder):
    """Fails on every window, or only where the assistant's turn is judged."""

    def __init__(self, fault, *, on_replies=False):
        super().__init__()
        self.fault, self.on_replies = fault, on_replies

    def encode(self, windows):
        good = super().encode(windows)
        if self.on_replies and windows[0][1] != word_id("assistant"):
            return good
        return self.fault.strike(good)


class FaultyIndex(RuleIndex):
    """Fails when it is searched, or when its vectors are read."""

    def __init__(self, fault, method):
        super().__init__(64)
        self.fault, self.method = fault, method

    def search(self, queries, k):
        good = super().search(queries, k)
        return self.fault.strike(good) if self.method == "search" else good

    def vectors(self, positions):
        good = super().vectors(positions)
        return self.fault.strike(good) if self.method == "vectors" else good


class FaultyRelevance:
    def __init__(self, fault):
        self.fault = fault

    def relations(self, turns, statements):
        return self.fault.strike([Relation(0.9, 0.1) for _ in statements])


class FaultyRewriter:
    def __init__(self, fault):
        self.fault = fault

    def rewrite(self, item, *, count, seconds):
        return self.fault.strike(["Please take a taxi home tonight."])


class FaultyJudge:
    def __init__(self, fault):
        self.fault = fault

    def judge(self, question):
        return self.fault.strike(agree(question))


class FaultyAsyncJudge:
    def __init__(self, fault):
        self.fault = fault

    async def ajudge(self, question):
        return await self.fault.astrike(agree(question))


def agree(question):
    """Say what the word encoder says."""
    text = " ".join(turn.text for turn in question.turns)
    unsafe = "beer" in text and "drive" in question.turns[-1].text
    return Opinion(True, (), Level.NEEDS_CAUTION) if unsafe else FINE


def arrays(**changes):
    """Return a function that spoils an encoder's output."""

    def spoil(good):
        fields = {name: getattr(good, name) for name in ("embeddings", "violations", "level_logits")}
        return EncoderOutput(**{name: changes.get(name, lambda a: a)(a) for name, a in fields.items()})

    return spoil


def nans(array):
    return array * np.nan


ENCODER = {
    "NaN embeddings": arrays(embeddings=nans),
    "NaN violations": arrays(violations=nans),
    "infinite violations": arrays(violations=lambda a: a * np.inf),
    "NaN logits": arrays(level_logits=nans),
    "no rows": arrays(embeddings=lambda a: a[:0], violations=lambda a: a[:0], level_logits=lambda a: a[:0]),
    "nothing": None,
    "narrow embeddings": arrays(embeddings=lambda a: a[:, :3]),
    "narrow violations": arrays(violations=lambda a: a[:, :3]),
    "two logits": arrays(level_logits=lambda a: a[:, :2]),
    "four logits": arrays(level_logits=lambda a: np.hstack([a, a[:, :1]])),
    "flat logits": arrays(level_logits=lambda a: a[0]),
    "one row too many": arrays(level_logits=lambda a: np.vstack([a, a])),
    "text": "fine",
    "lists of text": arrays(embeddings=lambda a: [["x"]]),
    "objects": arrays(level_logits=lambda a: np.array([[None] * 3], object)),
}
SEARCH = {
    "NaN cosines": lambda good: [[(position, NAN) for position, _ in found] for found in good],
    "no lists": [],
    "nothing": None,
    "no rule": lambda good: [[] for _ in good],
    "a rule that is not there": lambda good: [[(99, 0.9)] for _ in good],
    "a rule from behind": lambda good: [[(-1, 0.9)] for _ in good],
    "half a rule": lambda good: [[(0.5, 0.9)] for _ in good],
    "a list too many": lambda good: [*good, *good],
    "text": "fine",
}
VECTORS = {
    "NaN": nans,
    "empty": lambda a: a[:0],
    "narrow": lambda a: a[:, :3],
    "nothing": None,
    "text": lambda a: np.full(a.shape, "x"),
}
RELATIONS = {
    "NaN": lambda good: [Relation(NAN, NAN) for _ in good],
    "NaN broken": lambda good: [Relation(0.9, NAN) for _ in good],
    "no relations": [],
    "nothing": None,
    "out of range": lambda good: [Relation(7.0, -3.0) for _ in good],
    "none of them": lambda good: [None for _ in good],
    "text": lambda good: ["fine" for _ in good],
    "text in it": lambda good: [Relation("0.9", "0.1") for _ in good],
    "one too many": lambda good: [*good, good[0]],
}
REWRITES = {
    "NaN": [NAN],
    "none": [],
    "blank": ["  "],
    "nothing": None,
    "a number": 3,
    "one text": "Please take a taxi.",
    "bytes": b"taxi",
    "a dict": {"Please take a taxi home.": 1},
    "none of them": [None],
    "an unsafe one": ["Have another beer and drive off!"],
}
OPINIONS = {
    "NaN": lambda good: Opinion(False, confidence=NAN),
    "nothing": None,
    "text": "fine",
    "wrong rule": Opinion(True, (9,)),
    "true": True,
}


def faults(wrong):
    """Return every kind of fault: those of any part, and what this one may wrongly return."""
    kinds = {kind: (kind, None) for kind in ("raises", "hangs", "is cancelled", "stops")}
    return kinds | {f"returns {name}": ("returns", value) for name, value in wrong.items()}


REPLIED = {
    "NaN": NAN,
    "NaN content": {"role": "assistant", "content": NAN},
    "a list": ["Please take a taxi."],
    "a number": 5,
    "bytes": b"Please take a taxi.",
    "an object": object(),
    "content of another type": {"content": 5},
}

PARTS = {
    "encoder": faults(ENCODER),
    "encoder on replies": faults(ENCODER),
    "index search": faults(SEARCH),
    "index vectors": faults(VECTORS),
    "relevance": faults(RELATIONS),
    "rewriter": faults(REWRITES),
    "judge": faults(OPINIONS),
    "async judge": faults(OPINIONS),
    "LLM": faults(REPLIED),
}
NEEDED = ("encoder", "encoder on replies", "index search", "index vectors")  # no judgement without them


def guard_with(part, fault, **settings):
    """Return a guard in which one part fails while the fault is on."""
    rules = [DRIVING, PRIVACY]
    encoder = WordEncoder()
    options = {}
    if part.startswith("encoder"):
        encoder = FaultyEncoder(fault, on_replies=part != "encoder")
    if part.startswith("index"):
        options["index"] = index = FaultyIndex(fault, part.removeprefix("index "))
        index.add(Guardrail(WordEncoder(), rules)._known.index.vectors([0, 1]))
    if part == "relevance":
        options["relevance"] = FaultyRelevance(fault)
    if part == "rewriter":
        options["rewriter"] = FaultyRewriter(fault)
    if part.endswith("judge"):
        options["judge"] = FaultyJudge(fault) if part == "judge" else FaultyAsyncJudge(fault)
        settings = ALL | settings
    return Guardrail(encoder, rules, config=GuardConfig.of(**settings), **options)


# ---------------------------------------------------------------- every way to run a guard


@dataclass
class Seen:
    """What came of a call."""

    verdicts: list = field(default_factory=list)
    shown: str = ""
    reply: object = None
    strategy: str = ""
    status: str = ""  # of the verdict about what is shown
    error: BaseException | None = None
    seconds: float = 0.0
    left_behind: list = field(default_factory=list)  # tasks, and what the event loop complains of
    # Behind HTTP:
    code: int = 200
    failure: str | None = None  # code of an error, in an answer or in a stream's last event
    ended: bool = True  # as a reply does that is whole
    raw: str = field(default="", repr=False)  # all that came, and what was logged

    def in_words(self):
        """Return all that a log may hold of it."""
        error = "" if self.error is None else f"{self.error} {self.error!r}"
        return f"{self.verdicts} {self.reply!r} {error} {[v.to_json() for v in self.verdicts]} {self.raw}"


def in_loop(call, seen):
    """Run an async function; note the tasks that it leaves and what the loop complains of."""

    async def main():
        asyncio.get_running_loop().set_exception_handler(
            lambda loop, context: seen.left_behind.append(context["message"])
        )
        with noted(seen):
            await call()
        for _ in range(100):  # generators that were left are closed by tasks of their own
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            if not tasks:
                break
            await asyncio.sleep(0.005)
        seen.left_behind += tasks

    started = time.monotonic()
    asyncio.run(main())
    seen.seconds = time.monotonic() - started  # with what the loop waits for at its end
    gc.collect()  # a coroutine or a task that nobody waited for complains now


@contextlib.contextmanager
def noted(seen):
    started = time.monotonic()
    try:
        yield
    except (Exception, asyncio.CancelledError) as error:
        seen.error = error
    finally:
        seen.seconds = time.monotonic() - started


TALK = [SAFE, UNSAFE]


def check(guard, llm, seen):
    with noted(seen):
        seen.verdicts = [guard.check(text) for text in TALK]


def acheck(guard, llm, seen):
    async def call():
        found = await asyncio.gather(*map(guard.acheck, TALK), return_exceptions=True)
        for error in found:
            if isinstance(error, BaseException):
                raise error
        seen.verdicts = found

    in_loop(call, seen)


def check_batch(guard, llm, seen):
    with noted(seen):
        seen.verdicts = guard.check_batch(TALK)


def replied(seen, reply):
    seen.reply, seen.shown = reply, reply.text
    seen.strategy, seen.status = reply.strategy, reply.verdict_out.status
    seen.verdicts = [reply.verdict_in, reply.verdict_out]


def generate(guard, llm, seen):
    with noted(seen):
        replied(seen, guard.generate(llm.call, CASUAL))


def agenerate(guard, llm, seen):
    async def call():
        replied(seen, await guard.agenerate(llm.acall, CASUAL))

    in_loop(call, seen)


def agenerate_on_sync_llm(guard, llm, seen):
    async def call():
        replied(seen, await guard.agenerate(llm.call, CASUAL))

    in_loop(call, seen)


def stream(guard, llm, seen):
    with noted(seen), guard.stream(llm.stream, CASUAL) as pieces:
        for piece in pieces:
            seen.shown += str(piece)
        streamed(seen, pieces.result)


def astream(guard, llm, seen, source="astream"):
    async def call():
        async with guard.astream(getattr(llm, source), CASUAL) as pieces:
            async for piece in pieces:
                seen.shown += str(piece)
            streamed(seen, pieces.result)

    in_loop(call, seen)


def astream_on_sync_llm(guard, llm, seen):
    astream(guard, llm, seen, "stream")


def streamed(seen, reply):
    assert seen.shown == reply.text
    replied(seen, reply)


CHECKS = {"check": check, "acheck": acheck, "check_batch": check_batch}
REPLIES = {
    "generate": generate,
    "agenerate": agenerate,
    "agenerate on a sync LLM": agenerate_on_sync_llm,
    "stream": stream,
    "astream": astream,
    "astream on a sync LLM": astream_on_sync_llm,
}


class FaultyLLM:
    """An LLM in four forms that says the same in each; may fail at a given call and a given piece.

    Attributes:
        fault: None for an LLM that works.
        call_number: the call from which it fails, from 1.
        piece_number: of a stream, the piece at which it fails, from 0.
    """

    def __init__(self, *replies, fault=None, call_number=1, piece_number=0):
        self.replies, self.fault = replies, fault
        self.call_number, self.piece_number = call_number, piece_number
        self.calls = 0
        self.open = 0  # streams

    def _next(self):
        self.calls += 1
        failing = self.fault if self.fault is not None and self.calls >= self.call_number else None
        return self.replies[min(self.calls, len(self.replies)) - 1], failing

    def call(self, messages):
        reply, fault = self._next()
        return reply if fault is None else fault.strike(reply)

    async def acall(self, messages):
        reply, fault = self._next()
        return reply if fault is None else await fault.astrike(reply)

    def stream(self, messages):
        reply, fault = self._next()
        self.open += 1
        try:
            for number, piece in enumerate(reply.split(" ")):
                piece = f" {piece}" if number else piece
                yield fault.strike(piece) if fault and number == self.piece_number else piece
        finally:
            self.open -= 1

    async def astream(self, messages):
        reply, fault = self._next()
        self.open += 1
        try:
            for number, piece in enumerate(reply.split(" ")):
                piece = f" {piece}" if number else piece
                yield await fault.astrike(piece) if fault and number == self.piece_number else piece
        finally:
            self.open -= 1


def threads():
    """Return the threads that are running, those that stay for good left out."""
    return {thread for thread in threading.enumerate() if thread.name not in STAYING}


def eventually(test, seconds=5.0):
    """Return True once a test holds; False if it does not within so many seconds."""
    end = time.monotonic() + seconds
    while not test():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True
