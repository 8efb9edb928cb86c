"""From a relevance run to the folder that the runtime loads: int8 ONNX, calibrated, with its figures."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from guardrail.artifact import TORCH_FOLDER
from guardrail.calibration import Platt
from guardrail.encoder import load_session
from guardrail.errors import ConfigError
from guardrail.relevance import OUTPUT, write_manifest

from ..export import quantize_int8, write_fp32
from ..metrics import auroc
from .train import ABOUT, BROKEN, UNKNOWN, Collator, RelevanceModel, load, write_tokenizer

# Longest input of the runtime, tokens: more context than was trained on, for the price of time alone.
# Fewer where the base has fewer positions.
RUNTIME_TOKENS = 160
# Even a model that learned nothing must not have its order turned round.
LEAST_SLOPE = 1 / 64


def export_relevance(run: Path, folder: Path, validation: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Write the model folder of a run and return its figures on validation rows.

    Args:
        run: folder of the run.
        folder: where to write.
        validation: rows as in training; they calibrate the int8 model.

    Returns:
        AUROC of "is about it" for rules and for replies, and of "breaks it"; how often the right statement
        is the first of its group; the AUROC that int8 costs against torch. nan where there are no rows.

    Raises:
        ConfigError: no row breaks its rule, or none keeps it: there is nothing to calibrate on.
    """
    model, tokenizer = load(run / TORCH_FOLDER)
    max_tokens = min(RUNTIME_TOKENS, model.positions)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        fp32 = export_fp32(model, Path(temporary) / "fp32.onnx")
        quantize_int8(fp32, folder / "model.onnx")
    write_tokenizer(tokenizer, folder)
    collator = Collator(tokenizer, max_tokens)
    ids = [[collator.ids(statement, row["text"]) for statement in row["statements"]] for row in validation]
    session = load_session(folder / "model.onnx", 1, (OUTPUT,))
    logits = np.array([[_run(session, line) for line in group] for group in ids])  # (n, g, 2)
    about = logits[:, :, ABOUT]
    right = np.zeros_like(about, dtype=bool)
    right[:, 0] = True
    broken = np.array([row["broken"] for row in validation])
    known = broken != UNKNOWN
    breaks = logits[known, 0, BROKEN]
    write_manifest(
        folder,
        max_tokens=max_tokens,
        about=_platt(about.ravel(), right.ravel()),
        broken=_platt(breaks, broken[known] > 0),
    )
    reply = np.array([row["source"].startswith("reply:") for row in validation])
    some = range(0, len(ids), max(1, len(ids) // 300))
    fp32_about = np.array([[_torch(model, line) for line in ids[place]] for place in some])[:, :, ABOUT]
    figures = {
        "about_rules_auroc": auroc(about[~reply].ravel(), right[~reply].ravel()),
        "about_replies_auroc": auroc(about[reply].ravel(), right[reply].ravel()),
        "rules_first": _first_share(about[~reply]),
        "replies_first": _first_share(about[reply]),
        "broken_auroc": auroc(breaks, broken[known] > 0),
        "int8_auroc_loss": auroc(fp32_about.ravel(), right[list(some)].ravel())
        - auroc(about[list(some)].ravel(), right[list(some)].ravel()),
    }
    (run / "metrics.json").write_text(json.dumps(figures, indent=2), encoding="utf-8")
    return figures


def export_fp32(model: RelevanceModel, path: Path) -> Path:
    """Write the model as one self-contained fp32 ONNX file with dynamic batch and length.

    Returns:
        The path.
    """
    return write_fp32(model, path, (OUTPUT,))


def _run(session: Any, ids: list[int]) -> NDArray[np.float32]:
    row = np.array([ids], np.int64)
    (logits,) = session.run((OUTPUT,), {"input_ids": row, "attention_mask": np.ones_like(row)})
    found: NDArray[np.float32] = logits[0]
    return found


@torch.no_grad()
def _torch(model: RelevanceModel, ids: list[int]) -> NDArray[np.float32]:
    row = torch.tensor([ids])
    found: NDArray[np.float32] = model(row, torch.ones_like(row))[0].numpy()
    return found


def _first_share(about: NDArray[np.floating]) -> float:
    return float((about.argmax(1) == 0).mean()) if len(about) else float("nan")


def _platt(logits: NDArray[np.floating], labels: NDArray[np.bool_]) -> Platt:
    """Fit P; the two classes weigh the same, since how many wrong statements a row has means nothing."""
    if labels.all() or not labels.any():
        raise ConfigError("expected validation rows of both classes, got one; allow more rows")
    fit = LogisticRegression(C=1e6, class_weight="balanced").fit(logits.reshape(-1, 1), labels)
    return Platt(slope=max(float(fit.coef_[0, 0]), LEAST_SLOPE), intercept=float(fit.intercept_[0]))
