"""`guardrail eval`. What measures is in the train extra and is imported when the command runs.

Type checkers do not see that the folder trainer/ installs as guardrail.trainer, hence the ignores.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InputError
from .extra import Data, rules_of, stdout_kept, train_extra
from .output import to_json

STDOUT = Path("-")


def evaluate(
    model: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER", help="Model folder, or hf: and a hub id. Default: the one that ships."
        ),
    ] = None,
    data: Data = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Most conversations or queries of one set.")
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="Parts: classification, retrieval, discrimination, over_refusal, escalation. Default: all.",
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help='Untrained encoder beside ours in retrieval: "minilm", a folder or a hub id.'),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:NAME", help="A second opinion: shows quality against the share of turns it reads."
        ),
    ] = None,
    rules: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl",
            help="Rules whose held-out dialogues are measured on, added if new. Default: the model's own.",
        ),
    ] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", metavar="PATH", help='Write figures as JSON; "-" is stdout.')
    ] = None,
    html_path: Annotated[
        Path | None, typer.Option("--html", metavar="PATH", help="Write one page with tables and plots.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print tables in Markdown.")] = False,
) -> None:
    """Measure a model folder on the test splits (needs the train extra)."""
    for path in (json_path, html_path):
        if path not in (None, STDOUT) and not path.absolute().parent.is_dir():
            raise InputError(f"expected a folder for {path}, found none; make it first")
    asked = None if judge is None else _named(judge)
    parts = None if only is None else [part.strip() for part in only.split(",") if part.strip()]
    own_rules = rules_of(rules)
    with train_extra(), stdout_kept(True):
        from guardrail.trainer.evaluate import evaluate as measure  # type: ignore[import-not-found, unused-ignore]
        from guardrail.trainer.evaluation.page import to_html  # type: ignore[import-not-found, unused-ignore]

        report = measure(model, data, limit, base=base, judge=asked, rules=own_rules, parts=parts)
        page = None if html_path is None else to_html(report)
    if html_path is not None and page is not None:
        html_path.write_text(page, encoding="utf-8")
    if json_path == STDOUT:
        typer.echo(to_json(report.to_dict()))
        return
    if json_path is not None:
        json_path.write_text(to_json(report.to_dict()) + "\n", encoding="utf-8")
    if markdown:
        typer.echo(report.markdown())
    else:
        _print(report)


def _print(report: Any) -> None:
    """Write the tables: drawn on a terminal; else one figure a line, for grep and cut."""
    from .output import is_terminal
    from .render import print_table

    if is_terminal():
        for table in report.tables():
            print_table(table.columns, table.rows, title=table.title)
        return
    rows = [
        (section, row, figure, f"{value:.4g}")
        for section, found in report.figures.items()
        for row, figures in found.items()
        for figure, value in figures.items()
    ]
    print_table(("section", "row", "figure", "value"), rows)


def _named(path: str) -> Any:
    """Return what "module:name" names; modules in the working folder count.

    Raises:
        InputError: it is not of this form, or there is no such module or name.
    """
    module, _, name = path.partition(":")
    if not module or not name:
        raise InputError(f"expected a judge as MODULE:NAME, got {path!r}")
    sys.path.insert(0, os.getcwd())
    try:
        return getattr(import_module(module), name)
    except (ModuleNotFoundError, AttributeError) as error:
        raise InputError(f"expected a judge at {path!r}, got: {error}") from error
    finally:
        sys.path.remove(os.getcwd())
