"""What more writing buys: pairwise accuracy on held-out pairs by the number of pairs trained on.

    python bench/pairs_curve.py --base runs/knowledge/model --config bench/pairs.toml --out runs/curve

Families of groups are taken whole, in a seeded order, so that a larger share holds the smaller ones. The
budget is the same for all. Measured on the validation and test pairs together, beside a bag of words
trained on the same share; the base must not have been trained on any of them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from pairs_5fold import folds_of, scores

from guardrail.trainer.baselines import bag_of_words_margins, word_neutral
from guardrail.trainer.config import EncoderConfig
from guardrail.trainer.data import load_split
from guardrail.trainer.examples import Twin
from guardrail.trainer.loaders.common import Split
from guardrail.trainer.metrics import pairwise_wins

OWN = ("pairs", "situations")
PARTS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="minilm")
    parser.add_argument("--config", type=Path, help="A training recipe; default: the defaults.")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--sixteenths", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--seed", type=int, default=13)
    parser.add_argument("--out", type=Path, default=Path("runs/curve"))
    arguments = parser.parse_args()
    options = {"base": arguments.base, "seed": arguments.seed, "max_steps": arguments.steps}
    config = EncoderConfig.read(arguments.config, **options)
    train, test = own("train"), own("val") + own("test")
    parts = folds_of(train, PARTS, arguments.seed)
    neutral = word_neutral(bag_of_words_margins(train, test))  # the same pairs in every line
    print(f"{len(test)} pairs, {len(neutral)} of them word neutral")
    print("trained on\tpairwise\tword neutral\tbag of words")
    for most in arguments.sixteenths:
        kept = [twin for twin, part in zip(train, parts, strict=True) if part < most]
        wins = pairwise_wins(*scores(kept, test, config, arguments.out / str(most)))
        words = bag_of_words_margins(kept, test)
        right = pairwise_wins(words, np.zeros_like(words)).mean()
        print(f"{len(kept)}\t{wins.mean():.3f}\t{wins[neutral].mean():.3f}\t{right:.3f}")


def own(split: Split) -> list[Twin]:
    """Return our pairs and situations of a split."""
    return [twin for twin in load_split(None, split).twins if twin.source in OWN]


if __name__ == "__main__":
    main()
