"""Labelled conversations: DiaSafety, Bot-Adversarial Dialogue, ConvAbuse, ToxiChat, ProsocialDialog."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from guardrail.types import Level

from ..examples import Example, Twin
from .common import BrokenRow, Job, clean, contrasts, digest, turns_of

_BAD_PAIRS = 2
_BAD_WORDS = 4
_LABELS = {"Safe": False, "Unsafe": True, "Offensive": True, "ok": False, "notok": True}
_SEVERITY = re.compile(r"^(Annotator\d+)_is_abuse\.(-?\d)$")
_ABUSE_KIND = re.compile(
    r"^Annotator\d+_(ableist|homophobic|intellectual|racist|sexist|sex_harassment|transphobic)$"
)
# Fewer of ProsocialDialog's three annotators saw a problem, the less the label weighs.
_PROSOCIAL: dict[str, tuple[Level, float]] = {
    "casual": (Level.CASUAL, 1.0),
    "possibly_needs_caution": (Level.NEEDS_CAUTION, 0.6),
    "possibly_or_probably_needs_caution": (Level.NEEDS_CAUTION, 0.6),
    "probably_needs_caution": (Level.NEEDS_CAUTION, 0.8),
    "needs_caution": (Level.NEEDS_CAUTION, 1.0),
    "needs_intervention": (Level.NEEDS_INTERVENTION, 1.0),
}
PROSOCIAL_TEST = 1 / 3


def _unsafe(label: str) -> bool:
    if label not in _LABELS:
        raise BrokenRow("unknown label")
    return _LABELS[label]


def diasafety(job: Job) -> Iterator[Example]:
    """Yield DiaSafety: the assistant's response judged in the user's context."""

    def parse(row: Any) -> Example:
        turns = turns_of([row["context"], row["response"]], "assistant")
        group = job.group(clean(row["context"]))
        return Example(turns, _unsafe(row["label"]), group, job.source, category=row["category"])

    yield from job.json_items(f"diasafety/{job.split}.json", parse)


def diasafety_twins(job: Job) -> Iterator[Twin]:
    """Yield an unsafe and a safe response to the same context."""
    yield from contrasts(diasafety(job), "same_context")


def bad(job: Job) -> Iterator[Example]:
    """Yield Bot-Adversarial Dialogue; the human and the bot are judged alike."""
    if job.split == "test":
        yield from job.lines("bad/test.txt", lambda line: _bad_line(job, line))
    else:
        yield from job.hashed(_bad_valid(job))


def _bad_line(job: Job, line: str) -> Example:
    row = dict(part.split(":", 1) for part in line.split("\t"))
    texts = row["text"].split("\\n")
    speaker = row["speaker_to_eval"]
    if speaker not in ("human", "bot"):
        raise BrokenRow("unknown speaker")
    turns = turns_of(texts, "user" if speaker == "human" else "assistant")
    return Example(turns, _unsafe(row["labels"].strip("_")), job.group("test", texts[0]), job.source)


def _bad_valid(job: Job) -> Iterator[Example]:
    rows: list[tuple[list[list[str]], bool]] = []
    for label in ("ok", "notok"):
        unsafe = _unsafe(label)
        read = job.json_items(f"bad/valid_{label}.json", _bad_pairs)
        rows.extend((pairs, unsafe) for pairs in read)
    for (pairs, unsafe), group in zip(rows, _conversations(job, [pairs for pairs, _ in rows]), strict=True):
        # The file of safe turns keeps two pairs, that of unsafe ones up to eight: without the cut, a long
        # history alone would mean "unsafe".
        texts = [text for pair in pairs[-_BAD_PAIRS:] for text in pair]
        last_is_bot = bool(texts[-1].strip())
        turns = turns_of(texts if last_is_bot else texts[:-1], "assistant" if last_is_bot else "user")
        yield Example(turns, unsafe, group, job.source)


def _bad_pairs(row: Any) -> list[list[str]]:
    pairs = [[human.strip(), bot.strip()] for human, bot in row["dialogue"]]
    if not pairs or not any(pairs[-1]):
        raise BrokenRow("the judged turn is empty")
    return pairs


def _conversations(job: Job, dialogues: list[list[list[str]]]) -> Iterator[str]:
    """Name the conversation of each row: rows that share what the human said belong together.

    Every conversation is cut into one row per turn, and rows of one conversation lie in two files.
    """
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    keys = [_bad_keys(pairs) for pairs in dialogues]
    for row in keys:
        for key in row[1:]:
            parent[root(key)] = root(row[0])
    return (job.group(root(row[0])) for row in keys)


def _bad_keys(pairs: list[list[str]]) -> list[str]:
    said = [digest(human) for human, _ in pairs if len(human.split()) >= _BAD_WORDS]
    return [*said, *(digest(*pair) for pair in pairs if all(pair))] or [digest(*pairs[0])]


def convabuse(job: Job) -> Iterator[Example]:
    """Yield ConvAbuse: the user's last turn, judged by the mean of its annotators."""
    name = {"train": "train", "val": "valid"}[job.split]
    yield from job.csv_rows(f"convabuse/ConvAbuseEMNLP{name}.csv", lambda row: _convabuse_row(job, row))


