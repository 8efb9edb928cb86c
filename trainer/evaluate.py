"""Evaluate a model folder on held-out sets, through the library's own front door.

Every figure comes from `Guardrail.check_batch` on whole conversations: what a user would get.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from guardrail import Guardrail
from guardrail.types import Turn, Verdict

from . import loaders
from .baselines import bag_of_words_margins, word_neutral
from .data import load_own
from .examples import Example, Twin
from .metrics import auroc, expected_calibration_error, pairwise_accuracy, recall_at_fpr

Figures = dict[str, float]
RETRIEVED = 10


def evaluate(folder: Path | None, data_dir: Path | None, limit: int | None = None) -> dict[str, Figures]:
    """Return the figures of a model folder on every test set.

    Args:
        folder: model folder; None for the one that ships.
        data_dir: folder of the public sets; None evaluates on our own held-out writing alone.
        limit: most items per set, chosen by a fixed seed; None for all.

    Returns:
        Figures by set. Sets with both classes: auroc, recall at 1 % false alarms, ece, flagged
        shares of unsafe and safe. Sets of one class: the flagged share. Pairs: pairwise accuracy,
        beside a bag of words. Bank: how often the broken rule is among those retrieved.
    """
    guard = Guardrail.load(folder)
    examples, twins = load_own("test")
    report: dict[str, Figures] = {}
    for name, members in _by_source(examples + _public(data_dir)).items():
        report[name] = _classified(guard, _sample(members, limit))
    if data_dir is not None:
        openings = _sample(loaders.dailydialog_openings(data_dir), limit)
        report["dailydialog_openings"] = _classified(guard, openings)
    report |= _pairs(guard, [twin for twin in twins if twin.source == "pairs"])
    near_misses = [twin for twin in twins if twin.source == "bank"]
    report["bank_near_misses"] = {"pairs": float(len(near_misses)), "pairwise": _pairwise(guard, near_misses)}
    report["bank_rules"] = _retrieval(guard, [e for e in examples if e.source == "bank" and e.unsafe])
    return {name: {key: _rounded(value) for key, value in row.items()} for name, row in report.items()}


def _public(data_dir: Path | None) -> list[Example]:
    return [] if data_dir is None else loaders.load_examples(data_dir, None, "test")


def _classified(guard: Guardrail, examples: Sequence[Example]) -> Figures:
    verdicts = guard.check_batch([_dicts(example.turns) for example in examples])
    scores = np.array([verdict.probability for verdict in verdicts])
    flagged = np.array([verdict.flagged for verdict in verdicts])
    unsafe = np.array([example.unsafe for example in examples])
    figures: Figures = {"n": float(len(examples))}
    if unsafe.any() and not unsafe.all():
        figures["auroc"] = auroc(scores, unsafe)
        figures["recall_at_1_percent"] = recall_at_fpr(scores, unsafe, 0.01)
        figures["ece"] = expected_calibration_error(scores, unsafe)
    if unsafe.any():
        figures["unsafe_flagged"] = float(flagged[unsafe].mean())
    if not unsafe.all():
        figures["safe_flagged"] = float(flagged[~unsafe].mean())
        figures["safe_touched"] = (
            float(np.mean([bool(v.touched) for v in verdicts])) if not unsafe.any() else math.nan
        )
    return figures


def _pairs(guard: Guardrail, twins: Sequence[Twin]) -> dict[str, Figures]:
    """Return figures on matched pairs: all, the word-neutral part, by kind; a bag of words beside."""
    if not twins:
        return {}
    train = [twin for twin in load_own("train")[1] if twin.source == "pairs"]
    margins = bag_of_words_margins(train, twins)
    unsafe, safe = _probabilities(guard, twins, "unsafe"), _probabilities(guard, twins, "safe")
    neutral = word_neutral(margins)
    labels = np.repeat([True, False], len(twins))
    report: dict[str, Figures] = {
        "pairs": {
            "n": float(len(twins)),
            "pairwise": pairwise_accuracy(unsafe, safe),
            "bag_of_words_pairwise": float((margins > 0).mean()),
            "single_auroc": auroc(np.concatenate([unsafe, safe]), labels),
        },
        "pairs_word_neutral": {
            "n": float(len(neutral)),
            "pairwise": pairwise_accuracy(unsafe[neutral], safe[neutral]),
            "bag_of_words_pairwise": float((margins[neutral] > 0).mean()) if len(neutral) else math.nan,
        },
    }
    for kind in sorted({twin.kind for twin in twins}):
        rows = np.array([number for number, twin in enumerate(twins) if twin.kind == kind])
        report[f"pairs_{kind}"] = {
            "n": float(len(rows)),
            "pairwise": pairwise_accuracy(unsafe[rows], safe[rows]),
            "bag_of_words_pairwise": float((margins[rows] > 0).mean()),
        }
    return report


def _retrieval(guard: Guardrail, violations: Sequence[Example]) -> Figures:
    """Return how often a violation's own rule is the first, among 3, among RETRIEVED named ones."""
    if not violations:
        return {}
    places = []
    for example in violations:
        found = guard.rank_rules(_dicts(example.turns), RETRIEVED)
        texts = [match.rule.text for match in found]
        places.append(texts.index(example.rule) if example.rule in texts else RETRIEVED)
    ranks = np.array(places)
    return {
        "n": float(len(ranks)),
        **{f"own_rule_in_{k}": float((ranks < k).mean()) for k in (1, 3, RETRIEVED)},
    }


def _pairwise(guard: Guardrail, twins: Sequence[Twin]) -> float:
    return pairwise_accuracy(_probabilities(guard, twins, "unsafe"), _probabilities(guard, twins, "safe"))


def _probabilities(guard: Guardrail, twins: Iterable[Twin], side: str) -> np.ndarray:
    verdicts: list[Verdict] = guard.check_batch([_dicts(getattr(twin, side)) for twin in twins])
    return np.array([verdict.probability for verdict in verdicts])


def _dicts(turns: Sequence[Turn]) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.text} for turn in turns]


def _by_source(examples: Iterable[Example]) -> dict[str, list[Example]]:
    by_source: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        by_source[example.source].append(example)
    return dict(sorted(by_source.items()))


def _sample(examples: Sequence[Example], limit: int | None) -> list[Example]:
    if limit is None or len(examples) <= limit:
        return list(examples)
    return random.Random(0).sample(list(examples), limit)


def _rounded(value: float) -> float:
    return round(value, 4) if math.isfinite(value) else math.nan
