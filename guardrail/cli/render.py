"""Verdicts and tables for people, on rich. Imported inside commands only."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ..calibration import Thresholds
from ..types import Action, Coverage, RuleMatch, Verdict
from .output import printable

BAR_CELLS = 20
COLOURS = {Action.ALLOW: "green", Action.CAUTION: "yellow", Action.INTERVENE: "red"}
WORDS = {
    Action.ALLOW: "nothing flagged",
    Action.CAUTION: "flagged, needs caution",
    Action.INTERVENE: "flagged, needs intervention",
}


class Out(Console):
    """A console that leaves a broken pipe to the one place that turns errors into exit codes."""

    def on_broken_pipe(self) -> None:
        """Raise it again."""
        raise BrokenPipeError


def print_verdict(verdict: Verdict, thresholds: Thresholds) -> None:
    """Write one verdict as a panel to stdout."""
    Out().print(verdict_panel(verdict, thresholds))


def verdict_panel(verdict: Verdict, thresholds: Thresholds) -> Panel:
    """Return a verdict as a panel: action, probability, rules, and what was not read."""
    colour = "red" if verdict.status == "error" else COLOURS[verdict.action]
    head = Text.assemble((f" {verdict.action.value.upper()} ", f"bold {colour} reverse"), " ")
    head.append("the guard failed" if verdict.status == "error" else WORDS[verdict.action], style=colour)
    odds = Text.assemble(
        "P(unsafe) ",
        (f"{verdict.probability:.3f} ", "bold"),
        *_bar(verdict.probability, colour),
        f"  threshold {thresholds.caution:.3f}, one rule {thresholds.rule:.3f}",
    )
    body: list[RenderableType] = [head, odds]
    body += _rules("Rules broken", verdict.rules, "bold")
    broken = {match.rule.id for match in verdict.rules}
    touched = [match for match in verdict.touched if match.rule.id not in broken]
    body += _rules("Rules touched", touched, "")
    if not verdict.coverage.complete:
        body.append(Text(_coverage(verdict.coverage), style="yellow"))
    if verdict.status != "ok":
        body.append(Text(f"Status: {verdict.status}", style="yellow"))
    if verdict.reason:
        body.append(Text(printable(verdict.reason)))
    return Panel(Group(*body), title=f"turn {verdict.turn + 1}, {verdict.role}", border_style=colour)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None) -> None:
    """Write a table to stdout: drawn on a terminal; else one tab-separated line a row, for grep and cut."""
    console = Out()
    if not console.is_terminal:
        lines = ["\t".join(printable(cell) for cell in row) for row in rows]
        console.file.write("".join(f"{line}\n" for line in lines))
        return
    table = Table(*columns, title=title, title_justify="left", header_style="bold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console.print(table)


def _bar(probability: float, colour: str) -> list[tuple[str, str]]:
    cells = round(min(max(probability, 0.0), 1.0) * BAR_CELLS)
    return [("█" * cells, colour), ("░" * (BAR_CELLS - cells), "dim")]


def _rules(title: str, matches: Sequence[RuleMatch], style: str) -> list[RenderableType]:
    if not matches:
        return []
    lines: list[RenderableType] = [Text(), Text(title, style="underline")]
    for match in matches:
        lines.append(Padding(Text(printable(match.rule.text), style=style), (0, 0, 0, 2)))
        figures = f"{match.rule.id}  similarity {match.similarity:.3f}  probability {match.probability:.3f}"
        lines.append(Padding(Text(figures, style="dim"), (0, 0, 0, 2)))
    return lines


def _coverage(coverage: Coverage) -> str:
    text = (
        f"\nRead {coverage.turns_read} of {coverage.turns_given} turns, "
        f"{coverage.tokens_read} of {coverage.tokens_given} tokens"
    )
    if coverage.parts_skipped:
        text += f"; {coverage.parts_skipped} parts that are not text were skipped"
    if not coverage.judged_turn_read:
        text += "; the judged turn was not read as a whole"
    return text
