"""Train a rewrite model: the `Trainer` of transformers underneath."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from transformers import set_seed

from guardrail.artifact import TORCH_FOLDER
from guardrail.errors import ConfigError
from guardrail.rewriter import write_rewriter
from guardrail.rules import Rule

from ..history import History, environment, plot_curves
from ..processes import is_first
from ..replies import ReplyExample
from ..resume import CONFIG, checkpoint_of, cut_history, record_rows, require_rows, step_of
from .bases import build, merged
from .beams import Judge
from .config import RewriterConfig
from .data import load_replies
from .inputs import Collator, rows_of, summary_of
from .loop import RewriteTrainer
from .validation import validation_figures


def train_rewriter(
    config: RewriterConfig,
    run: Path,
    *,
    data_dir: Path | None = None,
    sources: list[str] | None = None,
    rules: tuple[Rule, ...] | None = None,
    resume: bool = False,
    judge: Judge | None = None,
) -> dict[str, float]:
    """Load the data, train, and leave model, config, curves and validation figures in the run folder.

    Args:
        config: the recipe.
        run: folder of the run; the model is its `model/`.
        data_dir: folder of the public sets; None trains on our own writing alone.
        sources: names of the sets to use; None for all that may train.
        rules: the bank to train on; None for ours.
        resume: go on from the newest whole checkpoint of the run, with the same recipe and rows.
        judge: says which of the model's own replies are unsafe, when they are ranked.

    Returns:
        The validation figures of the model.

    Raises:
        ConfigError: a setting, source or base is wrong, there is nothing to train on, or a run is resumed
            with other ones.
        ArtifactError: a data file is missing.
        MissingDependencyError: the base or LoRA needs a package that is not installed.
    """
    if resume:  # what can be wrong is found before the data are read
        checkpoint_of(run, config)
    train, val = (
        load_replies(
            data_dir, split, sources=sources, limits=config.source_limits, seed=config.seed, rules=rules
        )
        for split in ("train", "val")
    )
    return fit(config, run, train, val, resume=resume, judge=judge)


def fit(
    config: RewriterConfig,
    run: Path,
    train: Sequence[ReplyExample],
    val: Sequence[ReplyExample],
    *,
    resume: bool = False,
    judge: Judge | None = None,
) -> dict[str, float]:
    """Train on examples that are there already, as `train_rewriter` does on those that it loads.

    Args:
        config: the recipe.
        run: folder of the run.
        train: to learn from, at least one.
        val: held out, for the figures; may be empty.
        resume: go on from the newest whole checkpoint.
        judge: says which of the model's own replies are unsafe.

    Returns:
        The validation figures of the model; none without `val`.

    Raises:
        ConfigError, MissingDependencyError: as of `train_rewriter`.
    """
    checkpoint = checkpoint_of(run, config) if resume else None
    set_seed(config.seed)  # before fresh weights are drawn
    model, tokenizer, kind = build(config)
    rows = rows_of(train, tokenizer, kind, config)
    if not rows:
        raise ConfigError("expected at least one reply to train on, got none; check the sources and limits")
    summary = summary_of(rows)
    if resume:
        require_rows(run, summary)
    if is_first():
        run.mkdir(parents=True, exist_ok=True)
        if not resume:
            record_rows(run, summary)
            (run / CONFIG).write_text(config.model_dump_json(indent=2), encoding="utf-8")
        (run / "environment.json").write_text(json.dumps(environment(), indent=2), encoding="utf-8")
        cut_history(run, step_of(checkpoint) if checkpoint else -1)

    def evaluate() -> dict[str, float]:
        return validation_figures(model, tokenizer, kind, val, config)

    trainer = RewriteTrainer(model, rows, Collator(tokenizer, kind, model), config, run, judge=judge)
    trainer.add_callback(History(run, model, evaluate if val else None))
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    figures: dict[str, float] = {}
    if trainer.is_world_process_zero():
        model = merged(model).eval()
        write_rewriter(
            run / TORCH_FOLDER,
            model,
            tokenizer,
            kind=kind,
            base=Path(config.base).name,
            max_source_tokens=config.max_source_tokens,
            max_reply_tokens=config.max_reply_tokens,
        )
        figures = evaluate() if val else {}
        (run / "metrics.json").write_text(json.dumps(figures, indent=2), encoding="utf-8")
        plot_curves(run)
    trainer.accelerator.wait_for_everyone()  # whoever returns finds the model
    return figures
