"""Where a growing text is cut: the same places however it grows, bounded pieces, linear work."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail.sentences import MOST_CHARACTERS, is_ended, next_cut


def pieces(text):
    """Return the text in pieces as it is cut, the rest last."""
    out, start = [], 0
    while (cut := next_cut(text, start)) is not None:
        out.append(text[start:cut])
        start = cut
    return [*out, text[start:]]


ODD = st.sampled_from(
    [*".!?…。！？\"')»」]*_` \n\t\r\u200b\u3000", "...", "?!", "e.g.", "1.", "Dr.", "x" * 130, "😀", "日"]
)
texts = st.lists(st.one_of(ODD, st.text(max_size=5)), max_size=120).map("".join)
checked = settings(max_examples=150, deadline=None, derandomize=True)


@checked
@given(texts)
def test_growing_text_is_cut_where_the_whole_is(text):
    whole, start = pieces(text), 0
    found = []
    for end in range(len(text) + 1):
        while (cut := next_cut(text[:end], start)) is not None:
            found.append(text[start:cut])
            start = cut
    assert [*found, text[start:]] == whole


@checked
@given(texts, st.integers(0, 300), texts)
def test_an_answer_stays_the_same_however_the_text_goes_on(text, start, more):
    cut = next_cut(text, start)
    if cut is not None:
        assert next_cut(text + more, start) == cut
        assert start < cut <= start + MOST_CHARACTERS


@checked
@given(texts)
def test_pieces_are_bounded_and_add_up(text):
    found = pieces(text)
    assert "".join(found) == text
    assert all(0 < len(piece) <= MOST_CHARACTERS for piece in found[:-1])
    assert len(found[-1]) <= MOST_CHARACTERS


@pytest.mark.parametrize(
    "unit",
    [
        ".",
        "(",
        ")",
        '"',
        ".)",
        "a.",
        "a. ",
        "..a",
        "。",
        "。」",
        "\n",
        " ",
        "x",
        "1. ",
        ".\"'",
        "!)*_",
        "e.g. ",
        "?\t",
    ],
)
def test_adversarial_text_costs_little(unit):
    text = (unit * 100_000)[:100_000]

    def whole():
        start = 0
        while (cut := next_cut(text, start)) is not None:
            start = cut

    def by_the_character():
        start = 0
        for end in range(1, 2_000):
            start = next_cut(text[:end], start) or start

    # The best of three: other work may stand in between. Both hold with room on one slow core.
    assert min(seconds(whole) for _ in range(3)) < 0.15
    assert min(seconds(by_the_character) for _ in range(3)) < 0.4


def seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@pytest.mark.parametrize(
    "marked",
    [
        "Hello there.| How are you?| Fine!| ",
        "Wait?!| No way!!!| Well...| yes…| ",
        "Mr. Smith met Dr. Jones at St. Mary's, e.g. on Monday, vs. Tuesday.| Then he left.| ",
        "J. R. R. Tolkien wrote it.| I read it.| ",
        "It costs $3.50 or 1.000,00 in v2.0.1 at 10.30.| Ok.| ",
        "See https://example.com/a?b=c!d and www.x.org.| Mail a.b@c.de.| ",
        '"Don\'t!"| she said.| (Really?)| “Yes.”| ',
        "**Bold end.**| _Note._| `code.`| ",
        "List:|\n1. First|\n2. Second|\n- third|\n\n* star",
        "```python|\nx = 1|\n```|\nDone",
        "今日は天気がいいです。|散歩に行きましょう！|「はい。」|と言った。|いいね？",
        "यह अच्छा है।| हाँ।| ",
        "هل أنت بخير؟| نعم.| ",
        "Great! 👍🏽".replace("! ", "!| "),
        "line one|\n\nline two|\nline three",
        " \n\n Lead.| ",
    ],
)
def test_where_people_would_cut(marked):
    assert pieces(marked.replace("|", "")) == marked.split("|")


def test_a_mark_at_the_end_may_go_on():
    for text in ("It is 3.", "Well.", "He said “no.”", "今日。", "Really?"):
        assert next_cut(text) is None
    assert next_cut("Well. ") == 5


def test_text_without_ends_is_cut_between_words_if_it_can_be():
    words = "word " * 100
    cut = next_cut(words)
    assert MOST_CHARACTERS // 2 < cut <= MOST_CHARACTERS
    assert words[cut] == " "
    assert next_cut("x" * 1000) == MOST_CHARACTERS
    assert next_cut("one " + "x" * 1000) == MOST_CHARACTERS  # the space is too early to be of use
    assert next_cut("x" * MOST_CHARACTERS) is None


def test_an_end_behind_the_longest_piece_comes_too_late():
    for length in range(MOST_CHARACTERS - 5, MOST_CHARACTERS + 12):
        for end in (". y", "\ny", "。y"):
            assert next_cut("x" * length + end) <= MOST_CHARACTERS


def test_space_alone_is_no_sentence():
    assert next_cut(" \n\n \n") is None
    assert next_cut("\n" * 300) is not None  # but it does not grow for ever


@pytest.mark.parametrize(
    ("text", "ended"),
    [
        ("One.", True),
        ("One.” ", True),
        ("One\n", True),
        ("。」", True),
        ("One", False),
        ("", False),
        ("3.1", False),
    ],
)
def test_whether_a_text_breaks_off_in_a_sentence(text, ended):
    assert is_ended(text) is ended
