"""From the text that a user sent to the text that a tokenizer should see, with a way back.

Text can carry things that no reader sees, or letters that only look like other letters. `normalize` makes
one plain form of it; `views` adds readings with the usual disguises undone ("k1ll", "k i l l"). Every span
of a result can be traced to the characters of the original.

This module knows nothing about tokens, models or meaning, and decodes no base64, hex or rot13.
It needs the standard library only, and takes time linear in the length of the text.

Sources: Unicode UAX #15 (NFKC), UAX #44 (Default_Ignorable_Code_Point), UTS #51 (emoji ZWJ and tag
sequences), UTS #39 `confusables.txt` (facts about look-alikes; only the small set that people use).
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import NamedTuple

Edit = tuple[int, int, str]
"""Characters `[start, end)` become the string."""


class _Map(NamedTuple):
    """Where one pass changed the length: four numbers per edit, in the order of the text."""

    old_start: array[int]
    old_end: array[int]
    new_start: array[int]
    new_end: array[int]

    def back(self, at: int) -> tuple[int, int]:
        """Give the characters before the pass that the character `at` came from."""
        edit = bisect_right(self.new_end, at)  # deletions at `at` itself lie before it: end == at
        if edit < len(self.new_start) and self.new_start[edit] <= at:
            return self.old_start[edit], self.old_end[edit]
        old = at + (self.old_end[edit - 1] - self.new_end[edit - 1] if edit else 0)
        return old, old + 1


@dataclass(frozen=True, slots=True)
class NormalizedText:
    """A text and the way back to its original. The text is left out of `repr`."""

    text: str = field(repr=False)
    _maps: tuple[_Map, ...] = field(default=(), repr=False, compare=False)

    def original_span(self, start: int, end: int) -> tuple[int, int]:
        """Give the characters of the original that a span of `text` came from.

        Characters that were removed inside the span are covered, those at its edges are not. An empty span
        gives the empty span before the character that it stands before.

        Args:
            start: first character of the span, in `text`.
            end: one past its last character.

        Returns:
            A half-open span of characters in the original.

        Raises:
            ValueError: the span does not lie inside `text`.
        """
        if not 0 <= start <= end <= len(self.text):
            raise ValueError(f"expected 0 <= start <= end <= {len(self.text)}, got {start} and {end}")
        empty = start == end
        last = end if empty else end - 1
        for step in reversed(self._maps):
            start, last = step.back(start)[0], step.back(last)[1] - 1
        return (start, start) if empty else (start, last + 1)


def _apply(source: NormalizedText, edits: Iterable[Edit]) -> NormalizedText:
    """Carry out edits, which come in order and do not overlap; a change of one for one needs no map."""
    text, parts, done, shift = source.text, list[str](), 0, 0
    step = _Map(array("I"), array("I"), array("I"), array("I"))
    for start, end, new in edits:
        parts += (text[done:start], new)
        done = end
        if end - start != 1 or len(new) != 1:
            step.old_start.append(start)
            step.old_end.append(end)
            step.new_start.append(start + shift)
            shift += len(new) - (end - start)
            step.new_end.append(end + shift)
    if not parts:
        return source
    parts.append(text[done:])
    return NormalizedText("".join(parts), (*source._maps, step) if step.old_start else source._maps)


# ---------------------------------------------------------------- pass 1: what no reader sees

_ZWNJ, _ZWJ = "\u200c", "\u200d"
_TAGS = "\U000e0020-\U000e007e"  # a hidden copy of printable ASCII
_LINES = "\r\x85\u2028\u2029"
_SPACES = "\x0b\x0c\x1c-\x1f\xa0\u1680\u2000-\u200a\u202f\u205f\u2800\u3000"  # U+2800: the empty Braille cell
# Inside of a character class: what leaves no trace on the screen, beside tags, spaces and joiners.
INVISIBLE = (
    "\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f"  # controls that separate nothing
    "\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e001f\U000e007f-\U000e0fff"
)
_SURROGATES = "\ud800-\udfff"
_SPECIAL = re.compile(f"[{_TAGS}{_LINES}{_SPACES}{_SURROGATES}{INVISIBLE}]")
_SPECIAL_RUN = re.compile(
    f"(?P<tags>[{_TAGS}]+)|(?P<lines>(?:\r\n|[{_LINES}])+)|(?P<space>[{_SPACES}]+)|(?P<broken>[{_SURROGATES}])"
    f"|[{INVISIBLE}]+"
)
_REPLACEMENT: dict[str | None, str] = {"space": " ", "broken": "\ufffd"}
_HAS_TAGS = re.compile(f"[{_TAGS}]")
_FLAG = "\U0001f3f4"
_FLAG_TAGS = frozenset({"gbeng", "gbsct", "gbwls"})  # the only tag sequences that UTS #51 recommends


def _reveal(text: str, start: int, end: int) -> Iterator[Edit]:
    """Make hidden ASCII readable: a model may read it, so it has to be judged."""
    hidden = "".join(chr(ord(char) - 0xE0000) for char in text[start:end])
    is_flag = hidden in _FLAG_TAGS and text[start - 1 : start] == _FLAG
    if is_flag or not hidden.strip():
        yield start, end, ""
        return
    padded = [*hidden]
    padded[0], padded[-1] = " " + padded[0], padded[-1] + " "
    for offset, char in enumerate(padded):
        yield start + offset, start + offset + 1, char


def _visible_edits(text: str) -> Iterator[Edit]:
    first = _SPECIAL.search(text)  # one class of characters is quicker to search than several
    for run in _SPECIAL_RUN.finditer(text, first.start()) if first else ():
        start, end = run.span()
        if run.lastgroup == "tags":
            yield from _reveal(text, start, end)
        elif run.lastgroup == "lines":
            yield start, end, "\n" * min(3, len(run[0].replace("\r\n", "\n")))
        else:
            yield start, end, _REPLACEMENT.get(run.lastgroup, "")


def _hidden_edits(text: str) -> Iterator[Edit]:
    return ((run.start(), run.end(), "") for run in re.finditer(f"[{_TAGS}]+", text))


# ---------------------------------------------------------------- pass 2: joiners

# Scripts in which ZWJ and ZWNJ change how a word reads: Arabic to Tibetan, Myanmar, Khmer and Mongolian,
# Balinese and its neighbours, and their relatives in the higher planes.
_JOINING = re.compile(
    "[\u0600-\u0fff\u1000-\u109f\u1780-\u18af\u1a20-\u1bff\ua800-\uabff"
    "\U00010a00-\U00010fff\U00011000-\U00011fff\U0001e900-\U0001e95f]"
)
_EMOJI = re.compile("[\u2190-\u21ff\u2600-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff]")
# Other characters whose decomposition may join what stands before: Thai and Lao AM, Hangul vowels and
# finals in their several forms, Kirat Rai vowels (Unicode 16).
_JOINS = (
    "\u0e33\u0eb3\u1160-\u11ff\u3133\u3135\u3136\u313a-\u313f\u314f-\u318e"
    "\uffa3\uffa5\uffa6\uffaa-\uffaf\uffc2-\uffdc\U00016d63-\U00016d6a"
)
_VOICING = "\uff9e\uff9f"  # halfwidth Japanese marks: letters by category, marks once decomposed
_MARK_BLOCKS = ((0x300, 0x3400), (0xA000, 0xAC00), (0xF900, 0x1F000))  # no marks in the gaps


@cache
def _marks() -> tuple[str, str]:
    """Build the insides of two character classes of combining marks: of the first plane, and of all.

    From Python's own Unicode data, as the standard library has no pattern for a category; built at the
    first text that needs it (4 ms). The second is ten times slower to match.
    """
    ranges: list[list[int]] = []
    for code in (code for low, high in _MARK_BLOCKS for code in range(low, high)):
        if unicodedata.category(chr(code))[0] == "M":
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1][1] = code
            else:
                ranges.append([code, code])
    parts = [f"{chr(low)}-{chr(high)}" for low, high in ranges]
    return "".join(part for part in parts if part < "\U00010000") + _VOICING, "".join(parts) + _VOICING


@cache
def _compiled(template: str, high: bool) -> re.Pattern[str]:
    return re.compile(template.replace("M", _marks()[high]).replace("J", _ZWNJ + _ZWJ))


_HIGH = re.compile("[\U00010000-\U0010ffff]")


def _pattern(template: str, text: str) -> re.Pattern[str]:
    """Compile a pattern for this text in which `M` stands for the marks and `J` for ZWNJ and ZWJ."""
    return _compiled(template, _HIGH.search(text) is not None)


@lru_cache(maxsize=4096)
def _joiners_kept(base: str) -> str:
    """Name the joiners that have a meaning after this character (as NFKC will leave it)."""
    stable = _compiled("[M]", True).sub("", unicodedata.normalize("NFKC", base))[-1:]
    if _JOINING.match(stable):
        return _ZWNJ + _ZWJ
    return _ZWJ if _EMOJI.match(stable) else ""


def _joiner_edits(text: str) -> Iterator[Edit]:
    """Drop joiners that join nothing; decide by the base letter, whose marks NFKC may reorder."""
    if _ZWJ not in text and _ZWNJ not in text:
        return
    for cluster in _pattern("([^MJ]?)[MJ]+", text).finditer(text):
        base = cluster[1]
        kept = _joiners_kept(base) if base else ""
        for run in re.finditer(f"[{_ZWNJ}{_ZWJ}]+", cluster[0]):
            start, end = cluster.start() + run.start(), cluster.start() + run.end()
            first = next((char for char in run[0] if char in kept), "")
            if kept == _ZWJ and not _EMOJI.match(unicodedata.normalize("NFKC", text[end : end + 1])):
                first = ""
            if first != run[0]:
                yield start, end, first


# ---------------------------------------------------------------- pass 3: floods of marks, NFKC, spaces

# Marks of no script in particular. Three on a letter is more than any language writes; script marks
# (Hebrew points, Burmese signs, Tibetan stacks) go further.
_STACKING = "\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f"
_HAS_STACKING = re.compile(f"[{_STACKING}]")
_MOST_STACKED, _MOST_SCRIPT_MARKS = 3, 8
# Four marks; put so that Latin text is passed over quickly.
_FLOOD = "[^\x00-\u02ff][^\x00-\u02ff]{3}(?<=[M]{4})[M]*"
_FOREIGN_RUN = re.compile("[\x00-\x7f]?[^\x00-\x7f]+")


def _flood_edits(text: str) -> Iterator[Edit]:
    if text.isascii():
        return
    for run in _pattern(_FLOOD, text).finditer(text):
        most = _MOST_STACKED if _HAS_STACKING.search(run[0]) else _MOST_SCRIPT_MARKS
        if len(run[0]) > most:
            yield run.start() + most, run.end(), ""


def _compose(cluster: str) -> str:
    new = unicodedata.normalize("NFKC", cluster)  # may split a letter into a letter and marks: cut again
    return _apply(NormalizedText(new), _flood_edits(new)).text if len(new) > _MOST_STACKED else new


_compose_cached = lru_cache(maxsize=4096)(_compose)


def _nfkc_edits(text: str) -> Iterator[Edit]:
    """Normalise cluster by cluster: a base and all that may compose with it."""
    if unicodedata.is_normalized("NFKC", text):
        return
    clusters = _pattern(f"[^M{_JOINS}]?[M{_JOINS}]+|[^\x00-\x7f]", text)
    for foreign in _FOREIGN_RUN.finditer(text):
        for cluster in clusters.finditer(text, *foreign.span()):
            old = cluster[0]
            new = _compose_cached(old) if len(old) < 9 else _compose(old)
            if new != old:
                yield cluster.start(), cluster.end(), new


def _space_edits(text: str) -> Iterator[Edit]:
    for run in re.finditer("[ \t\n]{2,}", text):
        lines = run[0].count("\n")
        new = "\n\n" if lines > 2 else re.sub("[ \t]{2,}", " ", run[0])
        if new != run[0]:
            yield run.start(), run.end(), new


Pass = Callable[[str], Iterator[Edit]]
_NORMALIZE: tuple[Pass, ...] = (_visible_edits, _joiner_edits, _flood_edits, _nfkc_edits, _space_edits)


_UNTIDY = re.compile("[^\t\n -~]|[ \t]{2}|\n[ \t]?\n[ \t]?\n")


def _is_plain(text: str) -> bool:
    """Recognise ASCII that needs nothing: most messages, so this has to be quick."""
    return text.isascii() and "  " not in text and (text.isprintable() or not _UNTIDY.search(text))


def _run(source: NormalizedText, passes: Iterable[Pass]) -> NormalizedText:
    for edits in passes:
        source = _apply(source, edits(source.text))
    return source


def normalize(text: str) -> NormalizedText:
    """Turn text as sent into the text that a tokenizer should see.

    NFKC, without invisible characters and floods of combining marks; hidden tag characters become readable
    text; every kind of space becomes a plain one, runs of spaces one space, runs of lines one empty line.
    (NFKC can make a text longer, at worst 18 times: U+FDFA.)
    Joiners stay where a script or an emoji family needs them. Doing it twice changes nothing more.

    Args:
        text: any string, lone surrogates included (each becomes U+FFFD).

    Returns:
        The plain form; with `text` itself and no map if nothing had to change.
    """
    source = NormalizedText(text)
    return source if _is_plain(text) else _run(source, _NORMALIZE)


# ---------------------------------------------------------------- views: letters in disguise

# Letters that look like Latin ones (UTS #39): Cyrillic, Greek, Armenian, Cherokee; each row has the letters
# of other scripts, then the Latin ones in the same order.
_TWIN_ROWS = (
    ("аеѕіјорсухӏһԁԛԝ", "aesijopcyxlhdqw"),
    ("АВЕЅІЈКМНОРСТУХ", "ABESIJKMHOPCTYX"),
    ("αικνορυΑΒΕΖΗΙΚΜ", "aikvopuABEZHIKM"),
    ("ΝΟΡΤΥΧօոսհզցՕՍԼ", "NOPTYXonuhqgOUL"),
    ("ᎪᏟᎠᎬᎻᎫᏦᏞᎷᏢᏒᏚᎢᏙᎳ", "ACDEHJKLMPRSTVW"),
)
# Cyrillic and Greek letters that read as Latin ones only within a Latin word.
_NEAR_ROW = ("вкмнтεητχγω", "bkmhtentxyw")
# Small capitals and other phonetic letters: outside dictionaries they are decoration.
_STYLED_ROW = ("ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢɑɡ", "abcdefghijklmnoprstuvwyzag")


def _table(*rows: tuple[str, str]) -> dict[int, str]:
    return {ord(foreign): latin for left, right in rows for foreign, latin in zip(left, right, strict=True)}


_STYLED = _table(_STYLED_ROW)
_TWINS = _table(*_TWIN_ROWS) | _STYLED
_LOOKALIKES = _TWINS | _table(_NEAR_ROW)
_LATIN = "A-Za-z\xc0-\u024f\u1e00-\u1eff"
_LATIN_LETTER = re.compile(f"[{_LATIN}]")
_OTHER_LETTER = re.compile(rf"[^\W\d_{_LATIN}{''.join(map(chr, _TWINS))}]")
_UNSTYLED_LETTER = re.compile(rf"[^\W\d_{''.join(map(chr, _STYLED))}]")
_LOOKALIKE = f"[{''.join(map(chr, _LOOKALIKES))}]"
_HAS_LOOKALIKE = re.compile(_LOOKALIKE)
_MIXED = re.compile(f"[{_LATIN}]{_LOOKALIKE}|{_LOOKALIKE}[{_LATIN}]")
_WORD = re.compile(r"[^\W\d_]+")
_BADGES = re.compile("[\U0001f150-\U0001f169\U0001f170-\U0001f189]{3,}")  # negative circled, squared letters


def _badge_edits(text: str) -> Iterator[Edit]:
    """Read runs of white-on-black letters; one or two are emoji, such as a blood type."""
    for run in _BADGES.finditer(text):
        for at, char in enumerate(run[0], run.start()):
            yield at, at + 1, chr(ord("A") + (ord(char) - 0x1F150) % 32)


def _otherwise_latin(text: str) -> bool:
    """Tell whether all letters are Latin or their twins, so that no other language is being written."""
    if _OTHER_LETTER.search(text):
        return False
    return _LATIN_LETTER.search(text) is not None or not _UNSTYLED_LETTER.search(text)


def _lookalike_edits(text: str) -> Iterator[Edit]:
    """Fold words that mix Latin with look-alikes; whole words of twins only in a text otherwise Latin."""
    if text.isascii() or not _HAS_LOOKALIKE.search(text):
        return
    whole = _TWINS if _otherwise_latin(text) else {}
    for word in _WORD.finditer(text) if whole or _MIXED.search(text) else ():
        letters = set(word[0])
        foreign = {ord(char) for char in letters if not _LATIN_LETTER.match(char)}
        table = _LOOKALIKES if len(foreign) < len(letters) else whole
        if foreign and foreign <= table.keys():
            for at, char in enumerate(word[0], word.start()):
                if ord(char) in foreign:
                    yield at, at + 1, table[ord(char)]


_OVERLAY = re.compile("[\u0334-\u0338\u20d2-\u20d3\u20d8-\u20da\u20dd-\u20e0\u20e2-\u20e4]")
_MARKED_WORD = re.compile(f"[A-Za-z][A-Za-z{_STACKING}]*")


def _overlay_edits(text: str) -> Iterator[Edit]:
    """Take strokes and frames off Latin words; three loose marks in a word count as decoration."""
    if not _HAS_STACKING.search(text):
        return
    for word in _MARKED_WORD.finditer(text):
        marks = list(_HAS_STACKING.finditer(word[0]))
        if len(marks) > 2 or _OVERLAY.search(word[0]):
            yield from ((word.start() + mark.start(), word.start() + mark.end(), "") for mark in marks)


# ---------------------------------------------------------------- views: letters one by one, leet, repeats

_ALPHABET = "A-Za-z\xc0-\u024f\u0370-\u04ff"  # scripts that write several letters to a word, with capitals
_SPELLED = re.compile(
    rf"(?<![^\W_])[{_ALPHABET}]([\W_]{{1,3}})[{_ALPHABET}0134578](?:\1[{_ALPHABET}0134578]){{2,}}(?![^\W_])"
)


def _is_listing(letters: str) -> bool:
    """Recognise "a b c d" and "n-n-n-n": an enumeration or a stutter, not a word."""
    codes = [ord(letter) for letter in letters.casefold()]
    steps = {after - before for before, after in zip(codes, codes[1:], strict=False)}
    return steps in ({0}, {1})


def _spelled_edits(source: NormalizedText) -> Iterator[Edit]:
    """Join four letters or more that stand one by one; a wider gap in the original parts two words."""
    for run in _SPELLED.finditer(source.text):
        width = 1 + len(run[1])
        letters = run[0][::width].rstrip("0134578")
        digits = sum(letter.isdigit() for letter in letters)
        if len(letters) < 4 or digits > len(letters) - 3 or _is_listing(letters):
            continue
        for at in range(run.start() + 1, run.start() + width * (len(letters) - 1), width):
            first, last = source.original_span(at, at + width - 1)
            yield at, at + width - 1, " " if run[1] == " " and last - first > 1 else ""


_LEET = str.maketrans("01345789@$!\u20ac", "oieastbgasie")
# A digit or symbol between two letters ("k1ll", "a$$hole"; not "10km", "mp3s", "5pm", "$5"). For "!",
# which also ends a sentence, only after one or two letters ("d!e", not "wow!thanks").
_LEET_SIGN = re.compile(
    r"[A-Za-z](?:([0134578])\1?|[@$\u20ac]{1,2})(?!s?(?!\w))[A-Za-z]|(?<![^\W_])[A-Za-z]{1,2}![a-z]"
)
_LEET_TOKEN = re.compile(r"[A-Za-z0-9@$!\u20ac]+")
_REAL_NUMBER = re.compile(r"[26]|(\d)(?!\1)\d|\d{3}")  # one that stands for no letters
_LINK_BEFORE, _LINK_AFTER = re.compile("[/=&?#%]"), re.compile(r"[.:/]\w|/")


def _is_leet(token: str, before: str, after: str) -> bool:
    """Tell words in leet from links, addresses, numbers with a unit and names of models."""
    if not _LEET_SIGN.search(token) or _REAL_NUMBER.search(token):
        return False
    linked = _LINK_BEFORE.match(before) or _LINK_AFTER.match(after)
    return not linked and (token[0].isalpha() or sum(map(str.isalpha, token)) > 2)  # not "1h5m"


def _leet_edits(text: str) -> Iterator[Edit]:
    if not _LEET_SIGN.search(text):
        return
    for match in _LEET_TOKEN.finditer(text):
        token = match[0].rstrip("@$!\u20ac")
        end = match.start() + len(token)
        if not _is_leet(token, text[match.start() - 1 : match.start()], text[end : end + 2]):
            continue
        for at, (old, new) in enumerate(zip(token, token.replace("11", "ll").translate(_LEET), strict=True)):
            if old != new:
                yield match.start() + at, match.start() + at + 1, new


_REPEATED = re.compile(rf"([{_ALPHABET}])\1{{3,}}")


def _repeat_edits(text: str) -> Iterator[Edit]:
    return ((run.start() + 2, run.end(), "") for run in _REPEATED.finditer(text))


# As JSON writes letters and ends of lines, with further backslashes if JSON stands within JSON.
_ESCAPE = re.compile(r'(?<!\\)\\++(?:u([0-9a-fA-F]{4})|["/nrt])')
_ESCAPED = {"n": "\n", "r": "\n", "t": "\t"}


def _escape_edits(text: str) -> Iterator[Edit]:
    """Read escapes: whoever parses the JSON in a text sees letters and new lines in their place."""
    for escape in _ESCAPE.finditer(text) if "\\" in text else ():
        last = escape[0][-1]
        new = chr(int(escape[1], 16)) if escape[1] else _ESCAPED.get(last, last)
        yield escape.start(), escape.end(), new


def _undisguise(source: NormalizedText) -> NormalizedText:
    plain = _apply(source, _escape_edits(source.text))
    source = source if plain is source else _run(plain, _NORMALIZE)
    source = _run(source, (_badge_edits, _lookalike_edits, _overlay_edits))
    source = _apply(source, _spelled_edits(source))
    return _run(source, (_leet_edits, _repeat_edits, _nfkc_edits))


def views(text: str) -> tuple[NormalizedText, ...]:
    r"""Give the readings of a text that a judge should see: mostly one, at most three.

    1. `normalize(text)`.
    2. If it differs: disguises undone, that is escapes as in JSON ("\u006bill"), look-alike letters of
       other scripts within Latin words, leet ("k1ll"), words spelled letter by letter ("k-i-l-l"), a letter
       more than three times in a row.
    3. If text was hidden in tag characters: the text without it, which is what a reader saw.

    A view is a guess that a judge adds to the first reading; it never replaces it.
    """
    plain = normalize(text)
    readings = [plain, _undisguise(plain)]
    if not text.isascii() and _HAS_TAGS.search(text):
        readings.append(_run(NormalizedText(text), (_hidden_edits, *_NORMALIZE)))
    return tuple(dict.fromkeys(readings))  # equal texts are equal readings: the first one stays
