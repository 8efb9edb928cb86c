"""The reliability diagram: does 0.8 mean that eight of ten are unsafe, before and after calibration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .metrics import expected_calibration_error, reliability

BINS = 10
COLOURS = {"before": "#b0b0b0", "after": "#1f6feb"}


def plot_reliability(
    before: NDArray[np.floating], after: NDArray[np.floating], unsafe: NDArray[np.bool_], path: Path
) -> Path:
    """Draw predicted against observed shares, and how many turns each bin holds, into a PNG.

    Args:
        before: (n,) P(unsafe) before calibration.
        after: (n,) after it.
        unsafe: (n,) labels.
        path: where to write; its folder is made if absent.

    Returns:
        The path.
    """
    import matplotlib  # here, so that its figures never need a display

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (top, bottom) = pyplot.subplots(
        2, 1, figsize=(5.5, 7), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    top.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":", label="perfect")
    for (name, colour), probabilities, shift in zip(
        COLOURS.items(), (before, after), (-0.02, 0.02), strict=True
    ):
        confidence, frequency, share = reliability(probabilities, unsafe, BINS)
        error = expected_calibration_error(probabilities, unsafe)
        top.plot(confidence, frequency, marker="o", color=colour, label=f"{name} (ECE {error:.3f})")
        counts = np.rint(share * len(unsafe)).astype(int)
        centres = (np.clip((confidence * BINS).astype(int), 0, BINS - 1) + 0.5) / BINS + shift
        bars = bottom.bar(centres, counts, width=0.04, color=colour)
        bottom.bar_label(bars, fontsize=6, rotation=90, padding=2)
    top.set(ylabel="share that is unsafe", title="Reliability on validation data", xlim=(0, 1), ylim=(0, 1))
    top.legend(loc="upper left")
    bottom.set(xlabel="P(unsafe)", ylabel="turns")
    bottom.margins(y=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path
