"""How well a rewrite model does on held-out replies, while it trains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from guardrail.rewrite_tokens import Kind, texts_of
from guardrail.torch_rewriter import write

from ..replies import ReplyExample
from .config import RewriterConfig
from .inputs import Collator, rows_of
from .losses import IGNORED, aligned, token_loss
from .metrics import corpus_bleu, distinct_n, unigram_f1

# Decoding takes far longer than scoring.
SCORED, DECODED = 1024, 64
BATCH = 16


@torch.inference_mode()
def validation_figures(
    model: Any,
    tokenizer: Any,
    kind: Kind,
    examples: Sequence[ReplyExample],
    config: RewriterConfig,
    *,
    decoded: int = DECODED,
) -> dict[str, float]:
    """Return the figures of a model in evaluation mode.

    `val/nll` and `val/perplexity` are per token of at most 1,024 gold replies. BLEU-4, unigram F1 and
    distinct-2 are of greedy replies to at most `decoded` examples, the same ones each time.

    Args:
        model: in evaluation mode.
        tokenizer: its tokenizer.
        kind: how it reads.
        examples: held out, at least one.
        config: the recipe.
        decoded: examples that are answered.
    """
    examples = [examples[number] for number in _spread(len(examples), SCORED)]
    rows = rows_of(examples, tokenizer, kind, config.model_copy(update={"source_repeats": {}}))
    order = sorted(range(len(rows)), key=lambda row: len(rows[row].source))
    collate = Collator(tokenizer, kind, model)
    total, tokens = 0.0, 0
    for start in range(0, len(order), config.batch_size):
        batch = collate([rows[row] for row in order[start : start + config.batch_size]])
        del batch["weights"], batch["rows"]
        batch = {name: value.to(model.device) for name, value in batch.items()}
        labels = batch.pop("labels")
        logits, labels = aligned(model(**batch).logits, labels, kind)
        count = int((labels != IGNORED).sum())
        total += count * float(token_loss(logits, labels, torch.ones(len(labels), device=labels.device)))
        tokens += count
    nll = total / tokens
    chosen = _spread(len(rows), decoded)
    replies = [
        ids
        for start in range(0, len(chosen), BATCH)
        for ids in write(
            model,
            tokenizer,
            kind,
            [rows[row].source for row in chosen[start : start + BATCH]],
            max_new_tokens=config.max_reply_tokens,
        )
    ]
    written = texts_of(tokenizer, replies)
    gold = [examples[row].reply for row in chosen]
    return {
        "val/nll": nll,
        "val/perplexity": math.exp(min(nll, 50.0)),
        "val/bleu_4": corpus_bleu(written, gold),
        "val/unigram_f1": sum(map(unigram_f1, written, gold)) / len(gold),
        "val/distinct_2": distinct_n(written, 2),
    }


def _spread(count: int, most: int) -> list[int]:
    """Return at most so many numbers below `count`, evenly spread: the examples lie source by source."""
    taken = min(count, most)
    return [number * count // taken for number in range(taken)]
