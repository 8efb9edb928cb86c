"""Retrieval metrics, as pure functions of the ranks of the relevant documents."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ranks = NDArray[np.int_]


def relevant_ranks(scores: NDArray[np.floating], relevant: Sequence[int]) -> Ranks:
    """Return the ranks, from 1, of one query's relevant documents, best first.

    Args:
        scores: (m,) of all documents, the higher the nearer; of equal ones the earlier ranks first.
        relevant: positions of the relevant ones.
    """
    order = np.argsort(-scores, kind="stable")
    place = np.empty(len(scores), np.int_)
    place[order] = np.arange(1, len(scores) + 1)
    return np.sort(place[list(relevant)])


def recall_at(k: int, ranks: Sequence[Ranks]) -> float:
    """Return the share of its relevant documents among the first k, mean over queries; nan without any."""
    return _mean([(found <= k).mean() for found in ranks])


def mean_reciprocal_rank(ranks: Sequence[Ranks]) -> float:
    """Return 1 / rank of the first relevant document, mean over queries; nan without any."""
    return _mean([1 / found[0] for found in ranks])


def ndcg_at(k: int, ranks: Sequence[Ranks]) -> float:
    """Return the normalised discounted gain of the first k, mean over queries; nan without any.

    Source: Järvelin & Kekäläinen 2002, with gain 1 for relevant and discount log2(rank + 1).
    """
    return _mean(
        [
            (1 / np.log2(found[found <= k] + 1)).sum()
            / (1 / np.log2(np.arange(1, min(len(found), k) + 1) + 1)).sum()
            for found in ranks
        ]
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
