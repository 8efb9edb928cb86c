"""Choose the user's own words that a reply quotes, so that anybody sees what it is about.

Pure text; what is most worrying is for the caller to say.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from .normalize import normalize
from .types import Turn

MOST_WORDS = 16
LEAST_WORDS = 3
# Turns of the user that are looked at, the newest first, and clauses that are held against each other.
MOST_TURNS = 2
MOST_CLAUSES = 6
MAX_CHARACTERS = 2_000
_CLAUSE = re.compile(
    r"(?<=[.!?…;])\s+|\s+[-–—/]\s+|\n+|(?<=,)\s+(?=(?:and|but|so|then|because|if|she|he|they|i|we|it)\b)"
)
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
# Not to be said again: addresses, code, mark-up.
_NO_PROSE = re.compile(r"https?:|www\.|@|[<>{}\[\]|\\`=]|\d{5}")
_EDGES = " \t,;:-–—/\"'“”‘’()*_~"


def clauses(turns: Sequence[Turn]) -> list[str]:
    """Return clauses of the user's last turns that could be quoted, the last turn's first; perhaps none.

    A clause has 3 to 16 words; a longer one loses its beginning, since what is wrong mostly comes last.

    Args:
        turns: the conversation, oldest first.
    """
    found: list[str] = []
    said = [turn.text for turn in turns if turn.role == "user"][-MOST_TURNS:]
    for text in reversed(said):
        parts = [_trimmed(part) for part in _CLAUSE.split(normalize(text[-MAX_CHARACTERS:]).text)]
        good = [part for part in parts if part]
        found += [part for part in reversed(good) if part not in found]
        if found:  # an earlier turn only where the last one is nothing to quote ("yes please")
            break
    return found[:MOST_CLAUSES]


def _trimmed(clause: str) -> str:
    text = " ".join(clause.split()).strip(_EDGES)
    words = list(_WORD.finditer(text))
    if len(words) > MOST_WORDS:
        text = "... " + text[words[-MOST_WORDS].start() :]
    if len(words) < LEAST_WORDS or _NO_PROSE.search(text):
        return ""
    return text.rstrip(".,;").replace('"', "'") if not text.endswith("...") else text
