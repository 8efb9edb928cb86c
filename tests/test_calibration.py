"""Raw outputs to probabilities: against slow references, in order, and without overflow."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail import ArtifactError
from guardrail.calibration import (
    Calibration,
    Platt,
    RuleCalibration,
    Thresholds,
    as_json,
    intervention_log_odds,
    log_odds,
    sigmoid,
    unsafe_log_odds,
)

moderate = st.floats(-30, 30)
rows = st.lists(st.tuples(moderate, moderate, moderate), min_size=1, max_size=5)


def softmax(row):
    top = max(row)
    weights = [math.exp(value - top) for value in row]
    return [weight / math.fsum(weights) for weight in weights]


@given(rows)
def test_unsafe_log_odds_equal_a_slow_reference(logits):
    got = unsafe_log_odds(np.array(logits))
    for value, row in zip(got, logits, strict=True):
        casual, caution, intervention = softmax(row)
        assert value == pytest.approx(math.log((caution + intervention) / casual), abs=1e-9)


@given(rows)
def test_intervention_log_odds_equal_a_slow_reference(logits):
    got = intervention_log_odds(np.array(logits))
    for value, row in zip(got, logits, strict=True):
        casual, caution, intervention = softmax(row)
        assert value == pytest.approx(math.log(intervention / (casual + caution)), abs=1e-9)


@pytest.mark.parametrize("function", [unsafe_log_odds, intervention_log_odds])
def test_log_odds_of_extreme_logits_are_finite(function):
    logits = np.array([[1000, -1000, 0], [-1000, 1000, 1000], [0, 0, 0]], np.float32)

    assert np.isfinite(function(logits)).all()


@given(st.floats(-700, 700))
def test_sigmoid_equals_a_slow_reference(x):
    reference = 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))

    assert float(sigmoid(np.array([x]))[0]) == pytest.approx(reference, abs=1e-12)


def test_sigmoid_of_extremes_does_not_overflow():
    assert sigmoid(np.array([-1e308, -1e4, 0, 1e4, 1e308])).tolist() == [0, 0, 0.5, 1, 1]


@given(st.floats(0.01, 20), st.floats(-10, 10), st.lists(st.floats(-50, 50), min_size=2, max_size=20))
def test_platt_keeps_the_order(slope, intercept, values):
    probabilities = Platt(slope=slope, intercept=intercept)(np.array(sorted(values)))

    assert (np.diff(probabilities) >= 0).all()
    assert ((probabilities >= 0) & (probabilities <= 1)).all()


def test_platt_by_hand():
    assert Platt(slope=2, intercept=-1)(np.array([0.5, 1.5])).tolist() == pytest.approx(
        [0.5, 1 / (1 + math.e**-2)]
    )
    assert Platt()(np.array([0.0])).tolist() == [0.5]


def test_rule_calibration_by_hand():
    calibration = RuleCalibration(product=2, level=3, cosine=5, intercept=-1)
    got = calibration(np.array([0.5, -0.5]), 0.1, np.array([0.2, 0.0]))

    assert got.tolist() == pytest.approx([1 / (1 + math.exp(-1.3)), 1 / (1 + math.exp(1.7))])


@given(st.floats(0.001, 0.999))
def test_log_odds_undo_the_sigmoid(probability):
    assert float(sigmoid(np.array([log_odds(probability)]))[0]) == pytest.approx(probability, abs=1e-9)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_log_odds_of_certainty_are_finite(probability):
    assert abs(log_odds(probability)) == pytest.approx(math.log(1e6), abs=0.01)


# ---------------------------------------------------------------- the file


def test_a_calibration_survives_json():
    calibration = Calibration(
        unsafe=Platt(slope=1.5, intercept=-0.2),
        rule=RuleCalibration(product=0.5, cosine=2),
        thresholds=Thresholds(caution=0.3, touch=-0.1),
    )

    assert Calibration.parse(json.dumps(as_json(calibration)), "x") == calibration
    assert Calibration.parse("{}", "x") == Calibration()


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", "Invalid JSON"),
        ("[]", "should be an object|valid dictionary"),
        ('{"unsafe": {"slope": 0}}', r"unsafe\.slope: Input should be greater than 0"),
        ('{"unsafe": {"slope": -1}}', r"unsafe\.slope: Input should be greater than 0"),
        ('{"unsafe": {"slope": "steep"}}', r"unsafe\.slope: Input should be a valid number"),
        ('{"unsafe": {"slop": 1}}', r"unsafe\.slop: Extra inputs are not permitted"),
        ('{"other": 1}', "other: Extra inputs are not permitted"),
        ('{"thresholds": {"caution": 1.1}}', r"thresholds\.caution: Input should be less than or equal to 1"),
        ('{"thresholds": {"rule": -0.1}}', r"thresholds\.rule: Input should be greater than or equal to 0"),
        (
            '{"thresholds": {"touch": -1.1}}',
            r"thresholds\.touch: Input should be greater than or equal to -1",
        ),
        ('{"unsafe": {"intercept": NaN}}', r"unsafe\.intercept: .*finite"),
        ('{"unsafe": {"slope": Infinity}}', r"unsafe\.slope: .*finite"),
        ('{"rule": {"product": NaN}}', r"rule\.product: .*finite"),
        ('{"thresholds": {"caution": NaN}}', r"thresholds\.caution: "),
    ],
)
def test_a_broken_file_is_refused_with_the_place_and_the_reason(text, place):
    with pytest.raises(ArtifactError, match=rf"^expected a calibration in model/x: .*({place})"):
        Calibration.parse(text, "model/x")


def test_a_calibration_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Calibration().thresholds.caution = 0.1
