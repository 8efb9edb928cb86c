"""Reads the data sets into `ReplyExample`s: a conversation and a reply that is worth imitating.

The public sets are those of `SOURCES`, with the same groups, splits and licences, so that what is held
out from the detector is held out here.

A reply worth imitating has the form of one: 5 to 60 words, whole sentences in prose, no link, no remains
of a deleted post (`well_formed`). That is asked of every source but the replies that were written to be
imitated. Talk of bots, even where annotators found nothing unsafe in it, mostly changes the subject, asks
back or goes along; of theirs, only what shows sympathy or takes a stand is kept (`takes_a_stand`), and it
weighs less.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from guardrail.rules.schema import Rule
from guardrail.types import Turn

from ..examples import Example, Twin
from ..replies import ReplyExample
from . import casual, dialogue_safety, mic, plain, requests
from .common import BrokenRow, Job, LoadReport, clean
from .own import authored_turns

# Replies that were written to be imitated, in the voice that we want: the bank's, those to single
# conversations, and the safe side of our own pairs.
OWN_REPLIES = ("bank", "situations", "pairs")
# What the assistant says in our own harmless conversations: the same voice, nothing to repair.
OWN_TALK = "own_talk"
# Harmless talk, no rules, nothing to repair: fluency for a base that has never written.
TALK = (OWN_TALK, "self_dialogue", "topical_chat", "wow", "msc")
OWN_FILE = f"{plain.FOLDER}/{plain.REPLIES}"

MIN_WORDS, MAX_WORDS = 5, 60
_ENDS = (".", "!", "?", '."', '!"', '?"', ".'", "!'", "?'")
_NOT_PROSE = re.compile(r"https?:|www\.|\w\.com\b|\[\w+\]|\b[Ee]dit:|(^|\s)(\d+[.)]|[-*\u2022])\s")
_SYMPATHY = re.compile(
    r"\b(sorry (to hear|you|that|for)|hope (you|he|she|they|things)|not alone|here for you|take care|doctor|"
    r"therapist|counsel\w+|police|emergency|(get|seek|professional) help|"
    r"(see|talk(ing)? to|ask) (a|your|someone|somebody|them|him|her))\b",
    re.IGNORECASE,
)
_STAND = re.compile(
    r"\b((sh|w)ould(n.t| not)|(can.t|cannot|won.t) help|"
    r"(\w+n.t|not) (a |be |seem |sound |that |very |really )*(good|ok|okay|right|fair|nice|safe|funny|kind)|"
    r"wrong|illegal|a crime|dangerous|risky|against the law|hurt(s|ful)?|harmful|disrespectful|unkind|rude|"
    r"racist|sexist|offensive|stereotyp\w+|human beings?)\b",
    re.IGNORECASE,
)
_EVASION = re.compile(
    r"^(sure|yes|yeah|ok|okay|of course|absolutely|great|wow|well|thank|you can|you could|i can|i could|"
    r"if you|you.re welcome|that.s (a )?(good|great))\b|something else|understand|you mean|mean by|"
    r"not sure what|know what|ro?bot\b|in brief|for a living|for fun|spare time|favou?rite|hobb(y|ies)|"
    r"\bpets?\b|what kind|any other questions|anything else|google|agree with you|do agree|let me",
    re.IGNORECASE,
)
# How far a bot's reply is trusted beside one that a person wrote to be imitated.
_BOT = 0.5
_ADVISED = frozenset({"Risk Ignorance", "Unauthorized Expertise"})
_CASUAL_TURNS = 6


@dataclass(frozen=True, slots=True)
class ReplySource:
    """A public data set of replies; its licence and splits are those of the same name in `SOURCES`.

    Attributes:
        replies: yields its replies.
        optional: file that it is read from, where it may be missing, or "".
    """

    replies: Callable[[Job], Iterator[ReplyExample]]
    optional: str = ""


def well_formed(reply: str) -> bool:
    """Return True if a reply has 5 to 60 words of prose and ends where a sentence does."""
    words = len(reply.split())
    return MIN_WORDS <= words <= MAX_WORDS and reply.endswith(_ENDS) and not _NOT_PROSE.search(reply)


def takes_a_stand(reply: str) -> bool:
    """Return True if a reply has a word of sympathy, advice or disapproval, and none that evades."""
    return bool(_SYMPATHY.search(reply) or _STAND.search(reply)) and not _EVASION.search(reply)


# --- our own writing ---


def bank_replies(rules: Iterable[Rule]) -> list[ReplyExample]:
    """Return the authored replies of rules; the group is the rule's id.

    Where the last turn of the violation is the assistant's, the reply takes its place: that turn is the
    draft, and the rejected reply.
    """
    return [
        _in_place(
            authored_turns(rule.violations[reply.to].turns), clean(reply.reply), rule.id, "bank", rule.text
        )
        for rule in rules
        for reply in rule.replies
    ]


def situation_replies(path: Path, report: LoadReport | None = None) -> list[ReplyExample]:
    """Return replies of our own to single conversations; none if there is no such file.

    A row is `{"id": ..., "rule": ..., "turns": [...], "reply": ...}`. Turns alternate from the user on. What
    the reply replaces is the last one, if it is the assistant's, or `draft`. The group is the id.
    """
    path = Path(path)
    job = Job(path.parent, "situations", "train", report=report or LoadReport())

    def parse(row: Any) -> ReplyExample:
        draft = [row["draft"]] if row.get("draft") else []
        turns, reply, rule = authored_turns([*row["turns"], *draft]), clean(row["reply"]), clean(row["rule"])
        if not reply or not rule:
            raise BrokenRow("reply or rule is empty")
        if draft and turns[-1].role != "assistant":
            raise BrokenRow("a draft answers the user, but the last turn is the assistant's")
        return _in_place(turns, reply, str(row["id"]), job.source, rule)

    return list(job.json_lines(path.name, parse)) if job.find(path.name) else []


def _in_place(turns: tuple[Turn, ...], reply: str, group: str, source: str, rule: str) -> ReplyExample:
    draft = turns[-1].text if turns[-1].role == "assistant" else ""
    context = turns[:-1] if draft else turns
    return ReplyExample(context, reply, group, source, (rule,), (draft,) if draft else (), draft)


def pair_replies(twins: Iterable[Twin]) -> list[ReplyExample]:
    """Return the safe replies of our own twins whose two sides answer the same conversation.

    Where only two facts together decide, the two replies are wrong and right by a detail that they
    repeat, not by what they care about: those are left out.
    """
    answers = [
        twin
        for twin in twins
        if twin.unsafe[:-1] == twin.safe[:-1]
        and twin.safe[-1].role == "assistant"
        and not twin.source.startswith("crossed_")
    ]
    return [replace(item, source="pairs") for item in _of_twins(answers)]


def talk_replies(examples: Iterable[Example], twins: Iterable[Twin]) -> list[ReplyExample]:
    """Return what the assistant says before the judged turn of our own conversations, each reply once.

    Of conversations that end badly nothing is taken, as the assistant may have missed the signs before.
    """
    safe = [(item.group, item.turns) for item in examples if not item.unsafe]
    safe += [(twin.group, twin.safe) for twin in twins]
    found: dict[str, ReplyExample] = {}
    for group, turns in safe:
        for place, turn in enumerate(turns[:-1]):
            if place and turn.role == "assistant" and well_formed(turn.text):
                found.setdefault(turn.text, ReplyExample(turns[:place], turn.text, group, OWN_TALK))
    return list(found.values())


# --- public sets ---


def _diasafety(job: Job) -> Iterator[ReplyExample]:
    # The other categories are quarrels on Reddit, where the safe reply is the politer insult.
    advised = (item for item in dialogue_safety.diasafety(job) if item.category in _ADVISED)
    yield from _of_bots(_of_examples(advised))


def _bad(job: Job) -> Iterator[ReplyExample]:
    examples = list(dialogue_safety.bad(job))
    # What answers a harmless turn is no repair.
    provoked = {item.turns for item in examples if item.unsafe and item.turns[-1].role == "user"}
    yield from _of_bots(_of_examples(item for item in examples if item.turns[:-1] in provoked))


def _of_examples(examples: Iterable[Example]) -> Iterator[ReplyExample]:
    """Yield the assistant's safe replies; unsafe ones to the same turns are the rejected."""
    answers: dict[tuple[Turn, ...], tuple[list[Example], list[str]]] = defaultdict(lambda: ([], []))
    for item in examples:
        if item.turns[-1].role == "assistant" and len(item.turns) > 1:
            safe, unsafe = answers[item.turns[:-1]]
            unsafe.append(item.turns[-1].text) if item.unsafe else safe.append(item)
    for turns, (safe, unsafe) in answers.items():
        rejected = tuple(dict.fromkeys(unsafe))
        for item in safe:
            yield ReplyExample(
                tuple(Turn(turn.role, clean(turn.text, tokenised=True)) for turn in turns),
                clean(item.turns[-1].text, tokenised=True),
                item.group,
                item.source,
                (item.rule,) if item.rule else (),
                rejected,
                rejected[-1] if rejected else "",
                item.weight,
            )


