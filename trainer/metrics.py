"""Metrics, as pure functions on arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]


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
    wins = (unsafe_scores > safe_scores) + 0.5 * (unsafe_scores == safe_scores)
    return float(np.mean(wins))


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
    edges = np.clip((probabilities * bins).astype(int), 0, bins - 1)
    total = 0.0
    for index in range(bins):
        inside = edges == index
        if inside.any():
            total += inside.mean() * abs(probabilities[inside].mean() - unsafe[inside].mean())
    return float(total)
