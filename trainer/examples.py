"""What the loaders yield: one `Example` per judged turn, one `Twin` per contrast."""

from __future__ import annotations

from dataclasses import dataclass, field

from guardrail.types import Level, Turn

# The sources of plain small talk: every turn is fine, and what it triggers is a false alarm.
CASUAL_SOURCES = frozenset({"self_dialogue", "topical_chat", "persona", "wow", "msc", "own_casual"})


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation whose last turn carries a label.

    Attributes:
        turns: the conversation; the last turn is judged.
        unsafe: True if the last turn is unsafe in its context.
        level: the level, or None where the source only says safe or unsafe.
        group: conversation, situation or prompt that it belongs to: never in two splits.
        source: name of the dataset.
        category: the source's own category, or "".
        rule: a rule of thumb that the turn touches, or "".
        weight: agreement of the annotators, (0, 1].
    """

    turns: tuple[Turn, ...] = field(repr=False)
    unsafe: bool
    group: str
    source: str
    level: Level | None = None
    category: str = ""
    rule: str = ""
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Twin:
    """Two continuations or versions of one situation, one unsafe, one safe.

    Attributes:
        unsafe: conversation whose last turn is unsafe.
        safe: conversation whose last turn is fine.
        rule: the rule that the unsafe one breaks and the safe one keeps, or "".
        group: never in two splits.
        source: name of the dataset.
        level: level of the unsafe version, or None.
        kind: the kind of contrast, or "".
        foundation: moral foundation of the rule, or "".
    """

    unsafe: tuple[Turn, ...] = field(repr=False)
    safe: tuple[Turn, ...] = field(repr=False)
    rule: str
    group: str
    source: str
    level: Level | None = None
    kind: str = ""
    foundation: str = ""
