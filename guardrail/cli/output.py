"""What the commands print and how they end: JSON lines, the error line, exit codes. Nothing heavy."""

from __future__ import annotations

import json
import math
import sys
from typing import TYPE_CHECKING, Any

import typer

from ..errors import ArtifactError, GuardrailError, ModelError

if TYPE_CHECKING:
    from ..types import Verdict

DONE = 0
FLAGGED = 1
BAD_INPUT = 2
FAILED = 3
INTERRUPTED = 130
BROKEN_PIPE = 141
EXIT_CODES = (
    "Exit codes: 0 done, nothing flagged; 1 flagged (check) or problems found (rules validate); "
    "2 bad usage or bad input; 3 the guard failed, or a model folder or data file cannot be loaded; "
    "130 interrupted."
)


def exit_code(error: GuardrailError | OSError) -> int:
    """Return the exit code of an error: 3 if the guard cannot work, 2 if what it was given is wrong."""
    return FAILED if isinstance(error, ArtifactError | ModelError) else BAD_INPUT


def verdict_code(verdict: Verdict) -> int:
    """Return the exit code of a verdict; a guard that failed never looks like a pass or a finding."""
    if verdict.status == "error":
        return FAILED
    return FLAGGED if verdict.flagged else DONE


def error_text(error: GuardrailError | OSError) -> str:
    """Return what to tell the user, without the errno that Python puts first."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.strerror}: {error.filename}"
    return str(error)


def print_error(text: str) -> None:
    """Write one line to stderr."""
    typer.echo(f"error: {printable(text)}", err=True)


def print_json(value: Any) -> None:
    """Write one JSON value as one line to stdout."""
    typer.echo(to_json(value))


def to_json(value: Any) -> str:
    """Return strict ASCII JSON on one line; what is not finite becomes null."""
    return json.dumps(_strict(value), allow_nan=False)


def printable(text: str) -> str:
    """Return a text on one line without control characters, which could steer the terminal."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable())


def is_terminal() -> bool:
    """Return True if stdout is a terminal."""
    return sys.stdout is not None and sys.stdout.isatty()


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    number = float(value)  # numpy's numbers too
    return number if math.isfinite(number) else None
