"""Options that several commands take, and the guard that they make."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..pipeline import Guardrail

Model = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="FOLDER", help="Model folder, or hf: and a hub id. Default: the one that ships."
    ),
]
ExtraRules = Annotated[
    list[Path] | None,
    typer.Option("--rules", metavar="FILE.jsonl", help="Extra rules, added to the model's; repeatable."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one line of JSON.")]


def load_guard(
    model: str | None, *, rules: Sequence[Path] | None = None, threshold: float | None = None
) -> Guardrail:
    """Return a guard with extra rules and, if given, another threshold.

    Args:
        model: folder or hub id; None for the model that ships.
        rules: JSONL files of rules to add.
        threshold: a turn is flagged exactly if the probability in its verdict reaches it. A rule
            that flags by itself needs its calibrated threshold too: lowering this one must not let
            sixteen rules per window fire at will. None takes the calibrated ones.

    Raises:
        ArtifactError: the model folder is missing, altered or foreign.
        InputError: a rule is broken, or its id is taken.
    """
    from ..pipeline import Guardrail
    from ..rules import read_rules

    added = [rule for path in rules or () for rule in read_rules(path)]  # first: it fails faster
    guard = Guardrail.load(model, caution_threshold=threshold)
    if threshold is not None and guard.thresholds.rule < threshold:
        guard.thresholds = guard.thresholds.model_copy(update={"rule": threshold})
    guard.add_rules(added)
    return guard
