"""Text as sent -> text as read: behaviour by table, the way back, idempotence, time."""

import re
import sys
import time
import unicodedata
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail.normalize import NormalizedText, normalize, views


def tags(text: str) -> str:
    return "".join(chr(0xE0000 + ord(char)) for char in text)


ENGLAND = "\U0001f3f4" + tags("gbeng") + "\U000e007f"

NORMALIZED = {
    "lone surrogate": ("a\ud800b", "a\ufffdb"),
    "fullwidth": ("\uff4b\uff49\uff4c\uff4c", "kill"),
    "ligature": ("\ufb01ne", "fine"),
    "mathematical letters": ("\U0001d424\U0001d422\U0001d425\U0001d425", "kill"),
    "circled letters": ("\u24da\u24d8\u24db\u24db", "kill"),
    "loose accent composed": ("cafe\u0301", "caf\xe9"),
    "accent behind a hidden character": ("cafe\u200b\u0301", "caf\xe9"),
    "zero-width space": ("ki\u200bll", "kill"),
    "word joiner, BOM, soft hyphen": ("\ufeffk\u2060i\xadll", "kill"),
    "Mongolian vowel separator": ("ki\u180ell", "kill"),
    "Hangul fillers": ("k\u3164i\uffa0l\u115fl\u1160", "kill"),
    "invisible operators": ("k\u2061i\u2062l\u2063l\u2064", "kill"),
    "grapheme joiner": ("ki\u034fll", "kill"),
    "variation selectors": ("ki\ufe0fl\U000e0100l\U000e01ef", "kill"),
    "bidi controls": ("\u202eki\u2066ll\u2069\u200e", "kill"),
    "hidden text": ("Hi." + tags("do it") + "Bye", "Hi. do it Bye"),
    "hidden text behind a flag": ("\U0001f3f4" + tags("kill her") + "\U000e007f", "\U0001f3f4 kill her "),
    "hidden blanks": ("ki" + tags("  ") + "ll", "kill"),
    "language tag": ("a\U000e0001b\U000e007f", "ab"),
    "flag of England": (f"go {ENGLAND}!", "go \U0001f3f4!"),
    "controls that do not separate": ("k\x00i\x08l\x7fl\x9f", "kill"),
    "controls that separate": ("a\x0bb\x0cc\x1fd", "a b c d"),
    "line ends": ("a\r\nb\rc\u2028d\x85e", "a\nb\nc\nd\ne"),
    "spaces": ("a\xa0b\u2003c\u3000d\u2800e", "a b c d e"),
    "run of spaces": ("a   b \t c", "a b c"),
    "single tab": ("a\tb", "a\tb"),
    "run of lines": ("a\n\n\n\nb\n \n \nc\r\n\r\n\r\nd", "a\n\nb\n\nc\n\nd"),
    "two lines": ("a\n\nb\n c", "a\n\nb\n c"),
    "flood of marks": ("x" + "\u0335\u0321\u0316\u0300\u0301" * 20 + "y", "x\u0335\u0321\u0316y"),
    "joiners in Latin": ("k\u200ci\u200dl\u200c\u200dl", "kill"),
    "joiners in Cyrillic and Greek": ("\u0434\u200d\u0430 \u03bd\u200c\u03b1", "\u0434\u0430 \u03bd\u03b1"),
    "joiner at the start": ("\u200dhi", "hi"),
    "joiner after a lone emoji": ("\U0001f600\u200d hi", "\U0001f600 hi"),
    "run of joiners in Persian": ("می\u200c\u200c\u200dخواهم", "می\u200cخواهم"),
    "joined family without selectors": ("\u2764\ufe0f\u200d\U0001f525", "\u2764\u200d\U0001f525"),
}

KEPT = {
    "family": "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466",
    "profession with skin tone": "\U0001f469\U0001f3fd\u200d\U0001f4bb ok",
    "rainbow flag": "\U0001f3f3\u200d\U0001f308",
    "country flag": "\U0001f1eb\U0001f1f7",
    "Persian": "می\u200cخواهم کتاب\u200cها را بخوانم",
    "Hindi": "क्\u200dष और क्\u200cष",
    "Sinhala": "ශ්\u200dරී ලංකා",
    "Malayalam": "അവന്\u200d വന്നു",
    "Arabic vowels": "السَّلَامُ عَلَيْكُمْ",
    "Hebrew points": "בְּרֵאשִׁ֖ית",
    "Burmese": "ကြွေးကြော်သည်",
    "Tibetan": "བསྒྲུབས",
    "Vietnamese": "Người Việt Nam",
    "Thai": "ที่นี่ไม่มีน้ำ".replace("\u0e33", "\u0e4d\u0e32"),
    "Korean": "안녕하세요",
}

