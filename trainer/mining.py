"""Set hard negatives beside the rules of the training rows, mined with the encoder as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from .mix import Row, TrainingRows
from .pairs import negatives_of, neighbour_negatives
from .scoring import torch_scorer


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
