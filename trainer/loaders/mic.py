"""The Moral Integrity Corpus (Ziems et al. 2022): prompt, a bot's answer, a rule of thumb about it.

The file `MIC.csv` comes from its authors on agreement and is no part of what this library ships or
trains on. One row per answer and rule of thumb: `Q`, `A`, `rot`, `A_agrees` (does the answer disagree
with the rule, 0, neither, 1, or agree, 2; `A_agree` is read too), `rot-agree` (how many people hold it,
1 to 5), `violation-severity` (1 to 5), `moral` (foundations joined by "|"), `split` (train, dev, test)
and, in some releases, `worker_answer` (the answer as the annotator would give it).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from guardrail.types import Level

from ..examples import Example, Twin
from .common import BrokenRow, Job, LoadReport, Split, clean, contrasts, turns_of
from .norms import NormPair

FILE = "mic/MIC.csv"
_SPLITS = {"train": "train", "dev": "val", "val": "val", "test": "test"}
_DISAGREES, _AGREES = 0, 2
# A breach that annotators call mild (1, 2) asks for no step; a grave one (5) for intervention.
_UNSAFE_FROM, _GRAVE_FROM = 3, 5
_SCALE = 5


@dataclass(frozen=True, slots=True)
class Row:
    """An answer with one rule of thumb about it; `revised` is "" where nobody wrote a better one."""

    question: str = field(repr=False)
    answer: str = field(repr=False)
    rule: str
    stance: int
    consensus: float
    severity: float
    foundation: str
    revised: str = field(default="", repr=False)

    @property
    def breaks_rule(self) -> bool:
        """True if the answer goes against the rule."""
        return self.stance == _DISAGREES


def rows_of(job: Job) -> Iterator[Row]:
    """Yield the rows of the job's split."""

    def parse(row: dict[str, str]) -> Row | None:
        if row["split"] not in _SPLITS:
            raise BrokenRow("split is not train, dev or test")
        if _SPLITS[row["split"]] != job.split:
            return None
        question, answer, rule = clean(row["Q"]), clean(row["A"]), clean(row["rot"])
        if not question or not answer or not rule:
            raise BrokenRow("question, answer or rule is empty")
        agrees = row["A_agrees"] if "A_agrees" in row else row["A_agree"]
        stance = int(float(agrees)) if agrees else 1
        consensus = float(row["rot-agree"] or 3) / _SCALE
        severity = float(row["violation-severity"] or 1)
        if stance not in (0, 1, 2) or not 0 < consensus <= 1 or not 1 <= severity <= _SCALE:
            raise BrokenRow("A_agrees, rot-agree or violation-severity is out of range")
        foundation = (row.get("moral") or "").split("|")[0]
        revised = clean(row.get("worker_answer") or "")
        return Row(question, answer, rule, stance, consensus, severity, foundation, revised)

    yield from job.csv_rows(FILE, parse)


def mic(job: Job) -> Iterator[Example]:
    """Yield each answer once: unsafe if it gravely breaks a rule of thumb, safe if it breaks none.

    An answer whose breaches are all mild is left out; of several broken rules the gravest is kept.
    """
    answers: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows_of(job):
        answers[row.question, row.answer].append(row)
    for (question, answer), rows in answers.items():
        broken = [row for row in rows if row.breaks_rule]
        grave = max(broken, key=lambda row: row.severity, default=None)
        if grave is not None and grave.severity < _UNSAFE_FROM:
            continue
        turns, group = turns_of([question, answer], "assistant"), job.group(question)
        if grave is None:
            yield Example(turns, False, group, job.source, Level.CASUAL, weight=_mean(rows))
            continue
        level = Level.NEEDS_INTERVENTION if grave.severity >= _GRAVE_FROM else Level.NEEDS_CAUTION
        yield Example(
            turns, True, group, job.source, level, grave.foundation, grave.rule, weight=grave.consensus
        )


def _mean(rows: Iterable[Row]) -> float:
    values = [row.consensus for row in rows]
    return sum(values) / len(values)


def mic_twins(job: Job) -> Iterator[Twin]:
    """Yield two answers to one question, one unsafe, one safe."""
    yield from contrasts(mic(job), "same_question")


def load_mic_norms(data_dir: Path, split: Split, report: LoadReport | None = None) -> list[NormPair]:
    """Return question and answer with every rule of thumb about it; empty without the file.

    A question that stands in an earlier split too (test comes first, then train) is left out.
    """
    job = Job(Path(data_dir), "mic", split, report=report or LoadReport())
    if job.find(FILE) is None:
        return []
    earlier: dict[Split, tuple[Split, ...]] = {"test": (), "train": ("test",), "val": ("test", "train")}
    taken = {
        job.group(row.question) for other in earlier[split] for row in rows_of(replace(job, split=other))
    }
    return [
        NormPair(
            row.question,
            row.rule,
            job.group(row.question),
            job.source,
            row.consensus,
            row.foundation,
            row.answer,
        )
        for row in rows_of(job)
        if job.group(row.question) not in taken
    ]
