"""Anybody's own conversations: JSON lines in the folder `own/` of the data folder.

{"messages": [{"role": "user", "content": "..."}], "unsafe": true, "rule": "...", "group": "..."}

Instead of `messages`: `turns`, a list of texts that alternate from the user on. Instead of `unsafe`:
`level` ("casual", "needs_caution", "needs_intervention"); where both are given, they must agree.
Optional: `rule`, `category`, `weight` (0, 1], `group` (what must stay in one split; default: the first
turn). Files `own/train.jsonl`, `own/val.jsonl` and `own/test.jsonl` keep their split; any other file is
split by group, but for `own/replies.jsonl`, which holds replies for the rewrite model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from guardrail.types import Level, Role, Turn

from ..examples import Example, Twin
from .common import SPLITS, BrokenRow, Job, clean, contrasts

FOLDER = "own"
# Replies to learn from: see replies.py.
REPLIES = "replies.jsonl"
_ROLES = get_args(Role)
TEST, VAL = 0.1, 0.1


def own(job: Job) -> Iterator[Example]:
    """Yield the conversations."""
    paths = (job.data_dir / FOLDER).glob("*.jsonl*")
    # A set: a file may lie there both zipped and plain. And no backups, such as train.jsonl.bak.
    names = {name for path in paths if (name := path.name.removesuffix(".gz")).endswith(".jsonl")}
    for name in sorted(names - {REPLIES}):
        stem = name.split(".")[0]
        if stem in SPLITS and stem != job.split:
            continue
        found = job.json_lines(f"{FOLDER}/{name}", lambda row: example_of(row, job))
        yield from found if stem in SPLITS else job.hashed(found, test=TEST, val=VAL)


def own_twins(job: Job) -> Iterator[Twin]:
    """Yield unsafe and safe last turns after the same history, of one group."""
    yield from contrasts(own(job), "same_history")


def example_of(row: Any, job: Job) -> Example:
    """Return the example of one row.

    Raises:
        BrokenRow: it does not fit the schema.
    """
    turns = spoken_turns(row)
    if "level" in row:
        level: Level | None = Level(row["level"])
        unsafe = level is not Level.CASUAL
        if row.get("unsafe", unsafe) is not unsafe:
            raise BrokenRow("level and unsafe disagree")
    elif isinstance(row.get("unsafe"), bool):
        unsafe = row["unsafe"]
        level = None if unsafe else Level.CASUAL
    else:
        raise BrokenRow("expected unsafe (true or false) or level")
    weight = float(row.get("weight", 1.0))
    if not 0 < weight <= 1:
        raise BrokenRow("weight is not in (0, 1]")
    group = job.group(str(row["group"]) if "group" in row else turns[0].text)
    category, rule = str(row.get("category", "")), clean(str(row.get("rule", "")))
    return Example(turns, unsafe, group, job.source, level, category, rule, weight)


def spoken_turns(row: Any) -> tuple[Turn, ...]:
    """Return the turns of a row with `messages` or `turns`.

    Raises:
        BrokenRow: the last turn is empty, or a role unknown.
    """
    if "messages" in row:
        pairs = [(message["role"], clean(message["content"])) for message in row["messages"]]
    else:
        pairs = [("assistant" if i % 2 else "user", clean(text)) for i, text in enumerate(row["turns"])]
    if not pairs or not pairs[-1][1]:
        raise BrokenRow("the judged turn is empty")
    if any(role not in _ROLES for role, _ in pairs):
        raise BrokenRow(f"a role is not one of {', '.join(_ROLES)}")
    return tuple(Turn(role, text) for role, text in pairs if text)
