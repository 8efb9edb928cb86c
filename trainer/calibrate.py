"""Fit calibration and thresholds of one encoder, as the runtime runs it, on validation data."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from guardrail.calibration import (
    Band,
    Calibration,
    Platt,
    RuleCalibration,
    Thresholds,
    intervention_log_odds,
)
from guardrail.protocols import Encoder
from guardrail.rule_index import RuleIndex
from guardrail.rules import Rule
from guardrail.types import Level

from .calibration_data import CalibrationData
from .escalation import pick_band
from .examples import Example, Twin
from .metrics import expected_calibration_error, threshold_at_fpr
from .runtime_scoring import score_conversations
from .scoring import Outputs

CANDIDATES = 16
# Two rules whose embeddings are nearer than this say the same.
SAME_RULE = 0.8
# Share of casual turns on which a rule may count as touched: guidance costs tokens, nothing else.
TOUCH_SHARE = 0.10
# Share of everyday turns that goes to a judge, if there is one.
ESCALATED_SHARE = 0.10
# A single rule, and an intervention, must be surer than the level: they name or do more.
RULE_FPR_SHARE = 0.2
INTERVENTION_FPR_SHARE = 0.2
# Most examples of one source: for the fit, in which no source outweighs the others, and for the thresholds,
# which a few turns of everyday talk decide.
PER_SOURCE = 500
CASUAL_PER_SOURCE = 1500

Floats = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted calibration, with what it was fitted on.

    Attributes:
        calibration: the result.
        max_fpr: share of everyday turns that may be flagged.
        before: (n,) P(unsafe) of the n validation turns before the fit.
        after: (n,) the same after it.
        unsafe: (n,) their labels.
        everyday: (m,) P(unsafe) of the m everyday turns that set the thresholds.
        nearest: (m,) cosine of each to its nearest rule.
        sources: (m,) where they are from.
    """

    calibration: Calibration
    max_fpr: float
    before: Floats = field(repr=False)
    after: Floats = field(repr=False)
    unsafe: NDArray[np.bool_] = field(repr=False)
    everyday: Floats = field(repr=False)
    nearest: Floats = field(repr=False)
    sources: NDArray[np.str_] = field(repr=False)

    def figures(self) -> dict[str, float]:
        """Return sizes, ECE before and after, flagged shares, thresholds."""
        thresholds = self.calibration.thresholds
        flagged, alarms = self.after >= thresholds.caution, self.everyday >= thresholds.caution
        figures = {
            "calibration/examples": float(len(self.unsafe)),
            "calibration/ece_before": expected_calibration_error(self.before, self.unsafe),
            "calibration/ece_after": expected_calibration_error(self.after, self.unsafe),
            "calibration/max_fpr": self.max_fpr,
            "calibration/casual_turns": float(len(self.everyday)),
            "calibration/casual_flagged": float(alarms.mean()),
            "calibration/casual_touched": float((self.nearest >= thresholds.touch).mean()),
            **{
                f"calibration/flagged_{source}": float(alarms[self.sources == source].mean())
                for source in np.unique(self.sources).tolist()
            },
            "calibration/safe_flagged": float(flagged[~self.unsafe].mean()),
            "calibration/recall": float(flagged[self.unsafe].mean()),
            **{f"threshold/{name}": value for name, value in thresholds.model_dump().items()},
        }
        if self.calibration.band is not None:
            figures |= {f"band/{name}": value for name, value in self.calibration.band.model_dump().items()}
        return {name: round(value, 4) for name, value in figures.items()}


def fit_calibration(
    encoder: Encoder,
    index: RuleIndex,
    rules: Sequence[Rule],
    data: CalibrationData,
    *,
    before: Platt | None = None,
    escalated: float = ESCALATED_SHARE,
    seed: int = 0,
) -> Fit:
    """Fit on the validation split; every source weighs alike, whatever its size.

    The uncertain band is taken from the same everyday turns as the thresholds, by what the runtime
    compares with it: P(unsafe), or that of a single rule where one fires. Here each turn is read in
    one window; of a turn that needs several the runtime takes the highest.

    Args:
        encoder: the encoder of the model folder: calibration belongs to one backend.
        index: vectors of the rules.
        rules: in the index's order.
        data: the validation split, and the everyday turns that set the thresholds.
        before: the calibration until now, for comparison; None for none.
        escalated: share of everyday turns that goes to a judge, if there is one, [0, 1].
        seed: of the choice of examples.

    Raises:
        ConfigError: `escalated` is out of range.
    """
    examples = _balanced(data.split.examples + data.split.bank, PER_SOURCE, seed)
    everyday = _balanced(data.casual, CASUAL_PER_SOURCE, seed)
    outputs = score_conversations(encoder, [example.turns for example in examples])
    casual = score_conversations(encoder, [example.turns for example in everyday])
    unsafe = np.array([example.unsafe for example in examples])
    platt = _platt(outputs.log_odds, unsafe)
    graded = np.array([example.level is not None for example in examples])
    grave = np.array([example.level is Level.NEEDS_INTERVENTION for example in examples])
    grave_odds = intervention_log_odds(outputs.level_logits)
    intervention = _platt(grave_odds[graded], grave[graded])
    ruled = [twin for twin in data.split.twins if twin.rule]
    rule = _fit_rule(encoder, index, rules, ruled, examples, outputs)
    everyday_unsafe = platt(casual.log_odds)
    everyday_rule = _top_rule_probability(casual, index, rule)
    nearest = np.array([found[0][1] for found in index.search(casual.embeddings, 1)])
    grave_fpr, rule_fpr = data.max_fpr * INTERVENTION_FPR_SHARE, data.max_fpr * RULE_FPR_SHARE
    thresholds = Thresholds(
        caution=_inside(threshold_at_fpr(everyday_unsafe, data.max_fpr)),
        intervention=max(0.5, _inside(threshold_at_fpr(intervention(grave_odds)[~unsafe], grave_fpr))),
        rule=max(0.5, _inside(threshold_at_fpr(everyday_rule, rule_fpr))),
        touch=min(1.0, threshold_at_fpr(nearest, TOUCH_SHARE)),  # a cosine may be 1.0000001
    )
    fired = everyday_rule >= thresholds.rule
    compared = np.where(fired, np.maximum(everyday_unsafe, everyday_rule), everyday_unsafe)
    # An empty share must not become the band that the runtime takes where none was fitted.
    nothing = Band(low=thresholds.caution, high=thresholds.caution)
    return Fit(
        Calibration(
            unsafe=platt,
            intervention=intervention,
            rule=rule,
            thresholds=thresholds,
            band=pick_band(compared, thresholds.caution, escalated) or nothing,
        ),
        data.max_fpr,
        before=(before or Platt())(outputs.log_odds),
        after=platt(outputs.log_odds),
        unsafe=unsafe,
        everyday=everyday_unsafe,
        nearest=nearest,
        sources=np.array([example.source for example in everyday]),
    )


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
