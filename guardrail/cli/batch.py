"""`guardrail check --batch`: a JSONL file through the guard, a few lines at a time, in order."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from ..errors import InputError
from .inputs import Line, read_lines
from .output import BAD_INPUT, DONE, FAILED, FLAGGED, is_terminal, to_json, verdict_code

if TYPE_CHECKING:
    from ..pipeline import Guardrail

CHUNK = 32
STDIN = Path("-")


@dataclass(slots=True)
class Tally:
    """How many lines ended how."""

    done: int = 0
    flagged: int = 0
    broken: int = 0
    failed: int = 0

    def add(self, code: int) -> None:
        """Count a line by its exit code."""
        self.done += 1
        self.flagged += code == FLAGGED
        self.broken += code == BAD_INPUT
        self.failed += code == FAILED

    @property
    def exit_code(self) -> int:
        """The highest code of all lines."""
        if self.failed:
            return FAILED
        if self.broken:
            return BAD_INPUT
        return FLAGGED if self.flagged else DONE

    def __str__(self) -> str:
        return f"lines: {self.done}, flagged: {self.flagged}, broken: {self.broken}, failed: {self.failed}"


def check_batch(source: Path, out: Path | None, make_guard: Callable[[], Guardrail]) -> int:
    """Judge every line of a JSONL file and write one result a line.

    Args:
        source: the file; "-" for stdin.
        out: where to write; None for stdout.
        make_guard: called once the source is open, so that a wrong path is told at once, and before
            `out` is emptied.

    Returns:
        The highest exit code of the lines: 0 nothing flagged, 1 flagged, 2 broken, 3 the guard failed.

    Raises:
        InputError: the results would go into the file that is read.
        OSError: a file cannot be opened.
        ArtifactError: the model cannot be loaded.
    """
    if out is not None and out.exists() and source.exists() and out.samefile(source):
        raise InputError(f"expected --out to be another file than --batch, got {out} for both")
    tally = Tally()
    with ExitStack() as stack:
        lines: BinaryIO = sys.stdin.buffer if source == STDIN else stack.enter_context(source.open("rb"))
        guard = make_guard()
        sink = sys.stdout if out is None else stack.enter_context(out.open("w", encoding="utf-8"))
        progress = stack.enter_context(_progress(to_stdout=out is None))
        task = progress.add_task("", total=source.stat().st_size if source.is_file() else None)
        for chunk in _chunks(read_lines(lines)):
            for result, code in _judge(guard, chunk):
                sink.write(to_json(result) + "\n")
                tally.add(code)
            sink.flush()
            progress.update(task, advance=sum(line.size for line in chunk), description=str(tally))
    typer.echo(str(tally), err=True)
    return tally.exit_code


def _judge(guard: Guardrail, chunk: list[Line]) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield the result of each line with its exit code, in order."""
    verdicts = iter(guard.check_batch([line.messages for line in chunk if line.messages is not None]))
    for line in chunk:
        if line.messages is None:
            yield {"line": line.number, "error": line.error}, BAD_INPUT
        else:
            verdict = next(verdicts)
            yield {"line": line.number, **verdict.to_dict()}, verdict_code(verdict)


def _chunks(lines: Iterator[Line]) -> Iterator[list[Line]]:
    while chunk := list(islice(lines, CHUNK)):
        yield chunk


def _progress(*, to_stdout: bool) -> Progress:
    """Return a bar on stderr, silent if that is no terminal or the results scroll through the same one."""
    console = Console(stderr=True)
    return Progress(
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        # Else rich would send what goes to stdout to its own console, which is stderr.
        redirect_stdout=False,
        redirect_stderr=False,
        disable=not console.is_terminal or (to_stdout and is_terminal()),
    )
