"""Rows for the relevance model: a conversation, a statement that is about it, and some that are not.

A statement is a rule of thumb or a reply. Negatives share topic or tone, as far as the present encoder
can tell: those it finds between the fourth and the sixtieth nearest (the very nearest often are about
the conversation too), and some by chance.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from guardrail.types import Turn

from ..data import DataSplit
from ..examples import Example
from ..inputs import as_text
from ..replies import ReplyExample

NEGATIVES = 2
# Of them, how many come from the neighbourhood.
NEAR = 2
NEAR_FROM, NEAR_TO = 3, 60
Embed = Callable[[Sequence[str]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class About:
    """A conversation and a statement about it.

    Attributes:
        text: the conversation, the judged turn first, as `inputs.as_text` writes it.
        statement: the rule of thumb or the reply.
        source: name of the dataset.
        unsafe: does the last turn break the rule; None where that is unknown, or for a reply.
    """

    text: str = field(repr=False)
    statement: str = field(repr=False)
    source: str
    unsafe: bool | None = None


def about_rules(data: DataSplit, limit: int, seed: int) -> list[About]:
    """Return conversations with the rule that they touch: our own, and situations of the public sets.

    Args:
        data: one split.
        limit: most situations of the public sets.
        seed: of their choice.
    """
    found = [_about(example) for example in data.bank if example.rule]
    for twin in data.twins:
        if twin.source in ("pairs", "situations") and twin.rule:
            found.append(About(as_text(twin.unsafe), twin.rule, twin.source, True))
            found.append(About(as_text(twin.safe), twin.rule, twin.source, False))
    norms = [About(norm.text, norm.rule, norm.source) for norm in data.norms]
    moral = [
        About(as_text(turns), twin.rule, twin.source, unsafe)
        for twin in data.twins
        if twin.source == "moral_stories" and twin.rule
        for turns, unsafe in ((twin.unsafe, True), (twin.safe, False))
    ]
    found = list(dict.fromkeys(found))
    public = norms + moral
    return found + random.Random(seed).sample(public, min(limit, len(public)))


def about_replies(replies: Sequence[ReplyExample]) -> list[About]:
    """Return conversations with a reply that was given to them."""
    return [About(as_text(item.turns), item.reply, f"reply:{item.source}") for item in replies]


def kept_by(replies: Sequence[ReplyExample]) -> list[About]:
    """Return conversations that end with a good reply, with the rule that it keeps."""
    return [
        About(as_text((*item.turns, Turn("assistant", item.reply))), rule, "kept", False)
        for item in replies
        for rule in item.rules[:1]
    ]


def with_negatives(items: Sequence[About], embed: Embed, seed: int) -> list[list[str]]:
    """Return, for each item, `NEGATIVES` statements of its kind that are about something else.

    Args:
        items: all rules, or all replies.
        embed: texts to (n, d) unit vectors.
        seed: of the choice.
    """
    statements = list(dict.fromkeys(item.statement for item in items))
    vectors = embed(statements)
    texts = list(dict.fromkeys(item.text for item in items))
    place = {text: row for row, text in enumerate(texts)}
    queries = embed(texts)
    own: dict[str, set[str]] = {}
    for item in items:
        own.setdefault(item.text, set()).add(item.statement)
    rng = random.Random(seed)
    found = []
    for item in items:
        cosines = vectors @ queries[place[item.text]]
        order = np.argsort(-cosines, kind="stable")[: NEAR_TO + len(own[item.text])]
        near = [statements[row] for row in order if statements[row] not in own[item.text]][NEAR_FROM:]
        chosen = rng.sample(near, min(NEAR, len(near)))
        while len(chosen) < min(NEGATIVES, len(statements) - len(own[item.text])):
            other = rng.choice(statements)
            if other not in own[item.text] and other not in chosen:
                chosen.append(other)
        found.append(chosen)
    return found


def _about(example: Example) -> About:
    return About(as_text(example.turns), example.rule, example.source, example.unsafe)
