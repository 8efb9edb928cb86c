"""Train a judge that the repair has never seen: another seed, another part of the rows, other rules.

    python bench/second_judge.py --data ../shared/data --base runs/knowledge/model --out runs/second_judge

It measures replies that were made with the judge that ships, so that a repair cannot only please its
own judge. Of the training and validation rows of that judge, groups are drawn anew by a salted hash; the
test split stays out of both. Leaves a model folder in OUT/artifact.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from transformers import set_seed

from guardrail.trainer.config import EncoderConfig
from guardrail.trainer.data import load_split
from guardrail.trainer.encoder import build_model, train
from guardrail.trainer.finalize import finalize
from guardrail.trainer.loaders.common import share
from guardrail.trainer.mining import with_hard_negatives
from guardrail.trainer.mix import build_rows

SALT = "second judge"
SHARE = 0.6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--base", required=True)
    parser.add_argument("--config", type=Path, default=Path("trainer/resources/default.toml"))
    parser.add_argument("--out", type=Path, default=Path("runs/second_judge"))
    parser.add_argument("--seed", type=int, default=77)
    parser.add_argument("--steps", type=int, default=700)
    arguments = parser.parse_args()
    config = EncoderConfig.read(
        arguments.config, base=arguments.base, seed=arguments.seed, max_steps=arguments.steps
    )
    set_seed(config.seed)
    model = build_model(config.base, config.max_tokens)
    parts = [load_split(arguments.data, split) for split in ("train", "val")]
    rows = build_rows(
        [item for part in parts for item in part.examples + part.bank if drawn(item.group)],
        [item for part in parts for item in part.twins if drawn(item.group)],
        [item for part in parts for item in part.norms],
        config,
    )
    rows = with_hard_negatives(rows, model, parts[0].contrary, count=config.hard_negatives, seed=config.seed)
    train(model, rows, config, arguments.out)
    figures = finalize(
        arguments.out,
        data_dir=arguments.data,
        folder=arguments.out / "artifact",
        max_fpr=0.003,
        threshold_sources=["topical_chat", "msc"],
    )
    print(figures)


def drawn(group: str) -> bool:
    """Return True if a group is in this judge's part."""
    return share(f"{SALT}\0{group}") < SHARE


if __name__ == "__main__":
    main()
