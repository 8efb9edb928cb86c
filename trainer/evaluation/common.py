"""Small things that all parts of the evaluation share."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TypeVar

from guardrail.types import Turn

from ..examples import Example, Twin

Figures = dict[str, float]
_T = TypeVar("_T")
_L = TypeVar("_L", Example, Twin)


def as_messages(turns: Sequence[Turn]) -> list[dict[str, str]]:
    """Return a conversation in the form that the guard takes from anybody."""
    return [{"role": turn.role, "content": turn.text} for turn in turns]


def by_source(items: Iterable[_L]) -> dict[str, list[_L]]:
    """Return the items of each source, sources in order of their names."""
    found: dict[str, list[_L]] = defaultdict(list)
    for item in items:
        found[item.source].append(item)
    return dict(sorted(found.items()))


def versions(twins: Iterable[Twin]) -> list[Example]:
    """Return every version of the twins once: one is in as many twins as its situation has others."""
    unique = {
        turns: Example(turns, unsafe, twin.group, twin.source)
        for twin in twins
        for turns, unsafe in ((twin.unsafe, True), (twin.safe, False))
    }
    return list(unique.values())


def sample(items: Sequence[_T], limit: int | None) -> list[_T]:
    """Return at most `limit` items, chosen by a fixed seed; None for all."""
    if limit is None or len(items) <= limit:
        return list(items)
    return random.Random(0).sample(list(items), limit)


def rounded(figures: Figures) -> Figures:
    """Return figures with four decimals; what is not finite becomes nan."""
    return {name: round(value, 4) if math.isfinite(value) else math.nan for name, value in figures.items()}
