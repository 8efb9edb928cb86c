"""What the rewrite model learns from: a conversation, the rules in play, and the reply to give."""

from __future__ import annotations

from dataclasses import dataclass, field

from guardrail.types import Turn


@dataclass(frozen=True, slots=True)
class ReplyExample:
    """A conversation with a good reply to it.

    Attributes:
        turns: the conversation; what follows its last turn is the reply.
        reply: the good reply.
        group: conversation, situation or rule that it belongs to: never in two splits.
        source: name of the dataset.
        rules: rules of thumb in play, most important first; may be empty.
        rejected: worse replies to the same conversation, the worst last; may be empty.
        draft: an unsafe reply that the good one replaces, which the model gets to see, or "".
        weight: how far the reply is to be trusted, (0, 1].
    """

    turns: tuple[Turn, ...] = field(repr=False)
    reply: str = field(repr=False)
    group: str
    source: str
    rules: tuple[str, ...] = field(default=(), repr=False)
    rejected: tuple[str, ...] = field(default=(), repr=False)
    draft: str = field(default="", repr=False)
    weight: float = 1.0
