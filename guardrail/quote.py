"""Choose the user's own words that a reply quotes, so that anybody sees what it is about. Pure text."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .normalize import normalize
from .types import Turn

MOST_WORDS = 18
LEAST_WORDS = 3
# Turns of the user that are looked at, the newest first.
MOST_TURNS = 2
MAX_CHARACTERS = 2_000
_CLAUSE = re.compile(r"(?<=[.!?…;])\s+|\s+[-–—/]\s+|\n+|(?<=,)\s+")
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
# Not to be said again: addresses, code, mark-up, long numbers.
_NO_PROSE = re.compile(r"https?:|www\.|@|[<>{}\[\]|\\`=]|\d{5}")
_OPENING = re.compile(r"(?<!\w)['‘](?=\w)")
_CLOSING = re.compile(r"(?<=[\w.,!?])['’](?!\w)")
_EDGES = " \t,;:-–—/\"'“”‘’()*_~"


def quote_of(turns: Sequence[Turn]) -> str:
    """Return the end of what the user said last, from the beginning of a clause; "" if it cannot be quoted.

    At most 18 words. The end, since what is wrong mostly comes last: first the story, then the plan. (The
    clause that the judge by itself finds most unsafe is more often a scary word of the story.) If the last
    turn is nothing to quote ("yes please"), the one before it serves.

    Args:
        turns: the conversation, oldest first.
    """
    said = [turn.text for turn in turns if turn.role == "user"][-MOST_TURNS:]
    return next((quote for text in reversed(said) if (quote := _end(text))), "")


def _end(text: str) -> str:
    """Return the last clauses of a text that have at most `MOST_WORDS` words together."""
    text = normalize(text[-MAX_CHARACTERS:]).text.strip()
    starts = [0, *(match.end() for match in _CLAUSE.finditer(text))]
    fitting = [start for start in starts if LEAST_WORDS <= _count(text[start:]) <= MOST_WORDS]
    if fitting:
        return _trimmed(text[fitting[0] :])
    words = list(_WORD.finditer(text))
    return _trimmed("... " + text[words[-MOST_WORDS].start() :]) if len(words) > MOST_WORDS else ""


def _trimmed(text: str) -> str:
    text = " ".join(text.split())
    ellipsis = "... " if text.startswith("... ") else ""
    text = text.removeprefix("... ").strip(_EDGES).rstrip(".,;").replace('"', "'")
    if len(_OPENING.findall(text)) != len(_CLOSING.findall(text)):  # cut in the middle of a quotation
        text = _CLOSING.sub("", _OPENING.sub("", text))
    return "" if _NO_PROSE.search(text) else ellipsis + text


def _count(text: str) -> int:
    return len(_WORD.findall(text))
