"""Our own writing: the bank of rules and the matched pairs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from guardrail.rules.schema import Rule
from guardrail.types import Level, Turn

from ..examples import Example, Twin
from .common import BrokenRow, Job, LoadReport, clean


def load_bank(rules: Iterable[Rule]) -> tuple[list[Example], list[Twin]]:
    """Return the dialogues of rules as examples, and each violation with each near miss as twins."""
    examples: list[Example] = []
    twins: list[Twin] = []
    for rule in rules:
        bad = [_example(rule, violation.turns, violation.level) for violation in rule.violations]
        good = [_example(rule, near_miss.turns, "casual") for near_miss in rule.near_misses]
        examples += bad + good
        twins += [
            Twin(
                b.turns,
                g.turns,
                rule.text,
                rule.id,
                "bank",
                level=b.level,
                kind="near_miss",
                foundation=rule.foundation,
            )
            for b in bad
            for g in good
        ]
    return examples, twins


def _example(rule: Rule, texts: tuple[str, ...], level: str) -> Example:
    unsafe = level != "casual"
    turns = authored_turns(texts)
    return Example(turns, unsafe, rule.id, "bank", level=Level(level), category=rule.domain, rule=rule.text)


def authored_turns(texts: Iterable[str]) -> tuple[Turn, ...]:
    """Return turns that alternate from the user on.

    Raises:
        BrokenRow: one is empty, which would swap the speakers.
    """
    cleaned = [clean(text) for text in texts]
    if not cleaned or not all(cleaned):
        raise BrokenRow("a turn is empty")
    return tuple(Turn("assistant" if i % 2 else "user", text) for i, text in enumerate(cleaned))


def load_pairs(path: Path, report: LoadReport | None = None) -> list[Twin]:
    """Return matched pairs, of which only the situation differs, from a JSON-lines file.

    Raises:
        ArtifactError: if the file is missing.
    """
    path = Path(path)
    job = Job(path.parent, "pairs", "train", report=report or LoadReport())

    def parse(row: Any) -> Twin:
        unsafe, safe = authored_turns(row["unsafe"]["turns"]), authored_turns(row["safe"]["turns"])
        level = Level(row["unsafe"]["level"])
        return Twin(unsafe, safe, row["rule"], row["id"], job.source, level=level, kind=row["kind"])

    return list(job.json_lines(path.name.removesuffix(".gz"), parse))


def load_casual(path: Path, report: LoadReport | None = None) -> list[Example]:
    """Return harmless conversations of our own writing from a JSON-lines file.

    Raises:
        ArtifactError: if the file is missing.
    """
    path = Path(path)
    job = Job(path.parent, "own_casual", "train", report=report or LoadReport())

    def parse(row: Any) -> Example:
        return Example(authored_turns(row["turns"]), False, row["id"], job.source, level=Level.CASUAL)

    return list(job.json_lines(path.name.removesuffix(".gz"), parse))
