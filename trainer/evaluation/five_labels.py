"""ProsocialDialog's five labels, read off three level logits.

The model knows three levels; possibly, probably and plainly needing caution are one of them. How far
its numbers tell the five apart is shown by the simplest reader of them: a logistic regression on the
two log-ratios of the level logits, fitted on the validation split. Where the data has merged possibly
and probably, no five-way accuracy can be known: such rows are left out of the five-way figure, and a
four-way figure, with the two merged everywhere, covers all rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from guardrail.protocols import Encoder

from ..examples import Example
from ..runtime_scoring import score_conversations
from .classification import label_figures
from .common import Figures

POSSIBLY, PROBABLY = "possibly_needs_caution", "probably_needs_caution"
MERGED = "possibly_or_probably_needs_caution"
FIVE = frozenset({"casual", POSSIBLY, PROBABLY, "needs_caution", "needs_intervention"})


def five_label_figures(
    encoder: Encoder, fit: Sequence[Example], test: Sequence[Example]
) -> dict[str, Figures]:
    """Return accuracy, macro-F1 and the majority's share, five-way and four-way.

    Args:
        encoder: an exported encoder.
        fit: ProsocialDialog's validation examples; the label is their category.
        test: its test examples.
    """
    fit_features, test_features = _features(encoder, fit), _features(encoder, test)
    fit_labels = [example.category for example in fit]
    test_labels = [example.category for example in test]
    report: dict[str, Figures] = {}
    known_fit, known_test = _rows_of_five(fit_labels), _rows_of_five(test_labels)
    report["five_labels"] = _read(
        fit_features[known_fit],
        [fit_labels[row] for row in known_fit],
        test_features[known_test],
        [test_labels[row] for row in known_test],
    )
    report["four_labels"] = _read(
        fit_features, [_merged(label) for label in fit_labels], test_features, [*map(_merged, test_labels)]
    )
    return {name: figures for name, figures in report.items() if figures}


def _read(
    fit: NDArray[np.float64], fit_labels: Sequence[str], test: NDArray[np.float64], labels: Sequence[str]
) -> Figures:
    if len(set(fit_labels)) < 2 or not labels:
        return {}
    reader = LogisticRegression(max_iter=1000).fit(fit, fit_labels)
    return label_figures([str(label) for label in reader.predict(test)], labels)


def _features(encoder: Encoder, examples: Sequence[Example]) -> NDArray[np.float64]:
    if not examples:
        return np.zeros((0, 2))
    logits = score_conversations(encoder, [example.turns for example in examples]).level_logits
    return np.asarray(logits[:, 1:] - logits[:, :1], np.float64)


def _rows_of_five(labels: Sequence[str]) -> list[int]:
    return [row for row, label in enumerate(labels) if label in FIVE]


def _merged(label: str) -> str:
    return MERGED if label in (POSSIBLY, PROBABLY) else label
