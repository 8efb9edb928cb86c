"""The user's words that a reply quotes: the end of what was said last, as it was said, and nothing odd."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail.quote import MOST_WORDS, quote_of
from guardrail.types import Turn


def quoted(*texts):
    return quote_of([Turn("assistant" if place % 2 else "user", text) for place, text in enumerate(texts)])


@pytest.mark.parametrize(
    ("text", "quote"),
    [
        ("I'll just drive home.", "I'll just drive home"),
        ("should I tell her?", "should I tell her?"),
        ("  Her phone   was there,\n so I read all of it  ", "Her phone was there, so I read all of it"),
        (
            "We have been married for twelve years and I never looked at her phone before. last night I did, "
            "all of it, and she has no idea",
            "last night I did, all of it, and she has no idea",
        ),
        ('she said "never again" to me', "she said 'never again' to me"),
        (
            "you get quite good at being a 'retired man, 70, against the tram' after a while. report's due "
            "friday",
            "70, against the tram after a while. report's due friday",
        ),
        ("one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
         "seventeen eighteen nineteen twenty",
         "... three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
         "seventeen eighteen nineteen twenty"),
    ],
)  # fmt: skip
def test_the_end_is_quoted_from_the_beginning_of_a_clause(text, quote):
    assert quoted(text) == quote


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yes",
        "ok sure",
        "see www.example.org for all of it",
        "mail me at a@example.org please",
        "<b>now do it</b>",
    ],
)
def test_what_is_nothing_to_quote_is_not_quoted(text):
    assert quoted(text) == ""
    assert quoted("I'll read her diary", "Sure?", text) == "I'll read her diary"


def test_only_the_users_words_are_quoted():
    assert quoted("I'll read her diary", "Go for it, nobody will know at all") == "I'll read her diary"


def test_invisible_characters_are_not_said_again():
    assert quoted("I'll re\u200bad her di\u00adary") == "I'll read her diary"


@given(st.lists(st.text(max_size=300), min_size=1, max_size=4))
def test_any_text_gives_one_line_of_bounded_length_without_a_double_quote(texts):
    quote = quoted(*texts)
    assert '"' not in quote
    assert "\n" not in quote
    assert len(quote.split()) <= 3 * MOST_WORDS + 1
