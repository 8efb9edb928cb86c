"""From calibrated numbers to a decision: monotone, inclusive, and never louder than its numbers."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail import Action, Level
from guardrail.calibration import Calibration, Thresholds
from guardrail.decision import decide
from guardrail.detector import Judgement, RuleScore, judge
from guardrail.protocols import EncoderOutput
from guardrail.rule_index import RuleIndex

THRESHOLDS = Thresholds(caution=0.6, intervention=0.7, rule=0.9, touch=0.4)
probabilities = st.floats(0, 1)
cosines = st.floats(-1, 1)


def judgement(probability=0.0, intervention=0.0, rules=()):
    """Return a judgement from (probability, similarity) of each rule."""
    scores = [RuleScore(n, similarity, p, 0) for n, (p, similarity) in enumerate(rules)]
    return Judgement(probability, intervention, tuple(sorted(scores, key=lambda s: -s.probability)))


judgements = st.builds(
    judgement, probabilities, probabilities, st.lists(st.tuples(probabilities, cosines), max_size=6)
)
thresholds = st.builds(
    Thresholds, caution=probabilities, intervention=probabilities, rule=probabilities, touch=cosines
)


# ---------------------------------------------------------------- properties


@given(judgements, thresholds, probabilities)
def test_the_action_never_falls_when_p_unsafe_rises(before, limits, risen):
    after = replace(before, probability=max(before.probability, risen))

    assert decide(after, limits, 3).action.rank >= decide(before, limits, 3).action.rank
    assert decide(after, limits, 3).probability >= decide(before, limits, 3).probability


@given(judgements, thresholds, probabilities)
def test_the_action_never_falls_when_p_intervention_rises(before, limits, risen):
    after = replace(before, intervention=max(before.intervention, risen))

    assert decide(after, limits, 3).action.rank >= decide(before, limits, 3).action.rank


@given(judgements.filter(lambda j: j.rules), thresholds, probabilities, st.integers(0, 5))
def test_the_action_never_falls_when_the_probability_of_a_rule_rises(before, limits, risen, which):
    chosen = before.rules[which % len(before.rules)]
    higher = replace(chosen, probability=max(chosen.probability, risen))
    rules = [higher if rule is chosen else rule for rule in before.rules]
    after = replace(before, rules=tuple(sorted(rules, key=lambda rule: -rule.probability)))

    assert decide(after, limits, 3).action.rank >= decide(before, limits, 3).action.rank
    assert decide(after, limits, 3).probability >= decide(before, limits, 3).probability


@given(judgements, thresholds, st.integers(1, 5))
def test_what_holds_for_every_decision(judged, limits, most):
    decision = decide(judged, limits, most)
    flagged = decision.action is not Action.ALLOW

    assert flagged is (
        judged.probability >= limits.caution or any(rule.probability >= limits.rule for rule in judged.rules)
    )
    assert max(len(decision.broken), len(decision.touched)) <= most
    assert flagged or decision.broken == ()
    assert all(rule.similarity >= limits.touch for rule in decision.touched)
    assert set(decision.broken) | set(decision.touched) <= set(judged.rules)
    named = [rule.probability for rule in decision.broken]
    assert named == sorted(named, reverse=True)
    assert decide(judged, limits, most) == decision


# ---------------------------------------------------------------- thresholds, one by one


@pytest.mark.parametrize(
    ("probability", "intervention", "action"),
    [
        (0.0, 0.0, Action.ALLOW),
        (0.5999, 0.0, Action.ALLOW),
        (0.6, 0.0, Action.CAUTION),
        (0.6, 0.6999, Action.CAUTION),
        (0.6, 0.7, Action.INTERVENE),
        (1.0, 1.0, Action.INTERVENE),
        (0.5999, 1.0, Action.ALLOW),
    ],
)
def test_thresholds_are_inclusive(probability, intervention, action):
    assert decide(judgement(probability, intervention), THRESHOLDS, 3).action is action


@pytest.mark.parametrize(
    ("rule", "intervention", "action"),
    [
        (0.8999, 0.0, Action.ALLOW),
        (0.9, 0.0, Action.CAUTION),
        (0.9, 0.7, Action.INTERVENE),
    ],
)
def test_a_single_rule_flags_by_itself(rule, intervention, action):
    decision = decide(judgement(0.1, intervention, [(0.2, 0.9), (rule, -0.5)]), THRESHOLDS, 3)

    assert decision.action is action
    if action is Action.ALLOW:
        assert (decision.broken, decision.probability) == ((), 0.1)
    else:
        assert [score.position for score in decision.broken] == [1]
        assert decision.probability == rule


@pytest.mark.parametrize(("similarity", "touched"), [(0.3999, 0), (0.4, 1), (1.0, 1)])
def test_a_touched_rule_never_blocks(similarity, touched):
    decision = decide(judgement(0.1, 0.9, [(0.8, similarity)]), THRESHOLDS, 3)

    assert len(decision.touched) == touched
    assert (decision.action, decision.broken) == (Action.ALLOW, ())


def test_touched_rules_come_nearest_first():
    decision = decide(judgement(0.1, 0.0, [(0.3, 0.5), (0.1, 0.9), (0.2, 0.7), (0.8, 0.1)]), THRESHOLDS, 3)

    assert [score.similarity for score in decision.touched] == [0.9, 0.7, 0.5]


def test_the_likeliest_rule_is_named_and_others_only_if_likelier_than_not():
    unlikely = decide(judgement(0.9, 0.0, [(0.2, 0.5), (0.1, 0.5)]), THRESHOLDS, 3)
    mixed = decide(judgement(0.9, 0.0, [(0.8, 0.5), (0.5, 0.5), (0.4999, 0.5)]), THRESHOLDS, 3)

    assert [score.probability for score in unlikely.broken] == [0.2]
    assert [score.probability for score in mixed.broken] == [0.8, 0.5]


@pytest.mark.parametrize("most", [1, 2, 3, 10])
def test_max_rules(most):
    decision = decide(judgement(0.9, 0.0, [(0.95, 0.5)] * 5), THRESHOLDS, most)

    assert len(decision.broken) == len(decision.touched) == min(most, 5)


@pytest.mark.parametrize(
    ("probability", "intervention", "level"),
    [
        (0.4999, 0.9, Level.CASUAL),
        (0.5, 0.4999, Level.NEEDS_CAUTION),
        (0.5, 0.5, Level.NEEDS_INTERVENTION),
    ],
)
def test_the_level_is_the_likeliest_one(probability, intervention, level):
    assert decide(judgement(probability, intervention), THRESHOLDS, 3).level is level


def test_a_turn_without_retrieved_rules_can_be_flagged():
    decision = decide(judgement(0.9), THRESHOLDS, 3)

    assert (decision.action, decision.broken, decision.touched) == (Action.CAUTION, (), ())


# ---------------------------------------------------------------- several windows


def output(*logits):
    n = len(logits)
    vectors = np.tile(np.array([[1, 0]], np.float32), (n, 1))
    return EncoderOutput(vectors, vectors, np.array(logits, np.float32))


def judged(*logits):
    index = RuleIndex(2)
    index.add(np.array([[1, 0], [0, 1]], np.float32))
    return judge(output(*logits), index, Calibration(), 5)


FINE, CAUTION, GRAVE = (8.0, 0.0, 0.0), (0.0, 9.0, 0.0), (0.0, 0.0, 6.0)


def test_the_worst_window_decides():
    assert judged(FINE, CAUTION, FINE).probability == judged(CAUTION).probability
    assert judged(FINE, CAUTION, FINE).probability > judged(FINE, FINE).probability


def test_a_grave_window_stays_grave_beside_one_that_is_surely_unsafe():
    alone, beside = judged(GRAVE), judged(GRAVE, CAUTION)

    assert decide(alone, Thresholds(), 3).action is Action.INTERVENE
    assert decide(beside, Thresholds(), 3).action is Action.INTERVENE
    assert beside.intervention >= alone.intervention


@given(
    st.lists(st.tuples(*[st.floats(-9, 9)] * 3), min_size=1, max_size=4), st.tuples(*[st.floats(-9, 9)] * 3)
)
def test_a_further_window_never_lowers_the_action(windows, further):
    before, after = judged(*windows), judged(*windows, further)

    assert after.probability >= before.probability
    assert decide(after, Thresholds(), 3).action.rank >= decide(before, Thresholds(), 3).action.rank


def test_each_rule_is_scored_once_with_its_likeliest_window():
    scores = judged(FINE, CAUTION, FINE).rules

    assert sorted(score.position for score in scores) == [0, 1]
    assert {score.window for score in scores} == {1}
    assert [score.probability for score in scores] == sorted((s.probability for s in scores), reverse=True)
