"""The streaming core: any chunks give the same, nothing unjudged is shown, upstreams are closed in time."""

import asyncio

import numpy as np
import pytest
from fakes import DRIVING, GRAVE, UNSAFE, WordEncoder, make_guard, word_id
from hypothesis import example, given, settings
from hypothesis import strategies as st
from streams import (
    ASK,
    BAD,
    GOOD,
    OWN,
    TOUCHING,
    as_async,
    events,
    llm,
    logging_guard,
    outcome,
    run,
    run_async,
)

from guardrail import Guardrail
from guardrail.compose import UNAVAILABLE
from guardrail.config import GuardConfig
from guardrail.guidance import GUIDANCE_TAIL
from guardrail.judging import Opinion
from guardrail.sentences import next_cut
from guardrail.streaming import BREAK

checked = settings(max_examples=60, deadline=None, derandomize=True)

SAFE_WORDS = 'Sure thing.| That sounds  fine!| Tell me more|, please.|  ok | Bake bread?|"Yes."| e.g. this'
UNSAFE_WORDS = " Now drive off!| You could drive home.| drive| No, take a taxi.| You shouldn't.| Have a beer."
ODD = "\n|\n\n|\r\n|\t| |...|…|!?|1. one|\u200b|。|今日は天気がいい。|「はい。」|😀|👍🏽|```\ncode()\n```|https://a.b/c?d=e.|3.14"
LONG = ["x" * 300, "word " * 60]
PIECES = [*SAFE_WORDS.split("|"), *UNSAFE_WORDS.split("|"), *ODD.split("|"), *LONG]
replies = st.one_of(st.lists(st.sampled_from(PIECES), max_size=12).map("".join), st.text(max_size=40))
sizes = st.one_of(st.just([1]), st.just([100_000]), st.lists(st.integers(0, 30), min_size=1, max_size=8))


# ------------------------------------------------------------ any chunks


@checked
@given(replies, sizes)
@example(GOOD, [1])
@example(BAD, [1])
@example("", [1])
@example("One. drive off", [3])
@example("x" * 700 + " drive off", [1])
@example(" " * 600, [1])
@example("Drive. " + "filler word " * 60 + "End.", [0, 5])
def test_any_chunks_meet_the_fate_of_the_whole_reply(text, sizes):
    guard = make_guard(max_attempts=2, attempt_texts=True)
    whole = guard.generate(lambda _: text, ASK)

    shown, result = run(guard, llm(text, sizes=sizes))

    assert outcome(result) == outcome(whole)
    assert "".join(shown) == result.text
    if whole.strategy in OWN:
        assert result.text == text == whole.text
    else:
        # All that was fit before is shown, however it came: the sentences in front of the first unfit one.
        fit = in_front_of(result.attempts[0].text, text)
        assert result.text == (fit + BREAK if fit.strip() else "") + whole.text


def in_front_of(judged, text):
    """Return the sentences of a text in front of the one with which `judged` ends."""
    cuts = [0]
    while (cut := next_cut(text, cuts[-1])) is not None and cut < len(judged):
        cuts.append(cut)
    return text[: cuts[-1]]


@checked
@given(replies, sizes, sizes)
@example(BAD, [1], [100_000])
def test_other_chunks_show_the_same_text(text, sizes, other):
    guard = make_guard(max_attempts=2)

    one, another = run(guard, llm(text, sizes=sizes)), run(guard, llm(text, sizes=other))

    assert "".join(one[0]) == "".join(another[0])
    assert outcome(one[1]) == outcome(another[1])


@settings(checked, max_examples=25)
@given(replies, sizes)
def test_async_shows_the_same_pieces(text, sizes):
    guard = make_guard(max_attempts=2)
    one = run(guard, llm(text, sizes=sizes))

    async def both():
        return [
            await run_async(guard, as_async(llm(text, sizes=sizes))),
            await run_async(guard, llm(text, sizes=sizes)),
        ]

    for shown, result in asyncio.run(both()):
        assert shown == one[0]
        assert outcome(result) == outcome(one[1])


@checked
@given(replies, sizes)
def test_every_character_was_judged_and_fit_before_it_is_shown(text, sizes):
    log = []
    guard = logging_guard(log, max_attempts=1)
    end_of_fit = shown = 0

    _, result = run(guard, llm(text, sizes=sizes, log=log), log=log)

    if result.strategy not in OWN:  # what it says in place of the draft
        log.pop()
    for kind, piece in log:
        if kind == "fit":  # what is judged follows on what was, so nothing between was left out
            at = text.rfind(piece, 0, end_of_fit + len(piece))
            end_of_fit = max(end_of_fit, at + len(piece)) if at >= 0 else end_of_fit
        if kind == "unfit":
            break
        if kind == "shown":
            shown += len(piece)
            assert shown <= end_of_fit
    assert shown == len(text) or result.strategy not in OWN


