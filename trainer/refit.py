"""Calibrate a model folder, or a bare training run, again: what `guardrail train calibrate` does."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from guardrail.artifact import copy_files, find_folder, load_artifact, read_manifest, torch_files, trained_run
from guardrail.calibration import Platt
from guardrail.errors import ConfigError
from guardrail.protocols import Encoder
from guardrail.rule_index import RuleIndex
from guardrail.rules import Rule, load_bank

from .assemble import complete, staging
from .calibrate import ESCALATED_SHARE
from .calibration_data import load_calibration_data
from .export import load_trained, runtime_encoder
from .reliability import plot_reliability


@dataclass(frozen=True, slots=True)
class _Found:
    """What there is before calibration."""

    folder: Path
    name: str
    encoder: Encoder
    encoder_files: list[str]
    rules: tuple[Rule, ...]
    index: RuleIndex | None
    before: Platt | None
    bundle_rules: bool


def refit(
    folder: Path,
    *,
    data_dir: Path | None,
    sources: list[str] | None = None,
    rules: tuple[Rule, ...] | None = None,
    max_fpr: float | None = None,
    threshold_sources: Collection[str] | None = None,
    escalated: float = ESCALATED_SHARE,
    plot: Path | None = None,
) -> dict[str, float]:
    """Fit calibration and thresholds on validation data and write them into the folder.

    The model, the rules and their index stay as they are. A run that was never exported becomes a
    model folder for the torch backend: rules, index, calibration and manifest come beside `model/`.

    Args:
        folder: a model folder of any backend, a run, or the `model/` of a run.
        data_dir: folder of the public sets, or None for our own writing alone.
        sources: names of the public sets to calibrate on; None for all that may train.
        rules: the rules of a run that has none yet; None for the bank.
        max_fpr: share of everyday turns that may be flagged; None: see `load_calibration_data`.
        threshold_sources: sources whose everyday turns set the thresholds; None: those that did not train.
        escalated: share of everyday turns that goes to a judge, if there is one, [0, 1].
        plot: where to draw the reliability diagram; None for `reliability.png` in the folder.

    Returns:
        Figures: calibration, thresholds.

    Raises:
        ArtifactError: the folder is no model folder and no run, or it was altered.
        ConfigError: a setting is out of range, or rules for a folder that has its own.
        ModelError: nothing is ever flagged.
    """
    found = _find(folder, rules)
    data = load_calibration_data(
        data_dir,
        run=_run_of(found.folder),
        sources=sources,
        rules=found.rules,
        max_fpr=max_fpr,
        threshold_sources=threshold_sources,
    )
    with staging(found.folder) as staged:
        copy_files(found.folder, staged, found.encoder_files)
        fit = complete(
            staged,
            found.encoder,
            found.rules,
            data,
            name=found.name,
            index=found.index,
            before=found.before,
            escalated=escalated,
            bundle_rules=found.bundle_rules,
        )
    plot_reliability(fit.before, fit.after, fit.unsafe, plot or found.folder / "reliability.png")
    return fit.figures()


def _find(folder: Path, rules: tuple[Rule, ...] | None) -> _Found:
    root = find_folder(folder)
    run = trained_run(root)
    if run is not None and not (run / "manifest.json").exists():
        encoder = runtime_encoder(load_trained(run), run, "torch")
        bank = load_bank() if rules is None else rules
        return _Found(run, run.resolve().name, encoder, torch_files(run), bank, None, None, True)
    if rules is not None:
        raise ConfigError(
            f"expected rules only for a run that has none yet, {root} has its own; "
            f"add some with Guardrail.add_rules and save"
        )
    manifest = read_manifest(root)
    artifact = load_artifact(root)
    return _Found(
        root,
        manifest.name,
        artifact.encoder,
        manifest.encoder_files,
        artifact.rules,
        artifact.index,
        artifact.calibration.unsafe,
        "rules.jsonl" in manifest.files,
    )


def _run_of(folder: Path) -> Path:
    """Return the run that a model folder belongs to: itself, or the folder that holds RUN/artifact."""
    return folder if trained_run(folder) is not None else folder.resolve().parent
