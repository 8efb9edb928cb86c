"""`guardrail train rewriter`. Torch is imported when the command runs, never before.

Type checkers do not see that the folder trainer/ installs as guardrail.trainer, hence the ignores.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .extra import (
    Data,
    Sources,
    names_of,
    print_figures,
    refuse_trained,
    rules_of,
    stdout_kept,
    train_extra,
)
from .options import AsJson
from .output import print_json


def rewriter(
    out: Annotated[Path, typer.Option(metavar="RUN", help="Folder of the run; the model: RUN/model.")],
    config: Annotated[Path | None, typer.Option(metavar="TOML", help="A recipe; options go over it.")] = None,
    data: Data = None,
    base: Annotated[
        str | None,
        typer.Option(help='"minilm", a folder or a hub id of an encoder-decoder or a causal model.'),
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples a forward pass.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak.")] = None,
    lora_rank: Annotated[
        int | None, typer.Option(help="Train low-rank updates of this rank; 0: all weights.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of every random choice.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Stop after so many steps.")] = None,
    sources: Sources = None,
    rules: Annotated[
        Path | None, typer.Option(metavar="FILE.jsonl", help="Rules to train on, instead of the bank.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a model that answers in place of an unsafe reply; it is RUN/model."""
    from guardrail.trainer.rewriting.config import (  # type: ignore[import-not-found, unused-ignore]
        RewriterConfig,
    )

    recipe = RewriterConfig.read(
        config,
        base=base,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        lora_rank=lora_rank,
        seed=seed,
        max_steps=max_steps,
    )
    own_rules, names = rules_of(rules), names_of(sources, data)
    refuse_trained(out, resume=resume)
    with train_extra(), stdout_kept(as_json):
        from guardrail.trainer.processes import (  # type: ignore[import-not-found, unused-ignore]
            last_to_work,
        )
        from guardrail.trainer.rewriting.train import (  # type: ignore[import-not-found, unused-ignore]
            train_rewriter,
        )

        figures = train_rewriter(recipe, out, data_dir=data, sources=names, rules=own_rules, resume=resume)
        if not last_to_work():  # under torchrun one process reports
            return
    if as_json:
        print_json({"run": str(out), "model": str(out / "model"), "figures": figures})
        return
    print_figures(figures)
    typer.echo(f"trained {out / 'model'}")
