"""Gather what a rewrite model learns from: the public sets and our own replies, split and limited."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from guardrail.errors import ConfigError
from guardrail.rules import Rule, load_bank

from ..data import RESOURCES, read_own
from ..loaders import SOURCES
from ..loaders.common import SPLITS, Job, LoadReport, Split, digest, normalise, share
from ..loaders.replies import (
    OWN_REPLIES,
    OWN_TALK,
    REPLY_SOURCES,
    TALK,
    bank_replies,
    pair_replies,
    situation_replies,
    talk_replies,
)
from ..replies import ReplyExample

REPLIES = RESOURCES / "replies.jsonl"
OWN_SOURCES = (*OWN_REPLIES, OWN_TALK)
KNOWN = (*OWN_SOURCES, *REPLY_SOURCES)
# What a split must share nothing with.
EARLIER: dict[Split, tuple[Split, ...]] = {"test": (), "train": ("test",), "val": ("test", "train")}


def load_replies(
    data_dir: Path | None,
    split: Split,
    *,
    sources: Sequence[str] | None = None,
    limits: Mapping[str, int] | None = None,
    seed: int = 0,
    rules: tuple[Rule, ...] | None = None,
    report: LoadReport | None = None,
) -> list[ReplyExample]:
    """Return the replies of one split, in the order of the sources.

    A group or a conversation that stands in several splits of the chosen sources stays in one: test
    before train before val.

    Args:
        data_dir: the data folder; without it, our own writing alone.
        split: "train", "val" or "test".
        sources: names from `KNOWN`; None for all that are there, of those of `TALK` only what `limits`
            names, and that in train alone: it helps to learn the task, and is no part of it.
        limits: most replies of a source, by its name. Which ones is a stable choice by `seed`.
        seed: of that choice.
        rules: the bank; None for ours.
        report: counts what is left out, if given.

    Raises:
        ArtifactError: a file of a chosen source is missing or cannot be read.
        ConfigError: a source or the split is unknown, a limit is below 0, or a public source is asked for
            without a data folder.
    """
    if split not in SPLITS:
        raise ConfigError(f"expected split to be one of {', '.join(SPLITS)}, got {split!r}")
    limits = _checked(limits or {})
    names = [name for name in _chosen(data_dir, sources, limits) if limits.get(name, 1)]
    report = report or LoadReport()

    own = _own(rules, report) if not set(OWN_SOURCES).isdisjoint(names) else {}

    def read(part: Split) -> list[ReplyExample]:
        found = [item for item in own.get(part, []) if item.source in names]
        for name in names:
            if data_dir is not None and name in REPLY_SOURCES and part in SOURCES[name].splits:
                found += REPLY_SOURCES[name].replies(Job(Path(data_dir), name, part, report=report))
        return found

    kept = _apart(read(split), [item for part in EARLIER[split] for item in read(part)])
    if sources is None and split != "train":
        kept = [item for item in kept if item.source not in TALK]
    return _limited(kept, limits, seed)


def _own(rules: tuple[Rule, ...] | None, report: LoadReport) -> dict[Split, list[ReplyExample]]:
    """Return our own writing, split as for the detector: a rule with all that stands under it."""
    bank = load_bank() if rules is None else rules
    writing = read_own(bank)
    written = bank_replies(bank) + situation_replies(REPLIES, report)
    place = writing.rule_splits(item.rules[0] for item in written)
    found: dict[Split, list[ReplyExample]] = {}
    for split in SPLITS:
        examples, twins = writing.part(split)
        mine = [item for item in written if place.get(item.rules[0]) == split]
        found[split] = mine + pair_replies(twins) + talk_replies(examples, twins)
    return found


def _apart(found: list[ReplyExample], others: Iterable[ReplyExample]) -> list[ReplyExample]:
    """Return what shares neither its group nor its conversation with the others."""
    groups: set[str] = set()
    talks: set[tuple[str, ...]] = set()
    for other in others:
        groups.add(other.group)
        talks.add(_spoken(other))
    return [item for item in found if item.group not in groups and _spoken(item) not in talks]


def _spoken(item: ReplyExample) -> tuple[str, ...]:
    return tuple(normalise(turn.text) for turn in item.turns)


def _limited(items: list[ReplyExample], limits: Mapping[str, int], seed: int) -> list[ReplyExample]:
    """Keep the first `limit` of each source in an order that only the seed and the item decide."""
    by_source: dict[str, list[int]] = defaultdict(list)
    for number, item in enumerate(items):
        by_source[item.source].append(number)
    kept: set[int] = set()
    for source, numbers in by_source.items():
        order = sorted(numbers, key=lambda number: _lot(items[number], seed))
        kept.update(order[: limits.get(source, len(order))])
    return [item for number, item in enumerate(items) if number in kept]


def _lot(item: ReplyExample, seed: int) -> float:
    return share(f"{seed}:{digest(*(turn.text for turn in item.turns), item.reply)}")


def _chosen(data_dir: Path | None, sources: Sequence[str] | None, limits: Mapping[str, int]) -> list[str]:
    if sources is None:
        return [
            name
            for name in (*OWN_SOURCES, *(_present(Path(data_dir)) if data_dir is not None else []))
            if name not in TALK or name in limits
        ]
    if isinstance(sources, str):
        raise ConfigError(
            f"expected sources to be a list of names, got the text {sources!r}; write [{sources!r}]"
        )
    for name in sources:
        _require_known(name)
        if data_dir is None and name in REPLY_SOURCES:
            raise ConfigError(
                f"expected a data folder for the source {name!r}, got none; give it or leave {name!r} out"
            )
    return list(dict.fromkeys(sources))


def _present(data_dir: Path) -> list[str]:
    job = Job(data_dir, "", "train")
    return [
        name for name, source in REPLY_SOURCES.items() if not source.optional or job.find(source.optional)
    ]


def _checked(limits: Mapping[str, int]) -> Mapping[str, int]:
    for name, limit in limits.items():
        _require_known(name)
        if limit < 0:
            raise ConfigError(f"expected a limit of at least 0 for {name!r}, got {limit}")
    return limits


def _require_known(name: str) -> None:
    if name not in KNOWN:
        raise ConfigError(f"expected sources from {', '.join(KNOWN)}; got {name!r}")
