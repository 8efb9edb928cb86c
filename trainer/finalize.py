"""From a training run to a model folder, in any format."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from guardrail.artifact import TORCH_FOLDER
from guardrail.errors import ConfigError
from guardrail.rules import Rule, load_bank

from .assemble import complete, staging
from .calibration_data import load_calibration_data
from .compare import compare
from .export import Format, load_trained, runtime_encoder, write_encoder
from .reliability import plot_reliability


def finalize(
    run: Path,
    *,
    data_dir: Path | None,
    folder: Path,
    sources: list[str] | None = None,
    rules: tuple[Rule, ...] | None = None,
    max_fpr: float | None = None,
    threshold_sources: Collection[str] | None = None,
    form: Format = "int8",
    allow_lossy: bool = False,
    bundle_rules: bool = True,
) -> dict[str, Any]:
    """Write the model folder of a training run.

    Args:
        run: folder of the run; `run/model` holds the trained model.
        data_dir: folder of the public sets, or None; the validation split of it is used.
        folder: where to write; made if absent, files of the same names are replaced.
        sources: names of the public sets to calibrate on; None for all that may train.
        rules: the rules to index, whose dialogues also calibrate; None for the bank.
        max_fpr: share of everyday turns that may be flagged; None: see `load_calibration_data`.
        threshold_sources: sources whose everyday turns set the thresholds; None: those that did not train.
        form: "int8", "fp16" (weights) or "fp32" ONNX, or "torch".
        allow_lossy: write it even if it loses more than `Comparison.refuse_lossy` allows.
        bundle_rules: False only for the folder that ships with the library, beside its bank.

    Returns:
        Figures: what the format costs, calibration, thresholds. Also in `run/finalize.json`, with
        `run/reliability.png`.

    Raises:
        ArtifactError: the run has no model, a data file is missing, or the rules have too few dialogues.
        ConfigError: a setting is out of range, or the folder holds the model of another training.
        ModelError: the format loses too much against torch, or nothing is ever flagged.
    """
    model = load_trained(run)
    _refuse_other_model(run, folder)
    bank = load_bank() if rules is None else rules
    data = load_calibration_data(
        data_dir,
        run=run,
        sources=sources,
        rules=rules,
        max_fpr=max_fpr,
        threshold_sources=threshold_sources,
    )
    with staging(folder) as staged:
        encoder = write_encoder(model, run, staged, form)
        trained = runtime_encoder(model, run, "torch")
        comparison = compare(trained, encoder, data.split.examples + data.split.bank)
        if not allow_lossy:
            comparison.refuse_lossy(form)
        fit = complete(staged, encoder, bank, data, name=run.resolve().name, bundle_rules=bundle_rules)
    figures: dict[str, Any] = comparison.figures() | fit.figures()
    (run / "finalize.json").write_text(json.dumps(figures, indent=2), encoding="utf-8")
    plot_reliability(fit.before, fit.after, fit.unsafe, run / "reliability.png")
    return figures


def _refuse_other_model(run: Path, folder: Path) -> None:
    if (folder / TORCH_FOLDER).exists() and folder.resolve() != run.resolve():
        raise ConfigError(
            f"expected a folder without a trained model, {folder} holds one in {TORCH_FOLDER}/; "
            f"choose another folder"
        )
