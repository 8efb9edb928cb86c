"""What a bag of words gets on the same pairs: the figure to stand beside ours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.naive_bayes import MultinomialNB

from .examples import Twin


def bag_of_words_margins(train: Sequence[Twin], test: Sequence[Twin]) -> NDArray[np.float64]:
    """Return log-odds(unsafe version) - log-odds(safe version) of naive Bayes for each test pair.

    Args:
        train: pairs that the model is fitted on; every version is one text, all turns joined.
        test: n other pairs.

    Returns:
        (n,); above 0 where the bag of words is right.
    """
    texts = [_text(twin, side) for twin in train for side in ("unsafe", "safe")]
    labels = [1, 0] * len(train)
    vectorizer = CountVectorizer(token_pattern=r"[A-Za-z']+")
    model = MultinomialNB().fit(vectorizer.fit_transform(texts), labels)

    def odds(side: str) -> NDArray[np.float64]:
        log_p = model.predict_log_proba(vectorizer.transform([_text(twin, side) for twin in test]))
        return np.asarray(log_p[:, 1] - log_p[:, 0], np.float64)

    return odds("unsafe") - odds("safe")


def word_neutral(margins: NDArray[np.float64]) -> NDArray[np.int_]:
    """Return the pairs on which the bag of words is at chance, a tie counting half.

    Those that it gets wrong or cannot tell, and of its hits, the narrowest, as many as it gets wrong.

    Args:
        margins: (n,) of `bag_of_words_margins`.

    Returns:
        Positions, at most n.
    """
    wrong, tied, right = (np.flatnonzero(place) for place in (margins < 0, margins == 0, margins > 0))
    narrowest = right[np.argsort(margins[right], kind="stable")][: len(wrong)]
    return np.sort(np.concatenate([wrong, tied, narrowest]))


def _text(twin: Twin, side: str) -> str:
    return "\n".join(turn.text for turn in getattr(twin, side))
