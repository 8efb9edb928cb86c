"""The values that go in and out of the guard: frozen, typed, JSON-serialisable.

No class here shows a user's text in its `repr`. This module imports nothing heavy.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

from .errors import MessageFlagged

if TYPE_CHECKING:
    from .rules.schema import Rule

Role = Literal["user", "assistant", "system", "tool"]
Status = Literal["ok", "degraded", "error"]
JudgedBy = Literal["encoder", "judge"]


class Level(StrEnum):
    """How much care the judged turn asks for, in ProsocialDialog's terms (arXiv 2205.12688)."""

    CASUAL = "casual"
    NEEDS_CAUTION = "needs_caution"
    NEEDS_INTERVENTION = "needs_intervention"


class Action(StrEnum):
    """What the guard advises."""

    ALLOW = "allow"
    CAUTION = "caution"
    INTERVENE = "intervene"

    @property
    def rank(self) -> int:
        """0, 1 or 2: how far the action goes."""
        return list(Action).index(self)


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation. The text is left out of `repr`."""

    role: Role
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of what was given has been read.

    Attributes:
        turns_given: turns in the conversation, system messages not counted.
        turns_read: turns of which at least one token was judged or served as context.
        tokens_given: tokens of those turns; of an over-long turn, an estimate from its length.
        tokens_read: tokens that were read.
        judged_turn_read: True if no text of the judged turn was left unread.
        parts_skipped: parts that are not text (images, audio, files) and were not read.
    """

    turns_given: int
    turns_read: int
    tokens_given: int
    tokens_read: int
    judged_turn_read: bool
    parts_skipped: int = 0

    @property
    def complete(self) -> bool:
        """True if every token of every turn was read."""
        return (
            self.judged_turn_read
            and self.parts_skipped == 0
            and self.turns_read == self.turns_given
            and self.tokens_read >= self.tokens_given
        )


@dataclass(frozen=True, slots=True)
class RuleMatch:
    """A rule of thumb that the judged turn touches or breaks.

    Attributes:
        rule: the rule.
        similarity: cosine of conversation and rule embedding, [-1, 1].
        probability: calibrated P(the turn breaks this rule), [0, 1].
        turn: position of the judged turn in the conversation that was given.
        span: (start, end) characters of the judged piece in that turn's original text.
    """

    rule: Rule
    similarity: float
    probability: float
    turn: int
    span: tuple[int, int]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; the rule's text is included, no user text is."""
        return {
            "rule_id": self.rule.id,
            "rule": self.rule.text,
            "domain": self.rule.domain,
            "similarity": round(self.similarity, 4),
            "probability": round(self.probability, 4),
            "turn": self.turn,
            "span": list(self.span),
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the guard thinks of the last turn of a conversation.

    Attributes:
        action: what to do.
        probability: calibrated P(unsafe in this context), [0, 1].
        level: the most likely level.
        rules: rules that the turn breaks, most responsible first; empty if nothing is flagged.
        touched: rules in play though nothing need be wrong: use them to guide, never to block.
        coverage: how much was read.
        status: "ok"; "degraded" if a part of the judgement is missing; "error" if there is none.
        reason: why the status is not "ok"; empty otherwise. Holds no user text.
        turn: position of the judged turn in what was given.
        role: who spoke the judged turn.
        judged_by: "judge" if a second opinion decided, else "encoder".
    """

    action: Action
    probability: float
    level: Level
    rules: tuple[RuleMatch, ...]
    touched: tuple[RuleMatch, ...]
    coverage: Coverage
    status: Status = "ok"
    reason: str = ""
    turn: int = 0
    role: Role = "user"
    judged_by: JudgedBy = "encoder"

    @property
    def flagged(self) -> bool:
        """True if the action is not ALLOW."""
        return self.action is not Action.ALLOW

    def raise_if_flagged(self) -> Verdict:
        """Return self if nothing is flagged.

        Raises:
            MessageFlagged: if the turn is flagged; `.verdict` is this verdict.
        """
        if self.flagged:
            raise MessageFlagged(self)
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types. No user text is included."""
        return {
            "action": self.action.value,
            "flagged": self.flagged,
            "probability": round(self.probability, 4),
            "level": self.level.value,
            "status": self.status,
            "reason": self.reason,
            "turn": self.turn,
            "role": self.role,
            "judged_by": self.judged_by,
            "rules": [match.to_dict() for match in self.rules],
            "touched": [match.to_dict() for match in self.touched],
            "coverage": {
                "turns_given": self.coverage.turns_given,
                "turns_read": self.coverage.turns_read,
                "tokens_given": self.coverage.tokens_given,
                "tokens_read": self.coverage.tokens_read,
                "judged_turn_read": self.coverage.judged_turn_read,
                "parts_skipped": self.coverage.parts_skipped,
                "complete": self.coverage.complete,
            },
        }

    def to_json(self) -> str:
        """Return `to_dict()` as one line of JSON."""
        return json.dumps(self.to_dict())
