"""Turn conversations into the very text that the runtime's windows spell out in token ids."""

from __future__ import annotations

import re
from collections.abc import Sequence

from guardrail.conversation import turn_text
from guardrail.normalize import normalize
from guardrail.types import Turn

# A special token that somebody wrote is ordinary text at run time; here a space makes it that.
_SPECIAL = re.compile(r"\[(?=(?:SEP|CLS|PAD|MASK|UNK)\])")


def as_text(turns: Sequence[Turn], separator: str = "[SEP]") -> str:
    """Return the conversation as one string: the judged turn first, then earlier ones, newest first.

    A tokenizer that knows the separator makes of it the ids that `guardrail.windows.pack` makes,
    and cutting it on the right drops the oldest turns.

    Args:
        turns: the conversation; the last turn is judged.
        separator: the base's own separator token.
    """
    judged, *earlier = [Turn(turn.role, _harmless(normalize(turn.text).text)) for turn in reversed(turns)]
    kept = [judged, *(turn for turn in earlier if turn.text.strip())]
    return f" {separator} ".join(map(turn_text, kept))


def _harmless(text: str) -> str:
    return _SPECIAL.sub("[ ", text)
