"""What an export costs: the exported encoder beside the trained model, on real text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from guardrail.errors import ModelError
from guardrail.protocols import Encoder

from .examples import Example
from .metrics import auroc
from .runtime_scoring import score_conversations

MAX_AUROC_LOSS = 0.005
MIN_COSINE = 0.98
COMPARED = 600
# With fewer conversations a few swapped ranks make up the largest loss that is allowed.
JUDGED_FROM = 300


@dataclass(frozen=True, slots=True)
class Comparison:
    """An exported encoder against the trained model.

    Attributes:
        compared: conversations.
        cosine_mean: of the two embeddings, mean.
        cosine_min: the worst.
        auroc_before: of the trained model; nan where a class is missing.
        auroc_after: of the exported one.
    """

    compared: int
    cosine_mean: float
    cosine_min: float
    auroc_before: float
    auroc_after: float

    def figures(self) -> dict[str, float]:
        """Return the figures by name."""
        return {
            "export/compared": float(self.compared),
            "export/cosine_mean": round(self.cosine_mean, 6),
            "export/cosine_min": round(self.cosine_min, 6),
            "export/auroc_torch": round(self.auroc_before, 4),
            "export/auroc_exported": round(self.auroc_after, 4),
        }

    def refuse_lossy(self, form: str) -> None:
        """Raise if the export loses too much.

        Raises:
            ModelError: mean cosine below MIN_COSINE, or AUROC lower by more than MAX_AUROC_LOSS.
        """
        lost = self.auroc_before - self.auroc_after
        if not self.cosine_mean >= MIN_COSINE:  # nan passes no comparison
            problem = f"a mean cosine of at least {MIN_COSINE} to torch, got {self.cosine_mean:.4f}"
        elif self.compared >= JUDGED_FROM and lost > MAX_AUROC_LOSS:
            problem = (
                f"a loss of at most {MAX_AUROC_LOSS} AUROC, got {self.auroc_before:.4f} -> "
                f"{self.auroc_after:.4f}"
            )
        else:
            return
        raise ModelError(
            "encoder",
            f"expected of {form} {problem}; export another format, or allow the loss (--allow-lossy)",
        )


def compare(trained: Encoder, exported: Encoder, examples: Sequence[Example]) -> Comparison:
    """Compare embeddings and log-odds on an even choice of about COMPARED examples.

    Both read the very same windows, so that a difference is the format's alone.
    """
    chosen = examples[:: max(1, len(examples) // COMPARED)]
    before, after = (
        score_conversations(encoder, [example.turns for example in chosen]) for encoder in (trained, exported)
    )
    unsafe = np.array([example.unsafe for example in chosen])
    cosines = (before.embeddings * after.embeddings).sum(1)
    return Comparison(
        compared=len(chosen),
        cosine_mean=float(cosines.mean()),
        cosine_min=float(cosines.min()),
        auroc_before=auroc(before.log_odds, unsafe),
        auroc_after=auroc(after.log_odds, unsafe),
    )
