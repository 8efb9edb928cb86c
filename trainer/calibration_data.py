"""What calibration is fitted on: the validation split, and the everyday talk that sets the thresholds.

Everyday talk of the sources that trained the model raises about ten times fewer false alarms than
talk from elsewhere (docs/experiments.md). So thresholds are taken from sources that did not train,
where the run has kept some out (`source_limits = 0` in its recipe); such a source counts whole, its
training split included.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guardrail.artifact import trained_run
from guardrail.errors import ConfigError
from guardrail.rules import Rule

from . import loaders
from .data import DataSplit, load_split
from .examples import CASUAL_SOURCES, Example

# Share of everyday turns that users may see flagged.
MAX_FPR = 0.01
# What remains of it where the thresholds come from sources that trained the model.
TRAINED_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class CalibrationData:
    """What `fit_calibration` reads.

    Attributes:
        split: the validation split.
        casual: everyday turns that set the thresholds.
        max_fpr: share of them that may be flagged, (0, 1).
    """

    split: DataSplit = field(repr=False)
    casual: list[Example] = field(repr=False)
    max_fpr: float


def load_calibration_data(
    data_dir: Path | None,
    *,
    run: Path | None = None,
    sources: list[str] | None = None,
    rules: tuple[Rule, ...] | None = None,
    max_fpr: float | None = None,
    threshold_sources: Collection[str] | None = None,
) -> CalibrationData:
    """Load the validation split and choose the everyday turns for the thresholds.

    Args:
        data_dir: folder of the public sets, or None for our own writing alone.
        run: the run that trained the model, if known: its recipe says which sources did not train.
        sources: names of the public sets; None for all that may train.
        rules: the rules whose dialogues to read; None for the bank.
        max_fpr: share of everyday turns that may be flagged; None for MAX_FPR, or a tenth of it
            where only sources that trained are at hand.
        threshold_sources: sources whose everyday turns set the thresholds. None for the casual ones
            that did not train, or, where there are none, all casual ones.

    Raises:
        ConfigError: max_fpr is out of range, or a threshold source has no everyday turn.
        ArtifactError: a file of a chosen source is missing.
    """
    if max_fpr is not None and not 0 < max_fpr < 1:
        raise ConfigError(f"expected 0 < max_fpr < 1, got {max_fpr}")
    split = load_split(data_dir, "val", sources=sources, rules=rules)
    safe = [example for example in split.examples + split.bank if not example.unsafe]
    casual = {example.source for example in safe} & CASUAL_SOURCES
    untrained = untrained_sources(run)
    held_out = casual & untrained if threshold_sources is None else set(threshold_sources)
    chosen = held_out or casual
    missing = chosen - {example.source for example in safe}
    if missing or not chosen:
        raise ConfigError(
            f"expected everyday turns for the thresholds, validation has none of "
            f"{', '.join(sorted(missing)) or 'the casual sources'}; check --data and the sources"
        )
    turns = [example for example in safe if example.source in chosen]
    whole = sorted(chosen & untrained & set(loaders.SOURCES))
    if data_dir is not None and whole:
        turns += [
            example for example in loaders.load_examples(data_dir, whole, "train") if not example.unsafe
        ]
    if max_fpr is None:
        max_fpr = MAX_FPR if held_out else MAX_FPR * TRAINED_SHARE
    return CalibrationData(split, turns, max_fpr)


def untrained_sources(run: Path | None) -> frozenset[str]:
    """Return the sources that neither the recipe of a run nor those of its bases let in.

    Empty where the recipe is not at hand.
    """
    recipe = _recipe(run)
    limits = recipe.get("source_limits", {})
    untrained = frozenset(name for name, limit in limits.items() if limit == 0)
    base = trained_run(Path(recipe["base"])) if "base" in recipe else None
    # A run cannot be its own base, so this ends.
    return untrained & untrained_sources(base) if base is not None and _recipe(base) else untrained


def _recipe(run: Path | None) -> dict[str, Any]:
    """Return `config.json` of a run; nothing where it is missing, or is not the recipe of a training."""
    if run is None:
        return {}
    try:
        found = json.loads((run / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # any file may have this name beside a model folder
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("source_limits"), dict) else {}
