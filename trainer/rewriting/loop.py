"""The training loop: the `Trainer` of transformers with our loss and our order of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import Trainer, TrainingArguments

from ..arguments import common_arguments
from ..sampling import length_grouped
from .beams import Judge, own_replies
from .config import RewriterConfig
from .inputs import Collator, Row
from .losses import aligned, n_pair_loss, ranking_loss, similarities, token_loss
from .ranking import Beam, candidates
from .representations import represented


class RewriteTrainer(Trainer):  # type: ignore[misc]  # untyped library
    """`Trainer` with token loss + lambda * ranking loss."""

    # Our losses are means over the batch.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: Any,
        rows: Sequence[Row],
        collate: Collator,
        config: RewriterConfig,
        run: Path,
        *,
        judge: Judge | None = None,
    ) -> None:
        """Prepare a training.

        Args:
            model: from `bases.build`.
            rows: from `inputs.rows_of`.
            collate: pads them.
            config: the recipe.
            run: folder for checkpoints.
            judge: says which of the model's own replies are unsafe.
        """
        self.recipe = config
        self.collate = collate
        self.judge = judge
        self.parts: dict[str, list[float]] = {}
        super().__init__(
            model=model,
            args=TrainingArguments(
                **common_arguments(run, config),
                gradient_accumulation_steps=config.gradient_accumulation,
                remove_unused_columns=False,
            ),
            data_collator=collate,
            train_dataset=rows,
        )

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **_: Any
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Return the loss of a batch of `Collator`."""
        tensors = dict(inputs)
        rows, labels, weights = (tensors.pop(name) for name in ("rows", "labels", "weights"))
        outputs = model(**tensors)
        logits, labels = aligned(outputs.logits, labels, self.collate.kind)
        loss = token_loss(logits, labels, weights, smoothing=self.recipe.label_smoothing)
        if self.recipe.ranking_weight and self.state.global_step >= self.recipe.ranking_from_step:
            ranking = self._ranking(rows, weights)
            self.parts.setdefault("token_loss", []).append(loss.item())
            self.parts.setdefault("ranking_loss", []).append(ranking.item())
            loss = loss + self.recipe.ranking_weight * ranking
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log the two losses beside their sum, each the mean since the last time."""
        if "loss" in logs:
            logs |= {name: sum(values) / len(values) for name, values in self.parts.items()}
            self.parts = {}
        super().log(logs, *args, **kwargs)

    def _ranking(self, rows: list[Row], weights: torch.Tensor) -> torch.Tensor:
        recipe = self.recipe
        bare = self.accelerator.unwrap_model(self.model)
        with self.accelerator.autocast():
            beams: list[list[Beam]] = [[] for _ in rows]
            if recipe.beams and self.state.global_step % recipe.beams_every == 0:
                beams = own_replies(bare, self.collate, rows, recipe, self.judge)
            found = candidates(
                [row.reply for row in rows],
                [row.rejected for row in rows],
                beams,
                in_batch=recipe.in_batch,
            )
            sources, replies = represented(bare, self.collate, rows, found)
        owners = torch.tensor([candidate.owner for candidate in found], device=weights.device)
        ranks = torch.tensor([candidate.rank for candidate in found], device=weights.device)
        scores = similarities(sources, replies, owners)
        if recipe.temperature:
            return n_pair_loss(scores, ranks, owners, weights, temperature=recipe.temperature)
        return ranking_loss(scores, ranks, owners, weights, margin=recipe.margin)

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGrouped:
        lengths = [len(row.source) + len(row.reply) for row in self.train_dataset]
        return LengthGrouped(lengths, self.recipe.batch_size, seed=self.recipe.seed)


class LengthGrouped(Sampler[int]):
    """Rows in an order whose batches are of about equal length; another order every epoch."""

    def __init__(self, lengths: Sequence[int], batch_size: int, *, seed: int) -> None:
        """Begin with the order of the first epoch.

        Args:
            lengths: of the rows.
            batch_size: rows of a batch.
            seed: the same one gives the same orders.
        """
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch, as the training loop does when it begins one."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        """Yield the rows, the batch that is not full last: in between it would shift all that follow."""
        batches = length_grouped(self.lengths, self.batch_size, seed=self.seed + self.epoch)
        for batch in sorted(batches, key=len, reverse=True):  # stable: the others keep their order
            yield from batch
