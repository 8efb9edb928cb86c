"""What comes out of a guarded call: the reply, and every candidate with its scores."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from .repair import Scores
from .types import Verdict

Strategy = Literal["pass", "guided", "regenerated", "rewritten", "composed", "hook", "unavailable"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One candidate reply; it holds no text unless `attempt_texts` is set.

    Attributes:
        strategy: how the candidate came about.
        flagged: True if it was judged not fit to show.
        probability: P(unsafe) of the candidate in its context.
        rules: ids of the rules that it breaks.
        seconds: time for making and judging it.
        error: name of the exception if the LLM, the rewrite model or the relevance model failed; else "".
        scores: how good it is, where something unsafe was to be replaced; else None.
        text: the candidate, left out of `repr`; "" unless the setting `attempt_texts` is on.
    """

    strategy: Strategy
    flagged: bool
    probability: float
    rules: tuple[str, ...]
    seconds: float
    error: str = ""
    scores: Scores | None = None
    text: str = field(default="", repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; the text only where it was kept."""
        found: dict[str, Any] = {
            "strategy": self.strategy,
            "flagged": self.flagged,
            "probability": round(self.probability, 4),
            "rules": list(self.rules),
            "seconds": round(self.seconds, 4),
            "error": self.error,
            "scores": None if self.scores is None else self.scores.to_dict(),
        }
        return found | ({"text": self.text} if self.text else {})


@dataclass(frozen=True, slots=True)
class GuardedReply:
    """What the user may see, and how it came about.

    Attributes:
        text: the reply; left out of `repr`.
        reply: the same in the form that the LLM returned (string, dict, message).
        verdict_in: about the last turn of the conversation.
        verdict_out: about the reply that is shown.
        attempts: every candidate in order.
        strategy: how the shown reply came about.
    """

    text: str = field(repr=False)
    reply: Any = field(repr=False)
    verdict_in: Verdict
    verdict_out: Verdict
    attempts: tuple[Attempt, ...]
    strategy: Strategy

    @property
    def changed(self) -> bool:
        """True if the LLM's first, unguided answer is not what is shown."""
        return self.strategy != "pass"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types with the shown text."""
        return {
            "text": self.text,
            "strategy": self.strategy,
            "changed": self.changed,
            "verdict_in": self.verdict_in.to_dict(),
            "verdict_out": self.verdict_out.to_dict(),
            "attempts": [attempt.to_dict() for attempt in self.attempts],
        }