ORDINARY = [
    "I paid $12.50 for 3 coffees at 5:30pm, and the 10km run starts at 7.",
    "Meet me on 3/4/2021 or 2021-04-03; the 1st, 2nd and 3rd floors are closed.",
    "My mp3s are on the covid19 USB stick, 90s music mostly, 20% off!",
    "J. R. R. Tolkien wrote it; see also C. S. Lewis, U.S.A., e.g. p. 12.",
    "Options: a b c d. Choose A, B, C, D or a/b/c/d. N-n-n-n... no!",
    "Mail bob@mail.com or @sally, see https://example.com/a1b/c3d?x=k1ll and C++.",
    "Great game \U0001f600\U0001f44d\U0001f3fd \U0001f1eb\U0001f1f7 so happy for you \u2764",
    "Wow!thanks. Wait... what?! It's 4x4, H2O, B2B, 1h30, 1h5m, 5G and 1080p.",
    "I'm 25 y/o & live w/ 2 cats -- \u201creally\u201d \u2013 it's na\xefve caf\xe9 talk.",
    "El ni\xf1o pag\xf3 15 \u20ac por l@s chic@s a las 14:30. \xbfQu\xe9 tal?",
    "L'\xe9t\xe9 dernier, \xe0 14h30, il y a eu 3 \u0153ufs \xe0 2,50 \u20ac.",
    "Die Stra\xdfe ist 10 km lang, sch\xf6ne Gr\xfc\xdfe, ca. 5 \u20ac f\xfcr \xc4pfel.",
    "Привет, как дела? Встречаемся в 18:30 у метро, с тебя 500 руб.",
    "Он купил IT-журнал и сок, а она как рука.",
    "Καλημέρα, τι κάνεις; Θα σε δω στις 5.",
    "مرحبا، كيف حالك؟ الساعة ٥:٣٠",
    "سلام، می\u200cخواهم فردا ساعت ۵ بیایم",
    "नमस्ते, आप कैसे हैं? मैं 5 बजे आऊँगा।",
    "你好，我想买3个苹果，哈哈哈哈哈。".translate({0xFF0C: ","}),
    "안녕하세요, 오늘 5시에 만나요",
]

DISGUISED = {
    "leet": ("I will k1ll h1m", "I will kill him"),
    "leet, more letters": ("h4ck th3m 5uck3rs b00bs", "hack them suckers boobs"),
    "leet, symbols": ("a$$hole bl@ck sh!t", "asshole black shit"),
    "Cyrillic in a Latin word": ("k\u0456ll h\u0435r", "kill her"),
    "Greek in a Latin word": ("kill y\u03bfu", "kill you"),
    "small-capital Cyrillic in a Latin word": ("\u043aill \u0442hem", "kill them"),
    "word of twins in a Latin text": ("he is \u0455\u0435\u0445 mad", "he is sex mad"),
    "small capitals": ("\u1d0b\u026a\u029f\u029f \u029c\u1d07\u0280", "kill her"),
    "white on black": ("\U0001f17a\U0001f178\U0001f17b\U0001f17b", "KILL"),
    "struck out": ("k\u0336i\u0336l\u0336l\u0336", "kill"),
    "spaced": ("k i l l", "kill"),
    "spaced, two words": ("k i l l  y o u r", "kill your"),
    "dotted": ("please k.i.l.l him", "please kill him"),
    "hyphens": ("k-i-l-l", "kill"),
    "emoji between": ("k\U0001f52ai\U0001f52al\U0001f52al", "kill"),
    "spaced leet": ("k 1 l l", "kill"),
    "repeated": ("I hate youuuuuuu", "I hate youu"),
    "Cyrillic and leet": ("h\u0430t3d", "hated"),
    "escaped": ('{"say": "\\u006bill\\nhim"}', '{"say": "kill\nhim"}'),
    "escaped twice, nothing between": ("k\\\\u200bill h\\\\/er", "kill h/er"),
}


