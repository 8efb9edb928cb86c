"""From what a rewrite model writes to what a person would write. Pure text, no model."""

from __future__ import annotations

import re

# Ends of a sentence after which the next one may follow without a space: Chinese and Japanese, Arabic and
# Urdu, Hindi, Armenian, Ethiopic, Burmese, Khmer.
_UNSPACED = "。！？｡؟۔।॥։።။។"
_END = re.compile(rf"""[.!?…{_UNSPACED}]+["'”’)\]»」』）】》]*""")
# Not after `?"` and `!"`: "Why?" she asked.
_START = re.compile(r"""(?:^|[.!?…]\s+|\.["'”’)\]]+\s+)["'“‘(\[]*[a-z]""")
_CLITIC = re.compile(r"(\w) ?(['’]) ?(t|s|m|re|ve|ll|d)\b")
_PLURAL = re.compile(r"(\ws) (['’])(?=\s)")
_I = re.compile(r"\bi\b(?!\. ?e\b)")
_BEFORE = re.compile(r"\s+([.,;:!?%…)\]])")
_AFTER = re.compile(r"([(\[$£€#])\s+")
_NUMBER = re.compile(r"(?<=\d)([.,:]) (?=\d)")
_JOINED = re.compile(r"(?<=\w) ([-/]) (?=\w)")
_QUOTED = re.compile(r'"\s*([^"]*?)\s*"')


def whole_sentences(text: str) -> str:
    """Return a text up to the end of its last whole sentence; "" if there is none.

    Of scripts that mark no ends of sentences, such as Thai, nothing counts as whole.
    """
    text = " ".join(text.split())
    ends = [mark.end() for mark in _END.finditer(text) if _is_end(mark[0], text[mark.end() :])]
    return text[: ends[-1]] if ends else ""


def _is_end(mark: str, rest: str) -> bool:
    if rest.startswith(" "):
        return not rest[1].islower()  # not "e.g. this" or "no!" she said
    # 「行く。」と言った: after a closing quote the sentence may go on.
    return not rest or mark[-1] in _UNSPACED


def recased(text: str) -> str:
    """Return a text of an uncased, word-splitting tokenizer with gaps closed and capitals set.

    Names stay small: what they are is not known here.
    """
    text = _CLITIC.sub(r"\1\2\3", _PLURAL.sub(r"\1\2", _AFTER.sub(r"\1", _BEFORE.sub(r"\1", text))))
    text = _JOINED.sub(r"\1", _NUMBER.sub(r"\1", text))
    text = _I.sub("I", _QUOTED.sub(r'"\1"', text))
    return _START.sub(lambda match: match[0][:-1] + match[0][-1].upper(), text)
