"""`guardrail train`. Torch is imported when a command runs, never before.

Type checkers do not see that the folder trainer/ installs as guardrail.trainer, hence the ignores.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

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
from .output import EXIT_CODES, print_json
from .train_relevance import relevance
from .train_rewriter import rewriter

ThresholdSources = Annotated[
    str | None,
    typer.Option(
        metavar="A,B",
        help="Sets whose everyday turns set the thresholds. Default: those that the recipe kept out.",
    ),
]
MaxFpr = Annotated[
    float | None,
    typer.Option(
        metavar="P",
        help="Share of everyday turns that may be flagged. Default: 0.01; 0.001 if they are from the "
        "training's own sets, where a model does better than elsewhere.",
    ),
]


class Format(StrEnum):
    """Formats of an exported encoder."""

    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"
    torch = "torch"


app = typer.Typer(
    no_args_is_help=True, help="Train a model of your own (needs the train extra).", epilog=EXIT_CODES
)


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
    sources: Sources = None,
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
    own_rules = rules_of(rules)
    names = names_of(sources, data)
    refuse_trained(out, resume=resume)
    figures: dict[str, Any] = {}
    with train_extra(), stdout_kept(as_json):
        from guardrail.trainer.data import (  # type: ignore[import-not-found, unused-ignore]
            require_dialogues,
        )
        from guardrail.trainer.pipeline import train_encoder  # type: ignore[import-not-found, unused-ignore]
        from guardrail.trainer.processes import (  # type: ignore[import-not-found, unused-ignore]
            last_to_work,
        )

        if own_rules is not None and not no_export:
            require_dialogues(own_rules)
        train_encoder(recipe, out, data_dir=data, sources=names, rules=own_rules, resume=resume)
        if not last_to_work():  # under torchrun one process writes the model folder
            return
        if not no_export:
            from guardrail.trainer.finalize import finalize  # type: ignore[import-not-found, unused-ignore]

            figures = finalize(out, data_dir=data, folder=out / "artifact", sources=names, rules=own_rules)
    model = None if no_export else out / "artifact"
    if as_json:
        print_json({"run": str(out), "model": None if model is None else str(model), "figures": figures})
        return
    print_figures(figures)
    typer.echo(
        f"trained {out}" if model is None else f"trained {model}; try: guardrail check --model {model} TEXT"
    )


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a training run.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Model folder to write.")],
    form: Annotated[
        Format, typer.Option("--format", help="ONNX in fp32, fp16 (weights) or int8; or torch as it is.")
    ] = Format.int8,
    data: Data = None,
    sources: Sources = None,
    rules: Annotated[
        Path | None, typer.Option(metavar="FILE.jsonl", help="Rules to index, instead of the bank.")
    ] = None,
    max_fpr: MaxFpr = None,
    threshold_sources: ThresholdSources = None,
    allow_lossy: Annotated[
        bool, typer.Option("--allow-lossy", help="Write it even if it loses too much against torch.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a model folder from a run: encoder, rules, calibration for this very format, manifest."""
    own_rules, names = rules_of(rules), names_of(sources, data)
    thresholds = names_of(threshold_sources, data, "--threshold-sources")
    with train_extra(), stdout_kept(as_json):
        from guardrail.trainer.finalize import finalize  # type: ignore[import-not-found, unused-ignore]

        figures = finalize(
            run,
            data_dir=data,
            folder=out,
            sources=names,
            rules=own_rules,
            max_fpr=max_fpr,
            threshold_sources=thresholds,
            form=form.value,
            allow_lossy=allow_lossy,
        )
    if as_json:
        print_json({"run": str(run), "model": str(out), "figures": figures})
        return
    print_figures(figures)
    typer.echo(f"wrote {out}; try: guardrail check --model {out} TEXT")


@app.command()
def calibrate(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A model folder, or a run.")],
    data: Data = None,
    sources: Sources = None,
    rules: Annotated[
        Path | None,
        typer.Option(metavar="FILE.jsonl", help="Rules of a run that has none yet. Default: the bank."),
    ] = None,
    max_fpr: MaxFpr = None,
    threshold_sources: ThresholdSources = None,
    escalate: Annotated[
        float,
        typer.Option(
            metavar="P", min=0, max=1, help="Share of everyday turns that goes to a judge, if there is one."
        ),
    ] = 0.10,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="PNG", help="Reliability diagram. Default: FOLDER/reliability.png."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fit calibration and thresholds again, on validation data; the model stays as it is."""
    own_rules, names = rules_of(rules), names_of(sources, data)
    thresholds = names_of(threshold_sources, data, "--threshold-sources")
    with train_extra(), stdout_kept(as_json):
        from guardrail.trainer.refit import refit  # type: ignore[import-not-found, unused-ignore]

        figures = refit(
            folder,
            data_dir=data,
            sources=names,
            rules=own_rules,
            max_fpr=max_fpr,
            threshold_sources=thresholds,
            escalated=escalate,
            plot=plot,
        )
    if as_json:
        print_json({"model": str(folder), "figures": figures})
        return
    print_figures(figures)
    typer.echo(f"calibrated {folder}")


app.command()(rewriter)
app.command()(relevance)