@pytest.mark.parametrize(("sent", "read"), NORMALIZED.values(), ids=NORMALIZED)
def test_normalize(sent, read):
    assert normalize(sent).text == read


@pytest.mark.parametrize("text", KEPT.values(), ids=KEPT)
def test_scripts_and_emoji_stay_whole(text):
    assert normalize(text).text == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_has_one_view(text):
    assert [view.text for view in views(text)] == [normalize(text).text]


@pytest.mark.parametrize(("sent", "read"), DISGUISED.values(), ids=DISGUISED)
def test_views_undo_disguises(sent, read):
    assert [view.text for view in views(sent)] == [normalize(sent).text, read]


def test_hidden_text_gives_a_view_with_it_and_one_without():
    sent = "So k1nd!" + tags("ignore all")
    assert [view.text for view in views(sent)] == ["So k1nd! ignore all ", "So kind! ignore all ", "So k1nd!"]


def test_first_view_is_the_normalised_text_even_if_a_later_one_equals_it():
    assert [view.text for view in views(f"k1ll {ENGLAND}")] == ["k1ll \U0001f3f4", "kill \U0001f3f4"]


@pytest.mark.parametrize(
    ("sent", "part", "origin"),
    [
        ("so  he ki\u200bll her", "kill", "ki\u200bll"),
        ("a \ufb01ne day", "fi", "\ufb01"),
        ("a \ufb01ne day", "i", "\ufb01"),
        ("a \ufb01ne day", "day", "day"),
        ("the cafe\u200b\u0301 door", "caf\xe9", "cafe\u200b\u0301"),
        ("x\r\n\r\n\r\n\r\ny", "y", "y"),
        ("hi" + tags("kill") + " bob", "il", tags("il")),
        ("\U0001d424\u200b\U0001d422ll", "ki", "\U0001d424\u200b\U0001d422"),
        ("\xa0\xa0x\u0300\u0300\u0300\u0300\u0300 yes", "yes", "yes"),
    ],
)
def test_span_points_to_what_it_came_from(sent, part, origin):
    result = normalize(sent)
    start = result.text.index(part)
    first, last = result.original_span(start, start + len(part))
    assert sent[first:last] == origin


@pytest.mark.parametrize(
    ("sent", "part", "origin"),
    [
        ("I  will k1ll h1m", "kill", "k1ll"),
        ("so k i l l  y o u r s", "kill", "k i l l"),
        ("so k i l l  y o u r s", "yours", "y o u r s"),
        ("ok k.\u200bi.l.l now", "now", "now"),
        ("ok k.\u200bi.l.l now", "kill", "k.\u200bi.l.l"),
        ("noooooo way", "way", "way"),
        ("\ufb01ne \u043aill", "kill", "\u043aill"),
    ],
)
def test_span_of_a_view_points_to_the_original(sent, part, origin):
    view = views(sent)[1]
    start = view.text.index(part)
    first, last = view.original_span(start, start + len(part))
    assert sent[first:last] == origin


def test_empty_spans_and_bad_spans():
    result = normalize("a\u200bb")
    assert [result.original_span(at, at) for at in range(3)] == [(0, 0), (2, 2), (3, 3)]
    for bad in ((-1, 1), (2, 1), (0, 3)):
        with pytest.raises(ValueError, match=re.escape(f"<= 2, got {bad[0]} and {bad[1]}")):
            result.original_span(*bad)


def test_unchanged_text_is_the_same_object_without_a_map():
    for text in ("Nothing to do here:\n\tfine.\n\nBye", "Die Straße", "Привет, мир", ""):
        result = normalize(text)
        assert result.text is text
        assert result == NormalizedText(text)
        assert result._maps == ()


def test_repr_does_not_show_the_text():
    assert "secret" not in repr(normalize("my  secret")) + repr(views("s3cret  secret"))


# Characters that meet in the hard cases, next to any character of Unicode.
HARD = (
    "ae1 \n\t\r\x00\x85\xa0\xa8\xad\u0301\u0316\u0327\u0344\u034f\u0627\u064e\u0651\u0915\u093c\u094d\u09be"
    "\u09c7\u0e33\u0f71\u0f73\u1100\u1161\u11a8\u200b\u200c\u200d\u20e3\u3099\u3131\u314f\u304b\uac00\ufb01"
    "\ufc5e\ufdfa\ufe0f\uff9e\u0430\U0001d15e\U0001d165\U000110a5\U000110ba\U0001f3f4\U0001f469"
    "\U000e0020\U000e0067\U000e007f\ud800\udc00\\nu"
)
ANY = st.characters(categories=None, codec=None) | st.sampled_from(HARD)
TEXTS = st.text(st.sampled_from(HARD), max_size=16) | st.text(ANY, max_size=30)


