"""Validation figures of a model: the same few numbers after every epoch."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from .data import DataSplit
from .examples import Example, Twin
from .inputs import as_text
from .metrics import auroc, pairwise_accuracy, recall_at_fpr
from .scoring import Scorer


def validation_figures(
    score: Scorer, split: DataSplit, *, limit: int = 600, seed: int = 0
) -> dict[str, float]:
    """Return AUROC per source with both classes, recall at 1 % false alarms, pairwise accuracy of twins.

    Args:
        score: the model.
        split: the validation split.
        limit: most items per source, chosen by the seed.
        seed: of the choice.
    """
    figures: dict[str, float] = {}
    by_source: dict[str, list[Example]] = defaultdict(list)
    for example in split.examples + split.bank:
        by_source[example.source].append(example)
    odds: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    for source, members in sorted(by_source.items()):
        members = _sample(members, limit, seed)
        source_odds = score([as_text(item.turns) for item in members]).log_odds
        unsafe = np.array([item.unsafe for item in members])
        odds.append(source_odds)
        labels.append(unsafe)
        if unsafe.any() and not unsafe.all():
            figures[f"val/{source}_auroc"] = auroc(source_odds, unsafe)
    all_odds, all_labels = np.concatenate(odds), np.concatenate(labels)
    if all_labels.any() and not all_labels.all():
        figures["val/recall_at_1_percent"] = recall_at_fpr(all_odds, all_labels, 0.01)
    figures |= _twin_figures(score, split.twins, limit, seed)
    return {name: round(value, 4) for name, value in figures.items()}


def _twin_figures(score: Scorer, twins: Sequence[Twin], limit: int, seed: int) -> dict[str, float]:
    by_source: dict[str, list[Twin]] = defaultdict(list)
    for twin in twins:
        by_source[twin.source].append(twin)
    figures: dict[str, float] = {}
    for source, members in sorted(by_source.items()):
        members = _sample(members, limit, seed)
        unsafe = score([as_text(twin.unsafe) for twin in members]).log_odds
        safe = score([as_text(twin.safe) for twin in members]).log_odds
        figures[f"val/{source}_pairwise"] = pairwise_accuracy(unsafe, safe)
    return figures


def _sample(items: Sequence[Example] | Sequence[Twin], limit: int, seed: int) -> list:  # type: ignore[type-arg]
    return list(items) if len(items) <= limit else random.Random(seed).sample(list(items), limit)
