"""Figures of written replies against values worked out by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail.errors import ConfigError
from guardrail.trainer.rewriting.metrics import (
    bare_words,
    corpus_bleu,
    distinct_n,
    mean_length,
    ngrams,
    repetition,
    unigram_f1,
    words_and_marks,
)

WORDS = st.lists(st.sampled_from(["call", "a", "cab", "now", "please"]), min_size=4, max_size=12).map(
    " ".join
)


def test_words_are_cut_as_promised() -> None:
    assert words_and_marks("Don't go, OK?") == ["don", "'", "t", "go", ",", "ok", "?"]
    assert bare_words("The cab, an Apple-pie and a the(n)!") == ["cab", "apple", "pie", "and", "n"]


def test_bleu_of_one_pair() -> None:
    # a b c d e against a b c d f: 4/5, 3/4, 2/3, 1/2, equal lengths.
    assert corpus_bleu(["a b c d e"], ["a b c d f"]) == pytest.approx(
        100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    )
    # Too short by two of six words: all precisions are 1.
    assert corpus_bleu(["a b c d"], ["a b c d e f"]) == pytest.approx(100 * math.exp(1 - 6 / 4))
    # Too long has no penalty but in the precisions: 4/6, 3/5, 2/4, 1/3.
    assert corpus_bleu(["a b c d e f"], ["a b c d"]) == pytest.approx(
        100 * (4 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    )


def test_bleu_clips_repeated_words_and_smooths_what_is_missing() -> None:
    # Papineni's example: "the" counts as often as the reference has it, 2 of 7. No longer n-gram matches,
    # so those of 6, 5 and 4 count 1/2, 1/4 and 1/8.
    found = corpus_bleu(["the the the the the the the"], ["the cat is on the mat now"])
    assert found == pytest.approx(100 * (2 / 7 / (2 * 6) / (4 * 5) / (8 * 4)) ** 0.25)


def test_bleu_adds_counts_before_it_divides() -> None:
    # Words 5 + 2 of 5 + 4, pairs 4 + 0 of 4 + 3, threes 3 of 3 + 2, fours 2 of 2 + 1.
    found = corpus_bleu(["a b c d e", "v x w y"], ["a b c d e", "x u y t"])
    assert found == pytest.approx(100 * (7 / 9 * 4 / 7 * 3 / 5 * 2 / 3) ** 0.25)


@pytest.mark.parametrize("written", ["", "no word of it at all", "call it"])
def test_bleu_is_zero_without_a_common_word_or_any_four(written: str) -> None:
    assert corpus_bleu([written], ["call a cab please now"]) == 0.0


@pytest.mark.parametrize(("written", "gold"), [([], []), (["a"], []), (["a"], ["a", "b"])])
def test_bleu_wants_pairs(written: list[str], gold: list[str]) -> None:
    with pytest.raises(ConfigError, match=f"got {len(written)} and {len(gold)}"):
        corpus_bleu(written, gold)


@given(st.lists(WORDS, min_size=1, max_size=4))
def test_the_gold_replies_themselves_are_best(texts: list[str]) -> None:
    assert corpus_bleu(texts, texts) == pytest.approx(100)
    # Of articles alone nothing is left to compare.
    assert all(unigram_f1(text, text) == float(text.split() != ["a"] * len(text.split())) for text in texts)


@given(WORDS, WORDS)
def test_figures_stay_in_their_range(written: str, gold: str) -> None:
    assert 0 <= corpus_bleu([written], [gold]) <= 100
    assert 0 <= unigram_f1(written, gold) == unigram_f1(gold, written) <= 1
    assert 0 <= repetition([written]) < 1
    assert 0 < distinct_n([written, gold], 2) <= 1


def test_unigram_f1() -> None:
    # Without marks and articles: call cab now now, and call cab tonight. Precision 2/4, recall 2/3.
    assert unigram_f1("Call the cab now, now!", "call a cab tonight") == pytest.approx(4 / 7)
    assert unigram_f1("The.", "a") == unigram_f1("", "word") == 0.0


def test_distinct_n() -> None:
    assert distinct_n(["a b a b", "a b"], 1) == pytest.approx(2 / 6)
    assert distinct_n(["a b a b", "a b"], 2) == pytest.approx(2 / 4)
    assert distinct_n(["a"], 2) == distinct_n([], 1) == 0.0


def test_repetition() -> None:
    # x y z twice in a row: xyz, yzx, zxy, xyz; one of four was there before.
    assert repetition(["x y z x y z"]) == pytest.approx(1 / 4)
    assert repetition(["x y z x y z", "one two three", "hi"]) == pytest.approx(1 / 12)
    assert repetition(["go go go"], n=1) == pytest.approx(2 / 3)
    assert repetition([]) == 0.0


def test_mean_length_and_ngrams() -> None:
    assert mean_length(["one two", "one, two three four"]) == 3
    assert mean_length([]) == 0.0
    assert ngrams(["a", "b", "c"], 2) == [("a", "b"), ("b", "c")]
    for figure in (lambda: ngrams(["a"], 0), lambda: distinct_n(["a"], 0), lambda: repetition(["a"], 0)):
        with pytest.raises(ConfigError, match="at least 1, got 0"):
            figure()
