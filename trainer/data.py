"""Gather what a training reads: the public sets and our own bank and pairs, split and seeded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from guardrail.errors import ArtifactError
from guardrail.rules import Rule, load_bank
from guardrail.types import Turn

from . import loaders
from .examples import Example, Twin
from .families import families
from .inputs import as_text
from .loaders import NormPair, Split
from .mix import Norm

RESOURCES = Path(__file__).parent / "resources"
PAIRS = RESOURCES / "pairs.jsonl"
SITUATIONS = RESOURCES / "situations.jsonl"
CASUAL = RESOURCES / "casual.jsonl"
# Contrasts under a contrary norm turn right and wrong round: without the norm as input they mislead.
CONTRARY = "contrary_norm"
OWN_TEST = 0.1
OWN_VAL = 0.1


@dataclass(frozen=True, slots=True)
class DataSplit:
    """One split of everything.

    Attributes:
        examples: single conversations with their label; those of the bank are in `bank`.
        twins: matched pairs of all sources.
        norms: (situation, rule) pairs.
        bank: our own dialogues as examples.
        contrary: from a rule's text to that of the contrary rule, where a set has one.
    """

    examples: list[Example] = field(repr=False)
    twins: list[Twin] = field(repr=False)
    norms: list[Norm] = field(repr=False)
    bank: list[Example] = field(repr=False)
    contrary: dict[str, str] = field(repr=False, default_factory=dict)


@dataclass(frozen=True, slots=True)
class OwnWriting:
    """Everything of our own writing, and what stays together when it is split.

    A rule with all its dialogues, and a pair with both its versions, is in one split only; so is
    whatever stands under a rule that says nearly the same.

    Attributes:
        examples: dialogues of the bank and harmless talk.
        twins: of the bank's near misses and of the pairs.
        family: from a group to its family.
    """

    examples: list[Example] = field(repr=False)
    twins: list[Twin] = field(repr=False)
    family: dict[str, str] = field(repr=False)

    def split_of(self, group: str) -> Split:
        """Return the split that a group is in."""
        return loaders.split_of(self.family.get(group, group), test=OWN_TEST, val=OWN_VAL)

    def part(self, split: Split) -> tuple[list[Example], list[Twin]]:
        """Return the examples and the twins of one split."""
        return (
            [example for example in self.examples if self.split_of(example.group) == split],
            [twin for twin in self.twins if self.split_of(twin.group) == split],
        )

    def rule_splits(self, more: Iterable[str] = ()) -> dict[str, Split]:
        """Return the split of each rule, by its text.

        Args:
            more: rules that stand elsewhere. One that says nearly the same as known ones goes with them,
                and is left out if those are in different splits.
        """
        items: list[Example | Twin] = [*self.examples, *self.twins]
        known = {item.rule: self.split_of(item.group) for item in items if item.rule}
        new = sorted(set(more) - known.keys())
        if not new:
            return known
        texts = [*known, *new]
        family = families(texts, texts)
        taken: dict[str, set[Split]] = defaultdict(set)
        for rule, split in known.items():
            taken[family[rule]].add(split)
        for rule in new:
            found = taken.get(family[rule]) or {self.split_of(family[rule])}
            if len(found) == 1:
                known[rule] = min(found)
        return known


def read_own(rules: tuple[Rule, ...] | None = None) -> OwnWriting:
    """Return everything of our own writing; `rules` are the bank, None for ours."""
    bank, near_misses = loaders.load_bank(load_bank() if rules is None else rules)
    pairs = loaders.load_pairs(PAIRS) + loaders.load_situations(SITUATIONS)
    ruled = [(item.group, item.rule) for items in (bank, pairs) for item in items if item.rule]
    family = families([group for group, _ in ruled], [rule for _, rule in ruled])
    return OwnWriting(bank + loaders.load_casual(CASUAL), near_misses + pairs, family)


def load_own(split: Split, rules: tuple[Rule, ...] | None = None) -> tuple[list[Example], list[Twin]]:
    """Return our own dialogues, and the twins of bank and pairs, of one split; see `OwnWriting`."""
    return read_own(rules).part(split)


def require_dialogues(rules: tuple[Rule, ...]) -> None:
    """Check, before hours of training, that rules of the user's own have unsafe dialogues in validation.

    Without them no model folder can be made: it is calibrated on them, and its canary is one of them.
    Safe ones are at hand in any case.

    Raises:
        ArtifactError: they have none.
    """
    if not any(example.unsafe for example in load_own("val", rules)[0]):
        raise ArtifactError(
            "expected unsafe dialogues of the rules in validation, which takes a tenth of the rules, got "
            "none; add violations and near misses to more rules"
        )


def load_split(
    data_dir: Path | None,
    split: Split,
    *,
    sources: list[str] | None = None,
    rules: tuple[Rule, ...] | None = None,
) -> DataSplit:
    """Return one split of everything; without a data folder, of our own writing alone.

    Args:
        data_dir: the data folder, or None.
        split: "train", "val" or "test".
        sources: names from `loaders.SOURCES`; None for all that have the split.
        rules: the bank to train on; None for ours.

    Raises:
        ArtifactError: a file of a chosen source is missing.
        ConfigError: a source is unknown or may not train.
    """
    bank, twins = load_own(split, rules)
    if data_dir is None:
        return DataSplit([], twins, [], bank)
    examples = loaders.load_examples(data_dir, sources, split)
    public = loaders.load_twins(data_dir, sources, split)
    opposite = {twin.group: twin.rule for twin in public if twin.kind == CONTRARY}
    contrary = {
        twin.rule: opposite[twin.group]
        for twin in public
        if twin.kind != CONTRARY and twin.rule and twin.group in opposite
    }
    twins = [twin for twin in public if twin.kind != CONTRARY] + twins
    pairs: list[NormPair] = []
    if sources is None or "social_chem_101" in sources:
        pairs += loaders.load_norm_pairs(data_dir, split)
    if sources is None or "mic" in sources:
        pairs += loaders.load_mic_norms(data_dir, split)
    norms = [Norm(_norm_text(pair), pair.rule, pair.weight, pair.foundation, pair.source) for pair in pairs]
    return DataSplit(examples, twins, norms, bank, contrary)


def _norm_text(pair: NormPair) -> str:
    turns = [Turn("user", pair.text)]
    return as_text([*turns, Turn("assistant", pair.answer)] if pair.answer else turns)
