"""What every training tells the `Trainer` of transformers: pace, precision, seeds, checkpoints, device."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch


class Pace(Protocol):
    """The settings that all recipes have."""

    seed: int
    epochs: float
    max_steps: int
    batch_size: int
    learning_rate: float
    warmup_ratio: float
    bf16: bool
    save_steps: int


def common_arguments(run: Path, recipe: Pace) -> dict[str, Any]:
    """Return the arguments that are the same for every training.

    Args:
        run: folder for the checkpoints, of which the newest one is kept.
        recipe: of any training.
    """
    cuda = torch.cuda.is_available()
    return {
        "output_dir": str(run),
        "num_train_epochs": recipe.epochs,
        "max_steps": recipe.max_steps,
        "per_device_train_batch_size": recipe.batch_size,
        "learning_rate": recipe.learning_rate,
        "warmup_steps": recipe.warmup_ratio,
        "weight_decay": 0.01,
        "bf16": recipe.bf16,
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "logging_steps": 50,
        "save_strategy": "steps",
        "save_steps": recipe.save_steps,
        "save_total_limit": 1,
        "report_to": "none",
        "use_cpu": not cuda,
        "dataloader_pin_memory": cuda,
    }
