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
# The a_i of the n-pair loss: what endangers somebody weighs more than what hurts a feeling. With social
# weights the level loss on twins weighs the same way.
SEVERITY: dict[Level | None, float] = {Level.NEEDS_INTERVENTION: 1.5}
Row = dict[str, object]


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """Rows of the three data sets that the trainer reads, by the objective that they feed.

    Attributes:
        level: text, label = (class, weight, moral foundation of the rule or -1).
        twins: unsafe, safe, label; no rule is known, or the twins are there for the contrast alone.
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
    """A situation and a rule of thumb about it.

    Attributes:
        text: the situation, as the encoder reads it.
        rule: the rule of thumb.
        weight: share of people who agree with it, (0, 1].
        foundation: moral foundation of the rule, or "".
        source: name of the dataset.
    """

    text: str = field(repr=False)
    rule: str
    weight: float
    foundation: str = ""
    source: str = "social_chem_101"


T = TypeVar("T", Example, Twin, Norm)


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
    small_talk = [item.turns for item in kept if item.source in CASUAL_SOURCES and len(item.turns) >= PADDING]
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
        contrast_only = twin.source in config.contrast_only
        with_rule = bool(twin.rule) and not contrast_only
        if with_rule:
            row["rule"] = twin.rule
        row["label"] = [
            _class(twin.level, True),
            0.0 if contrast_only else _severity(twin.level, config),
            _foundation(twin.foundation),
        ]
        (ruled if with_rule else plain).extend([row] * config.twin_repeats.get(twin.source, 1))
    norm_rows: list[Row] = [
        {"text": norm.text, "rule": norm.rule, "label": [0, norm.weight, _foundation(norm.foundation)]}
        for norm in _limited(norms, config, rng)
        for _ in range(config.source_repeats.get(norm.source, 1))
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


def _severity(level: Level | None, config: EncoderConfig) -> float:
    return SEVERITY.get(level, 1.0) if config.social_weights else 1.0


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
