"""What a guarded response tells about itself: an object in its JSON, and headers. No user's text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from guardrail.outcome import GuardedReply
from guardrail.types import Verdict


@dataclass(slots=True)
class Guarded:
    """How a guarded response came about: `response.extensions["guardrail"]`.

    Attributes:
        verdict: about the user's turn.
        streaming: True if the response is a stream.
        replies: one for each choice; of a stream, empty until it has been read to its end.
    """

    verdict: Verdict
    streaming: bool
    replies: list[GuardedReply] = field(default_factory=list)


def facts(replies: Sequence[GuardedReply], *, unread_history: bool = False) -> dict[str, Any]:
    """Return the object `guardrail` of a response.

    Args:
        replies: of each choice, at least one. With several, `choices` holds the facts of each, and what
            stands beside it is about the first.
        unread_history: True if turns before the request are known to the upstream alone.
    """
    each = [_facts(reply) for reply in replies]
    found = each[0] | ({"choices": each} if len(each) > 1 else {})
    return found | ({"unread_history": True} if unread_history else {})


def verdict_headers(verdict: Verdict) -> dict[str, str]:
    """Return headers about the user's turn."""
    rules = ",".join(match.rule.id for match in verdict.rules)
    return {
        "x-guardrail-action": verdict.action.value,
        "x-guardrail-probability": f"{verdict.probability:.4f}",
        "x-guardrail-rules": rules,
    }


def reply_headers(replies: Sequence[GuardedReply]) -> dict[str, str]:
    """Return headers about whole replies, in the order of the choices."""
    return {
        "x-guardrail-strategy": ",".join(reply.strategy for reply in replies),
        "x-guardrail-reply-action": ",".join(reply.verdict_out.action.value for reply in replies),
    }


def _facts(reply: GuardedReply) -> dict[str, Any]:
    found = {name: value for name, value in reply.to_dict().items() if name != "text"}
    found["attempts"] = [
        {name: value for name, value in attempt.items() if name != "text"} for attempt in found["attempts"]
    ]
    return found
