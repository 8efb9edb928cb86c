"""Fit calibration and thresholds of an exported encoder on validation data."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from guardrail.calibration import (
    Calibration,
    Platt,
    RuleCalibration,
    Thresholds,
    intervention_log_odds,
    unsafe_log_odds,
)
from guardrail.protocols import Encoder
from guardrail.rule_index import RuleIndex
from guardrail.rules import Rule
from guardrail.types import Level

from .data import DataSplit
from .examples import Example, Twin
from .metrics import expected_calibration_error, threshold_at_fpr
from .runtime_scoring import score_conversations
from .scoring import Outputs

# The sources of plain small talk; what they trigger is a false alarm.
CASUAL_SOURCES = frozenset({"self_dialogue", "topical_chat", "persona", "wow", "msc", "own_casual"})
CANDIDATES = 16
# Two rules whose embeddings are nearer than this say the same.
SAME_RULE = 0.8
# Share of casual turns on which a rule may count as touched: guidance costs tokens, nothing else.
TOUCH_SHARE = 0.10
# A single rule, and an intervention, must be surer than the level: they name or do more.
RULE_FPR_SHARE = 0.2
INTERVENTION_FPR_SHARE = 0.2

Floats = NDArray[np.floating]


def fit_calibration(
    encoder: Encoder,
    index: RuleIndex,
    rules: Sequence[Rule],
    split: DataSplit,
    *,
    max_fpr: float,
    per_source: int = 500,
    seed: int = 0,
) -> tuple[Calibration, dict[str, float]]:
    """Fit on the validation split; every source weighs alike, whatever its size.

    Args:
        encoder: the exported encoder: calibration belongs to one backend.
        index: vectors of the rules.
        rules: in the index's order.
        split: the validation split.
        max_fpr: share of casual turns that may be flagged, (0, 1).
        per_source: most examples of one source.
        seed: of their choice.

    Returns:
        The calibration, and figures: ECE before and after, thresholds, flagged shares.
    """
    examples = _balanced(split.examples + split.bank, per_source, seed)
    outputs = score_conversations(encoder, [example.turns for example in examples])
    unsafe = np.array([example.unsafe for example in examples])
    casual = np.array([example.source in CASUAL_SOURCES for example in examples])
    odds = unsafe_log_odds(outputs.level_logits)
    platt = _platt(odds, unsafe)
    graded = np.array([example.level is not None for example in examples])
    grave = np.array([example.level is Level.NEEDS_INTERVENTION for example in examples])
    grave_odds = intervention_log_odds(outputs.level_logits)
    intervention = _platt(grave_odds[graded], grave[graded])
    rule = _fit_rule(encoder, index, rules, [twin for twin in split.twins if twin.rule], examples, outputs)
    safe_rule = _top_rule_probability(outputs, index, rule)[casual]
    probability = platt(odds)
    hits = index.search(outputs.embeddings[casual], 1)
    thresholds = Thresholds(
        caution=_inside(threshold_at_fpr(probability[casual], max_fpr)),
        intervention=max(
            0.5,
            _inside(threshold_at_fpr(intervention(grave_odds)[~unsafe], max_fpr * INTERVENTION_FPR_SHARE)),
        ),
        rule=max(0.5, _inside(threshold_at_fpr(safe_rule, max_fpr * RULE_FPR_SHARE))),
        touch=threshold_at_fpr(np.array([found[0][1] for found in hits]), TOUCH_SHARE),
    )
    flagged = probability >= thresholds.caution
    figures = {
        "calibration/examples": float(len(examples)),
        "calibration/ece_before": expected_calibration_error(Platt()(odds), unsafe),
        "calibration/ece_after": expected_calibration_error(probability, unsafe),
        "calibration/casual_flagged": float(flagged[casual].mean()),
        "calibration/safe_flagged": float(flagged[~unsafe].mean()),
        "calibration/recall": float(flagged[unsafe].mean()),
        **{f"threshold/{name}": value for name, value in thresholds.model_dump().items()},
    }
    calibration = Calibration(unsafe=platt, intervention=intervention, rule=rule, thresholds=thresholds)
    return calibration, {name: round(value, 4) for name, value in figures.items()}


def _balanced(examples: Sequence[Example], per_source: int, seed: int) -> list[Example]:
    by_source: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        by_source[example.source].append(example)
    rng = random.Random(seed)
    return [
        example
        for _, members in sorted(by_source.items())
        for example in (members if len(members) <= per_source else rng.sample(members, per_source))
    ]


def _platt(odds: Floats, labels: NDArray[np.bool_]) -> Platt:
    """Fit slope and intercept; without both classes the identity is kept."""
    if labels.all() or not labels.any():
        return Platt()
    model = LogisticRegression(C=1e4).fit(np.asarray(odds)[:, None], labels)
    # A slope of 0 or less would say that the model is no better than chance: then keep its order.
    return Platt(slope=max(float(model.coef_[0, 0]), 1e-3), intercept=float(model.intercept_[0]))


def _fit_rule(
    encoder: Encoder,
    index: RuleIndex,
    rules: Sequence[Rule],
    twins: Sequence[Twin],
    examples: Sequence[Example],
    outputs: Outputs,
) -> RuleCalibration:
    """Fit P(rule broken): a violation with its own rule yes; its safe twin, and other rules, no."""
    position = {rule.text: number for number, rule in enumerate(rules)}
    known = [twin for twin in twins if twin.rule in position]
    features: list[Floats] = []
    labels: list[NDArray[np.bool_]] = []
    for version, broken in (("unsafe", True), ("safe", False)):
        if not known:
            continue
        scored = score_conversations(encoder, [getattr(twin, version) for twin in known])
        own = np.array([position[twin.rule] for twin in known])
        # Only where the own rule is retrieved, as at run time: the other candidates below are
        # picked for their high cosine, and pairs that were not would make a high cosine look bad.
        hits = index.search(scored.embeddings, CANDIDATES)
        present = [place in dict(hit) for place, hit in zip(own.tolist(), hits, strict=True)]
        retrieved = np.flatnonzero(present)
        features.append(_rule_features(scored, retrieved, index.vectors(own[retrieved].tolist())))
        labels.append(np.full(len(retrieved), broken))
    # Every other retrieved rule counts as kept: all of a safe turn; of a violation those that do
    # not say the same as its own rule.
    hits = index.search(outputs.embeddings, CANDIDATES)
    rows: list[int] = []
    places: list[int] = []
    for row, (example, found) in enumerate(zip(examples, hits, strict=True)):
        own_place = position.get(example.rule)
        if example.unsafe and own_place is None:
            continue  # nobody has said which rules such a turn breaks
        for place, _ in found:
            if own_place is None or not _same(index, own_place, place):
                rows.append(row)
                places.append(place)
    features.append(_rule_features(outputs, np.array(rows, np.int64), index.vectors(places)))
    labels.append(np.zeros(len(rows), bool))
    return _non_negative_logistic(np.concatenate(features), np.concatenate(labels))


def _same(index: RuleIndex, first: int, second: int) -> bool:
    a, b = index.vectors([first, second])
    return float(a @ b) > SAME_RULE


def _non_negative_logistic(x: Floats, y: NDArray[np.bool_]) -> RuleCalibration:
    """Fit a logistic regression with weights >= 0; without both classes the default is kept."""
    if y.all() or not y.any():
        return RuleCalibration()
    sign = np.where(y, -1.0, 1.0)

    def loss(weights: Floats) -> tuple[float, Floats]:
        margins = sign * (x @ weights[:3] + weights[3])
        slope = sign / (1 + np.exp(-np.clip(margins, -50, 50))) / len(y)
        gradient = np.append(x.T @ slope, slope.sum()) + np.append(1e-4 * weights[:3], 0)
        return float(np.logaddexp(0, margins).mean() + 5e-5 * (weights[:3] ** 2).sum()), gradient

    bounds = [(0, None)] * 3 + [(None, None)]
    fitted = minimize(loss, np.array([1.0, 1.0, 1.0, 0.0]), jac=True, bounds=bounds, method="L-BFGS-B")
    product, level, cosine, intercept = (float(weight) for weight in fitted.x)
    return RuleCalibration(product=product, level=level, cosine=cosine, intercept=intercept)


def _rule_features(outputs: Outputs, rows: NDArray[np.int_], vectors: Floats) -> Floats:
    """Return (m, 3): violation product, log-odds of the level, cosine."""
    product = (outputs.violations[rows] * vectors).sum(1)
    cosine = (outputs.embeddings[rows] * vectors).sum(1)
    return np.stack([product, outputs.log_odds[rows], cosine], axis=1)


def _top_rule_probability(outputs: Outputs, index: RuleIndex, rule: RuleCalibration) -> Floats:
    hits = index.search(outputs.embeddings, CANDIDATES)
    odds = outputs.log_odds
    top = [
        rule(
            index.vectors([place for place, _ in found]) @ outputs.violations[row],
            float(odds[row]),
            np.array([cosine for _, cosine in found]),
        ).max()
        for row, found in enumerate(hits)
    ]
    return np.array(top)


def _inside(probability: float) -> float:
    """Move a threshold just above the safe score that set it, and keep it inside (0, 1)."""
    return min(max(probability + 1e-6, 1e-4), 1 - 1e-6)