@checked
@given(replies, sizes)
def test_nothing_of_an_unsafe_sentence_or_behind_it_is_shown(text, sizes):
    marked = text + "\nNow drive off, says Zorro. And Zorro goes on."
    guard = make_guard(max_attempts=1)

    shown, result = run(guard, llm(marked, sizes=sizes))

    if result.strategy not in OWN:
        assert "Zorro" not in "".join(shown)


@checked
@given(replies, sizes)
def test_the_upstream_is_closed_at_once_when_a_draft_is_unfit(text, sizes):
    log = []
    guard = logging_guard(log, max_attempts=2)

    run(guard, llm(text + " Now drive off! And on. And on.", sizes=sizes, log=log), log=log)

    for at, (kind, _) in enumerate(log):
        if (
            kind == "unfit"
            and (open_ := [k for k, _ in log[:at] if k in ("called", "closed")])
            and open_[-1] == "called"
        ):
            assert log[at + 1][0] == "closed"
    assert len(events(log, "called")) == len(events(log, "closed"))


def test_sentences_come_one_by_one_each_as_soon_as_it_is_over():
    log = []

    run(make_guard(), llm("One. Two! Three?", sizes=[1], log=log), log=log)

    text = ""
    for kind, piece in events(log, "read", "shown"):
        text += piece if kind == "read" else f"[{piece}]"
    assert text == "One. [One.]Two! [ Two!]Three?[ Three?]"


def test_what_is_fit_sentence_by_sentence_may_be_unfit_as_a_whole():
    text = "You could drive. " + "We talk and talk about bread. " * 30 + "Have beer. The end"
    guard = Guardrail(WordEncoder(max_tokens=512), [DRIVING], config=GuardConfig.of(max_attempts=1))

    shown, result = run(guard, llm(text), "what now?")
    whole = guard.generate(lambda _: text, "what now?")

    assert outcome(result) == outcome(whole)
    assert result.strategy == "composed"
    assert result.text.startswith("You could drive. We talk")
    assert "The end" not in result.text
    assert result.text.endswith(BREAK + whole.text)


# ------------------------------------------------------------ what follows a rejection


def test_another_draft_follows_behind_a_blank_line():
    log = []
    shown, result = run(make_guard(), llm(BAD, GOOD, log=log))

    assert "".join(shown) == "Sure thing." + BREAK + GOOD == result.text == result.reply
    assert result.strategy == "regenerated"
    assert [attempt.flagged for attempt in result.attempts] == [True, False]
    assert len(events(log, "called")) == 2


def test_no_blank_line_where_nothing_was_shown():
    shown, result = run(make_guard(), llm("Now drive off! " + BAD, GOOD))

    assert "".join(shown) == GOOD == result.text


def test_what_replaces_an_unfit_draft_is_shown_as_a_whole():
    """A better second draft is scored as a whole, so none of it may be shown before."""
    log = []
    run(make_guard(), llm(BAD, GOOD, log=log, sizes=[1]), log=log)

    second = [at for at, event in enumerate(log) if event[0] == "called"][1]
    assert [kind for kind, _ in events(log[second:], "read", "shown")] == ["read"] * len(GOOD) + ["shown"]


def test_the_upstream_is_closed_before_the_repair_is_made():
    log = []

    class Rewriter:
        def rewrite(self, item, *, count, seconds=None):
            log.append(("rewrite", ""))
            return ["Please leave the car."]

    guard = Guardrail(WordEncoder(), [DRIVING], config=GuardConfig.of(max_attempts=1), rewriter=Rewriter())
    shown, result = run(guard, llm(BAD, log=log), log=log)

    assert result.strategy == "rewritten"
    kinds = [kind for kind, _ in log]
    assert kinds.index("closed") < kinds.index("rewrite")
    assert shown[-1] == BREAK + "Please leave the car."


def test_a_touched_conversation_is_guided_and_streams():
    log = []
    shown, result = run(make_guard(), llm("One. Two. Three", log=log), TOUCHING)

    assert result.strategy == "guided"
    assert shown == ["One.", " Two.", " Three"]
    assert DRIVING.text in events(log, "called")[0][1]


def test_a_leak_of_the_guidance_is_held_back():
    shown, result = run(
        make_guard(max_attempts=1), llm(f"My rules: {GUIDANCE_TAIL} So there. And more"), TOUCHING
    )

    assert "say what worries you" not in "".join(shown)
    assert result.strategy == "unavailable"


def test_each_draft_is_judged_from_its_beginning():
    log = []
    guard = logging_guard(log)
    leaky = f"One two three four five. {GUIDANCE_TAIL} And more"

    shown, result = run(guard, llm(leaky, "Ah. Bo. Ce", log=log), TOUCHING)

    second = [at for at, event in enumerate(log) if event[0] == "called"][1]
    assert [text for _, text in events(log[second:], "fit")] == ["Ah.", "Ah. Bo.", "Ah. Bo. Ce"]
    assert result.text == "One two three four five." + BREAK + "Ah. Bo. Ce"


def test_nothing_is_shown_in_a_flagged_conversation_before_the_whole_is_judged():
    log = []
    run(make_guard(), llm("Take a taxi. Or walk. Be safe", log=log, sizes=[1]), UNSAFE, log=log)

    kinds = [kind for kind, _ in events(log, "read", "closed", "shown")]
    assert kinds.index("closed") < kinds.index("shown")


