"""Where a text may be cut while it is still growing. Pure; knows nothing about judging."""

from __future__ import annotations

import re

# Longest piece without a sentence end, characters: then it is cut between two words, or anywhere.
MOST_CHARACTERS = 240
# Marks that end a sentence where space follows, and marks of scripts that put no space between sentences.
_MARKS = ".!?…؟۔।॥։።။។"
_WIDE_MARKS = "。！？｡"
_CLOSERS = "\"'”’»)\\]}*_`」』）】》"
# A line's end, or the end of a sentence once the character behind it is known. A row of marks is tried once
# only, from its beginning, so that the work grows with the text and not with its square.
_END = re.compile(
    rf"(?=\n)"
    rf"|(?<![{_MARKS}])[{_MARKS}]++[{_CLOSERS}]*+(?=\s)"
    rf"|(?<![{_WIDE_MARKS}])[{_WIDE_MARKS}]++[{_CLOSERS}]*+(?=[^{_WIDE_MARKS}{_CLOSERS}])"
)
# "1." of a list, "J." of a name, "e.g.", "Dr.": the full stop ends no sentence.
_NO_END = re.compile(
    r"(?:^|[\s(\"'“‘])(?:\d{1,3}|(?:[^\W\d_]\.)*[^\W\d_]"
    r"|Mrs?|M[sx]|Drs?|Prof|St|Mt|Rev|Gen|Col|Capt|Sgt|Lt|Fig|vs|cf|ca|approx)\.$"
)
_ENDED = re.compile(rf"(?:[{_MARKS}{_WIDE_MARKS}][{_CLOSERS}]*|\n)\s*\Z")
_SPACE = re.compile(r"\s")


def next_cut(text: str, start: int = 0) -> int | None:
    """Return the end of the first sentence behind `start`, or None if the text goes no further yet.

    The answer depends on the text alone and stays the same however the text goes on, so text that arrives
    in any pieces is cut at the same places. Space between sentences belongs to the next one. A piece of
    more than `MOST_CHARACTERS` is cut at its last space, if that is in its second half, else there.

    Args:
        text: what has arrived so far.
        start: the last cut, characters.
    """
    limit = start + MOST_CHARACTERS
    for found in _END.finditer(text, start, limit + 1):
        end = found.end()
        sentence = text[start:end]
        if sentence.strip() and not _NO_END.search(sentence[-16:]):
            return end
    if len(text) <= limit:
        return None
    spaces = [found.start() for found in _SPACE.finditer(text, start + MOST_CHARACTERS // 2, limit + 1)]
    return spaces[-1] if spaces else limit


def is_ended(text: str) -> bool:
    """Return True if a text breaks off at the end of a sentence or a line."""
    return _ENDED.search(text[-MOST_CHARACTERS:]) is not None
