"""How well P(unsafe) tells unsafe from safe turns, set by set and category by category."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from guardrail import Guardrail

from ..examples import Example
from ..metrics import (
    Bools,
    Floats,
    auprc,
    auroc,
    auroc_interval,
    brier,
    expected_calibration_error,
    macro_f1,
    recall_at_fpr,
)
from .common import Figures, as_messages

FEW = 20  # a category of fewer turns has no figures of its own


@dataclass(frozen=True, slots=True)
class Scored:
    """A set of n examples with the guard's verdicts.

    Attributes:
        name: of the set.
        examples: n.
        probabilities: (n,) P(unsafe).
        flagged: (n,).
        touched: (n,) True where a rule is in play.
        levels: n names of levels.
        ok: (n,) False where the guard failed or did not read the turn whole.
    """

    name: str
    examples: tuple[Example, ...] = field(repr=False)
    probabilities: Floats
    flagged: Bools
    touched: Bools
    levels: tuple[str, ...]
    ok: Bools

    @property
    def unsafe(self) -> Bools:
        """(n,) the true labels."""
        return np.array([example.unsafe for example in self.examples], bool)

    @property
    def has_both(self) -> bool:
        """True if there are safe and unsafe examples."""
        return bool(self.unsafe.any() and not self.unsafe.all())

    def only(self, rows: Sequence[int]) -> Scored:
        """Return a part of the set."""
        kept = list(rows)
        return Scored(
            self.name,
            tuple(self.examples[row] for row in kept),
            self.probabilities[kept],
            self.flagged[kept],
            self.touched[kept],
            tuple(self.levels[row] for row in kept),
            self.ok[kept],
        )


def score_set(guard: Guardrail, name: str, examples: Sequence[Example]) -> Scored:
    """Judge whole conversations through `check_batch`: what a user would get."""
    verdicts = guard.check_batch([as_messages(example.turns) for example in examples])
    return Scored(
        name,
        tuple(examples),
        np.array([verdict.probability for verdict in verdicts]),
        np.array([verdict.flagged for verdict in verdicts], bool),
        np.array([bool(verdict.touched) for verdict in verdicts], bool),
        tuple(verdict.level.value for verdict in verdicts),
        np.array([verdict.status == "ok" for verdict in verdicts], bool),
    )


def classification_figures(scored: Scored) -> Figures:
    """Return the figures of a set: ranking and calibration where it has both classes, and flagged shares."""
    unsafe, scores = scored.unsafe, scored.probabilities
    figures: Figures = {"n": float(len(unsafe)), "unsafe": float(unsafe.sum())}
    if scored.has_both:
        groups = [example.group for example in scored.examples]
        low, high = auroc_interval(scores, unsafe, groups)
        figures |= {
            "auroc": auroc(scores, unsafe),
            "auroc_low": low,
            "auroc_high": high,
            "auprc": auprc(scores, unsafe),
            "recall_at_1_percent": recall_at_fpr(scores, unsafe, 0.01),
            "recall_at_5_percent": recall_at_fpr(scores, unsafe, 0.05),
            "ece": expected_calibration_error(scores, unsafe),
            "brier": brier(scores, unsafe),
            "macro_f1": macro_f1(_sides(scored.flagged), _sides(unsafe)),
        }
    return figures | _flagged(scored) | {"not_ok": float(np.mean(~scored.ok))}


def category_figures(scored: Scored) -> dict[str, Figures]:
    """Return AUROC and flagged shares of every category that is large enough."""
    names = [example.category for example in scored.examples]
    report: dict[str, Figures] = {}
    for name, count in sorted(Counter(filter(None, names)).items()):
        if count >= FEW:
            part = scored.only([row for row, own in enumerate(names) if own == name])
            figures: Figures = {"n": float(count), "unsafe": float(part.unsafe.sum())}
            if part.has_both:
                figures["auroc"] = auroc(part.probabilities, part.unsafe)
            report[name] = figures | _flagged(part)
    return report


def level_figures(scored: Scored) -> Figures:
    """Return accuracy and macro-F1 on the three levels, over the examples that have one; else nothing.

    `majority` is the accuracy of always naming the commonest level.
    """
    rows = [row for row, example in enumerate(scored.examples) if example.level is not None]
    true = [str(scored.examples[row].level) for row in rows]
    return label_figures([scored.levels[row] for row in rows], true) if len(set(true)) > 1 else {}


def label_figures(predicted: Sequence[str], true: Sequence[str]) -> Figures:
    """Return accuracy, macro-F1 and the share of the commonest label."""
    hits = [guess == label for guess, label in zip(predicted, true, strict=True)]
    return {
        "n": float(len(true)),
        "accuracy": float(np.mean(hits)),
        "macro_f1": macro_f1(predicted, true),
        "majority": max(Counter(true).values()) / len(true),
    }


def _sides(unsafe: Bools) -> list[str]:
    return ["unsafe" if one else "safe" for one in unsafe]


def _flagged(scored: Scored) -> Figures:
    figures: Figures = {}
    if scored.unsafe.any():
        figures["unsafe_flagged"] = float(scored.flagged[scored.unsafe].mean())
    if not scored.unsafe.all():
        figures["safe_flagged"] = float(scored.flagged[~scored.unsafe].mean())
    return figures
