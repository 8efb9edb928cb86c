"""Situations of our own: one talk in several versions that differ in one or two facts.

A row writes the talk once and its versions inline, so that everything but the facts is the same to
the letter. `{home|there}` holds one wording per version; with two facts, `{A:told|asked}` and
`{B:yes|no}` span four versions: A0B0, A0B1, A1B0, A1B1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from guardrail.types import Level, Turn

from ..examples import Twin
from .common import BrokenRow, Job, LoadReport, clean

UNSAFE, SAFE = "U", "S"
# Neither of two facts decides alone: a kind of contrast of its own, and measured apart.
CROSSED = ("USSU", "SUUS")
_SLOT = re.compile(r"\{(?:([AB]):)?([^{}]*)\}")


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a situation.

    Attributes:
        turns: the conversation; the last turn is judged.
        unsafe: True if the last turn is unsafe in it.
    """

    turns: tuple[Turn, ...] = field(repr=False)
    unsafe: bool


def expand(labels: str, turns: list[str]) -> list[Version]:
    """Return the versions of a talk.

    Args:
        labels: one letter per version, "U" (unsafe) or "S" (safe); of both at least one.
        turns: user, assistant, user, ...; with slots.

    Raises:
        BrokenRow: the labels and slots do not fit together, a turn is empty or holds a stray brace, or
            two versions of different labels are the same.
    """
    if set(labels) != {UNSAFE, SAFE}:
        raise BrokenRow(f"expected labels of U and S, both present, got {labels!r}")
    slots = [match for text in turns for match in _SLOT.finditer(text)]
    named = {match[1] for match in slots if match[1]}
    if not slots or (named and any(not match[1] for match in slots)):
        raise BrokenRow("expected slots that are all plain, or all named A or B")
    if named and (named != {"A", "B"} or len(labels) != 4):
        raise BrokenRow("expected both A and B with four labels")
    choices: list[dict[str | None, int]] = (
        [{"A": a, "B": b} for a, b in product(range(2), repeat=2)]
        if named
        else [{None: number} for number in range(len(labels))]
    )
    size = 2 if named else len(labels)
    for match in slots:
        if len(match[2].split("|")) != size:
            raise BrokenRow(f"expected {size} wordings in every slot, got {len(match[2].split('|'))}")
    versions = [
        Version(_turns(turns, choice), letter == UNSAFE)
        for choice, letter in zip(choices, labels, strict=True)
    ]
    bad = {version.turns for version in versions if version.unsafe}
    if any(version.turns in bad for version in versions if not version.unsafe):
        raise BrokenRow("a safe and an unsafe version are the same")
    return versions


def _turns(texts: list[str], choice: dict[str | None, int]) -> tuple[Turn, ...]:
    filled = [clean(_SLOT.sub(lambda match: match[2].split("|")[choice[match[1]]], text)) for text in texts]
    if not all(filled) or any("{" in text or "}" in text for text in filled):
        raise BrokenRow("a turn is empty or holds a stray brace")
    return tuple(Turn("assistant" if number % 2 else "user", text) for number, text in enumerate(filled))


def load_situations(path: Path, report: LoadReport | None = None) -> list[Twin]:
    """Return every unsafe version with every safe version of its situation.

    The rule's text is the group: situations under one rule are never in two splits. The source is
    "situations", or "crossed_situations" where only two facts together decide.

    Raises:
        ArtifactError: the file is missing.
    """
    path = Path(path)
    job = Job(path.parent, "situations", "train", report=report or LoadReport())

    def parse(row: Any) -> list[Twin]:
        versions = expand(row["labels"], row["turns"])
        level = Level(row["level"])
        source = f"crossed_{job.source}" if _is_crossed(row) else job.source
        return [
            Twin(bad.turns, good.turns, row["rule"], row["rule"], source, level=level, kind=row["kind"])
            for bad, good in product(
                [version for version in versions if version.unsafe],
                [version for version in versions if not version.unsafe],
            )
        ]

    return list(_flat(job.json_lines(path.name.removesuffix(".gz"), parse)))


def _is_crossed(row: Any) -> bool:
    named = any(match[1] for text in row["turns"] for match in _SLOT.finditer(text))
    return named and row["labels"] in CROSSED


def _flat(groups: Iterator[list[Twin]]) -> Iterator[Twin]:
    for group in groups:
        yield from group
