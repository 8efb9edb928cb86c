"""The rule retrieval benchmark: queries, a corpus of rules of thumb, and which of them are relevant.

How the splits are made, and why, is in docs/benchmark.md.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from guardrail.rules import Rule
from guardrail.types import Turn

from .. import loaders
from ..data import load_own
from ..examples import Example

# What may differ between two wordings of one rule. No judgement, no negation, and of the prepositions
# only "to" and "of". The list stands in docs/benchmark.md too: a key must be the same for everybody.
FILLERS = frozenset(
    "a an the it is are be being to that of s you your yours yourself someone somebody one person people "
    "they them their theirs he him his she her i me my we us our".split()
)
MORAL_STORIES = "moral_stories"
OWN = "own"  # conversations of the user, of which some may name a rule
_SEEN: tuple[loaders.Split, ...] = ("train", "val")
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
    kept = [_singular(word) for word in words if word not in FILLERS]
    return " ".join(kept or words)


def seen_rules(data_dir: Path | None, rules: tuple[Rule, ...] | None = None) -> frozenset[str]:
    """Return the keys of all rules that stand in the train or val split of any set with rules.

    One for all tasks, because sets share rules: the norms of Moral Stories come from Social-Chem-101.

    Args:
        data_dir: holds Social-Chem-101 and Moral Stories, perhaps the Moral Integrity Corpus and a
            folder `own`; None for our own writing alone.
        rules: whose dialogues are our own, beside pairs and situations; None for the bank.

    Raises:
        ArtifactError: a file is missing.
    """
    known: set[str] = set()
    for split in _SEEN:
        examples, twins = load_own(split, rules)
        known |= {item.rule for items in (examples, twins) for item in items}
        if data_dir is not None:
            pairs = loaders.load_norm_pairs(data_dir, split) + loaders.load_mic_norms(data_dir, split)
            known |= {pair.rule for pair in pairs}
            known |= {twin.rule for twin in loaders.load_twins(data_dir, [MORAL_STORIES], split)}
            if OWN in loaders.present(data_dir, None):
                known |= {item.rule for item in loaders.load_examples(data_dir, [OWN], split)}
    return frozenset(same_rule_key(rule) for rule in known if rule)


def social_chem(data_dir: Path, seen: Collection[str] | None = None) -> Benchmark:
    """Return Social-Chem-101: a situation asks for the rules of thumb that were written for it.

    Disjoint from train and val by situation, and by rule from those of all sets.

    Args:
        data_dir: the data folder.
        seen: of `seen_rules`; None makes it, with our bank.

    Raises:
        ArtifactError: a file is missing.
    """
    pairs = loaders.load_norm_pairs(data_dir, "test")
    asked: dict[str, tuple[Turn, ...]] = {}
    for pair in pairs:
        asked.setdefault(pair.group, (Turn("user", pair.text),))
    return _benchmark("social_chem_101", ((asked[p.group], p.rule) for p in pairs), _seen(data_dir, seen))


def moral_stories(data_dir: Path, seen: Collection[str] | None = None) -> Benchmark:
    """Return Moral Stories: an action, moral or not, asks for the norm that it keeps or breaks.

    The test norms of the original set, without those that also occur in train or val of any set. The
    data holds no situations beside the actions; contrary norms are left out, they say the same about
    the same. Arguments and errors as in `social_chem`.
    """
    twins = [twin for twin in loaders.load_twins(data_dir, [MORAL_STORIES], "test") if twin.kind == "norm"]
    pairs = ((turns, twin.rule) for twin in twins for turns in (twin.unsafe, twin.safe))
    return _benchmark(MORAL_STORIES, pairs, _seen(data_dir, seen))


def bank(rules: Sequence[Rule], held_out: Iterable[Example], seen: Collection[str] = ()) -> Benchmark:
    """Return our bank: a violation of a held-out rule asks for it among all rules of the bank.

    Args:
        rules: the whole bank.
        held_out: dialogues of rules that were not trained on; those that are safe are passed over.
        seen: of `seen_rules`; such a rule stays in the corpus and is not asked for.
    """
    queries = [(example.turns, example.rule) for example in held_out if example.unsafe]
    return _benchmark("bank", queries, seen, extra=[rule.text for rule in rules])


def _seen(data_dir: Path, seen: Collection[str] | None) -> Collection[str]:
    return seen_rules(data_dir) if seen is None else seen


def _benchmark(
    name: str,
    pairs: Iterable[tuple[tuple[Turn, ...], str]],
    seen: Collection[str],
    extra: Iterable[str] = (),
) -> Benchmark:
    """Join equal queries and equal rules; leave out the rules whose key is in `seen`."""
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
        if same_rule_key(rule) not in seen:
            relevant.setdefault(turns, set()).add(place(rule))
    return Benchmark(
        name, tuple(relevant), tuple(corpus), tuple(tuple(sorted(found)) for found in relevant.values())
    )


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
