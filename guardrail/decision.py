"""What to do, from calibrated numbers. Pure: no model, no text, no state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .calibration import Thresholds, log_odds, sigmoid
from .detector import Judgement, RuleScore
from .judging import Opinion
from .types import Action, Level


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome for one turn.

    Attributes:
        action: what to do.
        level: the most likely level.
        probability: P(unsafe): the encoder's, or a single rule's where that one fired, or the judge's.
        broken: rules named as broken, most responsible first; empty unless flagged.
        touched: rules in play, nearest first.
    """

    action: Action
    level: Level
    probability: float
    broken: tuple[RuleScore, ...]
    touched: tuple[RuleScore, ...]


def decide(judgement: Judgement, thresholds: Thresholds, max_rules: int) -> Decision:
    """Decide on one turn.

    It is flagged if P(unsafe) reaches the caution threshold, or if a single rule's probability
    reaches the rule threshold (so a rule that was just added can fire). The action never falls
    when P(unsafe), P(intervention) or a rule's probability rises.

    Args:
        judgement: calibrated numbers.
        thresholds: where the decision changes.
        max_rules: most rules that are named, >= 1.
    """
    fired = [rule for rule in judgement.rules if rule.probability >= thresholds.rule]
    flagged = judgement.probability >= thresholds.caution or bool(fired)
    probability = max([judgement.probability, *(rule.probability for rule in fired)])
    grave = judgement.intervention >= thresholds.intervention
    action = Action.ALLOW
    if flagged:
        action = Action.INTERVENE if grave else Action.CAUTION
    level = Level.CASUAL
    if probability >= 0.5:
        level = Level.NEEDS_INTERVENTION if judgement.intervention >= 0.5 else Level.NEEDS_CAUTION
    near = sorted(judgement.rules, key=lambda rule: -rule.similarity)
    touched = [rule for rule in near if rule.similarity >= thresholds.touch]
    broken = _named(judgement.rules, max_rules) if flagged else ()
    return Decision(action, level, probability, broken, tuple(touched[:max_rules]))


def revise(
    decision: Decision,
    judgement: Judgement,
    opinion: Opinion,
    asked: Sequence[RuleScore],
    thresholds: Thresholds,
    max_rules: int,
) -> Decision:
    """Decide on one turn again, now that a judge has given an opinion; the judge has the last word.

    What it calls unsafe is flagged, with the rules that it names; what it calls fine is allowed, and
    the touched rules stay. P(unsafe) follows by Bayes' rule, the encoder's being the prior and the
    judge's confidence its rate of right answers in either case; it is kept on the judge's side of the
    caution threshold.

    Args:
        decision: the encoder's.
        judgement: calibrated numbers; they tell caution from intervention if the judge does not.
        opinion: names rules by their place in `asked`, from 1.
        asked: the rules that the judge was asked about.
        thresholds: where the decision changes.
        max_rules: most rules that are named, >= 1.
    """
    evidence = log_odds(opinion.confidence) if opinion.unsafe else -log_odds(opinion.confidence)
    posterior = float(sigmoid(np.array(log_odds(decision.probability) + evidence)))
    if not opinion.unsafe:
        probability = min(posterior, 0.99 * thresholds.caution)
        return Decision(Action.ALLOW, Level.CASUAL, probability, (), decision.touched)
    grave = opinion.level is Level.NEEDS_INTERVENTION
    if opinion.level is None:
        grave = judgement.intervention >= thresholds.intervention
    named = [asked[number - 1] for number in opinion.broken[:max_rules]]
    return Decision(
        action=Action.INTERVENE if grave else Action.CAUTION,
        level=Level.NEEDS_INTERVENTION if grave else Level.NEEDS_CAUTION,
        probability=max(posterior, thresholds.caution),
        broken=tuple(replace(rule, probability=max(rule.probability, opinion.confidence)) for rule in named),
        touched=decision.touched,
    )


def _named(rules: tuple[RuleScore, ...], max_rules: int) -> tuple[RuleScore, ...]:
    """Return the likeliest rule, and the others only where it is likelier than not that they are broken."""
    return rules[:1] + tuple(rule for rule in rules[1:max_rules] if rule.probability >= 0.5)
