"""Turn conversations into the very text that the runtime's windows spell out in token ids."""

from __future__ import annotations

from collections.abc import Sequence

from guardrail.conversation import turn_text
from guardrail.normalize import normalize
from guardrail.types import Turn


def as_text(turns: Sequence[Turn], separator: str = "[SEP]") -> str:
    """Return the conversation as one string: the judged turn first, then earlier ones, newest first.

    A tokenizer that knows the separator makes of it the ids that `guardrail.windows.pack` makes,
    and cutting it on the right drops the oldest turns.

    Args:
        turns: the conversation; the last turn is judged.
        separator: the base's own separator token.
    """
    texts = [turn_text(Turn(turn.role, normalize(turn.text).text)) for turn in reversed(turns)]
    return f" {separator} ".join(text for text in texts)
