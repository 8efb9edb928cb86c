"""One training of the relevance model, from data to a model folder."""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from guardrail.artifact import DEFAULT_FOLDER, load_artifact

from ..data import load_split
from ..encoder import base_folder
from ..loaders import Split
from ..loaders.replies import OWN_REPLIES
from ..replies import ReplyExample
from ..resume import checkpoint_of
from ..rewriting.data import load_replies
from .config import RelevanceConfig
from .export import export_relevance
from .rows import NEGATIVES, About, Embed, about_replies, about_rules, kept_by, with_negatives
from .train import SEPARATOR, UNKNOWN, train_relevance

_T = TypeVar("_T")


def relevance_rows(
    data_dir: Path | None, config: RelevanceConfig, embed: Embed, split: Split = "train"
) -> list[dict[str, Any]]:
    """Return the rows of one split, rules and replies together.

    A conversation that nearly every statement is about, so that negatives are missing, is left out.

    Args:
        data_dir: folder of the public sets, or None for our own writing alone.
        config: limits and seed.
        embed: finds the neighbours that serve as negatives.
        split: "train", "val" or "test".
    """
    data = load_split(data_dir, split)
    replies = load_replies(data_dir, split)
    own = [item for item in replies if item.source in OWN_REPLIES]
    others = [item for item in replies if item.source not in OWN_REPLIES]
    rng = random.Random(config.seed)
    others = _some(others, config.public_replies, rng)
    kinds: list[list[About]] = [
        about_rules(data, config.public_rules, config.seed) + kept_by(own),
        about_replies(_shown(own + others)),
    ]
    return [
        {
            "text": item.text,
            "statements": [item.statement, *wrong],
            "broken": UNKNOWN if item.unsafe is None else float(item.unsafe),
            "source": item.source,
            "length": len(item.text.split()),
        }
        for every in kinds
        for items in [_some(every, config.max_rows, rng)]
        for item, wrong in zip(items, with_negatives(items, embed, config.seed), strict=True)
        if len(wrong) == NEGATIVES
    ]


def _some(items: list[_T], limit: int | None, rng: random.Random) -> list[_T]:
    return items if limit is None else rng.sample(items, min(limit, len(items)))


def _shown(replies: list[ReplyExample]) -> list[ReplyExample]:
    return [item for item in replies if len(item.reply.split()) >= 5]


def run_relevance(
    config: RelevanceConfig, run: Path, *, data_dir: Path | None, resume: bool = False
) -> dict[str, float]:
    """Load, mine, train and export: the run folder then holds `model/`, `artifact/` and the recipe.

    Args:
        config: the recipe.
        run: folder of the run.
        data_dir: folder of the public sets; None trains on our own writing alone.
        resume: go on from the newest whole checkpoint.

    Returns:
        Figures on validation data, of the int8 model.

    Raises:
        ConfigError: there is no such base, nothing to resume from, or too few validation rows.
        ArtifactError: a data file is missing.
    """
    base_folder(config.base)  # what can be wrong is found before the data are read
    if resume:
        checkpoint_of(run, config)
    embed = shipped_embedding()
    train_relevance(relevance_rows(data_dir, config, embed), config, run, resume=resume)
    return export_relevance(run, run / "artifact", relevance_rows(data_dir, config, embed, "val"))


def shipped_embedding() -> Embed:
    """Return the embedding of the encoder that ships: what it takes for near is what must be told apart."""
    encoder = load_artifact(DEFAULT_FOLDER).encoder

    def window(text: str) -> list[int]:
        turns = [[*encoder.tokenize(turn).ids, encoder.sep_id] for turn in text.split(SEPARATOR)]
        return [encoder.cls_id, *sum(turns, [])][: encoder.max_tokens]

    def embed(texts: Sequence[str]) -> NDArray[np.float32]:
        with ThreadPoolExecutor(2) as pool:
            found = pool.map(lambda text: encoder.encode([window(text)]).embeddings[0], texts)
            return np.stack(list(found))

    return embed
