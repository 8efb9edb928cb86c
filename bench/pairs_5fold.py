"""Pairwise accuracy on all pairs of our own: every one judged by a model that was not trained on it.

    python bench/pairs_5fold.py --base runs/knowledge/model --config bench/pairs.toml --out runs/folds

Pairs and situations, and whatever stands under a rule that says nearly the same, are whole in one fold.
The base must not have been trained on them. Each fold leaves `scores.npz` in its folder, and is skipped
when that was made by the same recipe from the same rows.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import set_seed

from guardrail.trainer.baselines import bag_of_words_margins, word_neutral
from guardrail.trainer.config import EncoderConfig
from guardrail.trainer.data import PAIRS, SITUATIONS
from guardrail.trainer.encoder import build_model, train
from guardrail.trainer.evaluation.common import versions
from guardrail.trainer.examples import Twin
from guardrail.trainer.families import families
from guardrail.trainer.inputs import as_text
from guardrail.trainer.loaders import load_pairs, load_situations
from guardrail.trainer.metrics import auroc, auroc_interval, pairwise_accuracy, pairwise_wins
from guardrail.trainer.mix import build_rows
from guardrail.trainer.resume import summary_of
from guardrail.trainer.scoring import torch_scorer

Odds = tuple[np.ndarray, np.ndarray]  # of the unsafe and of the safe versions, (n,) each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="minilm")
    parser.add_argument("--config", type=Path, help="A training recipe; default: the defaults.")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=13)
    parser.add_argument("--out", type=Path, default=Path("runs/folds"))
    arguments = parser.parse_args()
    if arguments.folds < 2:
        parser.error(f"expected at least 2 folds, got {arguments.folds}")
    twins = load_pairs(PAIRS) + load_situations(SITUATIONS)
    folds = folds_of(twins, arguments.folds, arguments.seed)
    options = {"base": arguments.base, "seed": arguments.seed, "max_steps": arguments.steps}
    config = EncoderConfig.read(arguments.config, **options)
    found = []
    known = {}  # log-odds of every version
    for fold in range(arguments.folds):
        test = [twin for twin, own in zip(twins, folds, strict=True) if own == fold]
        rest = [twin for twin, own in zip(twins, folds, strict=True) if own != fold]
        odds = scores(rest, test, config, arguments.out / f"fold-{fold}")
        for side, values in zip(("unsafe", "safe"), odds, strict=True):
            known |= {getattr(twin, side): value for twin, value in zip(test, values, strict=True)}
        found.append(figures(rest, test, odds))
    print(table(found))
    singles = versions(twins)
    values = np.array([known[single.turns] for single in singles])
    unsafe = np.array([single.unsafe for single in singles])
    low, high = auroc_interval(values, unsafe, [single.group for single in singles])
    print(f"\nsingle versions, all folds: AUROC {auroc(values, unsafe):.3f} ({low:.3f} to {high:.3f})")


def folds_of(twins: Sequence[Twin], folds: int, seed: int) -> list[int]:
    """Return the fold of each pair; families of groups are whole in one."""
    family = families([twin.group for twin in twins], [twin.rule for twin in twins])
    names = sorted(set(family.values()))
    random.Random(seed).shuffle(names)
    fold = {name: number % folds for number, name in enumerate(names)}
    return [fold[family[twin.group]] for twin in twins]


def scores(rest: Sequence[Twin], test: Sequence[Twin], config: EncoderConfig, run: Path) -> Odds:
    """Train on the rest and return the log-odds of the test pairs, or those that were kept."""
    rows = build_rows([], rest, [], config)
    both = [summary_of(rows), summary_of(build_rows([], test, [], config))]
    made_of = json.dumps([config.model_dump(mode="json"), both])
    path = run / "scores.npz"
    if not path.is_file() or str(np.load(path)["made_of"]) != made_of:
        set_seed(config.seed)  # before the heads are drawn
        score = torch_scorer(train(build_model(config.base, config.max_tokens), rows, config, run).eval())
        sides = {
            side: score([as_text(getattr(twin, side)) for twin in test]).log_odds
            for side in ("unsafe", "safe")
        }
        np.savez(path, made_of=made_of, **sides)
    kept = np.load(path)
    return kept["unsafe"], kept["safe"]


def figures(rest: Sequence[Twin], test: Sequence[Twin], odds: Odds) -> dict[str, float]:
    """Return the pairwise accuracy of a fold: of all, beside a bag of words, and by kind."""
    wins, margins = pairwise_wins(*odds), bag_of_words_margins(rest, test)
    kinds = np.array([f"{twin.source}, {twin.kind.replace('_', ' ')}" for twin in test])
    return {
        "pairs": float(len(test)),
        "pairwise": pairwise_accuracy(*odds),
        "bag of words": pairwise_accuracy(margins, np.zeros_like(margins)),
        "word neutral": float(wins[word_neutral(margins)].mean()),
        **{kind: float(wins[kinds == kind].mean()) for kind in sorted(set(kinds.tolist()))},
    }


def table(found: Sequence[dict[str, float]]) -> str:
    """Return a Markdown table: a row for each figure, its folds, mean and standard error over them."""
    lines = [["", *(f"fold {number}" for number in range(len(found))), "mean ± standard error"]]
    lines.append(["---"] * len(lines[0]))
    for name in dict.fromkeys(name for fold in found for name in fold):
        values = [fold.get(name, np.nan) for fold in found]  # a small kind may be missing in a fold
        form = ".0f" if name == "pairs" else ".3f"
        here = np.array(values)[np.isfinite(values)]
        error = here.std(ddof=1) / len(here) ** 0.5 if len(here) > 1 else np.nan
        lines.append(
            [name, *(f"{value:{form}}" for value in values), f"{here.mean():{form}} ± {error:{form}}"]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
