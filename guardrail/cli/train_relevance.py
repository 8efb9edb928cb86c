"""`guardrail train relevance`. Torch is imported when the command runs, never before.

Type checkers do not see that the folder trainer/ installs as guardrail.trainer, hence the ignores.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .extra import Data, print_figures, refuse_trained, stdout_kept, train_extra
from .options import AsJson
from .output import print_json


def relevance(
    out: Annotated[Path, typer.Option(metavar="RUN", help="Folder of the run; the model: RUN/artifact.")],
    config: Annotated[Path | None, typer.Option(metavar="TOML", help="A recipe; options go over it.")] = None,
    data: Data = None,
    base: Annotated[str | None, typer.Option(help='"minilm", a run, a folder or a hub id.')] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Conversations a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of every random choice.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Stop after so many steps.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train the model that says whether a rule or a reply is about a conversation; for repairs."""
    with train_extra(), stdout_kept(as_json):
        from guardrail.trainer.relevance.config import (  # type: ignore[import-not-found, unused-ignore]
            RelevanceConfig,
        )
        from guardrail.trainer.relevance.pipeline import (  # type: ignore[import-not-found, unused-ignore]
            run_relevance,
        )

        recipe = RelevanceConfig.read(
            config,
            base=base,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed,
            max_steps=max_steps,
        )
        refuse_trained(out, resume=resume)
        figures = run_relevance(recipe, out, data_dir=data, resume=resume)
    if as_json:
        print_json({"run": str(out), "model": str(out / "artifact"), "figures": figures})
        return
    print_figures(figures)
    typer.echo(f"trained {out / 'artifact'}")
