"""From a trained model to a model folder: export, compare, index, calibrate, sign."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from guardrail import Guardrail
from guardrail.artifact import Canary, write_manifest, write_parts
from guardrail.calibration import Calibration
from guardrail.encoder import OnnxEncoder
from guardrail.errors import ArtifactError, ModelError
from guardrail.reading import rule_windows
from guardrail.rule_index import RuleIndex
from guardrail.rules import Rule, load_bank

from .calibrate import fit_calibration
from .data import DataSplit, load_split
from .examples import Example
from .export import export_fp32, quantize_int8
from .inputs import as_text
from .metrics import auroc
from .runtime_scoring import score_conversations
from .scoring import torch_scorer

WINDOW_TOKENS = 256
MAX_AUROC_LOSS = 0.005
COMPARED = 600
# A tenth of the 1 % that users may see: the casual validation sets come from the same sources as the
# training's, and talk from elsewhere raises about ten times as many false alarms (docs/experiments.md).
MAX_FPR = 0.001


def finalize(
    run: Path,
    *,
    data_dir: Path | None,
    folder: Path,
    sources: list[str] | None = None,
    rules: tuple[Rule, ...] | None = None,
    max_fpr: float = MAX_FPR,
    bundle_rules: bool = True,
) -> dict[str, Any]:
    """Write the model folder of a training run.

    Args:
        run: folder of the run; `run/model` holds the trained model.
        data_dir: folder of the public sets, or None; the validation split of it is used.
        folder: where to write; made if absent, files of the same names are replaced.
        sources: names of the public sets to calibrate on; None for all that may train.
        rules: the rules to index; None for the bank.
        max_fpr: share of casual turns that may be flagged.
        bundle_rules: False only for the folder that ships with the library, beside its bank.

    Returns:
        Figures: what quantisation costs, calibration, thresholds. Also in `run/finalize.json`.

    Raises:
        ArtifactError: the run has no model.
        ModelError: int8 loses more than MAX_AUROC_LOSS against torch, or nothing is ever flagged.
    """
    if not (run / "model").is_dir():
        raise ArtifactError(f"expected a trained model in {run / 'model'}, found none; train first")
    bank = load_bank() if rules is None else rules
    model = SentenceTransformer(str(run / "model"), device="cpu").eval()
    folder.mkdir(parents=True, exist_ok=True)
    positions = model[0].model.config.max_position_embeddings
    window = min(WINDOW_TOKENS, positions)
    _write_model(model, folder)
    size = model.get_embedding_dimension() or 0
    encoder = OnnxEncoder(folder, max_tokens=window, dimension=size)
    val = load_split(data_dir, "val", sources=sources, rules=rules)
    figures: dict[str, Any] = _compare(model, encoder, val)
    index = RuleIndex(size)
    index.add(encoder.encode(rule_windows(bank, encoder)).embeddings)
    calibration, calibrated = fit_calibration(encoder, index, bank, val, max_fpr=max_fpr)
    figures |= calibrated
    write_parts(folder, index, bank, calibration, bundle_rules=bundle_rules)
    canary = choose_canary(encoder, calibration, val.bank)
    write_manifest(folder, bank, name=run.name, dimension=size, max_tokens=window, canary=canary)
    Guardrail.load(folder)  # a folder that cannot start must not be handed on
    (run / "finalize.json").write_text(json.dumps(figures, indent=2), encoding="utf-8")
    return figures


def choose_canary(encoder: OnnxEncoder, calibration: Calibration, own: list[Example]) -> Canary:
    """Return the surest unsafe and the surest safe dialogue of our own validation split.

    Their verdicts at start show whether the model computes on this machine what it computed here.
    Only our own writing (or the user's) may go into a model folder, never a row of a public set.

    Raises:
        ModelError: even the surest unsafe one is not flagged.
    """
    if not own:
        raise ArtifactError("expected rules with dialogues in the validation split, got none; add violations")
    odds = score_conversations(encoder, [example.turns for example in own]).log_odds
    unsafe = np.array([example.unsafe for example in own])
    best = int(np.argmax(np.where(unsafe, odds, -np.inf)))
    calmest = int(np.argmin(np.where(unsafe, np.inf, odds)))
    high, low = calibration.unsafe(odds[[best, calmest]])
    if not high >= calibration.thresholds.caution > low:
        raise ModelError(
            "detector",
            f"expected the surest unsafe dialogue to reach {calibration.thresholds.caution:.2f} and the "
            f"surest safe one to stay below, got {high:.2f} and {low:.2f}; train longer or with more data",
        )
    return Canary(
        unsafe=tuple(turn.text for turn in own[best].turns),
        safe=tuple(turn.text for turn in own[calmest].turns),
    )


def _write_model(model: SentenceTransformer, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        fp32 = export_fp32(model, Path(temporary) / "fp32.onnx")
        quantize_int8(fp32, folder / "model.onnx")
        model[0].tokenizer.save_pretrained(temporary)
        shutil.copyfile(Path(temporary) / "tokenizer.json", folder / "tokenizer.json")


def _compare(model: SentenceTransformer, encoder: OnnxEncoder, val: DataSplit) -> dict[str, float]:
    """Return cosine and AUROC of the exported model against torch, on real text."""
    examples = (val.examples + val.bank)[:: max(1, len(val.examples + val.bank) // COMPARED)]
    model.max_seq_length = encoder.max_tokens
    torch_out = torch_scorer(model)([as_text(example.turns) for example in examples])
    onnx_out = score_conversations(encoder, [example.turns for example in examples])
    unsafe = np.array([example.unsafe for example in examples])
    cosines = (torch_out.embeddings * onnx_out.embeddings).sum(1)
    before, after = auroc(torch_out.log_odds, unsafe), auroc(onnx_out.log_odds, unsafe)
    if before - after > MAX_AUROC_LOSS and len(examples) >= COMPARED:
        raise ModelError(
            "encoder",
            f"expected int8 to lose at most {MAX_AUROC_LOSS} AUROC, got {before:.4f} -> {after:.4f}; "
            f"export another format",
        )
    return {
        "export/cosine_mean": round(float(cosines.mean()), 4),
        "export/cosine_min": round(float(cosines.min()), 4),
        "export/auroc_torch": round(before, 4),
        "export/auroc_onnx": round(after, 4),
    }
