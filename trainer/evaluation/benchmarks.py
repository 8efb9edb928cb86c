"""The rule retrieval benchmark: queries, a corpus of rules of thumb, and which of them are relevant.

How the splits are made, and why, is in docs/benchmark.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from guardrail.rules import Rule
from guardrail.types import Turn

from .. import loaders
from ..examples import Example

# What may differ between two wordings of one rule. No judgement, no negation and no preposition.
_FILLERS = frozenset(
    "a an the it is are be being to that of s you your yours yourself someone somebody one person people "
    "they them their theirs he him his she her i me my we us our".split()
)
_WORD = re.compile(r"[a-z0-9]+")
_CAN = re.compile(r"\bcan(not|['\u2019]t)\b")
_NOT = re.compile(r"n['\u2019]t\b")


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A retrieval task.

    Attributes:
        name: of the task.
        queries: n conversations.
        corpus: m rules of thumb, no two of which say the same.
        relevant: for each query the positions of its rules in the corpus, at least one.
    """

    name: str
    queries: tuple[tuple[Turn, ...], ...] = field(repr=False)
    corpus: tuple[str, ...]
    relevant: tuple[tuple[int, ...], ...]


def same_rule_key(rule: str) -> str:
    """Return what two rules of thumb share if they are near-identical.

    Lower-case content words in order, without plural s; "n't" is "not". So "It's good to help your
    friends." and "It is good to help a friend" are one rule; a changed judgement or a "not" is another.
    """
    words = _WORD.findall(_NOT.sub(" not ", _CAN.sub("can not", rule.lower())))
    kept = [_singular(word) for word in words if word not in _FILLERS]
    return " ".join(kept or words)


def social_chem(data_dir: Path) -> Benchmark:
    """Return Social-Chem-101: a situation asks for the rules of thumb that were written for it.

    Disjoint from train and val by situation and by rule.

    Raises:
        ArtifactError: a file is missing.
    """
    pairs = loaders.load_norm_pairs(data_dir, "test")
    seen = {
        same_rule_key(pair.rule)
        for split in ("train", "val")
        for pair in loaders.load_norm_pairs(data_dir, split)
    }
    asked: dict[str, tuple[Turn, ...]] = {}
    for pair in pairs:
        asked.setdefault(pair.group, (Turn("user", pair.text),))
    return _benchmark("social_chem_101", ((asked[p.group], p.rule) for p in pairs), seen)


def moral_stories(data_dir: Path) -> Benchmark:
    """Return Moral Stories: an action, moral or not, asks for the norm that it keeps or breaks.

    The test norms of the original set, without those that also occur in train or val. The data holds
    no situations beside the actions; contrary norms are left out, they say the same about the same.

    Raises:
        ArtifactError: a file is missing.
    """
    names = ["moral_stories"]
    twins = [twin for twin in loaders.load_twins(data_dir, names, "test") if twin.kind == "norm"]
    seen = {
        same_rule_key(twin.rule)
        for split in ("train", "val")
        for twin in loaders.load_twins(data_dir, names, split)
    }
    pairs = ((turns, twin.rule) for twin in twins for turns in (twin.unsafe, twin.safe))
    return _benchmark("moral_stories", pairs, seen)


def bank(rules: Sequence[Rule], held_out: Iterable[Example]) -> Benchmark:
    """Return our bank: a violation of a held-out rule asks for it among all rules of the bank.

    Args:
        rules: the whole bank.
        held_out: dialogues of rules that were not trained on; those that are safe are passed over.
    """
    queries = [(example.turns, example.rule) for example in held_out if example.unsafe]
    return _benchmark("bank", queries, (), extra=[rule.text for rule in rules])


def _benchmark(
    name: str,
    pairs: Iterable[tuple[tuple[Turn, ...], str]],
    seen: Iterable[str],
    extra: Iterable[str] = (),
) -> Benchmark:
    """Join equal queries and equal rules; leave out the rules whose key is in `seen`."""
    known = set(seen)
    position: dict[str, int] = {}
    corpus: list[str] = []

    def place(rule: str) -> int:
        number = position.setdefault(same_rule_key(rule), len(corpus))
        if number == len(corpus):
            corpus.append(rule)
        return number

    for rule in extra:
        place(rule)
    relevant: dict[tuple[Turn, ...], set[int]] = {}
    for turns, rule in pairs:
        if same_rule_key(rule) not in known:
            relevant.setdefault(turns, set()).add(place(rule))
    return Benchmark(
        name, tuple(relevant), tuple(corpus), tuple(tuple(sorted(found)) for found in relevant.values())
    )


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
