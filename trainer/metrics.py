"""Metrics, as pure functions on arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score, roc_curve

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]
BLOCK = 100  # bootstrap draws at a time: bounds the memory


def auroc(scores: Floats, unsafe: Bools) -> float:
    """Return the area under the ROC curve: P(score of an unsafe one > score of a safe one).

    Returns:
        [0, 1], 0.5 is chance; nan where one class is missing.
    """
    if unsafe.all() or not unsafe.any():
        return float("nan")
    return float(roc_auc_score(unsafe, scores))


def pairwise_accuracy(unsafe_scores: Floats, safe_scores: Floats) -> float:
    """Return how often the unsafe version scores above its twin; a tie counts half."""
    if len(unsafe_scores) == 0:
        return float("nan")
    return float(np.mean(pairwise_wins(unsafe_scores, safe_scores)))


def pairwise_wins(unsafe_scores: Floats, safe_scores: Floats) -> Floats:
    """Return (n,) 1 where the unsafe version scores above its twin, 0 where below, 0.5 for a tie."""
    return np.where(unsafe_scores == safe_scores, 0.5, unsafe_scores > safe_scores)


def recall_at_fpr(scores: Floats, unsafe: Bools, max_fpr: float) -> float:
    """Return the recall at the lowest threshold that flags at most `max_fpr` of the safe ones."""
    return float(np.mean(scores[unsafe] > threshold_at_fpr(scores[~unsafe], max_fpr)))


def threshold_at_fpr(safe_scores: Floats, max_fpr: float) -> float:
    """Return the lowest threshold t such that at most `max_fpr` of the safe scores are above t."""
    ordered = np.sort(safe_scores)[::-1]
    return float(ordered[min(len(ordered) - 1, int(max_fpr * len(ordered)))])


def expected_calibration_error(probabilities: Floats, unsafe: Bools, bins: int = 15) -> float:
    """Return the mean gap of confidence and frequency over equal-width bins, weighted by their size.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", eq. 3.
    """
    confidence, frequency, share = reliability(probabilities, unsafe, bins)
    return float((share * np.abs(confidence - frequency)).sum())


def reliability(probabilities: Floats, unsafe: Bools, bins: int = 15) -> tuple[Floats, Floats, Floats]:
    """Return (mean probability, share of unsafe ones, share of all) of the equal-width bins in use."""
    place = np.clip((probabilities * bins).astype(int), 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    used = counts > 0
    confidence = np.bincount(place, probabilities, bins)[used] / counts[used]
    frequency = np.bincount(place, unsafe, bins)[used] / counts[used]
    return confidence, frequency, counts[used] / max(len(place), 1)


def auprc(scores: Floats, unsafe: Bools) -> float:
    """Return the area under precision over recall (average precision); chance is the share of unsafe ones.

    Returns:
        [0, 1]; nan where one class is missing.
    """
    if unsafe.all() or not unsafe.any():
        return float("nan")
    return float(average_precision_score(unsafe, scores))


def brier(probabilities: Floats, unsafe: Bools) -> float:
    """Return the mean squared gap of probability and outcome, [0, 1]. Source: Brier 1950."""
    return float(np.mean((probabilities - unsafe) ** 2))


def macro_f1(predicted: Sequence[str], true: Sequence[str]) -> float:
    """Return the plain mean of the F1 of every label that occurs in `true`."""
    return float(f1_score(true, predicted, average="macro", labels=sorted(set(true)), zero_division=0.0))


def roc(scores: Floats, unsafe: Bools) -> tuple[Floats, Floats]:
    """Return the ROC curve from (0, 0) to (1, 1): shares of safe and of unsafe ones that are above."""
    false_alarms, recall, _ = roc_curve(unsafe, scores)
    return false_alarms, recall


def auroc_interval(
    scores: Floats, unsafe: Bools, groups: Sequence[str], *, draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the AUROC, by drawing whole groups.

    Turns of one conversation are alike: drawing single turns would make the interval too narrow.
    A draw gives each group a count, each turn the count of its group, and the AUROC is that of
    weighted scores, so all draws are a few array operations.

    Args:
        scores: (n,).
        unsafe: (n,).
        groups: n names.
        draws: of the bootstrap.
        seed: of the draws.

    Returns:
        (2.5 %, 97.5 %); nan where one class is missing.
    """
    if unsafe.all() or not unsafe.any():
        return float("nan"), float("nan")
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))  # first of each run of ties
    drawn = [
        _weighted_aurocs(weights[:, order], unsafe[order], starts)
        for weights in _group_draws(groups, draws, seed)
    ]
    low, high = np.nanpercentile(np.concatenate(drawn), (2.5, 97.5))
    return float(low), float(high)


def mean_interval(
    values: Floats, groups: Sequence[str], *, draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a mean, by drawing whole groups as `auroc_interval` does.

    Args:
        values: (n,).
        groups: n names.
        draws: of the bootstrap.
        seed: of the draws.

    Returns:
        (2.5 %, 97.5 %); nan where there are no values.
    """
    if len(values) == 0:
        return float("nan"), float("nan")
    drawn = [weights @ values / weights.sum(1) for weights in _group_draws(groups, draws, seed)]
    low, high = np.percentile(np.concatenate(drawn), (2.5, 97.5))
    return float(low), float(high)


def _group_draws(groups: Sequence[str], draws: int, seed: int) -> Iterator[NDArray[np.int_]]:
    """Yield (b, n) blocks: in each draw, how often the group of each of n items was drawn."""
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    rng = np.random.default_rng(seed)
    even = np.full(len(names), 1 / len(names))
    for first in range(0, draws, BLOCK):
        yield rng.multinomial(len(names), even, size=min(BLOCK, draws - first))[:, member]


def _weighted_aurocs(weights: NDArray[np.int_], unsafe: Bools, starts: NDArray[np.int_]) -> Floats:
    """Return (b,) AUROCs for (b, n) weights of turns in the order of their scores; nan without a class."""
    bad = np.add.reduceat(weights * unsafe, starts, axis=1)  # (b, different scores)
    good = np.add.reduceat(weights * ~unsafe, starts, axis=1)
    below = np.cumsum(good, axis=1) - good / 2  # a tie counts half
    pairs = (bad.sum(1) * good.sum(1)).astype(float)
    pairs[pairs == 0] = np.nan
    return np.asarray((bad * below).sum(1) / pairs)
