"""What is in a data folder or file: counts, labels, lengths, what could not be read, some samples."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles

from guardrail.errors import InputError
from guardrail.rules import read_rules
from guardrail.types import Level, Turn

from . import loaders
from .examples import Example, Twin
from .loaders import LoadReport
from .loaders.common import SPLITS, Job
from .loaders.plain import example_of


@dataclass(frozen=True, slots=True)
class Part:
    """One source in one split.

    Attributes:
        source: name of the source.
        split: "train", "val", "test", or "all" for a file.
        examples: judged turns.
        unsafe: how many of them are unsafe.
        levels: how many of each level; those that say only "unsafe" are under "unsafe".
        twins: contrasts.
        turns: median turns of a conversation.
        words: words of a conversation: 10 %, median, 90 %.
    """

    source: str
    split: str
    examples: int
    unsafe: int
    levels: dict[str, int]
    twins: int
    turns: float
    words: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation, to be shown to whoever asked for it.

    Attributes:
        source: name of the source.
        label: its level, or "unsafe".
        turns: the conversation.
        rule: rule of thumb, or "".
    """

    source: str
    label: str
    turns: tuple[Turn, ...] = field(repr=False)
    rule: str = ""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found.

    Attributes:
        parts: by source and split, only those with rows.
        samples: chosen by the seed.
        skipped: broken rows by source.
        reasons: for the first broken rows of each source: file, row and why. No text of the row.
        held_back: rows left out because another split has the same text or group.
    """

    parts: tuple[Part, ...]
    samples: tuple[Sample, ...] = field(repr=False)
    skipped: dict[str, int]
    reasons: dict[str, list[str]]
    held_back: dict[str, int]


def inspect(
    path: Path, *, sources: Sequence[str] | None = None, samples: int = 10, seed: int = 0
) -> Inspection:
    """Read a data folder, or one file of our own schema, and say what is in it.

    Args:
        path: a data folder; or a JSON-lines file of conversations, pairs, situations or rules.
        sources: names from `loaders.SOURCES`, for a folder; None for all that are there.
        samples: how many conversations to show.
        seed: of their choice.

    Raises:
        InputError: the path does not exist, or the file is of none of these kinds.
        ConfigError: a source is unknown.
        ArtifactError: a file of a source that was asked for is missing.
    """
    report = LoadReport()
    if path.is_dir():
        found = _folder(path, sources, report)
    elif path.is_file():
        found = [("all", *_file(path, report))]
    else:
        raise InputError(f"expected a data folder or a file, {path} does not exist")
    parts: list[Part] = []
    pool: list[Sample] = []
    for split, examples, twins in found:
        names = dict.fromkeys([e.source for e in examples] + [t.source for t in twins])
        for name in names:
            mine = [example for example in examples if example.source == name]
            pairs = [twin for twin in twins if twin.source == name]
            parts.append(_part(name, split, mine, pairs))
        pool += [_sample(example) for example in examples] + [_twin_sample(twin) for twin in twins]
    chosen = random.Random(seed).sample(pool, min(samples, len(pool)))
    return Inspection(
        tuple(parts), tuple(chosen), dict(report.skipped), report.reasons, dict(report.held_back)
    )


Found = tuple[str, list[Example], list[Twin]]


def _folder(path: Path, sources: Sequence[str] | None, report: LoadReport) -> list[Found]:
    found: list[Found] = []
    for split in SPLITS:
        # All that have the split: a set for evaluation only has no other.
        names = [
            name
            for name in loaders.present(path, sources)
            if name not in loaders.SOURCES or split in loaders.SOURCES[name].splits
        ]
        examples = loaders.load_examples(path, names, split, report=report)
        twins = loaders.load_twins(path, names, split, report=report)
        found.append((split, examples, twins))
    return found


def _file(path: Path, report: LoadReport) -> tuple[list[Example], list[Twin]]:
    job = Job(path.parent, path.name.split(".")[0], "train", report=report)
    name = path.name.removesuffix(".gz")
    keys: set[str] = next(iter(job.json_lines(name, lambda row: set(row))), set())
    if {"violations", "near_misses"} & keys:
        return loaders.load_bank(read_rules(path))
    if {"unsafe", "safe"} <= keys:
        return [], loaders.load_pairs(path, report)
    if {"labels", "turns"} <= keys:
        return [], loaders.load_situations(path, report)
    if {"messages", "turns"} & keys:
        return list(job.json_lines(name, lambda row: example_of(row, job))), []
    raise InputError(
        f"expected conversations, pairs, situations or rules as JSON lines in {path}, "
        f"got a first row with none of their keys"
    )


def _part(source: str, split: str, examples: Sequence[Example], twins: Sequence[Twin]) -> Part:
    talks = [example.turns for example in examples]
    talks += [turns for twin in twins for turns in (twin.unsafe, twin.safe)]
    words = [sum(len(turn.text.split()) for turn in turns) for turns in talks]
    return Part(
        source,
        split,
        len(examples),
        sum(example.unsafe for example in examples),
        dict(Counter(_label(example.level, example.unsafe) for example in examples)),
        len(twins),
        _quantile([len(turns) for turns in talks], 50),
        (_quantile(words, 10), _quantile(words, 50), _quantile(words, 90)),
    )


def _quantile(values: Sequence[int], percent: int) -> float:
    return float(values[0]) if len(values) == 1 else quantiles(values, n=100, method="inclusive")[percent - 1]


def _label(level: Level | None, unsafe: bool) -> str:
    return level.value if level is not None else "unsafe" if unsafe else "casual"


def _sample(item: Example) -> Sample:
    return Sample(item.source, _label(item.level, item.unsafe), item.turns, item.rule)


def _twin_sample(item: Twin) -> Sample:
    return Sample(item.source, _label(item.level, True), item.unsafe, item.rule)
