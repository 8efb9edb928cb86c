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
from .loaders import LoadReport, NormPair
from .loaders.common import SPLITS, Job, MissingFile
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
        norms: situations with a rule of thumb about them.
        turns: median turns of a conversation.
        words: words of a conversation: 10 %, median, 90 %.
    """

    source: str
    split: str
    examples: int
    unsafe: int
    levels: dict[str, int]
    twins: int
    norms: int
    turns: float
    words: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation, to be shown to whoever asked for it.

    Attributes:
        source: name of the source.
        label: its level, "unsafe", or "norm".
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
        absent: sources that the folder does not hold.
    """

    parts: tuple[Part, ...]
    samples: tuple[Sample, ...] = field(repr=False)
    skipped: dict[str, int]
    reasons: dict[str, list[str]]
    held_back: dict[str, int]
    absent: tuple[str, ...] = ()


def inspect(
    path: Path, *, sources: Sequence[str] | None = None, samples: int = 10, seed: int = 0
) -> Inspection:
    """Read a data folder, or one file of our own schema, and say what is in it.

    Args:
        path: a data folder, or one with JSON-lines files of our own schema alone; or such a file, of
            conversations, pairs, situations or rules.
        sources: names from `loaders.SOURCES`, for a folder; None for all that are there.
        samples: how many conversations to show.
        seed: of their choice.

    Raises:
        InputError: the path does not exist, a file is of none of these kinds, or a folder holds no data.
        ConfigError: a source is unknown.
        ArtifactError: a file of a source that was asked for is missing.
    """
    report = LoadReport()
    absent: tuple[str, ...] = ()
    if path.is_dir():
        found, absent = _folder(path, sources, report)
    elif path.is_file():
        found = [_file(path, report)]
    else:
        raise InputError(f"expected a data folder or a file, {path} does not exist")
    pool = [sample for one in found for sample in one.samples()]
    return Inspection(
        tuple(part for one in found for part in one.parts()),
        tuple(random.Random(seed).sample(pool, min(samples, len(pool)))),
        dict(report.skipped),
        report.reasons,
        dict(report.held_back),
        absent,
    )


@dataclass(frozen=True, slots=True)
class _Found:
    """What one split, or one file, holds."""

    split: str
    examples: list[Example] = field(repr=False, default_factory=list)
    twins: list[Twin] = field(repr=False, default_factory=list)
    norms: list[NormPair] = field(repr=False, default_factory=list)

    def parts(self) -> list[Part]:
        names = [item.source for item in self.examples]
        names += [item.source for item in self.twins] + [item.source for item in self.norms]
        return [_part(name, self) for name in dict.fromkeys(names)]

    def samples(self) -> list[Sample]:
        return [
            *(_sample(example) for example in self.examples),
            *(_twin_sample(twin) for twin in self.twins),
            *(Sample(norm.source, "norm", _norm_turns(norm), norm.rule) for norm in self.norms),
        ]


def _folder(
    path: Path, sources: Sequence[str] | None, report: LoadReport
) -> tuple[list[_Found], tuple[str, ...]]:
    names = loaders.present(path, sources)
    absent = () if sources is not None else tuple(name for name in names if not _is_there(path, name))
    names = [name for name in names if name not in absent]
    if not names:
        files = sorted(file for file in path.iterdir() if file.name.endswith((".jsonl", ".jsonl.gz")))
        if not files:
            raise InputError(f"expected a data folder or JSON-lines files in {path}, got neither")
        return [_file(file, report) for file in files], ()
    found: list[_Found] = []
    for split in SPLITS:
        # All that have the split: a set for evaluation only has no other.
        mine = [
            name for name in names if name not in loaders.SOURCES or split in loaders.SOURCES[name].splits
        ]
        norms = loaders.load_norm_pairs(path, split, report) if "social_chem_101" in mine else []
        norms += loaders.load_mic_norms(path, split, report) if "mic" in mine else []
        examples = loaders.load_examples(path, mine, split, report=report)
        twins = loaders.load_twins(path, mine, split, report=report)
        found.append(_Found(split, examples, twins, norms))
    return found, absent


def _is_there(path: Path, name: str) -> bool:
    source = loaders.SOURCES[name]
    job = Job(path, name, source.splits[0])
    try:
        if name == "social_chem_101":  # it has norms alone
            loaders.load_norm_pairs(path, job.split)
        for read in (source.examples, source.twins):
            if read is not None:
                next(iter(read(job)), None)
    except MissingFile:
        return False
    return True


def _file(path: Path, report: LoadReport) -> _Found:
    job = Job(path.parent, path.name.split(".")[0], "train", report=report)
    name = path.name.removesuffix(".gz")
    keys: set[str] = next(iter(job.json_lines(name, lambda row: set(row))), set())
    if {"violations", "near_misses"} & keys:
        return _Found("all", *loaders.load_bank(read_rules(path)))
    if {"unsafe", "safe"} <= keys:
        return _Found("all", twins=loaders.load_pairs(path, report))
    if {"labels", "turns"} <= keys:
        return _Found("all", twins=loaders.load_situations(path, report))
    if {"messages", "turns"} & keys:
        return _Found("all", list(job.json_lines(name, lambda row: example_of(row, job))))
    raise InputError(
        f"expected conversations, pairs, situations or rules as JSON lines in {path}, "
        f"got a first row with none of their keys"
    )


def _part(source: str, found: _Found) -> Part:
    examples = [example for example in found.examples if example.source == source]
    twins = [twin for twin in found.twins if twin.source == source]
    norms = [norm for norm in found.norms if norm.source == source]
    talks = [example.turns for example in examples]
    talks += [turns for twin in twins for turns in (twin.unsafe, twin.safe)]
    talks += [_norm_turns(norm) for norm in norms]
    words = [sum(len(turn.text.split()) for turn in turns) for turns in talks]
    return Part(
        source,
        found.split,
        len(examples),
        sum(example.unsafe for example in examples),
        dict(Counter(_label(example.level, example.unsafe) for example in examples)),
        len(twins),
        len(norms),
        _quantile([len(turns) for turns in talks], 50),
        (_quantile(words, 10), _quantile(words, 50), _quantile(words, 90)),
    )


def _quantile(values: Sequence[int], percent: int) -> float:
    return float(values[0]) if len(values) == 1 else quantiles(values, n=100, method="inclusive")[percent - 1]


def _label(level: Level | None, unsafe: bool) -> str:
    return level.value if level is not None else "unsafe" if unsafe else "casual"


def _norm_turns(norm: NormPair) -> tuple[Turn, ...]:
    return (Turn("user", norm.text), *([Turn("assistant", norm.answer)] if norm.answer else []))


def _sample(item: Example) -> Sample:
    return Sample(item.source, _label(item.level, item.unsafe), item.turns, item.rule)


def _twin_sample(item: Twin) -> Sample:
    return Sample(item.source, _label(item.level, True), item.unsafe, item.rule)
