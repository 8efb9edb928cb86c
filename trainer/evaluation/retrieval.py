"""Measure systems on the rule retrieval benchmark."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from guardrail import Guardrail

from ..examples import Example
from .benchmarks import Benchmark
from .common import Figures, as_messages
from .ranking import Ranks, mean_reciprocal_rank, ndcg_at, recall_at, relevant_ranks
from .systems import System

BLOCK = 256  # queries at a time: bounds the matrix of scores
NAMED = 10


def measure(system: System, benchmark: Benchmark, limit: int | None = None) -> Figures:
    """Return recall at 1, 5 and 10, MRR and nDCG at 10 of one system.

    Args:
        system: ranks the corpus.
        benchmark: the task.
        limit: most queries, chosen by a fixed seed; the corpus stays whole. None for all.
    """
    chosen = list(range(len(benchmark.queries)))
    if limit is not None and limit < len(chosen):
        chosen = sorted(random.Random(0).sample(chosen, limit))
    search = system(benchmark.corpus)
    ranks: list[Ranks] = []
    for start in range(0, len(chosen), BLOCK):
        block = chosen[start : start + BLOCK]
        scores = search([benchmark.queries[query] for query in block])
        ranks += [
            relevant_ranks(row, benchmark.relevant[query]) for row, query in zip(scores, block, strict=True)
        ]
    return {"queries": float(len(ranks)), "rules": float(len(benchmark.corpus)), **ranking_figures(ranks)}


def ranking_figures(ranks: Sequence[Ranks]) -> Figures:
    """Return the figures of a ranking."""
    return {
        **{f"recall_at_{k}": recall_at(k, ranks) for k in (1, 5, 10)},
        "mrr": mean_reciprocal_rank(ranks),
        "ndcg_at_10": ndcg_at(10, ranks),
    }


def named_rules(guard: Guardrail, violations: Sequence[Example]) -> Figures:
    """Return how often the guard names a violation's own rule first, among 5, among 10.

    Not by cosine alone, but by P(this rule is broken): what a user sees.
    """
    places = []
    for example in violations:
        named = [match.rule.text for match in guard.rank_rules(as_messages(example.turns), NAMED)]
        places.append(named.index(example.rule) if example.rule in named else NAMED)
    found = np.array(places)
    return {
        "queries": float(len(found)),
        "rules": float(len(guard.rules)),
        **{f"recall_at_{k}": float((found < k).mean()) for k in (1, 5, NAMED) if len(found)},
    }
