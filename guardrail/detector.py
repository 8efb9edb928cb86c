"""From encoder outputs to calibrated numbers about one conversation.

Knows windows, vectors and the rule index; knows nothing about text or about what to do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from .calibration import Calibration, intervention_log_odds, unsafe_log_odds
from .errors import ModelError
from .protocols import EncoderOutput
from .rule_index import RuleIndex

LEVELS = 3


@dataclass(frozen=True, slots=True)
class RuleScore:
    """A retrieved rule by its position in the index.

    Attributes:
        position: in the index.
        similarity: cosine.
        probability: calibrated P(broken).
        window: the window that it was found with.
    """

    position: int
    similarity: float
    probability: float
    window: int


@dataclass(frozen=True, slots=True)
class Judgement:
    """Calibrated numbers about the judged turn.

    Attributes:
        probability: P(unsafe), the highest over the windows.
        intervention: P(needs intervention), the highest over the windows.
        rules: retrieved rules, the highest probability first.
    """

    probability: float
    intervention: float
    rules: tuple[RuleScore, ...]


def checked(output: EncoderOutput, windows: int, dimension: int) -> EncoderOutput:
    """Return what an encoder gave for a number of windows, if it is whole.

    A row that is missing is a window that nobody judged, and a comparison with NaN is False: unseen, either
    would look safe.

    Raises:
        ModelError: an array is of another shape than it must have, or not finite.
    """
    shapes = {
        "embeddings": (windows, dimension),
        "violations": (windows, dimension),
        "level_logits": (windows, LEVELS),
    }
    for name, shape in shapes.items():
        array = getattr(output, name)
        if np.shape(array) != shape:
            raise ModelError("encoder", f"expected {name} of shape {shape}, got {np.shape(array)}")
        if not np.isfinite(array).all():
            raise ModelError("encoder", f"expected finite {name}, got NaN or infinity")
    return output


def judge(output: EncoderOutput, index: RuleIndex, calibration: Calibration, top_k: int) -> Judgement:
    """Judge one conversation from the outputs of all its windows.

    The window with the highest P(unsafe) decides: what is wrong in one piece is not made good by
    the others. A rule's probability is its highest over the windows.

    Args:
        output: n >= 1 windows, `checked`.
        index: the rules.
        calibration: fitted for this encoder.
        top_k: rules that are retrieved per window.

    Raises:
        ModelError: the outputs do not fit the index, or what it returns is not whole.
    """
    odds = unsafe_log_odds(output.level_logits)
    worst = int(np.argmax(odds))
    hits = retrieve(index, output.embeddings, top_k)
    best: dict[int, RuleScore] = {}
    for window, found in enumerate(hits):
        for score in _score(
            found, output.violations[window], float(odds[window]), index, calibration, window
        ):
            known = best.get(score.position)
            if known is None or score.probability > known.probability:
                best[score.position] = score
    return Judgement(
        probability=float(calibration.unsafe(odds[worst : worst + 1])[0]),
        intervention=float(calibration.intervention(intervention_log_odds(output.level_logits)).max()),
        rules=tuple(sorted(best.values(), key=lambda rule: (-rule.probability, -rule.similarity))),
    )


def retrieve(index: RuleIndex, embeddings: np.ndarray, k: int) -> list[list[tuple[int, float]]]:
    """Return for each of n embeddings its nearest rules; an index that finds none would let all pass.

    Raises:
        ModelError: there are not n lists, one is empty, or something in it is no rule or no cosine.
    """
    hits = index.search(embeddings, k)
    if len(hits) != len(embeddings) or not all(hits):
        raise ModelError("index", f"expected rules for each of {len(embeddings)} windows, got too few")
    known = range(len(index))
    for position, cosine in chain.from_iterable(hits):
        if position not in known or not math.isfinite(cosine):
            raise ModelError("index", f"expected positions below {len(known)} with a cosine, got another")
    return hits


def _score(
    found: Sequence[tuple[int, float]],
    violation: np.ndarray,
    odds: float,
    index: RuleIndex,
    calibration: Calibration,
    window: int,
) -> list[RuleScore]:
    positions = [position for position, _ in found]
    cosines = np.array([cosine for _, cosine in found])
    products = index.vectors(positions) @ violation
    probabilities = calibration.rule(products, odds, cosines)
    if not np.isfinite(probabilities).all():
        raise ModelError("index", "expected finite vectors, got NaN or infinity")
    return [
        RuleScore(position, float(cosine), float(probability), window)
        for position, cosine, probability in zip(positions, cosines, probabilities, strict=True)
    ]