def _hh_rlhf(job: Job) -> Iterator[ReplyExample]:
    yield from _of_bots(_of_twins(requests.hh_rlhf_twins(job)))


def _safetext(job: Job) -> Iterator[ReplyExample]:
    yield from _of_twins(requests.safetext_twins(job))


def _of_twins(twins: Iterable[Twin]) -> Iterator[ReplyExample]:
    """Yield each safe reply once; unsafe ones to the same turns are the rejected."""
    answers: dict[tuple[Turn, ...], tuple[dict[str, Twin], list[str]]] = defaultdict(lambda: ({}, []))
    for twin in twins:
        safe, unsafe = answers[twin.safe[:-1]]
        safe.setdefault(twin.safe[-1].text, twin)
        unsafe.append(twin.unsafe[-1].text)
    for turns, (safe, unsafe) in answers.items():
        rejected = tuple(dict.fromkeys(unsafe))
        for reply, twin in safe.items():
            rules = (twin.rule,) if twin.rule else ()
            if well_formed(reply):
                yield ReplyExample(turns, reply, twin.group, twin.source, rules, rejected, rejected[-1])


def _of_bots(replies: Iterable[ReplyExample]) -> Iterator[ReplyExample]:
    for item in replies:
        if well_formed(item.reply) and takes_a_stand(item.reply):
            yield replace(item, weight=_BOT * item.weight)


