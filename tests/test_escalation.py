"""Which band to send to a judge, and what it brings: against brute force and scripted judges."""

import math
import time

import numpy as np
import pytest
from fakes import DRIVING, PRIVACY, SAFE, UNSAFE, WordEncoder
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("sklearn")

from guardrail import ConfigError, Guardrail, Level, Turn
from guardrail.config import GuardConfig
from guardrail.judging import Opinion
from guardrail.trainer.escalation import (
    SHARE_ABOVE,
    SHARES,
    Outcomes,
    escalation_curve,
    escalation_points,
    pick_band,
)
from guardrail.trainer.examples import Example

probabilities = st.lists(st.floats(0, 1), min_size=1, max_size=60).map(np.array)
coarse = st.lists(st.sampled_from([0.1, 0.2, 0.4, 0.6, 0.9]), min_size=1, max_size=60).map(np.array)
shares = st.floats(0, 1)
inner = st.floats(0.01, 0.99)


def sent(p, band):
    return np.zeros(len(p), bool) if band is None else (p >= band.low) & (p <= band.high)


# ---------------------------------------------------------------- the band


@given(probabilities | coarse, inner, shares)
def test_a_band_never_sends_more_than_it_may_and_lies_at_the_threshold(p, threshold, share):
    band = pick_band(p, threshold, share)
    inside = sent(p, band)

    assert inside.sum() <= share * len(p)
    if band is not None:
        assert band.low <= threshold
        assert band.high >= np.nextafter(threshold, 0)
        # Whatever is nearer to the threshold, on the same side, is sent too.
        for side in (p < threshold, p >= threshold):
            if (inside & side).any():
                farthest = np.abs(p[inside & side] - threshold).max()
                assert inside[side & (np.abs(p - threshold) < farthest)].all()


@given(probabilities | coarse, inner, shares, shares)
def test_a_larger_share_holds_what_a_smaller_one_sends(p, threshold, one, other):
    small, large = sorted((one, other))

    assert not (sent(p, pick_band(p, threshold, small)) & ~sent(p, pick_band(p, threshold, large))).any()


def test_at_most_a_quarter_lies_above_and_the_rest_below():
    p = np.linspace(0.0005, 0.9995, 1000)
    band = pick_band(p, 0.6, 0.2)

    assert sent(p, band).sum() == 200
    assert (sent(p, band) & (p >= 0.6)).sum() == SHARE_ABOVE * 200


def test_what_there_is_not_above_goes_below():
    p = np.concatenate([np.linspace(0, 0.5, 990), np.linspace(0.9, 0.95, 10)])
    band = pick_band(p, 0.8, 0.1)

    assert sent(p, band).sum() == 100
    assert band.high == 0.95
    assert (sent(p, band) & (p < 0.8)).sum() == 90


def test_what_there_is_not_below_goes_above():
    p = np.linspace(0.7, 0.9, 100)

    assert sent(p, pick_band(p, 0.5, 0.3)).sum() == 30


def test_nothing_and_everything():
    p = np.array([0.0, 0.3, 0.8, 1.0])

    assert pick_band(p, 0.5, 0) is None
    assert pick_band(p, 0.5, 0.2) is None  # less than one turn
    assert sent(p, pick_band(p, 0.5, 1)).all()
    assert pick_band(np.full(9, 0.3), 0.5, 0.5) is None  # a tie is not cut


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(ConfigError, match=r"expected a share in \[0, 1\]"):
        pick_band(np.array([0.5]), 0.5, share)


@pytest.mark.parametrize("p", [[], [math.nan], [0.5, math.inf]])
def test_probabilities_that_are_none_are_refused(p):
    with pytest.raises(ConfigError, match="expected finite probabilities"):
        pick_band(np.array(p), 0.5, 0.1)


# ---------------------------------------------------------------- the points


def test_points_by_hand():
    p = np.array([0.1, 0.35, 0.4, 0.45, 0.6, 0.9])
    unsafe = np.array([False, False, True, True, False, True])
    encoder = Outcomes(p, p >= 0.5)
    judged = Outcomes(np.where(unsafe, 0.95, 0.05), unsafe)
    none, half, everything = escalation_points(unsafe, encoder, judged, 0.5, (0, 0.5, 1))

    assert (none["escalated"], none["accuracy"], none["recall"], none["false_alarms"]) == pytest.approx(
        (0, 3 / 6, 1 / 3, 1 / 3)
    )
    assert math.isnan(none["low"])
    assert none["auroc"] == pytest.approx(7 / 9)
    # Three of six: none above (a quarter of three), the three nearest below.
    assert (half["low"], half["high"], half["escalated"]) == (0.35, np.nextafter(0.5, 0), 0.5)
    assert (half["accuracy"], half["recall"], half["false_alarms"]) == pytest.approx((5 / 6, 1, 1 / 3))
    assert (everything["accuracy"], everything["auroc"], everything["recall_at_1_percent"]) == (1, 1, 1)


