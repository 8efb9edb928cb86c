"""Make the parts of a guard out of its settings; models for repairs are loaded when first needed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .calibration import Band, Thresholds
from .config import GuardConfig
from .errors import ArtifactError, ConfigError
from .judges import as_judge
from .lazy import Lazy
from .second_opinion import SecondOpinion
from .threads import Workers

if TYPE_CHECKING:
    from .protocols import Relevance, Rewriter

T = TypeVar("T")


def thresholds_of(calibrated: Thresholds, config: GuardConfig) -> Thresholds:
    """Return the thresholds in force: a setting, else the calibrated one."""
    chosen = {
        "caution": config.caution_threshold,
        "intervention": config.intervention_threshold,
        "rule": config.rule_threshold,
        "touch": config.touch_threshold,
    }
    return calibrated.model_copy(update={name: value for name, value in chosen.items() if value is not None})


def band_of(fitted: Band | None, thresholds: Thresholds, config: GuardConfig) -> Band:
    """Return the uncertain band; a fitted one belongs to the calibrated caution threshold alone.

    Raises:
        ConfigError: its ends are in the wrong order.
    """
    if fitted is None or config.caution_threshold is not None:
        fitted = Band.around(thresholds.caution)
    low = fitted.low if config.uncertain_low is None else config.uncertain_low
    high = fitted.high if config.uncertain_high is None else config.uncertain_high
    if low > high:
        raise ConfigError(f"expected uncertain_low <= uncertain_high, got {low:g} and {high:g}; set both")
    return Band(low=low, high=high)


def lazy_relevance(given: Relevance | str | Path | None, threads: int) -> Lazy[Relevance] | None:
    """Return the relevance model, or what loads it from its folder.

    Raises:
        ArtifactError: the folder holds none.
    """

    def load(folder: Path) -> Relevance:
        from .relevance import OnnxRelevance  # here: only a repair needs it

        return OnnxRelevance(folder, threads=threads)

    return _lazy(given, "relevance.json", load)


def lazy_rewriter(given: Rewriter | str | Path | None) -> Lazy[Rewriter] | None:
    """Return the rewrite model, or what loads it from its folder.

    Raises:
        ArtifactError: the folder holds none.
    """

    def load(folder: Path) -> Rewriter:
        from .rewriter import TransformersRewriter  # here: only a repair needs it, and it needs torch

        return TransformersRewriter.load(folder, threads=1)

    return _lazy(given, "rewriter.json", load)


def _lazy(given: T | str | Path | None, description: str, load: Callable[[Path], T]) -> Lazy[T] | None:
    """Return a model, or what loads it; a wrong path must show when the guard is made, not at a repair."""
    if given is None:
        return None
    if not isinstance(given, str | Path):
        return Lazy(lambda: given)
    folder = Path(given)
    if not (folder / description).is_file():
        raise ArtifactError(f"expected a model folder with {description} at {folder}, found none")
    return Lazy(lambda: load(folder))


def workers_of(config: GuardConfig, judge: Any) -> tuple[Workers, Workers, Workers]:
    """Return threads for judgements, for repairs, and for the steps of guarded replies, which wait for both.

    Few at a time: more would not be faster, and would keep the event loop from its turn. A step that waits
    for a judge computes nothing, so there is room for more of these.
    """
    steps = config.workers + (config.judge_workers if judge is not None else 0)
    return (
        Workers(config.workers, config.max_waiting, "guardrail-check"),
        Workers(config.workers, config.max_waiting, "guardrail-repair"),
        Workers(steps, sys.maxsize, "guardrail-step"),
    )


def second_opinion_of(judge: Any, config: GuardConfig) -> SecondOpinion | None:
    """Return the judge with its deadline, threads and cache; None without one.

    Raises:
        ConfigError: it is no judge.
    """
    if judge is None:
        return None
    return SecondOpinion(
        as_judge(judge),
        deadline_ms=config.judge_deadline_ms,
        workers=config.judge_workers,
        cache=config.judge_cache,
    )
