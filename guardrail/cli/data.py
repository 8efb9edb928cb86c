"""`guardrail data`: look at training data before training on it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import AsJson
from .output import EXIT_CODES, print_json, printable

app = typer.Typer(no_args_is_help=True, help="Look at training data.", epilog=EXIT_CODES)


@app.callback()
def _group() -> None:
    """Keep `inspect` a command of its own while it is the only one."""


@app.command()
def inspect(
    path: Annotated[
        Path,
        typer.Argument(help="A data folder, or a JSONL file of conversations, pairs, situations, rules."),
    ],
    sources: Annotated[str | None, typer.Option(metavar="A,B", help="Public sets. Default: all.")] = None,
    samples: Annotated[int, typer.Option(min=0, help="Conversations to show.")] = 10,
    seed: Annotated[int, typer.Option(help="Of their choice.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Show counts, labels, lengths, broken rows and some samples. The samples are shown as they are."""
    from guardrail.trainer.inspection import (  # type: ignore[import-not-found, unused-ignore]
        inspect as read,
    )

    names = [name.strip() for name in sources.split(",") if name.strip()] if sources is not None else None
    found = read(path, sources=names, samples=samples, seed=seed)
    if as_json:
        print_json(asdict(found))
        return
    _show(found)


def _show(found: Any) -> None:
    from .render import print_table

    header = (
        "source",
        "split",
        "examples",
        "unsafe",
        "twins",
        "norms",
        "turns",
        "words 10/50/90 %",
        "levels",
    )
    print_table(
        header,
        [
            (
                part.source,
                part.split,
                str(part.examples),
                f"{part.unsafe / part.examples:.0%}" if part.examples else "-",
                str(part.twins),
                str(part.norms),
                f"{part.turns:.0f}",
                "/".join(f"{value:.0f}" for value in part.words),
                ", ".join(f"{name} {count}" for name, count in sorted(part.levels.items())) or "-",
            )
            for part in found.parts
        ],
    )
    for name, count in sorted(found.skipped.items()):
        typer.echo(f"{name}: {count} broken rows skipped; the first: {'; '.join(found.reasons[name])}")
    for name, count in sorted(found.held_back.items()):
        typer.echo(f"{name}: {count} rows left out, another split has their text or group")
    if found.absent:
        typer.echo(f"not there: {', '.join(found.absent)}")
    for sample in found.samples:
        typer.echo(f"\n[{sample.source}] {sample.label}" + (f" | {sample.rule}" if sample.rule else ""))
        for turn in sample.turns:
            typer.echo(f"  {turn.role}: {printable(turn.text)}")
