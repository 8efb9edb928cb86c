"""One training from data to a run folder: what `guardrail train encoder` does."""

from __future__ import annotations

import json
from pathlib import Path

from sentence_transformers import SentenceTransformer
from transformers import set_seed

from guardrail.rules import Rule

from .config import EncoderConfig
from .data import load_split
from .encoder import build_model, require_processes, train
from .mining import with_hard_casual, with_hard_negatives
from .mix import build_rows
from .processes import is_first, process_count
from .resume import checkpoint_of, record_rows, require_rows, summary_of
from .scoring import torch_scorer
from .validation import validation_figures


def train_encoder(
    config: EncoderConfig,
    run: Path,
    *,
    data_dir: Path | None = None,
    sources: list[str] | None = None,
    rules: tuple[Rule, ...] | None = None,
    resume: bool = False,
    validate: bool = True,
) -> SentenceTransformer:
    """Load the data, train, and leave model, config, curves and validation figures in the run folder.

    Args:
        config: the recipe.
        run: folder of the run.
        data_dir: folder of the public sets; None trains on our own writing alone.
        sources: names of the public sets to use; None for all that may train.
        rules: the bank to train on; None for ours.
        resume: go on from the newest whole checkpoint of the run, with the same recipe and rows.
        validate: take the validation figures after every epoch and at the end.

    Returns:
        The trained model.

    Raises:
        ConfigError: a setting, source or base is wrong, or a run is resumed with other ones.
        ArtifactError: a data file is missing.
    """
    # What can be wrong is found before the data are read.
    require_processes(config, process_count())
    if resume:
        checkpoint_of(run, config)
    set_seed(config.seed)  # before the heads are drawn
    model = build_model(config.base, config.max_tokens)
    data = load_split(data_dir, "train", sources=sources, rules=rules)
    val = load_split(data_dir, "val", sources=sources, rules=rules)
    examples = data.examples + data.bank
    if config.hard_casual:
        examples = with_hard_casual(examples, model, config)
    rows = build_rows(examples, data.twins, data.norms, config)
    if resume:
        require_rows(run, summary_of(rows))
    elif is_first():
        run.mkdir(parents=True, exist_ok=True)
        record_rows(run, summary_of(rows))
    if config.hard_negatives:
        rows = with_hard_negatives(rows, model, data.contrary, count=config.hard_negatives, seed=config.seed)
    model = train(
        model,
        rows,
        config,
        run,
        evaluate=(lambda trained: validation_figures(torch_scorer(trained), val)) if validate else None,
        resume=resume,
    )
    if validate and is_first():
        figures = validation_figures(torch_scorer(model.eval()), val)
        (run / "metrics.json").write_text(json.dumps(figures, indent=2), encoding="utf-8")
    return model
