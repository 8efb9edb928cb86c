"""What each part of the loss is worth: the same small budget, the same seeds, on validation data.

    python bench/ablation.py --data ../shared/data --out runs/ablation

Each run leaves `figures.json` in its folder and is skipped when that is there. The table printed at
the end holds mean and standard deviation over the seeds.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import fmean, pstdev

import numpy as np
from sklearn.linear_model import LogisticRegression
from transformers import set_seed

from guardrail.rules import load_bank
from guardrail.trainer.config import EncoderConfig
from guardrail.trainer.data import DataSplit, load_split
from guardrail.trainer.encoder import build_model, train
from guardrail.trainer.inputs import as_text
from guardrail.trainer.mining import with_hard_negatives
from guardrail.trainer.mix import build_rows
from guardrail.trainer.scoring import Outputs, Scorer, torch_scorer
from guardrail.trainer.validation import validation_figures

QUERIES = 400
LIMIT = 200
SOURCES_APART = {"self_dialogue": 150, "topical_chat": 0, "msc": 0, "ethics_justice": 0}
SMALL = {
    "max_tokens": 64,
    "max_per_source": 300,
    "source_limits": SOURCES_APART
    | {"ethics_deontology": 0, "ethics_utilitarianism": 0, "social_chem_101": 800, "bank": 800}
    | {"pairs": 600, "situations": 1000, "crossed_situations": 200},
}
# Each line adds one part to the one before it.
PARTS: dict[str, dict[str, object]] = {
    "cross-entropy": {"rule_weight": 0.0, "stance_weight": 0.0, "twin_weight": 0.0, "social_weights": False},
    "+ InfoNCE": {"rule_weight": 0.3},
    "+ hard negatives": {"hard_negatives": 2},
    "+ social weights": {"social_weights": True},
    "+ stance": {"stance_weight": 0.5},
    "+ twins": {"twin_weight": 1.0},
}
PROBE = "untrained base, linear probe"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[13, 14, 15])
    parser.add_argument("--steps", type=int, default=160)
    arguments = parser.parse_args()
    data, val = (load_split(arguments.data, split) for split in ("train", "val"))
    figures: dict[str, list[dict[str, float]]] = defaultdict(list)
    for seed in arguments.seeds:
        recipe: dict[str, object] = dict(SMALL)
        figures[PROBE].append(
            _kept(
                arguments.out / f"probe-{seed}",
                lambda seed=seed: probe(data, val, seed),
            )
        )
        for name, change in PARTS.items():
            recipe |= change
            config = EncoderConfig(**recipe, seed=seed, max_steps=arguments.steps)  # type: ignore[arg-type]
            run = arguments.out / f"{name.replace(' ', '').replace('+', 'plus-')}-{seed}"
            figures[name].append(_kept(run, lambda c=config, r=run: trained(c, r, data, val)))
    print(table(figures))


def _kept(run: Path, make) -> dict[str, float]:  # type: ignore[no-untyped-def]
    path = run / "figures.json"
    if not path.is_file():
        run.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(make(), indent=2))
    return json.loads(path.read_text())  # type: ignore[no-any-return]


def trained(config: EncoderConfig, run: Path, data: DataSplit, val: DataSplit) -> dict[str, float]:
    """Train one variant and return its figures."""
    rows = build_rows(data.examples + data.bank, data.twins, data.norms, config)
    if not config.rule_weight:
        rows = replace(rows, norms=[])  # they feed the n-pair loss alone: its steps would be lost
    set_seed(config.seed)
    model = build_model(config.base, config.max_tokens)
    if config.hard_negatives:
        rows = with_hard_negatives(rows, model, data.contrary, count=config.hard_negatives, seed=config.seed)
    return measured(torch_scorer(train(model, rows, config, run).eval()), val)


def probe(data: DataSplit, val: DataSplit, seed: int) -> dict[str, float]:
    """Return the figures of the frozen base with a logistic regression on its embeddings."""
    model = build_model("minilm", SMALL["max_tokens"]).eval()  # type: ignore[arg-type]
    embed = torch_scorer(model)
    config = EncoderConfig(**SMALL, seed=seed)  # type: ignore[arg-type]
    rows = build_rows(data.examples + data.bank, data.twins, [], config)
    texts = [(str(row["text"]), row["label"][0] > 0) for row in rows.level]  # type: ignore[index]
    texts += [(str(row[side]), side == "unsafe") for row in rows.rules for side in ("unsafe", "safe")]
    x = embed([text for text, _ in texts]).embeddings
    fitted = LogisticRegression(max_iter=1000).fit(x, [unsafe for _, unsafe in texts])

    def score(batch: list[str]) -> Outputs:
        outputs = embed(batch)
        odds = fitted.decision_function(outputs.embeddings)
        logits = np.stack([-odds / 2, odds / 2, np.full_like(odds, -30)], axis=1)
        return Outputs(outputs.embeddings, outputs.violations, logits.astype(np.float32))

    return measured(score, val)  # type: ignore[arg-type]


def measured(score: Scorer, val: DataSplit) -> dict[str, float]:
    """Return validation figures, and recall at 10 of rule retrieval on both kinds of rules."""
    figures = validation_figures(score, val, limit=LIMIT)
    bank = [(as_text(example.turns), example.rule) for example in val.bank if example.unsafe and example.rule]
    figures["val/bank_recall_at_10"] = recall(score, bank, [rule.text for rule in load_bank()])
    norms = [(norm.text, norm.rule) for norm in val.norms]
    figures["val/social_chem_recall_at_10"] = recall(score, norms, [rule for _, rule in norms])
    return figures


def recall(score: Scorer, pairs: list[tuple[str, str]], corpus: list[str]) -> float:
    """Return how often the rule of a text is among the 10 nearest of the corpus."""
    chosen = pairs[:: max(1, len(pairs) // QUERIES)]
    rules = list(dict.fromkeys(corpus))
    vectors = score(rules).embeddings
    cosines = score([text for text, _ in chosen]).embeddings @ vectors.T
    own = np.array([rules.index(rule) for _, rule in chosen])
    above = (cosines > cosines[np.arange(len(own)), own][:, None]).sum(1)
    return round(float((above < 10).mean()), 4)


def table(figures: dict[str, list[dict[str, float]]]) -> str:
    """Return the figures as a Markdown table, one row per variant."""
    names = [name for name in next(iter(figures.values()))[0] if not name.startswith("val/ethics_d")]
    lines = ["| variant | " + " | ".join(name.removeprefix("val/") for name in names) + " |"]
    lines.append("|---" * (len(names) + 1) + "|")
    for variant, runs in figures.items():
        cells = [
            (fmean(values), pstdev(values)) for values in ([run[name] for run in runs] for name in names)
        ]
        lines.append(f"| {variant} | " + " | ".join(f"{mean:.3f} ± {sd:.3f}" for mean, sd in cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
