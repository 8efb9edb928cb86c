"""Forms of streams: words of several keys, marks, and parts that are held until the whole is judged."""

import asyncio

from fakes import make_guard
from streams import (
    ASK,
    llm,
    logging_guard,
    run,
)

from guardrail.sentences import next_cut
from guardrail.session import SENTENCES_TOGETHER, Session
from guardrail.stream_drivers import AsyncGuardedStream, GuardedStream
from guardrail.stream_forms import PlainForm
from guardrail.streaming import Held, Mark, ReplyStream, Words


class TupleForm(PlainForm):
    """Items are ("words", key, text), ("mark", x) or ("held", text): out come the same."""

    def parts(self, item):
        self._items.append(item)
        if item[0] == "words":
            yield Words(item[2], item[1])
        else:
            yield Mark(item) if item[0] == "mark" else Held(item)

    def whole(self):
        keys = {}
        for item in self._items:
            if item[0] != "mark":
                keys.setdefault(item[1] if item[0] == "words" else "held", []).append(item[-1])
        return "\n".join("".join(texts) for texts in keys.values())

    def words(self, key, text):
        return [("words", key, text)]

    def ours(self, text):
        return [("ours", text)]

    def end(self, reply):
        return [("end", reply.strategy)]


def run_form(items, ask=ASK, **settings):
    guard = make_guard(max_attempts=1, **settings)
    return list(GuardedStream(ReplyStream(Session(guard, ask), TupleForm()), lambda _: iter(items)))


def test_marks_and_held_parts_keep_their_places():
    items = [
        ("mark", "start"),
        ("words", "a", "One. Tw"),
        ("mark", "middle"),
        ("words", "a", "o. Three."),
        ("mark", "usage"),
        ("held", "call a taxi"),
        ("mark", "after"),
        ("words", "a", "Four."),
    ]

    assert run_form(items) == [
        ("mark", "start"),
        ("words", "a", "One."),
        ("words", "a", " Tw"),
        ("mark", "middle"),
        ("words", "a", "o."),
        ("words", "a", " Three."),
        ("mark", "usage"),
        ("held", "call a taxi"),
        ("mark", "after"),
        ("words", "a", "Four."),
        ("end", "pass"),
    ]


def test_a_held_part_that_is_unfit_is_dropped_with_all_behind_it():
    out = run_form([("words", "a", "One. Two."), ("held", "drive"), ("words", "a", " Three.")])

    assert out[0] == ("words", "a", "One.")
    assert out[1] == ("words", "a", " Two.")  # the next sentence has begun, so it was over
    assert [item[0] for item in out[2:]] == ["ours", "end"]


def test_a_change_of_key_ends_a_sentence():
    read = []

    def items():
        for item in [
            ("words", "thought", "Let me think"),
            ("words", "answer", "One. Two"),
            ("words", "answer", " three"),
        ]:
            read.append(item)
            yield item

    guard = make_guard()
    stream = GuardedStream(ReplyStream(Session(guard, ASK), TupleForm()), lambda _: items())

    assert next(stream) == ("words", "thought", "Let me think")
    assert len(read) == 2
    assert list(stream) == [("words", "answer", "One."), ("words", "answer", " Two three"), ("end", "pass")]


def test_words_of_one_key_that_others_interrupt_are_held_as_they_were_judged_in_fragments():
    """Two answers at once: neither "dri" nor "ve" is unsafe, but "drive" is."""
    out = run_form(
        [
            ("words", 0, "Fine. You dri"),
            ("words", 1, "Hello. And"),
            ("words", 0, "ve off now. Do."),
            ("words", 1, " so on."),
        ]
    )

    shown = "".join(item[2] for item in out if item[0] == "words")
    assert "ve off" not in shown
    assert out[-1] == ("end", "composed")


def test_a_key_that_comes_back_after_a_whole_sentence_streams_on():
    out = run_form(
        [("words", 0, "One."), ("words", 1, "Two."), ("words", 0, "Three. Four. "), ("words", 1, "Five.")]
    )

    assert [item[2] for item in out[:-1]] == ["One.", "Two.", "Three. Four.", " ", "Five."]


def test_an_async_form_gives_the_same():
    items = [("mark", "s"), ("words", "a", "One. Two"), ("held", "taxi"), ("words", "b", "Three. Four")]

    async def upstream(_):
        for item in items:
            yield item

    async def main():
        guard = make_guard(max_attempts=1)
        stream = AsyncGuardedStream(guard, ReplyStream(Session(guard, ASK), TupleForm()), upstream)
        return [item async for item in stream]

    assert asyncio.run(main()) == run_form(items)


def test_long_replies_cost_the_same_for_each_sentence():
    """Texts that are judged stay short, but for the whole at its end."""
    log = []
    text = "We talk about bread and wine. " * 60
    run(logging_guard(log), llm(text, sizes=[1]))

    texts = [piece for kind, piece in log if kind == "fit"]
    cuts, at = 0, 0
    while (at := next_cut(text, at)) is not None:
        cuts += 1
    assert len(texts) == cuts + 1
    assert max(map(len, texts[:-1])) <= SENTENCES_TOGETHER
    assert texts[-1] == text
