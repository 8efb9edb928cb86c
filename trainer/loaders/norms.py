"""Actions, norms and statements: ETHICS, Moral Stories, Social-Chem-101, SBIC, ToxiGen."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guardrail.errors import ConfigError
from guardrail.types import Turn

from ..examples import Example, Twin
from .common import (
    SPLITS,
    BrokenRow,
    Job,
    LoadReport,
    MissingFile,
    Split,
    agreement,
    clean,
    contrasts,
    normalise,
    read_text,
    runs,
    split_of,
    turns_of,
)

_ASKED = re.compile(r"^(could|can|would|will|should|shouldn't|are|aren't|do|don't|did|have)\b", re.IGNORECASE)
_TOXIGEN = re.compile(r"^(hate|neutral)_(.+)_1k\.txt(\.gz)?$")
_TOXIGEN_ITEM = re.compile(r"\\n-|\n")
# Social-Chem's "how many people agree", 0-4, as the share that its authors attach to each step.
_AGREE = (0.01, 0.15, 0.5, 0.8, 1.0)


@dataclass(frozen=True, slots=True)
class NormPair:
    """A situation and a rule of thumb that is relevant to it. Nothing says that the rule is broken.

    Attributes:
        text: the situation.
        rule: the rule of thumb.
        group: situation that it belongs to: never in two splits.
        source: name of the dataset.
        weight: share of people said to agree with the rule, (0, 1].
        foundation: the first moral foundation named, in our words, or "".
        answer: what was answered to the situation, where the rule is about that, or "".
    """

    text: str = field(repr=False)
    rule: str
    group: str
    source: str
    weight: float = 1.0
    foundation: str = ""
    answer: str = field(default="", repr=False)


def _label(cell: str) -> bool:
    if cell not in ("0", "1"):
        raise BrokenRow("label is neither 0 nor 1")
    return cell == "1"


def commonsense(job: Job) -> Iterator[Example]:
    """Yield ETHICS commonsense: what the user says they did; 1 = wrong. Variations share a group."""

    def parse(row: dict[str, str]) -> Example:
        size = "short" if row["is_short"] == "True" else "long"
        group = job.group(clean(row["input"]))
        return Example(turns_of([row["input"]]), _label(row["label"]), group, job.source, category=size)

    name = "cm_test_hard" if job.split == "test" else "cm_test"
    found = runs(job.csv_rows(f"ethics/commonsense/{name}.csv", parse))
    yield from found if job.split == "test" else job.hashed(found)


def commonsense_twins(job: Job) -> Iterator[Twin]:
    """Yield short actions that differ in a few words, one wrong, one fine."""
    yield from contrasts((e for e in commonsense(job) if e.category == "short"), "variation")


def _ethics_files(job: Job, part: str) -> list[str]:
    names = ("test", "test_hard") if job.split == "test" else ("train",)
    return [f"ethics/{part}/{part}_{name}.csv" for name in names]


def justice_twins(job: Job) -> Iterator[Twin]:
    """Yield ETHICS justice: consecutive variations of one scenario; 1 = reasonable, hence safe."""

    def parse(row: dict[str, str]) -> Example:
        group = job.group(clean(row["scenario"]))
        return Example(turns_of([row["scenario"]]), not _label(row["label"]), group, job.source)

    for name in _ethics_files(job, "justice"):
        twins = contrasts(runs(job.csv_rows(name, parse)), "variation")
        yield from twins if job.split == "test" else job.hashed(twins)


def deontology_twins(job: Job) -> Iterator[Twin]:
    """Yield ETHICS deontology: excuses (or duties) for one scenario; 1 = reasonable, hence safe."""

    def parse(row: dict[str, str]) -> Example:
        scenario, excuse = clean(row["scenario"]), clean(row["excuse"])
        # Questions ("Could you ...?") are put to the user. Roles ("I am ...") are the user's own words.
        turns = turns_of([scenario, excuse] if _ASKED.match(scenario) else [f"{scenario} {excuse}"])
        if not excuse:
            raise BrokenRow("the judged turn is empty")
        return Example(turns, not _label(row["label"]), job.group(scenario), job.source)

    for name in _ethics_files(job, "deontology"):
        twins = contrasts(job.csv_rows(name, parse), "excuse")
        yield from twins if job.split == "test" else job.hashed(twins)


def utilitarianism_twins(job: Job) -> Iterator[Twin]:
    """Yield ETHICS utilitarianism: of two outcomes the first is the more pleasant one.

    Less pleasant is not unsafe; the kind `less_pleasant` lets a training leave these out.
    """

    def parse(row: list[str]) -> Twin:
        better, worse = (turns_of([text]) for text in row)
        return Twin(worse, better, "", job.group(better[-1].text), job.source, kind="less_pleasant")

    for name in ("test", "test_hard") if job.split == "test" else ("train",):
        path = job.path(f"ethics/utilitarianism/util_{name}.csv")
        rows = csv.reader(io.StringIO(read_text(path), newline=""))
        twins = job.each(path, enumerate(rows, 1), parse)
        yield from twins if job.split == "test" else job.hashed(twins)


def moral_stories_twins(job: Job) -> Iterator[Twin]:
    """Yield Moral Stories: an action that breaks a norm against one that keeps it.

    The contrary set gives the same two actions under three norms: the original, a weak one under which both
    are fine (no contrast, so none is yielded), and its opposite, under which the roles are swapped.
    """
    file = "test" if job.split == "test" else "dev"
    originals: dict[str, str] = {}
    stories: dict[tuple[str, str], dict[bool, str]] = {}
    for part in ("original_ms", "contra_ms"):
        for stem, norm, unsafe, action in job.json_lines(f"moral_stories/{part}/{file}.jsonl", _moral_row):
            originals.setdefault(stem, norm)
            stories.setdefault((stem, normalise(norm)), {}).setdefault(unsafe, f"{norm}\n{action}")
    twins = _moral_twins(job, originals, stories)
    yield from twins if job.split == "test" else job.hashed(twins)


def _moral_row(row: Any) -> tuple[str, str, bool, str]:
    unsafe = not _label(str(row["label"]))
    action = clean(row["immoral_action" if unsafe else "moral_action"])
    norm = clean(row["norm"])
    if not action or not norm:
        raise BrokenRow("norm or action is empty")
    return row["ID"][:-1], norm, unsafe, action


def _moral_twins(
    job: Job, originals: dict[str, str], stories: dict[tuple[str, str], dict[bool, str]]
) -> Iterator[Twin]:
    for (stem, key), sides in stories.items():
        if len(sides) == 2:
            norm, broken = sides[True].split("\n", 1)
            kept = sides[False].split("\n", 1)[1]
            original = originals[stem]
            kind = "norm" if key == normalise(original) else "contrary_norm"
            unsafe, safe = turns_of([broken]), turns_of([kept])
            yield Twin(unsafe, safe, norm, job.group(original), job.source, kind=kind)


def load_norm_pairs(data_dir: Path, split: Split, report: LoadReport | None = None) -> list[NormPair]:
    """Return Social-Chem-101's situations with their rules of thumb; held out by situation (10 % test).

    Reads the two parts in the data folder or, if it is there, the full published
    `social-chem-101.v1.0.tsv`. Rows that its annotators marked as bad are left out.

    Raises:
        ConfigError: if the split is unknown.
        ArtifactError: if a file is missing.
    """
    if split not in SPLITS:
        raise ConfigError(f"expected split to be one of {', '.join(SPLITS)}, got {split!r}")
    job = Job(Path(data_dir), "social_chem_101", split, report=report or LoadReport())

    def parse(row: dict[str, str]) -> NormPair | None:
        text, rule = clean(row["situation"]), clean(row["rot"])
        if not text or not rule:
            raise BrokenRow("situation or rule is empty")
        if row["rot-bad"] == "1":
            return None
        step = int(float(row["rot-agree"])) if row["rot-agree"] else 2
        return NormPair(text, rule, job.group(text), job.source, _AGREE[step], _foundation(row))

    full = "social_chem_101/social-chem-101.v1.0.tsv"
    parts = [f"social_chem_101/{part}_sc101.csv" for part in ("obligatory", "optional")]
    names = [(full, "\t")] if job.find(full) else [(part, ",") for part in parts]
    pairs = (pair for name, mark in names for pair in job.csv_rows(name, parse, mark))
    return [pair for pair in pairs if split_of(pair.group, test=0.1) == split]


def _foundation(row: dict[str, str]) -> str:
    """Return "care" of "care-harm|fairness-cheating"; the published column, if the file has it."""
    return (row.get("rot-moral-foundations") or "").split("|")[0].split("-")[0]


def sbic(job: Job) -> Iterator[Example]:
    """Yield Social Bias Frames: one example per post, offensive if its annotators say so on average."""

    def parse(row: dict[str, str]) -> tuple[str, float, str] | None:
        text = clean(row["post"])
        if not text:
            raise BrokenRow("the judged turn is empty")
        return (text, float(row["offensiveYN"]), row["targetCategory"]) if row["offensiveYN"] else None

    posts: dict[str, tuple[str, list[float], Counter[str]]] = {}
    for text, vote, category in job.csv_rows("sbic/SBFv2.dev.csv", parse):
        _, votes, categories = posts.setdefault(normalise(text), (text, [], Counter()))
        votes.append(vote)
        categories.update([category] if category else [])
    yield from job.hashed((_sbic_post(job, *post) for post in posts.values()), test=0.1)


def _sbic_post(job: Job, text: str, votes: list[float], categories: Counter[str]) -> Example:
    mean = sum(votes) / len(votes)
    category = categories.most_common(1)[0][0] if categories else ""
    turns = (Turn("user", text),)
    group = job.group(text)
    return Example(turns, mean >= 0.5, group, job.source, category=category, weight=agreement(mean))


def toxigen(job: Job) -> Iterator[Example]:
    """Yield ToxiGen's prompts, one example per statement; those listed as both are left out."""
    folder = job.data_dir / "toxigen_prompts"
    files = sorted(path for path in folder.glob("*_1k.txt*") if _TOXIGEN.match(path.name))
    if not files:
        raise MissingFile(
            f"expected files like hate_women_1k.txt.gz in {folder}, found none; check GUARDRAIL_DATA"
        )
    found: dict[str, Example] = {}
    both: set[str] = set()
    for path in files:
        for example in _toxigen_file(job, path):
            first = found.setdefault(example.group, example)
            both.update([example.group] if first.unsafe != example.unsafe else [])
    yield from job.hashed(example for group, example in found.items() if group not in both)


def _toxigen_file(job: Job, path: Path) -> Iterator[Example]:
    match = _TOXIGEN.match(path.name)
    unsafe, people = (match[1] == "hate", match[2]) if match else (False, "")
    for statement in _TOXIGEN_ITEM.split(read_text(path)):
        text = clean(statement.strip().lstrip("-"))
        # Prompts end in a dash that invites the next statement: what is left of it is no statement.
        if len(text.split()) > 1:
            yield Example((Turn("user", text),), unsafe, job.group(text), job.source, category=people)
