"""Contrasts: does the unsafe version score above its safe twin? A bag of words stands beside."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from guardrail import Guardrail
from guardrail.types import Turn, Verdict

from ..baselines import bag_of_words_margins, word_neutral
from ..examples import Twin
from ..metrics import Floats, auroc, auroc_interval, mean_interval, pairwise_accuracy, pairwise_wins
from .common import Figures, as_messages, by_source, versions

BANK = "bank"
Judged = Callable[[tuple[Turn, ...]], Verdict]


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
    judged = _judged(guard, test)
    matched = [twin for twin in train if twin.source != BANK]
    report: dict[str, Figures] = {}
    for source, twins in by_source(test).items():
        report[source] = _all(judged, twins)
        if source == BANK or not matched:
            continue
        margins = bag_of_words_margins(matched, twins)
        report[source] |= {"bag_of_words": _right(margins)}
        report[f"{source}/word neutral"] = _part(judged, twins, margins, word_neutral(margins))
        kinds = np.array([twin.kind for twin in twins])
        for kind in sorted(set(kinds.tolist())):
            rows = np.flatnonzero(kinds == kind)
            report[f"{source}/{kind.replace('_', ' ')}"] = _part(judged, twins, margins, rows)
    return report


def _judged(guard: Guardrail, twins: Sequence[Twin]) -> Judged:
    found = versions(twins)
    verdicts = guard.check_batch([as_messages(version.turns) for version in found])
    return {version.turns: verdict for version, verdict in zip(found, verdicts, strict=True)}.__getitem__


def _all(judged: Judged, twins: Sequence[Twin]) -> Figures:
    singles = versions(twins)
    verdicts = [judged(version.turns) for version in singles]
    scores = np.array([verdict.probability for verdict in verdicts])
    unsafe = np.array([version.unsafe for version in singles], bool)
    low, high = auroc_interval(scores, unsafe, [version.group for version in singles])
    return {
        **_pairwise(judged, twins),
        "single_auroc": auroc(scores, unsafe),
        "single_auroc_low": low,
        "single_auroc_high": high,
        "not_ok": float(np.mean([verdict.status != "ok" for verdict in verdicts])),
    }


def _part(judged: Judged, twins: Sequence[Twin], margins: Floats, rows: np.ndarray) -> Figures:
    return _pairwise(judged, [twins[row] for row in rows]) | {"bag_of_words": _right(margins[rows])}


def _pairwise(judged: Judged, twins: Sequence[Twin]) -> Figures:
    unsafe, safe = (
        np.array([judged(getattr(twin, side)).probability for twin in twins]) for side in ("unsafe", "safe")
    )
    wins = pairwise_wins(unsafe, safe)
    low, high = mean_interval(wins, [twin.group for twin in twins])
    return {
        "n": float(len(twins)),
        "pairwise": pairwise_accuracy(unsafe, safe),
        "pairwise_low": low,
        "pairwise_high": high,
    }


def _right(margins: Floats) -> float:
    return pairwise_accuracy(margins, np.zeros_like(margins))