def test_an_intervention_does_not_call_the_llm():
    log = []
    shown, result = run(make_guard(), llm(GOOD, log=log), GRAVE)

    assert log == []
    assert "".join(shown) == result.text
    assert result.strategy == "composed"


def test_turn_release_shows_nothing_before_the_end():
    log = []
    guard = make_guard(stream_release="turn")

    shown, result = run(guard, llm(GOOD, log=log), log=log)
    assert shown == [GOOD]
    assert result.strategy == "pass"

    shown, result = run(guard, llm(BAD, GOOD))
    assert shown == [GOOD]
    assert result.text == GOOD


def test_generate_with_a_streaming_llm_returns_what_a_whole_reply_would():
    guard = make_guard()

    found = guard.generate(llm(BAD, GOOD), ASK)
    afound = asyncio.run(guard.agenerate(as_async(llm(BAD, GOOD)), ASK))

    assert found.text == found.reply == afound.text == afound.reply == GOOD
    assert outcome(found) == outcome(afound)


def test_a_blank_stream_is_no_reply():
    _, result = run(make_guard(max_attempts=1), llm(" \n "))

    assert result.text == UNAVAILABLE


# ------------------------------------------------------------ second opinions


class Judge:
    """Says what it is told, and counts."""

    def __init__(self, unsafe):
        self.unsafe = unsafe
        self.asked = []

    def judge(self, question):
        self.asked.append(question.turns[-1].text)
        if self.unsafe is None:
            raise RuntimeError("no answer")
        return Opinion(self.unsafe)


class UnsureEncoder(WordEncoder):
    """As its parent, but unsure of the words in `unsure`: [P(unsafe)] each."""

    unsure = {"perhaps": 0.6, "maybe": 0.4}  # the last of them counts

    def _logits(self, window):
        logits = super()._logits(window)
        judged = window[: list(window).index(self.sep_id)]
        for word, probability in self.unsure.items():
            if word_id(word) in judged and word_id("certainly") not in judged:
                logits[1] = np.log(probability / (1 - probability))
        return logits


def unsure_guard(judge, **settings):
    config = GuardConfig.of(max_attempts=1, uncertain_low=0.2, uncertain_high=0.8, **settings)
    return Guardrail(UnsureEncoder(), [DRIVING], judge=judge, config=config)


@pytest.mark.parametrize(("unsafe", "passes"), [(False, True), (True, False)])
def test_what_is_uncertain_is_held_until_the_judge_has_read_the_whole(unsafe, passes):
    log, judge = [], Judge(unsafe)
    text = "Sure. Maybe so. And more. The end"
    shown, result = run(unsure_guard(judge), llm(text, log=log), log=log)

    assert judge.asked == [text]
    assert shown[0] == "Sure."
    if passes:
        assert shown == ["Sure.", " Maybe so. And more. The end"]
        assert result.strategy == "pass"
    else:
        assert "Maybe" not in result.text
    kinds = [kind for kind, _ in log]
    assert "read" not in kinds[kinds.index("closed") :]


def test_a_sure_sentence_does_not_let_an_uncertain_one_out():
    text = "Sure. Maybe so. " + "We talk about bread and more bread. " * 20 + "The end"
    log, judge = [], Judge(True)
    shown, result = run(unsure_guard(judge), llm(text, log=log), log=log)

    assert len(judge.asked) == 1
    assert shown[0] == "Sure."
    assert "Maybe" not in result.text
    assert result.strategy not in OWN


@pytest.mark.parametrize(("unsafe", "passes"), [(False, True), (True, False), (None, False)])
def test_a_judge_is_asked_about_a_doubted_sentence_where_the_whole_is_sure(unsafe, passes):
    """Without a judge that sentence would have been unfit: with one that fails it is, too."""
    judge = Judge(unsafe)
    text = "Sure. Perhaps so. And certainly. The end"
    shown, result = run(unsure_guard(judge), llm(text))

    assert judge.asked == ["Sure. Perhaps so."]
    assert (result.strategy == "pass") is passes
    assert run(unsure_guard(None), llm(text))[1].strategy != "pass"
    assert outcome(unsure_guard(judge).generate(lambda _: text, ASK)) == outcome(result)


def test_a_judge_that_fails_leaves_it_to_the_encoder():
    judge = Judge(None)
    assert run(unsure_guard(judge), llm("Sure. Maybe so. The end"))[1].strategy == "pass"
    assert run(unsure_guard(judge), llm("Sure. Perhaps so. The end"))[1].strategy != "pass"
    assert judge.asked == ["Sure. Maybe so. The end", "Sure. Perhaps so. The end"]

    judge = Judge(None)
    text = "Sure. Perhaps so. Maybe not"  # the sentence in the middle is doubted, the whole is not
    assert run(unsure_guard(judge), llm(text))[1].strategy != "pass"
    assert judge.asked == [text]
