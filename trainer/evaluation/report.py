"""What an evaluation found: figures by section, and what plots need. JSON and tables are made here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .classification import Scored
from .common import Figures, rounded
from .meaning_map import MeaningMap

Section = dict[str, Figures]  # figures by row: a set, a part of it, or a system


@dataclass(frozen=True, slots=True)
class Text:
    """Heading and explanation of a section.

    Attributes:
        title: the heading.
        note: how to read the figures.
    """

    title: str
    note: str


SECTIONS: dict[str, Text] = {
    "classification": Text(
        "Classification",
        "Unsafe against safe, by set. The interval is a 95 % bootstrap over whole conversations. Macro-F1: "
        "flagged against unsafe. Not ok: the guard did not read or could not judge the whole turn. Of the "
        "bank, rules are held out with their dialogues, domains are not: training has seen other rules of "
        "each domain.",
    ),
    "categories": Text("Categories", "The same by the category that a set gives its examples."),
    "levels": Text(
        "Levels",
        "Casual, needs caution, needs intervention; and ProsocialDialog's five labels, read off the level "
        "logits by a regression fitted on validation data. Five-way figures leave out the rows in which the "
        "data has merged two labels; four-way figures merge them everywhere. Majority: accuracy of always "
        "naming the commonest label.",
    ),
    "retrieval": Text(
        "Rule retrieval",
        "Does the right rule of thumb come first? Splits are disjoint by situation, and by rule across sets; "
        "not by domain.",
    ),
    "discrimination": Text(
        "Contrasts",
        "How often the unsafe version scores above its safe twin. Beside it a bag of words trained on our "
        "training twins; word neutral is the part on which that is at chance. Intervals: 95 % bootstrap over "
        "whole groups.",
    ),
    "over_refusal": Text(
        "Over-refusal", "Harmless turns: flagged, and touched (the app's model is guided, nobody is blocked)."
    ),
    "escalation": Text(
        "Second opinion",
        "Quality against the share of turns that a judge reads. Escalated: read, from P(unsafe) low to high; "
        "failed: the share of them on which the judge gave no valid answer.",
    ),
}
LABELS = {
    "n": "n",
    "auroc": "AUROC",
    "auroc_95": "95 %",
    "auprc": "AUPRC",
    "recall_at_1_percent": "recall, 1 % FA",
    "recall_at_5_percent": "recall, 5 % FA",
    "ece": "ECE",
    "brier": "Brier",
    "macro_f1": "macro-F1",
    "mrr": "MRR",
    "ndcg_at_10": "nDCG@10",
    "pairwise_95": "95 %",
    "single_auroc": "AUROC, singles",
    "single_auroc_95": "95 %",
}
COUNTS = frozenset({"n", "unsafe", "queries", "rules"})
SHARES = frozenset(
    "unsafe_flagged safe_flagged flagged touched not_ok escalated recall false_alarms failed".split()
)
LOW, HIGH, INTERVAL = "_low", "_high", "_95"


@dataclass(frozen=True, slots=True)
class Table:
    """A section for people.

    Attributes:
        title: heading.
        note: how to read it.
        columns: names, the first of them that of the row.
        rows: cells as text; "" where a figure does not apply.
    """

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Report:
    """An evaluation.

    Attributes:
        model: name of the model folder.
        figures: rows of figures by section; sections that were not asked for are absent.
        caution: the threshold on P(unsafe).
        scored: the sets that were judged, for plots.
        map: rules and contexts in two dimensions, or None.
    """

    model: str
    figures: dict[str, Section]
    caution: float
    scored: tuple[Scored, ...] = field(default=(), repr=False)
    map: MeaningMap | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, with nan where a figure is not defined."""
        sections = {
            name: {row: rounded(figures) for row, figures in section.items()}
            for name, section in self.figures.items()
        }
        return {"model": self.model, "caution_threshold": round(self.caution, 4), **sections}

    def tables(self) -> list[Table]:
        """Return one table for each section that has rows."""
        return [table(SECTIONS[name], section) for name, section in self.figures.items() if section]

    def markdown(self) -> str:
        """Return the tables in Markdown."""
        return "\n".join(map(_markdown, self.tables()))


def table(text: Text, section: Mapping[str, Figures]) -> Table:
    """Return a section as cells; the ends of an interval share one column."""
    shown = {row: _cells(figures) for row, figures in section.items()}
    names = list(dict.fromkeys(name for cells in shown.values() for name in cells))
    return Table(
        text.title,
        text.note,
        ("", *(label(name) for name in names)),
        tuple(
            (row.replace("_", " "), *(cells.get(name, "") for name in names)) for row, cells in shown.items()
        ),
    )


def label(name: str) -> str:
    """Return the heading of a figure's column."""
    return LABELS.get(name, name.replace("_at_", "@").replace("_", " "))


def cell(name: str, value: float) -> str:
    """Return a figure as text: a count, a share in percent, or three decimals."""
    if not math.isfinite(value):
        return "–"
    if name in COUNTS:
        return f"{value:.0f}"
    return f"{100 * value:.1f} %" if name in SHARES else f"{value:.3f}"


def _cells(figures: Figures) -> dict[str, str]:
    cells: dict[str, str] = {}
    for name, value in figures.items():
        if name.endswith(LOW):
            high = figures[name.removesuffix(LOW) + HIGH]
            cells[name.removesuffix(LOW) + INTERVAL] = f"{cell(name, value)} to {cell(name, high)}"
        elif not name.endswith(HIGH):
            cells[name] = cell(name, value)
    return cells


def _markdown(item: Table) -> str:
    lines = [item.columns, tuple("---" for _ in item.columns), *item.rows]
    body = "\n".join("| " + " | ".join(_escaped(cell) for cell in line) + " |" for line in lines)
    return f"### {item.title}\n\n{item.note}\n\n{body}\n"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
