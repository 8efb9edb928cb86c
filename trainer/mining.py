"""What the encoder gets wrong as it is: hard negatives of rules, and everyday talk that alarms it."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from .config import EncoderConfig
from .examples import CASUAL_SOURCES, Example
from .inputs import as_text
from .mix import Row, TrainingRows
from .pairs import negatives_of, neighbour_negatives
from .scoring import torch_scorer

# What mined everyday turns are called from then on: the limits of their sets no longer bind them.
HARD_CASUAL = "hard_casual"
# Turns of one set that are scored, at most.
CANDIDATES = 4_000


def with_hard_casual(
    examples: Sequence[Example], model: SentenceTransformer, config: EncoderConfig
) -> list[Example]:
    """Return the examples, the everyday turns that the model finds most unsafe under a name of their own.

    A set of which the mix takes all, or nothing (kept apart for the thresholds), is left as it is.

    Args:
        examples: of the training split.
        model: finds its own false alarms.
        config: `hard_casual`, the limits, the seed.
    """
    rng = random.Random(config.seed)
    places: dict[str, list[int]] = defaultdict(list)
    for place, example in enumerate(examples):
        limit = config.source_limits.get(example.source, config.max_per_source)
        if example.source in CASUAL_SOURCES and limit:
            places[example.source].append(place)
    candidates: list[int] = []
    for source, members in sorted(places.items()):
        if len(members) > config.source_limits.get(source, config.max_per_source):
            candidates += rng.sample(members, min(CANDIDATES, len(members)))
    if not candidates:
        return list(examples)
    training = model.training
    odds = torch_scorer(model.eval())([as_text(examples[place].turns) for place in candidates]).log_odds
    model.train(training)
    hardest = {candidates[row] for row in np.argsort(-odds, kind="stable")[: config.hard_casual]}
    return [
        replace(example, source=HARD_CASUAL) if place in hardest else example
        for place, example in enumerate(examples)
    ]


def with_hard_negatives(
    rows: TrainingRows, model: SentenceTransformer, contrary: Mapping[str, str], *, count: int, seed: int
) -> TrainingRows:
    """Return the rows with columns `hard_0`, ... beside every rule.

    Args:
        rows: the mix.
        model: finds the neighbours; its training goes on with them.
        contrary: from a rule's text to that of its contrary.
        count: negatives per rule, at least 1.
        seed: of their choice.
    """
    return replace(
        rows,
        rules=_mined(rows.rules, "unsafe", model, contrary, count, seed),
        norms=_mined(rows.norms, "text", model, contrary, count, seed),
    )


def _mined(
    rows: Sequence[Row],
    query: str,
    model: SentenceTransformer,
    contrary: Mapping[str, str],
    count: int,
    seed: int,
) -> list[Row]:
    if not rows:
        return []
    rules = list(dict.fromkeys(str(row["rule"]) for row in rows))
    place = {text: number for number, text in enumerate(rules)}
    own = [place[str(row["rule"])] for row in rows]
    neighbours = neighbour_negatives(
        _embed(model, [str(row[query]) for row in rows]), _embed(model, rules), own, count=count, seed=seed
    )
    found = negatives_of(rules, own, neighbours, contrary, count)
    return [
        # The label stays last: it is no text.
        {name: value for name, value in row.items() if name != "label"}
        | {f"hard_{number}": text for number, text in enumerate(texts)}
        | {"label": row["label"]}
        for row, texts in zip(rows, found, strict=True)
    ]


def _embed(model: SentenceTransformer, texts: Sequence[str]) -> NDArray[np.float32]:
    unique = list(dict.fromkeys(texts))
    training = model.training
    vectors = torch_scorer(model.eval())(unique).embeddings
    model.train(training)
    place = {text: number for number, text in enumerate(unique)}
    return vectors[[place[text] for text in texts]]