def test_one_class_gives_nan_and_no_error():
    p = np.array([0.2, 0.7])
    row = escalation_points(np.array([False, False]), Outcomes(p, p > 0.5), Outcomes(p, p > 2), 0.5, (1,))[0]

    assert math.isnan(row["recall"])
    assert math.isnan(row["auroc"])
    assert row["false_alarms"] == 0


@given(st.integers(0, 10**6))
def test_a_perfect_judge_never_makes_it_worse(seed):
    rng = np.random.default_rng(seed)
    p = rng.random(50)
    unsafe = rng.random(50) < p
    rows = escalation_points(
        unsafe, Outcomes(p, p >= 0.7), Outcomes(np.where(unsafe, 1.0, 0.0), unsafe), 0.7, SHARES
    )

    for name, sign in (("accuracy", 1), ("recall", 1), ("false_alarms", -1)):
        values = [sign * row[name] for row in rows]
        assert values == sorted(values)


# ---------------------------------------------------------------- with a guard


def example(text, unsafe):
    return Example((Turn("user", text),), unsafe, text, "test")


EXAMPLES = [
    example(UNSAFE, True),
    example(SAFE, False),
    example("i drive a red car", True),  # the encoder does not know better
    example("four beer and i drive, said nobody", False),
] * 3


class Oracle:
    def __init__(self):
        self.asked = []

    def judge(self, question):
        text = question.turns[-1].text
        self.asked.append(text)
        unsafe = next(e.unsafe for e in EXAMPLES if e.turns[-1].text == text)
        return Opinion(unsafe, (), Level.NEEDS_CAUTION if unsafe else Level.CASUAL)


def make(judge=None):
    config = GuardConfig.of(judge_cache=0)
    return Guardrail(WordEncoder(), [DRIVING, PRIVACY], config=config, judge=judge)


def test_the_curve_runs_from_the_encoder_to_the_judge():
    oracle, own = Oracle(), Oracle()
    first, last = escalation_curve(make(own), EXAMPLES, oracle, (0, 1))

    assert (first["accuracy"], first["recall"], first["false_alarms"]) == (0.5, 0.5, 0.5)
    assert (last["accuracy"], last["auroc"], last["escalated"], last["failed"]) == (1, 1, 1, 0)
    assert len(oracle.asked) == len(EXAMPLES)  # each once
    assert own.asked == []


def test_no_more_is_asked_than_the_largest_share_needs():
    oracle = Oracle()
    rows = escalation_curve(make(), EXAMPLES, oracle, (0, 0.5))

    assert len(oracle.asked) == round(rows[-1]["escalated"] * len(EXAMPLES)) <= 6
    escalation_curve(make(), EXAMPLES, oracle, ())
    assert len(oracle.asked) <= 6


def test_a_judge_that_fails_is_counted_and_the_encoder_stands():
    def llm(messages):
        raise RuntimeError

    none, everything = escalation_curve(make(), EXAMPLES, llm, (0, 1))

    assert (none["failed"], everything["failed"]) == (0, 1)
    assert everything["accuracy"] == none["accuracy"]


def test_a_turn_that_no_judge_was_asked_about_is_no_failure():
    blank = [example(" ", False)] * 3
    row = escalation_curve(make(), EXAMPLES + blank, Oracle(), (1,))[0]

    assert (row["escalated"], row["failed"]) == (1, 0)


def test_a_judge_gets_all_the_time_it_needs():
    oracle = Oracle()

    class Slow:
        def judge(self, question):
            time.sleep(0.05)
            return oracle.judge(question)

    guard = make().with_judge(None, judge_deadline_ms=1)  # as an app may have it
    assert escalation_curve(guard, EXAMPLES[:4], Slow(), (1,))[0]["failed"] == 0
    assert escalation_curve(guard, EXAMPLES[:4], Slow(), (1,), deadline_ms=1)[0]["failed"] == 1


def test_no_examples_are_refused():
    with pytest.raises(ConfigError, match="expected finite probabilities of at least one turn"):
        escalation_curve(make(), [], Oracle())