def _convabuse_row(job: Job, row: dict[str, str]) -> Example:
    votes: dict[str, list[tuple[int, float]]] = {}
    for key, cell in row.items():
        if (match := _SEVERITY.match(key)) and cell:
            votes.setdefault(match[1], []).append((int(match[2]), _flag(cell)))
    given = [
        sum(s * f for s, f in vote) / sum(f for _, f in vote) for vote in votes.values() if _any_flag(vote)
    ]
    if not given:
        raise BrokenRow("no annotator gave a severity")
    unsafe = sum(given) / len(given) < 0
    agreed = sum((severity < 0) == unsafe for severity in given) / len(given)
    texts = ["" if row[key] == "_" else row[key] for key in ("prev_agent", "prev_user", "agent", "user")]
    kinds = Counter(
        m[1] for key, cell in row.items() if (m := _ABUSE_KIND.match(key)) and cell and _flag(cell)
    )
    category = kinds.most_common(1)[0][0] if unsafe and kinds else ""
    group = job.group(row["conv_id"])
    return Example(turns_of(texts), unsafe, group, job.source, category=category, weight=agreed)


def _any_flag(vote: list[tuple[int, float]]) -> bool:
    """Return True if an annotator set at least one severity."""
    return any(flag for _, flag in vote)


def _flag(cell: str) -> float:
    # An annotator who saw the row twice has two votes in one cell: "0, 1".
    votes = [float(part) for part in cell.split(",")]
    return sum(votes) / len(votes)


def toxichat(job: Job) -> Iterator[Example]:
    """Yield ToxiChat: every turn of a thread as the user's, every bot's reply as the assistant's."""
    name = {"train": "train", "val": "dev", "test": "test"}[job.split]
    for thread in job.json_lines(f"toxichat/{name}.jsonl", lambda row: _toxichat_row(job, row)):
        yield from thread


def _toxichat_row(job: Job, row: Any) -> list[Example]:
    thread = row["reddit_thread"]
    texts = [turn["text"].strip().removeprefix("Title:") for turn in thread]
    group = job.group(texts[0])
    offensive = {turn["turn_id"] for turn in thread if _unsafe(turn["offense_label"])}
    found = [
        Example(turns_of(texts[: i + 1]), _unsafe(turn["offense_label"]), group, job.source)
        for i, turn in enumerate(thread)
        if clean(texts[i])
    ]
    for name in ("final_dgpt_response", "final_gpt3_response"):
        reply = row[name]
        if reply["text"].strip():
            turns = turns_of([*texts, reply["text"]], "assistant")
            agrees = any(reply.get(f"stance_label_towards_turn_{turn}") == "Agree" for turn in offensive)
            category = "agrees_with_offence" if agrees else ""
            found.append(
                Example(turns, _unsafe(reply["offense_label"]), group, job.source, category=category)
            )
    return found


def toxichat_twins(job: Job) -> Iterator[Twin]:
    """Yield two bots' replies to one thread, one offensive, one not."""
    replies = (example for example in toxichat(job) if example.turns[-1].role == "assistant")
    # A reply that agrees with an offence is not offensive by label, but no good reply either.
    fair = (reply for reply in replies if reply.unsafe or reply.category != "agrees_with_offence")
    yield from contrasts(fair, "same_thread")


