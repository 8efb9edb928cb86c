"""Train the relevance model: a cross-encoder that reads a statement and a conversation together.

Input: `[CLS] statement [SEP] last turn [SEP] older turns, the newest first [SEP] ...`. Two logits: the
statement is about this conversation; the last turn breaks it. A bi-encoder compares two vectors that know
nothing of each other; read together, words can be weighed against each other (Nogueira & Cho 2019,
arXiv 1901.04085). Too slow for every rule of the bank, fast enough for the few that were retrieved.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

from guardrail.artifact import TORCH_FOLDER
from guardrail.errors import ConfigError
from guardrail.relevance import LOGITS, PairTokenizer

from ..arguments import common_arguments
from ..encoder import base_folder
from ..history import History, environment, plot_curves
from ..resume import CONFIG, checkpoint_of, cut_history, record_rows, require_rows, step_of
from .config import RelevanceConfig

# What `inputs.as_text` puts between two turns.
SEPARATOR = " [SEP] "
ABOUT, BROKEN = 0, 1
UNKNOWN = -1.0


class RelevanceModel(nn.Module):
    """A transformer with mean pooling and two logits."""

    def __init__(self, transformer: PreTrainedModel) -> None:
        super().__init__()
        self.transformer = transformer
        self.head = nn.Linear(transformer.config.hidden_size, LOGITS)

    @property
    def positions(self) -> int:
        """Longest input of the transformer, tokens."""
        return int(self.transformer.config.max_position_embeddings)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return logits (b, 2): the statement is about the conversation; the last turn breaks it."""
        hidden = self.transformer(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)  # (b, t, 1)
        pooled = (hidden * mask).sum(1) / mask.sum(1)
        logits: Tensor = self.head(pooled)
        return logits


