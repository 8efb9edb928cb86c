"""Gather what a training reads: the public sets and our own bank and pairs, split and seeded."""

from __future__ import annotations

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


def load_own(split: Split, rules: tuple[Rule, ...] | None = None) -> tuple[list[Example], list[Twin]]:
    """Return our own dialogues, and the twins of bank and pairs, of one split.

    A rule with all its dialogues, and a pair with both its versions, is in one split only; so is
    whatever stands under a rule that says nearly the same.
    """
    bank, near_misses = loaders.load_bank(load_bank() if rules is None else rules)
    pairs = loaders.load_pairs(PAIRS) + loaders.load_situations(SITUATIONS)

    ruled = [(item.group, item.rule) for items in (bank, pairs) for item in items if item.rule]
    family = families([group for group, _ in ruled], [rule for _, rule in ruled])

    def mine(group: str) -> bool:
        return loaders.split_of(family.get(group, group), test=OWN_TEST, val=OWN_VAL) == split

    twins = [twin for twin in near_misses + pairs if mine(twin.group)]
    examples = bank + loaders.load_casual(CASUAL)
    return [example for example in examples if mine(example.group)], twins


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
