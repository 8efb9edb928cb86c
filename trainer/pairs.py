"""Which rules stand against which: hard negatives, chosen by a seed. Pure functions on arrays.

A hard negative shares topic and words with a rule and is another norm: the contrary rule where a
data set has one, else a near neighbour in the space of the current encoder. Near misses of a
conversation, and the moral action for the immoral one, are twins (see `examples.Twin`).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def neighbour_negatives(
    queries: Floats,
    rules: Floats,
    own: Sequence[int],
    *,
    count: int,
    same: float = 0.8,
    pool: int = 30,
    seed: int = 0,
) -> list[list[int]]:
    """Return for each query rules that it is near to and that say something else than its own.

    Args:
        queries: (n, d) unit embeddings of conversations.
        rules: (r, d) unit embeddings of rules.
        own: n positions in `rules`: the rule that each conversation touches.
        count: negatives per query, at least 1.
        same: cosine with the own rule from which another rule says the same, and is no negative.
        pool: how many of the nearest the choice is made from: the very nearest are often right too.
        seed: of the choice.

    Returns:
        n lists of at most `count` positions, none of them the own rule.
    """
    rng = random.Random(seed)
    chosen: list[list[int]] = []
    for query, mine in zip(queries, own, strict=True):
        scores = rules @ query  # (r,)
        scores[rules @ rules[mine] >= same] = -np.inf
        scores[mine] = -np.inf
        nearest = [int(place) for place in np.argsort(-scores)[:pool] if np.isfinite(scores[place])]
        chosen.append(rng.sample(nearest, min(count, len(nearest))))
    return chosen


def negatives_of(
    rules: Sequence[str],
    own: Sequence[int],
    neighbours: Sequence[Sequence[int]],
    contrary: Mapping[str, str],
    count: int,
) -> list[list[str]]:
    """Return exactly `count` negatives per row: the contrary rule first, then neighbours.

    Where there are too few, the own rule fills the place: the loss gives it the weight 0, since it
    says the same as itself.

    Args:
        rules: texts.
        own: n positions of the rows' own rules.
        neighbours: n lists of positions, of `neighbour_negatives`.
        contrary: from a rule's text to that of its contrary.
        count: per row.
    """
    rows: list[list[str]] = []
    for mine, near in zip(own, neighbours, strict=True):
        text = rules[mine]
        found = [contrary[text]] if text in contrary else []
        found += [rules[place] for place in near]
        rows.append((found + [text] * count)[:count])
    return rows
