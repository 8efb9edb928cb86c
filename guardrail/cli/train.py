"""`guardrail train` and `guardrail eval`. Torch is imported when a command runs, never before.

Type checkers do not see that the folder trainer/ installs as guardrail.trainer, hence the ignores.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import ConfigError, InputError, MissingDependencyError
from .options import AsJson
from .output import EXIT_CODES, print_json

DATA_ENV = "GUARDRAIL_DATA"

app = typer.Typer(
    no_args_is_help=True, help="Train a model of your own (needs the train extra).", epilog=EXIT_CODES
)

Data = Annotated[
    Path | None,
    typer.Option(
        "--data", metavar="DIR", envvar=DATA_ENV, help="Public sets. Default: our own writing alone."
    ),
]


@app.command()
def encoder(
    out: Annotated[Path, typer.Option(metavar="RUN", help="Folder of the run; the model: RUN/artifact.")],
    config: Annotated[Path | None, typer.Option(metavar="TOML", help="A recipe; options go over it.")] = None,
    data: Data = None,
    base: Annotated[
        str | None, typer.Option(help='"minilm", a folder or a hub id of a transformers encoder.')
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Conversations a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak, of the encoder.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest input in training.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of every random choice.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Stop after so many steps.")] = None,
    sources: Annotated[str | None, typer.Option(metavar="A,B", help="Public sets. Default: all.")] = None,
    rules: Annotated[
        Path | None, typer.Option(metavar="FILE.jsonl", help="Rules to train on, instead of the bank.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    no_export: Annotated[bool, typer.Option("--no-export", help="Train only; write no model.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train an encoder, then write RUN/artifact, a model folder for --model and Guardrail.load."""
    from guardrail.trainer.config import EncoderConfig  # type: ignore[import-not-found, unused-ignore]

    recipe = EncoderConfig.read(
        config,
        base=base,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        max_tokens=max_tokens,
        seed=seed,
        max_steps=max_steps,
    )
    own_rules = None
    if rules is not None:
        from ..rules import read_rules

        own_rules = read_rules(rules)
    names = _names(sources, data)
    _refuse_trained(out, resume=resume)
    figures: dict[str, Any] = {}
    with _train_extra(), _stdout_kept(as_json):
        from guardrail.trainer.pipeline import train_encoder  # type: ignore[import-not-found, unused-ignore]

        train_encoder(recipe, out, data_dir=data, sources=names, rules=own_rules, resume=resume)
        if not no_export:
            from guardrail.trainer.finalize import finalize  # type: ignore[import-not-found, unused-ignore]

            figures = finalize(out, data_dir=data, folder=out / "artifact", sources=names, rules=own_rules)
    model = None if no_export else out / "artifact"
    if as_json:
        print_json({"run": str(out), "model": None if model is None else str(model), "figures": figures})
        return
    _print_figures(figures)
    typer.echo(
        f"trained {out}" if model is None else f"trained {model}; try: guardrail check --model {model} TEXT"
    )


def evaluate(
    model: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Model folder. Default: the one that ships.")
    ] = None,
    data: Data = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most conversations of one set.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a model folder on the test splits (needs the train extra)."""
    with _train_extra(), _stdout_kept(as_json):
        from guardrail.trainer.evaluate import evaluate as measure  # type: ignore[import-not-found, unused-ignore]

        figures = measure(model, data, limit)
    if as_json:
        print_json(figures)
        return
    from .render import print_table

    # One figure a line: the sets have different ones, a table of them all would be mostly holes.
    rows = [(name, figure, _figure(value)) for name, row in figures.items() for figure, value in row.items()]
    print_table(("set", "figure", "value"), rows)


def _names(sources: str | None, data: Path | None) -> list[str] | None:
    if sources is None:
        return None
    names = [name.strip() for name in sources.split(",") if name.strip()]
    if not names:
        raise InputError("expected --sources as names with commas between them, got none")
    if data is None:
        raise InputError(f"expected --data or {DATA_ENV} with --sources, got neither; where are the sets?")
    return names


def _refuse_trained(run: Path, *, resume: bool) -> None:
    """Refuse to write over a training: it may have taken hours."""
    if not resume and ((run / "model").exists() or any(run.glob("checkpoint-*"))):
        raise ConfigError(
            f"expected a new folder for the run, {run} holds a training; "
            f"go on with --resume, or choose another folder"
        )


@contextmanager
def _train_extra() -> Iterator[None]:
    """Say how to install what is missing, if that is a package of the train extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "guardrail").partition(".")[0]
        if package == "guardrail":  # a broken installation, not a missing extra
            raise
        raise MissingDependencyError(package, "train") from error


@contextmanager
def _stdout_kept(keep: bool) -> Iterator[None]:
    """Send what training libraries print to stderr, so that stdout holds JSON alone."""
    with ExitStack() as stack:
        if keep:
            stack.enter_context(redirect_stdout(sys.stderr))
        yield


def _print_figures(figures: Mapping[str, Any]) -> None:
    if figures:
        from .render import print_table

        print_table(("figure", "value"), [(name, _figure(value)) for name, value in figures.items()])


def _figure(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
