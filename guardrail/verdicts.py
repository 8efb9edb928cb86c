"""Put a verdict together: out of a decision, for a blank turn, or where the guard failed. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from .config import OnError
from .conversation import Conversation
from .decision import Decision
from .detector import RuleScore
from .errors import GuardrailError, ModelError
from .reading import Reading
from .rules import Rule
from .types import Action, Coverage, Level, RuleMatch, Verdict

UNREAD_TEXT = "the judged turn was not read whole: it is longer than the window limit"
UNREAD_PARTS = "parts of the judged turn that are not text were not read"


def decided_verdict(
    conversation: Conversation,
    coverage: Coverage,
    decision: Decision,
    rules: Sequence[Rule],
    reading: Reading,
) -> Verdict:
    """Return the verdict for a turn that was judged."""
    unread = _unread(conversation, coverage)
    return Verdict(
        action=decision.action,
        probability=decision.probability,
        level=decision.level,
        rules=matches(decision.broken, rules, conversation, reading),
        touched=matches(decision.touched, rules, conversation, reading),
        coverage=coverage,
        status="degraded" if unread else "ok",
        reason=unread,
        turn=conversation.positions[-1],
        role=conversation.judged.role,
    )


def blank_verdict(conversation: Conversation, coverage: Coverage) -> Verdict:
    """Return the verdict for a turn without words."""
    unread = _unread(conversation, coverage)
    return Verdict(
        action=Action.ALLOW,
        probability=0.0,
        level=Level.CASUAL,
        rules=(),
        touched=(),
        coverage=coverage,
        status="degraded" if unread else "ok",
        reason=unread or "the judged turn is blank",
        turn=conversation.positions[-1],
        role=conversation.judged.role,
    )


def failed_verdict(conversation: Conversation, error: Exception, on_error: OnError) -> Verdict:
    """Return what `on_error` says; nothing of the conversation goes into the reason.

    Raises:
        GuardrailError: that is to be raised; another error as a `ModelError`.
    """
    if on_error == "raise":
        if isinstance(error, GuardrailError):
            raise error
        raise ModelError("detector", f"failed with {type(error).__name__}") from error
    closed = on_error == "closed"
    stage = error.stage if isinstance(error, ModelError) else "guard"
    return Verdict(
        action=Action.INTERVENE if closed else Action.ALLOW,
        probability=1.0 if closed else 0.0,
        level=Level.NEEDS_INTERVENTION if closed else Level.CASUAL,
        rules=(),
        touched=(),
        coverage=Coverage(len(conversation.turns), 0, 0, 0, judged_turn_read=False),
        status="error",
        reason=f"{stage} failed ({type(error).__name__}); on_error={on_error!r} decided",
        turn=conversation.positions[-1],
        role=conversation.judged.role,
    )


def degraded(verdict: Verdict, reason: str) -> Verdict:
    """Return the encoder's verdict, marked as lacking the second opinion."""
    return replace(verdict, status="degraded", reason="; ".join(filter(None, (verdict.reason, reason))))


def matches(
    scores: Iterable[RuleScore], rules: Sequence[Rule], conversation: Conversation, reading: Reading
) -> tuple[RuleMatch, ...]:
    """Return retrieved rules as they stand in a verdict."""
    return tuple(
        RuleMatch(
            rule=rules[score.position],
            similarity=score.similarity,
            probability=score.probability,
            turn=conversation.positions[-1],
            span=reading.span(score.window),
        )
        for score in scores
    )


def _unread(conversation: Conversation, coverage: Coverage) -> str:
    """Return why the judged turn was not read whole; empty if it was."""
    if not coverage.judged_turn_read:
        return UNREAD_TEXT
    return UNREAD_PARTS if conversation.parts_skipped[-1] else ""
