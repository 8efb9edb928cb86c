"""Requests and advice: harmful requests, HH-RLHF's preferences, SafeText's advice."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from guardrail.types import Level, Role, Turn

from ..examples import Example, Twin
from .common import BrokenRow, Job, clean, digest, turns_of

_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
# A part of HarmfulQA's questions, in mathematics above all, is harmless: its label counts for less.
_FILES = {
    "advbench_harmful_behaviors": 1.0,
    "catqa_english": 1.0,
    "dangerousqa": 1.0,
    "adversarialqa": 1.0,
    "harmfulqa": 0.6,
}


def requests(job: Job) -> Iterator[Example]:
    """Yield harmful requests, each once over all files."""
    found: dict[str, Example] = {}
    for name, weight in _FILES.items():
        for category, text in _asked(job, name):
            turns = turns_of([text])
            group = job.group(turns[0].text)
            level = Level.NEEDS_INTERVENTION
            example = Example(turns, True, group, job.source, level=level, category=category, weight=weight)
            found.setdefault(group, example)
    yield from job.hashed(found.values(), test=0.1)


def _asked(job: Job, name: str) -> Iterator[tuple[str, str]]:
    for part in job.json_items(f"requests/{name}.json", _leaves):
        yield from part


def _leaves(item: Any, category: str = "") -> list[tuple[str, str]]:
    """Return (category, request) of an item: a text, a goal, or a tree of categories."""
    if isinstance(item, str):
        if not clean(item):
            raise BrokenRow("the request is empty")
        return [(category, item)]
    if isinstance(item, dict) and "goal" in item:
        return _leaves(item["goal"], category)
    if isinstance(item, tuple):
        # The key of the outermost level is the category: "Child Abuse", not "Physical abuse".
        return _leaves(item[1], category or item[0].strip(" :"))
    parts = item.items() if isinstance(item, dict) else item
    return [leaf for part in parts for leaf in _leaves(part, category)]


def hh_rlhf_twins(job: Job) -> Iterator[Twin]:
    """Yield HH-RLHF harmless: the rejected last reply against the chosen one."""

    def parse(row: Any) -> Twin:
        unsafe, safe = _hh_turns(row["rejected"]), _hh_turns(row["chosen"])
        if unsafe[:-1] != safe[:-1]:
            raise BrokenRow("the two histories differ")
        if unsafe[-1] == safe[-1]:
            raise BrokenRow("the two replies are equal")
        return Twin(unsafe, safe, "", job.group(unsafe[0].text), job.source, kind="preference")

    yield from job.hashed(job.json_lines("hh_rlhf/harmless-base-test.jsonl", parse), test=0.1)


def _hh_turns(text: str) -> tuple[Turn, ...]:
    parts = _SPEAKER.split(text)
    turns: list[Turn] = []
    for speaker, said in zip(parts[1::2], parts[2::2], strict=True):
        role: Role = "user" if speaker == "Human" else "assistant"
        said = clean(said)
        if turns and turns[-1].role == role:
            said = f"{turns.pop().text} {said}".strip()
        turns.append(Turn(role, said))
    if parts[0].strip() or len(turns) < 2 or turns[-1].role != "assistant" or not turns[-1].text:
        raise BrokenRow("expected turns that end on a reply of the assistant")
    return tuple(turn for turn in turns if turn.text)


def safetext_twins(job: Job) -> Iterator[Twin]:
    """Yield SafeText: the situation as the user's question, unsafe against safe advice as the answer."""

    def parse(item: Any) -> list[Twin]:
        prompt, advice = item
        question = clean(prompt).rstrip(" ,")
        if not question or not advice["unsafe"] or not advice["safe"]:
            raise BrokenRow("situation or advice is missing")
        question = f"{question}, what should you do?"
        return [
            Twin(
                turns_of([question, _sentence(unsafe)], "assistant"),
                turns_of(
                    [question, _sentence(advice["safe"][_pick(unsafe, len(advice["safe"]))])], "assistant"
                ),
                "",
                job.group(prompt),
                job.source,
                kind="advice",
            )
            for unsafe in advice["unsafe"]
        ]

    twins = (twin for part in job.json_items("safetext/SafeText.json", parse) for twin in part)
    yield from job.hashed(twins, test=0.1)


def _pick(text: str, count: int) -> int:
    return int(digest(text), 16) % count


def _sentence(text: str) -> str:
    text = clean(text)
    return text[:1].upper() + text[1:]
