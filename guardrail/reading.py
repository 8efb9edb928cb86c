"""From messages to token windows, with the way back to characters.

Joins conversation reading, normalisation, the encoder's tokenizer and packing; runs no model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from .conversation import Conversation, turn_text
from .errors import InputError
from .normalize import NormalizedText, normalize, views
from .protocols import Encoder, TokenizedText
from .rules import Rule
from .types import Coverage, Turn
from .windows import Packing, pack

# A token is rarely longer: text beyond budget * this many characters cannot be read anyway.
CHARS_PER_TOKEN = 12
# To estimate the tokens of text that was not tokenised.
MEAN_CHARS_PER_TOKEN = 4
# Most readings of one judged turn: as written, disguises undone, without hidden characters.
MAX_VIEWS = 3


@dataclass(frozen=True, slots=True)
class Reading:
    """One view of a conversation, ready for the encoder.

    Attributes:
        packing: the windows.
        speaker: characters before the turn's own text in what was tokenised.
        tokens: of the judged turn as it was tokenised.
        normalized: its text, with the map to the original.
    """

    packing: Packing
    speaker: int
    tokens: TokenizedText = field(repr=False)
    normalized: NormalizedText = field(repr=False)

    def span(self, window: int) -> tuple[int, int]:
        """Return the characters of the judged turn's original text that a window reads."""
        piece = self.packing.windows[window]
        offsets = self.tokens.offsets[piece.start : piece.end]
        size = len(self.normalized.text)
        start = min(max(0, offsets[0][0] - self.speaker), size) if offsets else 0
        end = min(max(start, offsets[-1][1] - self.speaker), size) if offsets else 0
        return self.normalized.original_span(start, end)


def read(
    conversation: Conversation, encoder: Encoder, max_windows: int, max_context_windows: int = 0
) -> tuple[tuple[Reading, ...], Coverage]:
    """Return the readings of a conversation, the plain one first, and what they cover.

    Work is bounded whatever the size of the input: text that cannot fit into `max_windows` is not
    even normalised. What was left out is in the coverage.

    Args:
        conversation: what to read.
        encoder: its tokenizer and window size are used.
        max_windows: most windows of one reading.
        max_context_windows: most of them with older turns that did not fit into the first.
    """
    judged = conversation.judged
    limit = max_windows * encoder.max_tokens * CHARS_PER_TOKEN
    context_budget = (1 + min(max_context_windows, max_windows)) * encoder.max_tokens
    context, context_characters, blank_turns = _context(conversation, encoder, context_budget)
    readings = []
    for view in views(judged.text[:limit])[:MAX_VIEWS]:
        line = turn_text(Turn(judged.role, view.text))
        tokens = encoder.tokenize(line)
        packing = pack(
            tokens.ids if view.text.strip() else [],
            context,
            cls_id=encoder.cls_id,
            sep_id=encoder.sep_id,
            max_tokens=encoder.max_tokens,
            max_windows=max_windows,
            max_context_windows=max_context_windows,
        )
        readings.append(Reading(packing, len(line) - len(view.text), tokens, view))
    unread = len(judged.text) - min(len(judged.text), limit)
    first = readings[0].packing
    given = len(readings[0].tokens.ids) if readings[0].normalized.text.strip() else 0
    given += sum(map(len, context)) + math.ceil((unread + context_characters) / MEAN_CHARS_PER_TOKEN)
    return tuple(readings), Coverage(
        turns_given=len(conversation.turns),
        turns_read=first.turns_read + blank_turns,
        tokens_given=given,
        tokens_read=first.tokens_read,
        judged_turn_read=first.judged_read and unread == 0,
        parts_skipped=sum(conversation.parts_skipped),
    )


def rule_windows(rules: Iterable[Rule], encoder: Encoder) -> list[tuple[int, ...]]:
    """Return one window for each rule of thumb: its text alone, without a speaker.

    Raises:
        InputError: a rule does not fit into a window.
    """
    windows = []
    for rule in rules:
        ids = encoder.tokenize(rule.text).ids
        if len(ids) > encoder.max_tokens - 2:
            raise InputError(
                f"expected rules of at most {encoder.max_tokens - 2} tokens, rule {rule.id!r} has "
                f"{len(ids)}; make it one plain sentence"
            )
        windows.append((encoder.cls_id, *ids, encoder.sep_id))
    return windows


def _context(conversation: Conversation, encoder: Encoder, budget: int) -> tuple[list[list[int]], int, int]:
    """Return ids of earlier turns, newest first, the characters left out, and how many turns were blank."""
    context: list[list[int]] = []
    left_out = blank = 0
    for turn in reversed(conversation.turns[:-1]):
        if budget <= 0:
            left_out += len(turn.text)
            blank += not turn.text.strip()
            continue
        head = turn.text[: budget * CHARS_PER_TOKEN]
        left_out += len(turn.text) - len(head)
        text = normalize(head).text
        if text.strip():
            ids = encoder.tokenize(turn_text(Turn(turn.role, text))).ids
            context.append(ids)
            budget -= len(ids) + 1
        else:
            blank += len(head) == len(turn.text)
    return context, left_out, blank
