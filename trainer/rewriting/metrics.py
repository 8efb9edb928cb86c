"""Figures for written replies, against gold ones and by themselves. Pure functions on texts.

Words are compared in two ways, as the papers that report these figures do: BLEU on what
`words_and_marks` cuts, F1 on what `bare_words` leaves.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from guardrail.errors import ConfigError

_WORD_OR_MARK = re.compile(r"\w+|[^\w\s]")
_MARK = re.compile(r"[^\w\s]")
_ARTICLE = re.compile(r"\b(a|an|the)\b")
BLEU_ORDER = 4


def words_and_marks(text: str) -> list[str]:
    """Return words and single marks, in lower case: "Don't!" is `don`, `'`, `t`, `!`."""
    return _WORD_OR_MARK.findall(text.lower())


def bare_words(text: str) -> list[str]:
    """Return words in lower case without marks and articles, as ParlAI's F1 compares them."""
    return _ARTICLE.sub(" ", _MARK.sub(" ", text.lower())).split()


def corpus_bleu(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Return corpus BLEU-4 in per cent, [0, 100].

    Clipped counts of n-grams, n from 1 to 4, are added up over all texts before precisions are taken, and
    their geometric mean is multiplied by the brevity penalty. Texts are cut by `words_and_marks`. The
    n-th precision without a match counts as 1 / (2^k t_n), for the k-th such n and t_n n-grams written
    (the exponential smoothing of sacrebleu's default; without it one missing 4-gram makes all zero).
    It is 0 if no word matches, and if too little is written to hold a 4-gram.

    Args:
        hypotheses: n texts that were written; n of at least 1.
        references: the n gold texts.

    Raises:
        ConfigError: the two differ in number, or are empty.

    Source: Papineni et al. 2002 (P02-1040), equations 1 to 3; smoothing: Post 2018 (arXiv 1804.08771).
    """
    if not hypotheses or len(hypotheses) != len(references):
        raise ConfigError(
            f"expected as many written texts as gold ones, at least one, got {len(hypotheses)} and "
            f"{len(references)}"
        )
    written = [words_and_marks(text) for text in hypotheses]
    gold = [words_and_marks(text) for text in references]
    logs = 0.0
    missing = 0
    for n in range(1, BLEU_ORDER + 1):
        matched = total = 0
        for ours, theirs in zip(written, gold, strict=True):
            grams = ngrams(ours, n)
            matched += (Counter(grams) & Counter(ngrams(theirs, n))).total()
            total += len(grams)
        if not total or (n == 1 and not matched):
            return 0.0
        missing += not matched
        logs += math.log(matched / total if matched else 1 / (2**missing * total))
    length, wanted = sum(map(len, written)), sum(map(len, gold))
    penalty = min(0.0, 1 - wanted / length)
    return 100 * math.exp(penalty + logs / BLEU_ORDER)


def unigram_f1(hypothesis: str, reference: str) -> float:
    """Return the F1 of common words, [0, 1]; what is reported is its mean over all replies.

    The harmonic mean of precision and recall over words counted with repetition, cut by `bare_words`.
    Without a common word it is 0.

    Source: the F1 of ParlAI (Miller et al. 2017, arXiv 1705.06476), which ProsocialDialog reports.
    """
    ours, theirs = bare_words(hypothesis), bare_words(reference)
    common = (Counter(ours) & Counter(theirs)).total()
    return 2 * common / (len(ours) + len(theirs)) if common else 0.0


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Return the share of different n-grams among all of the texts, [0, 1]; 0 if there is none.

    It falls with the amount of text, so compare it on as many replies of like length.

    Args:
        texts: any number of texts, cut by `words_and_marks`.
        n: at least 1.

    Raises:
        ConfigError: `n` is too small.

    Source: Li et al. 2016 (arXiv 1510.03055), section 5.
    """
    grams = [gram for text in texts for gram in ngrams(words_and_marks(text), n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition(texts: Sequence[str], n: int = 3) -> float:
    """Return the mean share of a text's n-grams that stood in it before, [0, 1]; 0 without texts.

    A text without n-grams counts 0.

    Args:
        texts: any number of texts, cut by `words_and_marks`.
        n: at least 1.

    Raises:
        ConfigError: `n` is too small.
    """
    return _mean([_repeated(words_and_marks(text), n) for text in texts])


def _repeated(words: list[str], n: int) -> float:
    grams = ngrams(words, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def mean_length(texts: Sequence[str]) -> float:
    """Return the mean number of words, cut at spaces; 0 without texts."""
    return _mean([len(text.split()) for text in texts])


def ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Return the n-grams of a text in their order.

    Raises:
        ConfigError: `n` is too small.
    """
    if n < 1:
        raise ConfigError(f"expected n of at least 1, got {n}")
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
