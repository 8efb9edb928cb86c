"""Contrasts: does the unsafe version score above its safe twin? A bag of words stands beside."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from guardrail import Guardrail
from guardrail.types import Turn

from ..baselines import bag_of_words_margins, word_neutral
from ..examples import Twin
from ..metrics import Floats, auroc, auroc_interval, pairwise_accuracy
from .common import Figures, as_messages, by_source, versions

BANK = "bank"
Score = Callable[[tuple[Turn, ...]], float]


def discrimination_figures(
    guard: Guardrail, train: Sequence[Twin], test: Sequence[Twin]
) -> dict[str, Figures]:
    """Return figures of every source of our own twins: all, the word-neutral part, by kind.

    The bank's twins, a violation against a near miss of its rule, differ in more than one fact; no
    bag of words is fitted to them. All other sources share one, fitted on their training twins together.

    Args:
        guard: the guard.
        train: our training twins; only the bag of words reads them.
        test: our held-out twins.
    """
    score = _scorer(guard, test)
    matched = [twin for twin in train if twin.source != BANK]
    report: dict[str, Figures] = {}
    for source, twins in by_source(test).items():
        report[source] = _all(score, twins)
        if source == BANK or not matched:
            continue
        margins = bag_of_words_margins(matched, twins)
        report[source] |= {"bag_of_words": _right(margins)}
        report[f"{source}/word neutral"] = _part(score, twins, margins, word_neutral(margins))
        kinds = np.array([twin.kind for twin in twins])
        for kind in sorted(set(kinds.tolist())):
            rows = np.flatnonzero(kinds == kind)
            report[f"{source}/{kind.replace('_', ' ')}"] = _part(score, twins, margins, rows)
    return report


def _scorer(guard: Guardrail, twins: Sequence[Twin]) -> Score:
    judged = versions(twins)
    verdicts = guard.check_batch([as_messages(version.turns) for version in judged])
    known = {version.turns: verdict.probability for version, verdict in zip(judged, verdicts, strict=True)}
    return known.__getitem__


def _all(score: Score, twins: Sequence[Twin]) -> Figures:
    singles = versions(twins)
    scores = np.array([score(version.turns) for version in singles])
    unsafe = np.array([version.unsafe for version in singles], bool)
    low, high = auroc_interval(scores, unsafe, [version.group for version in singles])
    return {
        "n": float(len(twins)),
        "pairwise": pairwise_accuracy(*_sides(score, twins)),
        "single_auroc": auroc(scores, unsafe),
        "single_auroc_low": low,
        "single_auroc_high": high,
    }


def _part(score: Score, twins: Sequence[Twin], margins: Floats, rows: np.ndarray) -> Figures:
    part = [twins[row] for row in rows]
    return {
        "n": float(len(part)),
        "pairwise": pairwise_accuracy(*_sides(score, part)),
        "bag_of_words": _right(margins[rows]),
    }


def _sides(score: Score, twins: Sequence[Twin]) -> tuple[Floats, Floats]:
    return np.array([score(twin.unsafe) for twin in twins]), np.array([score(twin.safe) for twin in twins])


def _right(margins: Floats) -> float:
    return pairwise_accuracy(margins, np.zeros_like(margins))
