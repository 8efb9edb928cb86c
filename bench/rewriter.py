"""Figures of a trained rewrite model on held-out replies, and how long it takes on this machine.

    python bench/rewriter.py --run runs/rewriter [--data ../shared/data] [--split test]

Perplexity is per word piece of the model's own vocabulary, so it compares with models of the same one alone.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median

from guardrail.rewrite_format import RewriteInput
from guardrail.rewriter import TransformersRewriter, read_description
from guardrail.torch_rewriter import load
from guardrail.trainer.rewriting.config import RewriterConfig
from guardrail.trainer.rewriting.data import load_replies
from guardrail.trainer.rewriting.validation import validation_figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/rewriter"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--split", default="test", choices=["val", "test"])
    parser.add_argument("--decoded", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    config = RewriterConfig.model_validate_json((arguments.run / "config.json").read_bytes())
    folder = arguments.run / "model"
    kind = read_description(folder).kind
    model, tokenizer = load(folder, kind, "cpu")
    replies = load_replies(arguments.data, arguments.split)
    for source in ("bank", "situations", "all"):
        mine = [item for item in replies if source in (item.source, "all")]
        figures = validation_figures(model.eval(), tokenizer, kind, mine, config, decoded=arguments.decoded)
        print(
            source, len(mine), {name.removeprefix("val/"): round(value, 3) for name, value in figures.items()}
        )
    for int8 in (False, True):
        rewriter = TransformersRewriter.load(folder, threads=1, int8=int8)
        for count in (1, 4):
            times, words = [], []
            for item in replies[:: max(1, len(replies) // arguments.rounds)][: arguments.rounds]:
                start = time.perf_counter()
                texts = rewriter.rewrite(RewriteInput(item.turns, item.rules, item.draft), count=count)
                times.append(1000 * (time.perf_counter() - start))
                words.append(len(texts[0].split()) if texts else 0)
            print(
                f"int8 {int8}, {count} replies: p50 {median(times):.0f} ms, first reply {median(words)} words"
            )


if __name__ == "__main__":
    main()