@settings(max_examples=400, deadline=None)
@given(TEXTS)
def test_normalizing_twice_changes_nothing_more(text):
    once = normalize(text).text
    assert normalize(once).text == once
    assert unicodedata.is_normalized("NFKC", once)
    assert not re.search("[\ud800-\udfff\u200b\ufeff\xa0\r]|[ \t]{2}|\n\\s*\n\\s*\n", once)
    for view in views(text):
        assert normalize(view.text).text == view.text


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_every_span_covers_what_it_came_from(text):
    for result in (normalize(text), *views(text)):
        spans = [result.original_span(at, at + 1) for at in range(len(result.text))]
        assert all(0 <= start < end <= len(text) for start, end in spans)
        assert all(a[0] <= b[0] and a[1] <= b[1] for a, b in pairwise(spans))
        if spans:
            assert result.original_span(0, len(spans)) == (spans[0][0], spans[-1][1])
    plain = normalize(text)
    for at, char in enumerate(plain.text):
        source = text[slice(*plain.original_span(at, at + 1))]
        shown = re.sub("[\U000e0020-\U000e007e]", lambda tag: chr(ord(tag[0]) - 0xE0000), source)
        assert char in shown or char in normalize(source).text


def test_every_character_settles_at_once():
    # All of Unicode but the large blocks of unified ideographs and private use, between two letters.
    blocks = (range(0x3400), range(0xA000, 0xE000), range(0xF900, 0x17000), range(0x1B000, 0x20000))
    codes = [code for block in blocks for code in block] + list(range(0xE0000, 0xE0200))
    for first in range(0, len(codes), 5000):
        once = normalize("".join(f"k{chr(code)}x." for code in codes[first : first + 5000])).text
        assert normalize(once).text == once


def test_clusters_give_the_same_as_the_whole_text():
    # Every character that decomposes or composes, after a letter, a jamo and a mark.
    changing = [
        chr(code)
        for code in range(sys.maxunicode + 1)
        if not 0xAC00 <= code <= 0xD7A3 and not unicodedata.is_normalized("NFKC", f"\u1100{chr(code)}")
    ]
    text = "\u0915".join(
        f"{base}{char}" for char in changing for base in ("a", "\u1100", "\uac00", "\u0915\u093c")
    )
    kept = "".join(char for char in text if normalize(f"k{char}x").text != "kx")
    expected = re.sub(" +", " ", unicodedata.normalize("NFKC", kept))
    assert len(changing) > 3000
    assert normalize(kept).text == expected


ADVERSARIAL = [
    "a  ", "\x00a", "a\r\n", "\n ", "e\u0301", "\u0301\u0316", "x" + "\u0301\u0316" * 9, "\uff9e\u0301",
    "\ufdfa", "\ufb01", "\u3164", "\u200d", "a\u200d", "\U0001f468\u200d", "\u0915\u094d\u200d", "\ud800",
    "\U000e0041\x00", "\u314f", "a\U00011133", "k i l l  ", "a-b_", "k1ll ", "1", "a1", "\u0430a ", "aaaa",
    "a!", "@a", "\\", "\\u0020", "\\n",
]  # fmt: skip


@pytest.mark.parametrize("unit", ADVERSARIAL, ids=ascii)
def test_100_kilobytes_of_anything_take_no_time(unit):
    text = unit * (100_000 // len(unit.encode("utf-8", "surrogatepass")))
    start = time.process_time()
    normalize(text)
    middle = time.process_time()
    views(text)
    assert middle - start < 0.5
    assert time.process_time() - middle < 1.0


def test_an_ordinary_message_takes_microseconds():
    text = ("I can't believe you said that to her, it was really mean. " * 2)[:100]
    best = min(_seconds_for_1000(text) for _ in range(5))
    assert best / 1000 < 20e-6  # 0.6 microseconds when nothing else runs


def _seconds_for_1000(text: str) -> float:
    start = time.process_time()
    for _ in range(1000):
        normalize(text)
    return time.process_time() - start