def relevance_loss(logits: Tensor, broken: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the three terms of the loss.

    Args:
        logits: (n * group, 2); of each group the first row is the statement that is about it.
        broken: (n,) 1 or 0: does the last turn break the first statement; `UNKNOWN` where unknown.
        group: rows of one conversation, at least 2.

    Returns:
        Cross-entropy of the first row against the others of its group; binary cross-entropy of each
        row, which makes the logit a probability; binary cross-entropy of "breaks it", 0 where none is
        known.
    """
    scores = logits[:, ABOUT].reshape(-1, group)  # (n, g)
    listwise = F.cross_entropy(scores, scores.new_zeros(len(scores), dtype=torch.long))
    wanted = torch.zeros_like(scores)
    wanted[:, 0] = 1.0
    # As many kinds of wrong statements as there are must not outweigh the one that is right.
    weights = torch.where(wanted > 0, float(group - 1), 1.0)
    pointwise = F.binary_cross_entropy_with_logits(scores, wanted, weights) / 2
    known = broken != UNKNOWN
    first = logits[::group, BROKEN]
    stance = (
        F.binary_cross_entropy_with_logits(first[known], broken[known]) if known.any() else 0 * first.sum()
    )
    return listwise, pointwise, stance


class Collator:
    """Rows to padded batches; a group's rows stand together."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
        self._pad_id = tokenizer.pad_token_id
        with tempfile.TemporaryDirectory() as folder:
            self._tokenizer = PairTokenizer(write_tokenizer(tokenizer, Path(folder)), max_tokens)

    def ids(self, statement: str, text: str) -> list[int]:
        """Return `[CLS] statement [SEP] conversation [SEP]`, the oldest turns cut."""
        conversation = self._tokenizer.conversation(text.split(SEPARATOR))
        return self._tokenizer.pair(statement, conversation)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return ids and mask (n * group, t), and `broken` (n,)."""
        ids = [self.ids(statement, row["text"]) for row in rows for statement in row["statements"]]
        longest = max(map(len, ids))
        padded = torch.tensor([line + [self._pad_id] * (longest - len(line)) for line in ids])
        mask = torch.tensor([[1] * len(line) + [0] * (longest - len(line)) for line in ids])
        return {
            "input_ids": padded,
            "attention_mask": mask,
            "broken": torch.tensor([row["broken"] for row in rows], dtype=torch.float32),
        }


class _Trainer(Trainer):  # type: ignore[misc]  # untyped library
    def __init__(self, *args: Any, config: RelevanceConfig, group: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._config = config
        self._group = group

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *_: Any, **__: Any) -> Tensor:
        logits = model(inputs["input_ids"], inputs["attention_mask"])
        listwise, pointwise, stance = relevance_loss(logits.float(), inputs["broken"], self._group)
        return listwise + pointwise + self._config.stance_weight * stance


def train_relevance(
    rows: Sequence[dict[str, Any]], config: RelevanceConfig, run: Path, *, resume: bool
) -> None:
    """Train, and leave weights, tokenizer and recipe in the run folder.

    Args:
        rows: each with "text", "statements" (the right one first, all rows equally many), "broken", and
            "length", by which rows are put together.
        config: the recipe.
        run: folder of the run.
        resume: go on from its newest whole checkpoint, under the same recipe.

    Raises:
        ConfigError: there is no such base, it reads fewer tokens than the recipe asks for, there is no
            row, rows have different numbers of statements, there is nothing to resume from, or the run
            was started with another recipe or other rows.
    """
    group = _group(rows)
    checkpoint = checkpoint_of(run, config) if resume else None
    summary = _summary(rows)
    if resume:
        require_rows(run, summary)
    set_seed(config.seed)  # before the head is drawn
    model, tokenizer = _build(config)
    model.transformer.get_input_embeddings().requires_grad_(False)
    run.mkdir(parents=True, exist_ok=True)
    if not resume:
        record_rows(run, summary)
        (run / CONFIG).write_text(config.model_dump_json(indent=2), encoding="utf-8")
    (run / "environment.json").write_text(json.dumps(environment(), indent=2), encoding="utf-8")
    cut_history(run, step_of(checkpoint) if checkpoint else -1)
    arguments = TrainingArguments(
        **common_arguments(run, config),
        remove_unused_columns=False,
        train_sampling_strategy="group_by_length",
        length_column_name="length",
    )
    trainer = _Trainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(list(rows)),
        data_collator=Collator(tokenizer, config.max_tokens),
        config=config,
        group=group,
        callbacks=[History(run, model)],
    )
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    save(model, tokenizer, run / TORCH_FOLDER)
    plot_curves(run)


def _group(rows: Sequence[dict[str, Any]]) -> int:
    sizes = {len(row["statements"]) for row in rows}
    if not sizes:
        raise ConfigError("expected at least one row, got none; check the data folder")
    if len(sizes) > 1 or min(sizes) < 2:
        raise ConfigError(f"expected rows of equally many statements, at least two, got {sorted(sizes)}")
    return min(sizes)


def _summary(rows: Sequence[dict[str, Any]]) -> dict[str, object]:
    return {"rows": len(rows), "sha256": sha256(json.dumps(list(rows)).encode()).hexdigest()}


def _build(config: RelevanceConfig) -> tuple[RelevanceModel, PreTrainedTokenizerBase]:
    folder = base_folder(config.base)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = RelevanceModel(_transformer(folder))
    except (OSError, ValueError, TypeError) as error:  # what the library raises for what is no BERT
        raise ConfigError(
            f"expected a BERT-like encoder as the base, got {config.base!r}, which cannot be loaded as one; "
            f"check the path, or take another base"
        ) from error
    if config.max_tokens > model.positions:
        raise ConfigError(
            f"expected max_tokens of at most {model.positions}, the longest input of {config.base!r}, "
            f"got {config.max_tokens}"
        )
    return model, tokenizer


def _transformer(folder: Path | str) -> PreTrainedModel:
    return AutoModel.from_pretrained(folder, add_pooling_layer=False)


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    """Write the `tokenizer.json` that the runtime reads into a folder; return its path."""
    path = folder / "tokenizer.json"
    tokenizer.backend_tokenizer.save(str(path))
    return path


def save(model: RelevanceModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write transformer, head and tokenizer as safetensors and JSON."""
    model.transformer.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_file(
        {name: value.detach().cpu() for name, value in model.head.state_dict().items()},
        folder / "head.safetensors",
    )


def load(folder: Path) -> tuple[RelevanceModel, PreTrainedTokenizerBase]:
    """Read what `save` has written."""
    model = RelevanceModel(_transformer(folder))
    model.head.load_state_dict(load_file(folder / "head.safetensors"))
    return model.eval(), AutoTokenizer.from_pretrained(folder)
