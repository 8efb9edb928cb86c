"""What the commands that need the train extra share."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError, InputError, MissingDependencyError

if TYPE_CHECKING:
    from ..rules import Rule

DATA_ENV = "GUARDRAIL_DATA"
Data = Annotated[
    Path | None,
    typer.Option(
        "--data", metavar="DIR", envvar=DATA_ENV, help="Public sets. Default: our own writing alone."
    ),
]

Sources = Annotated[str | None, typer.Option(metavar="A,B", help="Public sets. Default: all.")]


@contextmanager
def train_extra() -> Iterator[None]:
    """Say how to install what is missing, if that is a package of the train extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "guardrail").partition(".")[0]
        if package == "guardrail":  # a broken installation, not a missing extra
            raise
        raise MissingDependencyError(package, "train") from error


@contextmanager
def stdout_kept(keep: bool) -> Iterator[None]:
    """Send what training libraries print to stderr, so that stdout holds JSON alone."""
    with ExitStack() as stack:
        if keep:
            stack.enter_context(redirect_stdout(sys.stderr))
        yield


def rules_of(path: Path | None) -> tuple[Rule, ...] | None:
    """Return the rules of a file; None without one."""
    if path is None:
        return None
    from ..rules import read_rules

    return read_rules(path)


def names_of(text: str | None, data: Path | None, option: str = "--sources") -> list[str] | None:
    """Return the names in a list with commas; None without one.

    Raises:
        InputError: there is no name in it, or no data folder to find the sets in.
    """
    if text is None:
        return None
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise InputError(f"expected {option} as names with commas between them, got none")
    if data is None:
        raise InputError(f"expected --data or {DATA_ENV} with {option}, got neither; where are the sets?")
    return names


def refuse_trained(run: Path, *, resume: bool) -> None:
    """Refuse to write over a training: it may have taken hours."""
    if not resume and ((run / "model").exists() or any(run.glob("checkpoint-*"))):
        raise ConfigError(
            f"expected a new folder for the run, {run} holds a training; "
            f"go on with --resume, or choose another folder"
        )


def print_figures(figures: Mapping[str, Any]) -> None:
    """Print figures as a table, if there are any."""
    if figures:
        from .render import print_table

        print_table(("figure", "value"), [(name, _figure(value)) for name, value in figures.items()])


def _figure(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
