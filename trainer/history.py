"""What a run leaves behind about itself: losses and figures, their curves, and what it was made with."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback

from .resume import HISTORY


class History(TrainerCallback):  # type: ignore[misc]  # untyped library
    """Writes losses and, after each epoch, the caller's figures to `history.jsonl`."""

    def __init__(
        self, run: Path, model: nn.Module, evaluate: Callable[[], dict[str, float]] | None = None
    ) -> None:
        """Remember where to write.

        Args:
            run: folder of the run.
            model: put into evaluation mode for `evaluate`, and back.
            evaluate: called after each epoch, in the first process alone.
        """
        self.path = run / HISTORY
        self.model = model
        self.evaluate = evaluate

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Append the trainer's own figures."""
        self._append(state, logs or {})

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Append the validation figures."""
        if self.evaluate is not None and state.is_world_process_zero:
            self.model.eval()
            self._append(state, self.evaluate())
            self.model.train()

    def _append(self, state: Any, figures: dict[str, Any]) -> None:
        if not state.is_world_process_zero:
            return
        row = {"step": state.global_step, "epoch": round(state.epoch or 0.0, 3), **figures}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def plot_curves(run: Path) -> Path:
    """Draw loss and validation figures of `history.jsonl` into `curves.png`; return its path."""
    import matplotlib  # here, so that its figures never need a display

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [json.loads(line) for line in (run / HISTORY).read_text(encoding="utf-8").splitlines()]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4))
    losses = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    left.plot(*zip(*losses, strict=True) if losses else ((), ()))
    left.set(title="training loss", xlabel="step")
    names = sorted({name for row in rows for name in row if name.startswith("val/")})
    for name in names:
        points = [(row["step"], row[name]) for row in rows if name in row]
        right.plot(*zip(*points, strict=True), marker="o", label=name.removeprefix("val/"))
    right.set(title="validation", xlabel="step")
    if names:
        right.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(run / "curves.png", dpi=110)
    pyplot.close(figure)
    return run / "curves.png"


def environment() -> dict[str, str]:
    """Return versions and the git commit that a run was made with; no commit where git has none."""
    packages: Sequence[str] = ("torch", "transformers", "sentence-transformers", "numpy", "onnxruntime")
    versions = {name: metadata.version(name) for name in packages}
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        commit = found.stdout.strip()
    except OSError:  # git is not installed
        commit = ""
    return {"python": platform.python_version(), **versions, "git": commit}
