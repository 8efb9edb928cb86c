"""What each part of the loss is worth: the same small budget, the same seeds, on validation data.

    python bench/ablation.py --data ../shared/data --out runs/ablation

Each run leaves `figures.json` in its folder, with the recipe and a digest of the rows, and is skipped
when those are still the same. Printed at the end: mean and standard deviation over the seeds, and how
many of the rules that the retrieval figures ask for stand in the training data too.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
from sklearn.linear_model import LogisticRegression
from transformers import set_seed

from guardrail.rules import load_bank
from guardrail.trainer.config import EncoderConfig
from guardrail.trainer.data import DataSplit, load_split
from guardrail.trainer.encoder import build_model, train
from guardrail.trainer.inputs import as_text
from guardrail.trainer.loaders import normalise
from guardrail.trainer.mining import with_hard_negatives
from guardrail.trainer.mix import TrainingRows, build_rows
from guardrail.trainer.resume import summary_of
from guardrail.trainer.scoring import Outputs, Scorer, torch_scorer
from guardrail.trainer.validation import validation_figures

Figures = dict[str, float]
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
    figures: dict[str, list[Figures]] = defaultdict(list)
    for seed in arguments.seeds:
        recipe: dict[str, object] = dict(SMALL)
        config = EncoderConfig(**recipe, seed=seed)  # type: ignore[arg-type]
        rows = build_rows(data.examples + data.bank, data.twins, [], config)
        run = arguments.out / f"probe-{seed}"
        figures[PROBE].append(_kept(run, config, rows, val, lambda r=rows: probe(r, val)))
        for name, change in PARTS.items():
            recipe |= change
            config = EncoderConfig(**recipe, seed=seed, max_steps=arguments.steps)  # type: ignore[arg-type]
            rows = rows_of(data, config)
            run = arguments.out / f"{name.replace(' ', '').replace('+', 'plus-')}-{seed}"
            make = lambda c=config, r=rows, f=run: trained(c, r, data, f, val)  # noqa: E731
            figures[name].append(_kept(run, config, rows, val, make))
    print(table(figures))
    print()
    print(seen(data, val))


def _kept(
    run: Path, config: EncoderConfig, rows: TrainingRows, val: DataSplit, make: Callable[[], Figures]
) -> Figures:
    """Return the figures of a finished run of the same recipe and data, else make and keep them."""
    made_of = {
        "config": config.model_dump(mode="json"),
        "rows": summary_of(rows),
        "validation": [len(part) for part in (val.examples, val.twins, val.norms, val.bank)],
    }
    path = run / "figures.json"
    kept = json.loads(path.read_text()) if path.is_file() else {}
    if kept.get("made_of") != made_of:
        run.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        kept = {"made_of": made_of, "figures": make()}
        path.write_text(json.dumps(kept, indent=2))
    return dict(kept["figures"])


def rows_of(data: DataSplit, config: EncoderConfig) -> TrainingRows:
    """Return the rows of a variant."""
    rows = build_rows(data.examples + data.bank, data.twins, data.norms, config)
    # Norms feed the n-pair loss alone: without it their steps would be lost.
    return rows if config.rule_weight else replace(rows, norms=[])


def trained(config: EncoderConfig, rows: TrainingRows, data: DataSplit, run: Path, val: DataSplit) -> Figures:
    """Train one variant and return its figures."""
    set_seed(config.seed)
    model = build_model(config.base, config.max_tokens)
    if config.hard_negatives:
        rows = with_hard_negatives(rows, model, data.contrary, count=config.hard_negatives, seed=config.seed)
    return measured(torch_scorer(train(model, rows, config, run).eval()), val)


def probe(rows: TrainingRows, val: DataSplit) -> Figures:
    """Return the figures of the frozen base with a logistic regression on its embeddings."""
    model = build_model("minilm", SMALL["max_tokens"]).eval()  # type: ignore[arg-type]
    embed = torch_scorer(model)
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


def measured(score: Scorer, val: DataSplit) -> Figures:
    """Return validation figures, and recall at 10 of rule retrieval on both kinds of rules."""
    figures = validation_figures(score, val, limit=LIMIT)
    rules = {"bank": [rule.text for rule in load_bank()]}
    for name, pairs in queries(val).items():
        corpus = rules.get(name, [rule for _, rule in pairs])
        figures[f"val/{name}_recall_at_10"] = recall(score, pairs, corpus)
    return figures


def queries(val: DataSplit) -> dict[str, list[tuple[str, str]]]:
    """Return the texts of the retrieval figures, each with the rule that is to be found."""
    return {
        "bank": [(as_text(item.turns), item.rule) for item in val.bank if item.unsafe and item.rule],
        "social_chem": [(norm.text, norm.rule) for norm in val.norms if norm.source == "social_chem_101"],
    }


def seen(data: DataSplit, val: DataSplit) -> str:
    """Say how many of the rules asked for in validation stand, to the letter, in the training data."""
    trained_on = {normalise(item.rule) for item in (*data.bank, *data.twins, *data.norms) if item.rule}
    lines: list[str] = []
    for name, pairs in queries(val).items():
        rules = {normalise(rule) for _, rule in pairs}
        known = len(rules & trained_on)
        lines.append(f"{name}: {known} of the {len(rules)} rules asked for were at hand in training")
    return "\n".join(lines)


def recall(score: Scorer, pairs: list[tuple[str, str]], corpus: list[str]) -> float:
    """Return how often the rule of a text is among the 10 nearest of the corpus."""
    chosen = pairs[:: max(1, len(pairs) // QUERIES)]
    rules = list(dict.fromkeys(corpus))
    vectors = score(rules).embeddings
    cosines = score([text for text, _ in chosen]).embeddings @ vectors.T
    own = np.array([rules.index(rule) for _, rule in chosen])
    above = (cosines > cosines[np.arange(len(own)), own][:, None]).sum(1)
    return round(float((above < 10).mean()), 4)


def table(figures: dict[str, list[Figures]]) -> str:
    """Return a Markdown table, one row per variant: mean and standard deviation over the seeds."""
    names = [name for name in next(iter(figures.values()))[0] if not name.startswith("val/ethics_d")]
    lines = ["| variant | " + " | ".join(name.removeprefix("val/") for name in names) + " |"]
    lines.append("|---" * (len(names) + 1) + "|")
    for variant, runs in figures.items():
        cells = [_cell([run[name] for run in runs]) for name in names]
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{fmean(values):.3f}{spread}"


if __name__ == "__main__":
    main()