@dataclass(frozen=True, slots=True)
class Answered:
    """A judged turn of ProsocialDialog with the answer that was written to it."""

    example: Example
    reply: str = field(repr=False)
    rules: tuple[str, ...] = field(repr=False)

    @property
    def group(self) -> str:
        """Group of the dialogue."""
        return self.example.group


def prosocial(job: Job) -> Iterator[Example]:
    """Yield ProsocialDialog: first turns, the example dialogues and, where given, the full files.

    The full set is read if its published `train.json`, `valid.json` and `test.json` lie in the folder.
    """
    yield from (item.example for item in _prosocial_full(job))
    few: list[Example] = [
        *job.lines("prosocial_dialog/first_turns.tsv", lambda line: _prosocial_line(job, line), header=True),
        *(item.example for item in _prosocial_samples(job)),
    ]
    yield from job.hashed(few, test=PROSOCIAL_TEST)


def prosocial_answered(job: Job) -> Iterator[Answered]:
    """Yield what `prosocial` does where an answer goes with it."""
    yield from _prosocial_full(job)
    yield from job.hashed(_prosocial_samples(job), test=PROSOCIAL_TEST)


def _prosocial_full(job: Job) -> Iterator[Answered]:
    name = {"train": "train", "val": "valid", "test": "test"}[job.split]
    path = f"prosocial_dialog/{name}.json"
    if job.find(path) is not None:
        yield from _prosocial_dialogues(job, path, job.json_lines(path, lambda row: [_prosocial_fields(row)]))


def _prosocial_line(job: Job, line: str) -> Example:
    label, text = line.split("\t", 1)
    return _prosocial_example(job, [text], label, clean(text))


def _prosocial_example(job: Job, texts: list[str], label: str, opening: str, rule: str = "") -> Example:
    if label.strip("_") not in _PROSOCIAL:
        raise BrokenRow("unknown label")
    level, weight = _PROSOCIAL[label.strip("_")]
    unsafe = level is not Level.CASUAL
    group = job.group(opening)
    return Example(turns_of(texts), unsafe, group, job.source, level, label.strip("_"), clean(rule), weight)


def _prosocial_fields(row: Any) -> dict[str, Any]:
    names = ("context", "response", "rots", "safety_label", "dialogue_id")
    return {name: row[name] for name in names}


def _prosocial_samples(job: Job) -> Iterator[Answered]:
    name = "prosocial_dialog/original_examples.json"
    columns = dict(job.json_items(name, lambda item: item))
    rows = [dict(zip(columns, row, strict=False)) for row in zip(*columns.values(), strict=False)]
    read = job.each(job.path(name), enumerate(rows, 1), lambda row: [_prosocial_fields(row)])
    yield from _prosocial_dialogues(job, name, read)
    name = "prosocial_dialog/converted_examples.json"
    yield from _prosocial_dialogues(job, name, job.json_items(name, _converted))


def _converted(item: Any) -> list[dict[str, Any]]:
    name, dialogue = item
    return [
        {
            "context": turn["user utterance"],
            "response": turn["system response"],
            "rots": turn["original user side information"]["rots"],
            "safety_label": turn["original user side information"]["safety_label"],
            "dialogue_id": name,
        }
        for turn in dialogue["log"]
    ]


def _prosocial_dialogues(job: Job, name: str, rows: Iterable[list[dict[str, Any]]]) -> Iterator[Answered]:
    texts: list[str] = []
    current: object = None

    def parse(row: dict[str, Any]) -> Answered:
        nonlocal texts, current
        if row["dialogue_id"] != current:
            texts, current = [], row["dialogue_id"]
        history, texts = [*texts, row["context"]], [*texts, row["context"], row["response"]]
        rules = tuple(filter(None, map(clean, row["rots"])))
        opening = clean(history[0])
        example = _prosocial_example(job, history, row["safety_label"], opening, rules[0] if rules else "")
        return Answered(example, clean(row["response"], tokenised=True), rules)

    flat = (row for group in rows for row in group)
    yield from job.each(job.path(name), enumerate(flat, 1), parse)
