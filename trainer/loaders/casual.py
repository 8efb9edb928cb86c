"""Casual talk, taken as safe: a few judged turns of every dialogue."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guardrail.types import Level, Turn

from ..examples import Example
from .common import BrokenRow, Job, LoadReport, clean, share


@dataclass(frozen=True, slots=True)
class Dialogues:
    """Where a set of casual dialogues lies and how it is read.

    Attributes:
        train: files for train and val.
        test: files for test.
        tokenised: True if the words are separated from the marks.
    """

    train: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    tokenised: bool = False

    def __call__(self, job: Job) -> Iterator[Example]:
        """Yield the examples of one split; val is a tenth of the training dialogues."""
        if job.split == "test":
            for name in self.test:
                yield from self._read(job, name)
        else:
            for name in self.train:
                yield from job.hashed(self._read(job, name))

    def _read(self, job: Job, name: str) -> Iterator[Example]:
        path = f"casual/{name}"
        read: Callable[[str, Callable[[Any], list[Example]]], Iterator[list[Example]]]
        read = job.json_lines if name.endswith(".jsonl") else job.json_items
        for examples in read(path, lambda row: self._examples(job, row)):
            yield from examples

    def _examples(self, job: Job, row: Any) -> list[Example]:
        turns, key = dialogue(row, tokenised=self.tokenised)
        group = job.group(key)
        places = positions(len(turns), group, job.per_dialogue)
        return [_example(job, turns[: place + 1], group) for place in places]


def _example(job: Job, turns: tuple[Turn, ...], group: str) -> Example:
    return Example(turns, False, group, job.source, level=Level.CASUAL)


def dialogue(row: Any, *, tokenised: bool = False) -> tuple[tuple[Turn, ...], str]:
    """Return the turns of a dialogue, the first one the user's, and the key of its group.

    Reads all published shapes: pairs, plain turns, and messages with their agent.

    Raises:
        BrokenRow: if it has no turn.
    """
    row = row[1] if isinstance(row, tuple) else row
    if "dialogue" in row:
        texts = [text for pair in row["dialogue"] for text in pair]
    elif "content" in row:
        texts = _joined(row["content"])
    else:
        texts = row["turns"]
    cleaned = [text for text in (clean(text, tokenised=tokenised) for text in texts) if text]
    if not cleaned:
        raise BrokenRow("the dialogue has no turns")
    turns = tuple(Turn("assistant" if i % 2 else "user", text) for i, text in enumerate(cleaned))
    # Sessions of one couple share an id; everything else is its own group.
    return turns, row["id"] if "id" in row else " ".join(cleaned)


def _joined(messages: list[dict[str, str]]) -> list[str]:
    texts: list[str] = []
    before = ""
    for message in messages:
        if message["agent"] == before:
            texts[-1] = f"{texts[-1]} {message['message']}"
        else:
            texts.append(message["message"])
        before = message["agent"]
    return texts


def positions(count: int, key: str, wanted: int) -> list[int]:
    """Return up to `wanted` turn positions, one in each equal stretch of the dialogue, chosen by hash."""
    bounds = [i * count // wanted for i in range(wanted + 1)]
    stretches = [(low, high) for low, high in zip(bounds, bounds[1:], strict=False) if low < high]
    return [low + int(share(f"{key}#{low}") * (high - low)) for low, high in stretches]


SELF_DIALOGUE = Dialogues(train=("self_dialogue/dialogues.jsonl",))
TOPICAL_CHAT = Dialogues(train=("topical_chat/valid_freq.json", "topical_chat/valid_rare.json"))
PERSONA = Dialogues(train=("persona/valid.json",), test=("persona/test.json",), tokenised=True)
WOW = Dialogues(train=("wow/valid.json",), test=("wow/test.json",))
MSC = Dialogues(train=("msc/session-2-valid.json", "msc/session-3-valid.json"))
DAILYDIALOG = Dialogues(test=("dailydialog/test.json",), tokenised=True)
EMPATHETIC = Dialogues(test=("ed/test.json",))
COMMONSENSE = Dialogues(test=("commonsense_dialogues/valid.json",))


def dailydialog_openings(data_dir: Path, report: LoadReport | None = None) -> list[Example]:
    """Return the first three turns of every DailyDialog test dialogue (fewer if it is shorter); eval only.

    Raises:
        ArtifactError: if the file is missing.
    """
    job = Job(Path(data_dir), "dailydialog", "test", report=report or LoadReport())

    def parse(row: Any) -> Example:
        turns, key = dialogue(row, tokenised=True)
        return _example(job, turns[:3], job.group(key))

    return list(job.json_items("casual/dailydialog/test.json", parse))
