"""The command line, outermost of all: it may import everything, inside its commands only.

Here errors become exit codes, in one place; `guardrail --help` lists the codes.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any

import typer
from typer.core import TyperGroup

from ..errors import GuardrailError
from . import data, rules, train
from .check import check
from .evaluate import evaluate
from .options import AsJson
from .output import (
    BROKEN_PIPE,
    EXIT_CODES,
    FAILED,
    INTERRUPTED,
    error_text,
    exit_code,
    print_error,
    print_json,
)
from .serve import serve

__all__ = ["app", "main"]


class _ErrorsToCodes(TyperGroup):
    """Turns what the library raises on purpose into one line on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:  # whoever read our output has seen enough
            raise typer.Exit(BROKEN_PIPE) from error
        except KeyboardInterrupt as error:
            print_error("interrupted")
            raise typer.Exit(INTERRUPTED) from error
        except (GuardrailError, OSError) as error:
            print_error(error_text(error))
            raise typer.Exit(exit_code(error)) from error


app = typer.Typer(
    cls=_ErrorsToCodes,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # they could show local variables: a user's text
    help="Notice subtle trouble in a conversation and name the rule of thumb that is broken.",
    epilog=EXIT_CODES,
)
app.command(epilog=EXIT_CODES)(check)
app.add_typer(rules.app, name="rules")
app.add_typer(train.app, name="train")
app.add_typer(data.app, name="data")
app.command("eval")(evaluate)
app.command(epilog=EXIT_CODES)(serve)


@app.command()
def version(as_json: AsJson = False) -> None:
    """Show the versions of the library, Python, ONNX Runtime and the model that ships."""
    import platform
    from importlib import metadata

    from ..artifact import DEFAULT_FOLDER, read_manifest
    from ..errors import ArtifactError

    try:
        model = read_manifest(DEFAULT_FOLDER).name
    except ArtifactError:
        model = None
    versions = {
        "guardrail": metadata.version("prosocial-guardrail"),
        "python": platform.python_version(),
        "onnxruntime": metadata.version("onnxruntime"),
        "model": model,
    }
    if as_json:
        print_json(versions)
        return
    for name, value in versions.items():
        typer.echo(f"{name} {value or 'none'}")


def main() -> None:
    """Run the command line and exit."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a rule may hold what the terminal's encoding lacks
            stream.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="guardrail")
        code: Any = 0
    except SystemExit as error:
        code = error.code
    except Exception:  # a defect of ours: 1 would read as "flagged"
        traceback.print_exc()
        code = FAILED
    sys.exit(_flush(code))


def _flush(code: Any) -> Any:
    """Write out what is buffered while a broken pipe can still be caught, and return the exit code."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:
        print_error(error_text(error))
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exit_code(error)
    return code
