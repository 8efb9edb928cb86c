"""What the commands that need the train extra share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import MissingDependencyError

if TYPE_CHECKING:
    from ..rules import Rule

DATA_ENV = "GUARDRAIL_DATA"
Data = Annotated[
    Path | None,
    typer.Option(
        "--data", metavar="DIR", envvar=DATA_ENV, help="Public sets. Default: our own writing alone."
    ),
]


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
