"""Put the training mix together: which sources, how many of each, in which form."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar, get_args

from guardrail.rules.schema import Foundation
from guardrail.types import Level, Turn

from .config import EncoderConfig
from .examples import CASUAL_SOURCES, Example, Twin
from .inputs import as_text
from .losses import UNSAFE_OF_UNKNOWN_LEVEL

CLASSES = {Level.CASUAL: 0, Level.NEEDS_CAUTION: 1, Level.NEEDS_INTERVENTION: 2}
FOUNDATIONS = get_args(Foundation)
UNKNOWN = -1
# Turns of the shortest talk that may stand before another one.
PADDING = 4
# The a_i of the n-pair loss: what endangers somebody weighs more than what hurts a feeling.
SEVERITY: dict[Level | None, float] = {Level.NEEDS_INTERVENTION: 1.5}
Row = dict[str, object]
T = TypeVar("T", Example, Twin)


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """Rows of the three data sets that the trainer reads, by the objective that they feed.

    Attributes:
        level: text, label = (class, weight, moral foundation of the rule or -1).
        twins: unsafe, safe, label; no rule is known.
        rules: unsafe, safe, rule, label.
        norms: text, rule, label; for retrieval alone.
    """

    level: list[Row] = field(repr=False)
    twins: list[Row] = field(repr=False)
    rules: list[Row] = field(repr=False)
    norms: list[Row] = field(repr=False)

    def counts(self) -> dict[str, int]:
        """Return the number of rows by objective."""
        return {name: len(getattr(self, name)) for name in ("level", "twins", "rules", "norms")}


@dataclass(frozen=True, slots=True)
class Norm:
    """A situation and a rule of thumb about it."""

    text: str = field(repr=False)
    rule: str
    weight: float
    foundation: str = ""


def build_rows(
    examples: Sequence[Example], twins: Sequence[Twin], norms: Sequence[Norm], config: EncoderConfig
) -> TrainingRows:
    """Return the rows of one epoch, limited per source and seeded.

    Args:
        examples: single conversations with their label.
        twins: matched pairs; those with a rule also feed the rule losses.
        norms: (situation, rule) pairs.
        config: limits, seed, repeats.
    """
    rng = random.Random(config.seed)
    kept = _limited(examples, config, rng)
    pairs = _limited(twins, config, rng)
    small_talk = [
        item.turns for item in kept if item.source in CASUAL_SOURCES and len(item.turns) >= PADDING
    ]
    level: list[Row] = [
        {
            "text": as_text(_padded(item, small_talk, config, rng)),
            "label": [_class(item.level, item.unsafe), item.weight, UNKNOWN],
        }
        for item in kept
        for _ in range(config.source_repeats.get(item.source, 1))
    ]
    plain: list[Row] = []
    ruled: list[Row] = []
    for twin in pairs:
        row: Row = {"unsafe": as_text(twin.unsafe), "safe": as_text(twin.safe)}
        if twin.rule:
            row["rule"] = twin.rule
        weight = 0.0 if twin.source in config.contrast_only else SEVERITY.get(twin.level, 1.0)
        row["label"] = [_class(twin.level, True), weight, _foundation(twin.foundation)]
        (ruled if twin.rule else plain).extend([row] * config.twin_repeats.get(twin.source, 1))
    limit = config.source_limits.get("social_chem_101", config.max_per_source)
    chosen = norms if len(norms) <= limit else rng.sample(list(norms), limit)
    norm_rows: list[Row] = [
        {"text": norm.text, "rule": norm.rule, "label": [0, norm.weight, _foundation(norm.foundation)]}
        for norm in chosen
        for _ in range(config.source_repeats.get("social_chem_101", 1))
    ]
    return TrainingRows(level, plain, ruled, norm_rows)


def _padded(
    item: Example, small_talk: Sequence[tuple[Turn, ...]], config: EncoderConfig, rng: random.Random
) -> tuple[Turn, ...]:
    """Put harmless talk of another conversation before some of the short ones."""
    if not config.padded_share or not small_talk or len(item.turns) >= PADDING:
        return item.turns
    if rng.random() >= config.padded_share:
        return item.turns
    before = rng.choice(small_talk)
    # The speakers go on taking turns.
    before = before[:-1] if before[-1].role == item.turns[0].role else before
    return (*before, *item.turns)


def _foundation(name: str) -> int:
    return FOUNDATIONS.index(name) if name in FOUNDATIONS else UNKNOWN


def _class(level: Level | None, unsafe: bool) -> int:
    if level is not None:
        return CLASSES[level]
    return UNSAFE_OF_UNKNOWN_LEVEL if unsafe else 0


def _limited(items: Sequence[T], config: EncoderConfig, rng: random.Random) -> list[T]:
    by_source: dict[str, list[T]] = defaultdict(list)
    for item in items:
        by_source[item.source].append(item)
    kept: list[T] = []
    for source, members in sorted(by_source.items()):
        limit = config.source_limits.get(source, config.max_per_source)
        kept.extend(members if len(members) <= limit else rng.sample(members, limit))
    return kept