def _prosocial(job: Job) -> Iterator[ReplyExample]:
    for item in dialogue_safety.prosocial_answered(job):
        if well_formed(item.reply):
            example = item.example
            yield ReplyExample(
                example.turns, item.reply, item.group, job.source, item.rules, weight=example.weight
            )


def _mic(job: Job) -> Iterator[ReplyExample]:
    """Yield each answer as an annotator would give it, under the rule of thumb that it should keep."""
    for row in mic.rows_of(job):
        if row.revised and row.revised != row.answer and well_formed(row.revised):
            turns, group = (Turn("user", row.question),), job.group(row.question)
            # An answer that goes against no rule is no unsafe draft.
            draft = row.answer if row.breaks_rule else ""
            rejected = (draft,) if draft else ()
            yield ReplyExample(
                turns, row.revised, group, job.source, (row.rule,), rejected, draft, row.consensus
            )


def _own(job: Job) -> Iterator[ReplyExample]:
    """Yield anybody's own replies, one JSON object per line of `own/replies.jsonl`.

    {"messages": [{"role": "user", "content": "..."}], "reply": "..."} or `turns` for `messages`.
    Optional: `rules`, `rejected` (lists of texts), `draft` (the unsafe reply that this one replaces),
    `weight` (0, 1], `group` (what must stay in one split; default: the first turn).
    """
    yield from job.hashed(
        job.json_lines(OWN_FILE, lambda row: _own_row(row, job)), test=plain.TEST, val=plain.VAL
    )


def _own_row(row: Any, job: Job) -> ReplyExample:
    turns, reply, draft = plain.spoken_turns(row), clean(row["reply"]), clean(row.get("draft", ""))
    if not reply:
        raise BrokenRow("the reply is empty")
    if turns[-1].role == "assistant":
        raise BrokenRow("the last turn is the assistant's; what is to be replaced goes into draft")
    weight = float(row.get("weight", 1.0))
    if not 0 < weight <= 1:
        raise BrokenRow("weight is not in (0, 1]")
    rejected = _texts(row, "rejected") or ((draft,) if draft else ())
    group = job.group(str(row["group"]) if "group" in row else turns[0].text)
    return ReplyExample(turns, reply, group, job.source, _texts(row, "rules"), rejected, draft, weight)


def _texts(row: Any, name: str) -> tuple[str, ...]:
    texts = row.get(name, [])
    if not isinstance(texts, list):
        raise BrokenRow(f"{name} is not a list")
    return tuple(filter(None, map(clean, texts)))


def _casual(read: casual.Dialogues) -> Callable[[Job], Iterator[ReplyExample]]:
    def replies(job: Job) -> Iterator[ReplyExample]:
        for item in read(replace(job, per_dialogue=_CASUAL_TURNS)):
            *context, last = item.turns
            if context and last.role == "assistant" and well_formed(last.text):
                yield ReplyExample(tuple(context), last.text, item.group, job.source)

    return replies


REPLY_SOURCES: dict[str, ReplySource] = {
    "bad": ReplySource(_bad),
    "diasafety": ReplySource(_diasafety),
    "hh_rlhf": ReplySource(_hh_rlhf),
    "safetext": ReplySource(_safetext),
    "prosocial_dialog": ReplySource(_prosocial),
    "mic": ReplySource(_mic, mic.FILE),
    "own": ReplySource(_own, OWN_FILE),
    "self_dialogue": ReplySource(_casual(casual.SELF_DIALOGUE)),
    "topical_chat": ReplySource(_casual(casual.TOPICAL_CHAT)),
    "wow": ReplySource(_casual(casual.WOW)),
    "msc": ReplySource(_casual(casual.MSC)),
}
