"""What a run is resumed from: the newest whole checkpoint, under the recipe and the rows it began with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from guardrail.errors import ConfigError

from .config import Recipe
from .mix import TrainingRows

CONFIG = "config.json"
HISTORY = "history.jsonl"
ROWS = "rows.json"
# The trainer writes it last: a checkpoint without it was cut off.
STATE = "trainer_state.json"


def checkpoint_of(run: Path, config: Recipe) -> Path:
    """Return the newest whole checkpoint of a run.

    Args:
        run: folder of the run.
        config: the recipe to go on with, which must be the run's own.

    Raises:
        ConfigError: there is no whole checkpoint, or the run was started with another recipe.
    """
    whole = [path for path in run.glob("checkpoint-*") if path.name[11:].isdigit() and _is_whole(path)]
    if not whole:
        raise ConfigError(
            f"expected a checkpoint to resume from in {run}, found none; start without --resume"
        )
    _require_recipe(run, config)
    return max(whole, key=step_of)


def step_of(checkpoint: Path) -> int:
    """Return the step that a checkpoint was written at."""
    return int(checkpoint.name.rpartition("-")[2])


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def _require_recipe(run: Path, config: Recipe) -> None:
    path = run / CONFIG
    try:
        recorded = type(config).model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"expected the run's recipe in {path}, it cannot be read; start in a new folder"
        ) from error
    before, now = recorded.model_dump(), config.model_dump()
    changed = [f"{name} {before[name]!r}, now {now[name]!r}" for name in now if now[name] != before[name]]
    if changed:
        raise ConfigError(
            f"expected the recipe that the run was started with, got another: {'; '.join(changed)}; resume "
            f"with the same --config and options, or start in a new folder"
        )


def summary_of(rows: TrainingRows) -> dict[str, object]:
    """Return how many rows there are of each kind, and a digest of them all."""
    texts = json.dumps([rows.level, rows.twins, rows.rules, rows.norms])
    return {**rows.counts(), "sha256": sha256(texts.encode()).hexdigest()}


def record_rows(run: Path, summary: Mapping[str, object]) -> None:
    """Write down which rows a run trains on: how many of each kind, and a digest of them all."""
    (run / ROWS).write_text(json.dumps(summary), encoding="utf-8")


def require_rows(run: Path, summary: Mapping[str, object]) -> None:
    """Check that a run is resumed on the rows that it was started with.

    Raises:
        ConfigError: they are others, because the sources, the rules or the files have changed.
    """
    try:
        recorded = json.loads((run / ROWS).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # nothing to compare with
        return
    if any(recorded.get(name, value) != value for name, value in summary.items()):
        counts = ", ".join(
            f"{name} {recorded.get(name)}, now {count}" for name, count in summary.items() if name != "sha256"
        )
        raise ConfigError(
            f"expected the rows that the run was started with, got others ({counts}); resume with the same "
            f"--data, --sources and --rules, or start in a new folder"
        )


def cut_history(run: Path, step: int) -> None:
    """Drop what `history.jsonl` holds of later steps, and a last line that was cut off."""
    path = run / HISTORY
    if not path.is_file():
        return
    kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _up_to(line, step)]
    path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")


def _up_to(line: str, step: int) -> bool:
    try:
        return int(json.loads(line)["step"]) <= step
    except (ValueError, KeyError, TypeError):
        return False
