"""Run a trained model, torch or ONNX, over many texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import batch_to_device

from guardrail.calibration import unsafe_log_odds

Floats = NDArray[np.float32]
# Text to outputs, whatever runs the model.
Scorer = Callable[[Sequence[str]], "Outputs"]


@dataclass(frozen=True, slots=True)
class Outputs:
    """Outputs for n texts.

    Attributes:
        embeddings: (n, d), unit length.
        violations: (n, d).
        level_logits: (n, 3).
    """

    embeddings: Floats = field(repr=False)
    violations: Floats = field(repr=False)
    level_logits: Floats = field(repr=False)

    @property
    def log_odds(self) -> NDArray[np.float64]:
        """(n,) log P(unsafe)/P(casual)."""
        return unsafe_log_odds(self.level_logits)


def torch_scorer(model: SentenceTransformer, batch_size: int = 64) -> Scorer:
    """Return a function that runs a sentence-transformers model on texts in `as_text` form."""

    @torch.inference_mode()
    def score(texts: Sequence[str]) -> Outputs:
        size = model.get_embedding_dimension() or 0
        n = len(texts)
        outputs = Outputs(
            np.zeros((n, size), np.float32), np.zeros((n, size), np.float32), np.zeros((n, 3), np.float32)
        )
        order = sorted(range(n), key=lambda index: len(texts[index]))
        for start in range(0, n, batch_size):
            rows = order[start : start + batch_size]
            features = batch_to_device(model.preprocess([texts[row] for row in rows]), model.device)
            result = model(features)
            outputs.embeddings[rows] = result["sentence_embedding"].float().cpu().numpy()
            outputs.violations[rows] = result["violation_embedding"].float().cpu().numpy()
            outputs.level_logits[rows] = result["level_logits"].float().cpu().numpy()
        return outputs

    return score
