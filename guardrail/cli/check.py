"""`guardrail check`: judge one conversation, or a JSONL batch of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .inputs import read_file, read_stdin
from .options import AsJson, ExtraRules, Model, load_guard
from .output import print_json, verdict_code

if TYPE_CHECKING:
    from ..conversation import Messages


def _probability(value: float | None) -> float | None:
    if value is not None and not 0 < value < 1:
        raise typer.BadParameter(f"expected a probability between 0 and 1, both excluded, got {value}")
    return value


def check(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT]", help="One user turn; quotes may be left out.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="A .json file is a conversation, any other file one user turn."),
    ] = None,
    stdin: Annotated[
        bool, typer.Option("--stdin", help="Read a JSON conversation or one user turn.")
    ] = False,
    plain: Annotated[
        bool, typer.Option("--plain", help="Take --file or --stdin as text even if it looks like JSON.")
    ] = False,
    batch: Annotated[
        Path | None, typer.Option(metavar="PATH.jsonl", help="One conversation a line; - for stdin.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Where a batch writes. Default: stdout.")
    ] = None,
    model: Model = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            metavar="P", callback=_probability, help="Flag from this probability on. Default: calibrated."
        ),
    ] = None,
    rules: ExtraRules = None,
    as_json: AsJson = False,
) -> None:
    """Judge the last turn of a conversation, read in its context.

    A conversation is plain text, or JSON: a string, a list of strings (user and
    assistant in turn), a list of role/content objects, or an object with
    "messages" or "turns".

    A batch writes one line of JSON for each conversation, with the number of its
    line. A broken line gives {"line": n, "error": "..."} and the batch goes on;
    it ends with the highest exit code of its lines.
    """
    # Words beyond the first would end in a usage error that shows them.
    text = " ".join(words) if words else None
    _one_source(
        {"TEXT": text is not None, "--file": file is not None, "--stdin": stdin, "--batch": batch is not None}
    )
    if plain and file is None and not stdin:
        raise typer.BadParameter("--plain is for --file and --stdin")
    if out is not None and batch is None:
        raise typer.BadParameter("--out is for --batch; for one conversation redirect stdout")
    if batch is not None:
        from .batch import check_batch

        raise typer.Exit(check_batch(batch, out, lambda: load_guard(model, rules=rules, threshold=threshold)))
    messages = _read(text, file, plain=plain)
    guard = load_guard(model, rules=rules, threshold=threshold)
    verdict = guard.check(messages)
    if as_json:
        print_json(verdict.to_dict())
    else:
        from .render import print_verdict

        print_verdict(verdict, guard.thresholds)
    raise typer.Exit(verdict_code(verdict))


def _one_source(given: dict[str, bool]) -> None:
    names = [name for name, is_given in given.items() if is_given]
    if len(names) != 1:
        raise typer.BadParameter(f"expected one of {', '.join(given)}, got {' and '.join(names) or 'none'}")


def _read(text: str | None, file: Path | None, *, plain: bool) -> Messages:
    if text is not None:
        return text
    return read_stdin(plain=plain) if file is None else read_file(file, plain=plain)
