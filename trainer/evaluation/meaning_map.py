"""A map in two dimensions: rules of thumb, and the bank's held-out dialogues among them.

It holds rule texts and domains only, never a dialogue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from guardrail.protocols import Encoder
from guardrail.rules import Rule

from ..examples import Example
from ..runtime_scoring import score_conversations
from .systems import embed_rules

RULE, VIOLATION, NEAR_MISS = "rule", "violation", "near miss"


@dataclass(frozen=True, slots=True)
class Point:
    """A rule, or a dialogue about a rule.

    Attributes:
        kind: "rule", "violation" or "near miss".
        rule: text of the rule, or of the rule that the dialogue was written for.
        domain: of the rule.
        x: across, [0, 1].
        y: up, [0, 1].
    """

    kind: str
    rule: str
    domain: str
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class MeaningMap:
    """The points, and in numbers what a map can only hint at.

    Attributes:
        points: rules first.
        shown: share of the variance that the two dimensions hold, [0, 1].
        same_domain: share of dialogues whose nearest rule is of their own rule's domain, [0, 1].
    """

    points: tuple[Point, ...]
    shown: float
    same_domain: float


def meaning_map(encoder: Encoder, rules: Sequence[Rule], dialogues: Sequence[Example]) -> MeaningMap:
    """Return the map: principal components of the rules; the dialogues are laid into the same plane.

    Args:
        encoder: an exported encoder.
        rules: at least two.
        dialogues: of the bank, whose category is the domain; at least one.
    """
    vectors = embed_rules(encoder, [rule.text for rule in rules])
    found = score_conversations(encoder, [dialogue.turns for dialogue in dialogues]).embeddings
    plane, shown = principal_plane(vectors)
    spots = np.concatenate([vectors, found]) @ plane
    low, high = spots.min(0), spots.max(0)
    spots = (spots - low) / np.maximum(high - low, 1e-9)
    labels = [(RULE, rule.text, rule.domain) for rule in rules]
    labels += [(VIOLATION if d.unsafe else NEAR_MISS, d.rule, d.category) for d in dialogues]
    nearest = (found @ vectors.T).argmax(1)
    hits = [rules[place].domain == d.category for place, d in zip(nearest, dialogues, strict=True)]
    points = tuple(
        Point(*label, float(x), float(y)) for label, (x, y) in zip(labels, spots.tolist(), strict=True)
    )
    return MeaningMap(points, shown, float(np.mean(hits)))


def principal_plane(vectors: NDArray[np.floating]) -> tuple[NDArray[np.float64], float]:
    """Return the first two principal directions and the share of variance along them.

    Args:
        vectors: (n, d), n and d at least 2.

    Returns:
        (d, 2), columns of unit length whose largest entry is positive, so that a map never flips; [0, 1].
    """
    centred = np.asarray(vectors, np.float64) - np.mean(vectors, axis=0, dtype=np.float64)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    plane = directions[:2].T
    signs = np.sign(plane[np.abs(plane).argmax(0), range(plane.shape[1])])
    total = float((sizes**2).sum())
    return plane * signs, float((sizes[:2] ** 2).sum() / total) if total else 0.0
