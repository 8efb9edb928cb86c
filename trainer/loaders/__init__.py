"""Reads the data sets into `Example`s and `Twin`s: one table of sources, two functions over it.

A source with an official split keeps it; the others are split by a stable hash of the group. Groups and
texts of the test split never come back in train or val, whatever the official files say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from guardrail.errors import ConfigError

from ..examples import Example, Twin
from . import casual, dialogue_safety, mic, norms, plain, requests
from .casual import dailydialog_openings
from .common import (
    SPLITS,
    Job,
    LoadReport,
    Split,
    clean,
    normalise,
    split_of,
    twins_without_overlap,
    without_overlap,
)
from .mic import load_mic_norms
from .norms import NormPair, load_norm_pairs
from .own import load_bank, load_casual, load_pairs
from .situations import load_situations

__all__ = [
    "SOURCES",
    "LoadReport",
    "NormPair",
    "Source",
    "Split",
    "clean",
    "dailydialog_openings",
    "load_bank",
    "load_casual",
    "load_examples",
    "load_mic_norms",
    "load_norm_pairs",
    "load_pairs",
    "load_situations",
    "load_twins",
    "normalise",
    "present",
    "split_of",
    "without_overlap",
]

_L = TypeVar("_L", Example, Twin)
_ALL: tuple[Split, ...] = SPLITS
_NO_TEST: tuple[Split, ...] = ("train", "val")


@dataclass(frozen=True, slots=True)
class Source:
    """A data set.

    Attributes:
        licence: under which it was published.
        splits: the splits that it has. Without "train" it is for evaluation only.
        examples: yields its judged turns, or None.
        twins: yields its contrasts, or None.
        optional: file or folder that it is read from, where it may be missing: then the source is
            passed over unless it is asked for by name. "" if it must be there.
    """

    licence: str
    splits: tuple[Split, ...] = _ALL
    examples: Callable[[Job], Iterator[Example]] | None = None
    twins: Callable[[Job], Iterator[Twin]] | None = None
    optional: str = ""

    @property
    def may_train(self) -> bool:
        """True if what ships may be trained on it."""
        return "train" in self.splits


SOURCES: dict[str, Source] = {
    "diasafety": Source(
        "Apache-2.0", examples=dialogue_safety.diasafety, twins=dialogue_safety.diasafety_twins
    ),
    "bad": Source("MIT", examples=dialogue_safety.bad),
    "convabuse": Source("CC-BY-4.0", _NO_TEST, examples=dialogue_safety.convabuse),
    "toxichat": Source(
        "CC-BY-SA-4.0", examples=dialogue_safety.toxichat, twins=dialogue_safety.toxichat_twins
    ),
    "prosocial_dialog": Source("CC-BY-4.0", examples=dialogue_safety.prosocial),
    "ethics_commonsense": Source("MIT", examples=norms.commonsense, twins=norms.commonsense_twins),
    "ethics_justice": Source("MIT", twins=norms.justice_twins),
    "ethics_deontology": Source("MIT", twins=norms.deontology_twins),
    "ethics_utilitarianism": Source("MIT", twins=norms.utilitarianism_twins),
    "moral_stories": Source("MIT", twins=norms.moral_stories_twins),
    "social_chem_101": Source("CC-BY-SA-4.0"),  # relevance only: see load_norm_pairs
    "sbic": Source("CC-BY-4.0 / CC-BY-SA", examples=norms.sbic),
    "toxigen": Source("MIT, CDLA-Permissive-2.0", _NO_TEST, examples=norms.toxigen),
    "hh_rlhf": Source("MIT", twins=requests.hh_rlhf_twins),
    "safetext": Source("MIT", twins=requests.safetext_twins),
    "requests": Source("Apache-2.0; AdvBench MIT", examples=requests.requests),
    "mic": Source("by agreement with its authors", examples=mic.mic, twins=mic.mic_twins, optional=mic.FILE),
    "own": Source("yours", examples=plain.own, twins=plain.own_twins, optional=plain.FOLDER),
    "self_dialogue": Source("BSD-3-Clause", _NO_TEST, examples=casual.SELF_DIALOGUE),
    "topical_chat": Source("CDLA-Sharing-1.0", _NO_TEST, examples=casual.TOPICAL_CHAT),
    "persona": Source("MIT / CC-BY-4.0", examples=casual.PERSONA),
    "wow": Source("MIT / CC-BY-4.0", examples=casual.WOW),
    "msc": Source("MIT / CC-BY-4.0", _NO_TEST, examples=casual.MSC),
    "dailydialog": Source("CC-BY-NC-SA-4.0", ("test",), examples=casual.DAILYDIALOG),
    "empathetic_dialogues": Source("CC-BY-NC-4.0", ("test",), examples=casual.EMPATHETIC),
    "commonsense_dialogues": Source("CC-BY-NC-4.0", ("test",), examples=casual.COMMONSENSE),
}


def load_examples(
    data_dir: Path,
    sources: Sequence[str] | None = None,
    split: Split = "train",
    *,
    per_dialogue: int = 2,
    report: LoadReport | None = None,
) -> list[Example]:
    """Return the judged turns of one split.

    Of train and val, whatever shares its group with an earlier claim is left out: test comes first, then
    train, then val. So is a conversation that equals one in the test split of any chosen source.

    Args:
        data_dir: the data folder.
        sources: names from `SOURCES`; None for all that have the split. One without examples, or without
            this split though it may train, adds nothing.
        split: "train", "val" or "test".
        per_dialogue: judged turns taken from each casual dialogue, at least 1.
        report: counts what is left out, if given.

    Raises:
        ConfigError: if a name or the split is unknown, if `per_dialogue` is too small, or if a source that
            is for evaluation only is asked for train or val.
        ArtifactError: if a file is missing or cannot be read.
    """
    names = _kept(Path(data_dir), sources, _chosen(sources, split, per_dialogue))
    report = report or LoadReport()
    folder = Path(data_dir)
    found = _examples(names, Job(folder, "", split, per_dialogue, report))
    if split == "test":
        return found
    others = _claimed(lambda job: _examples(names, job), Job(folder, "", split, per_dialogue))
    return _held(found, without_overlap(_other_groups(found, others), others), report)


def load_twins(
    data_dir: Path,
    sources: Sequence[str] | None = None,
    split: Split = "train",
    *,
    report: LoadReport | None = None,
) -> list[Twin]:
    """Return the contrasts of one split; arguments and errors as in `load_examples`.

    A group that stands in a source's test split, in an example or a twin, is kept out of train; one of
    either is kept out of val. So is a contrast of which either conversation stands there.
    """
    chosen = _kept(Path(data_dir), sources, _chosen(sources, split, 1))
    names = [name for name in chosen if SOURCES[name].twins]
    report = report or LoadReport()
    folder = Path(data_dir)
    found = _twins(names, Job(folder, "", split, report=report))
    if split == "test":
        return found
    others: list[Example | Twin] = [
        *_claimed(lambda job: _twins(names, job), Job(folder, "", split)),
        *_claimed(lambda job: _examples(names, job), Job(folder, "", split)),
    ]
    kept = twins_without_overlap(_other_groups(found, others), others)
    return _held(found, kept, report)


def _examples(names: Iterable[str], job: Job) -> list[Example]:
    loaders = [(name, SOURCES[name].examples) for name in names if job.split in SOURCES[name].splits]
    return [item for name, load in loaders if load for item in load(replace(job, source=name))]


def _twins(names: Iterable[str], job: Job) -> list[Twin]:
    loaders = [(name, SOURCES[name].twins) for name in names if job.split in SOURCES[name].splits]
    return [item for name, load in loaders if load for item in load(replace(job, source=name))]


def _claimed(read: Callable[[Job], list[_L]], job: Job) -> list[_L]:
    """Return what the splits hold that come before this one where files overlap: test, then train."""
    splits: tuple[Split, ...] = ("test",) if job.split == "train" else ("test", "train")
    return [item for split in splits for item in read(replace(job, split=split))]


def _other_groups(found: Iterable[_L], others: Iterable[Example | Twin]) -> list[_L]:
    taken = {other.group for other in others}
    return [item for item in found if item.group not in taken]


def _held(found: Iterable[_L], kept: list[_L], report: LoadReport) -> list[_L]:
    report.held_back.update(Counter(item.source for item in found) - Counter(item.source for item in kept))
    return kept


def present(data_dir: Path, asked: Sequence[str] | None) -> list[str]:
    """Return the names that were asked for; without any, all but optional ones that are not there."""
    if asked is not None:
        return list(asked)
    job = Job(data_dir, "", "train")
    return [
        name
        for name, source in SOURCES.items()
        if not source.optional or (data_dir / source.optional).exists() or job.find(source.optional)
    ]


def _kept(data_dir: Path, asked: Sequence[str] | None, names: list[str]) -> list[str]:
    there = set(present(data_dir, asked))
    return [name for name in names if name in there]


def _chosen(sources: Sequence[str] | None, split: Split, per_dialogue: int) -> list[str]:
    if split not in SPLITS:
        raise ConfigError(f"expected split to be one of {', '.join(SPLITS)}, got {split!r}")
    if per_dialogue < 1:
        raise ConfigError(f"expected per_dialogue to be at least 1, got {per_dialogue}")
    if sources is None:
        return [name for name, source in SOURCES.items() if split in source.splits]
    if isinstance(sources, str):
        raise ConfigError(
            f"expected sources to be a list of names, got the text {sources!r}; write [{sources!r}]"
        )
    for name in sources:
        if name not in SOURCES:
            raise ConfigError(f"expected sources from {', '.join(SOURCES)}; got {name!r}")
        if split != "test" and not SOURCES[name].may_train:
            raise ConfigError(
                f"expected sources that may train, got {name!r} ({SOURCES[name].licence}), which is for "
                f"evaluation only; leave it out or ask for split 'test'"
            )
    return list(dict.fromkeys(sources))
