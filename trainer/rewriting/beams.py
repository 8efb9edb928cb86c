"""What the model itself would answer, to be ranked beside better and worse replies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from guardrail.rewrite_tokens import texts_of
from guardrail.torch_rewriter import write
from guardrail.types import Turn

from .config import RewriterConfig
from .inputs import Collator, Row
from .metrics import unigram_f1
from .ranking import Beam

# P(unsafe) of replies, each with the conversation that it answers.
Judge = Callable[[list[tuple[tuple[Turn, ...], str]]], list[float]]
UNSAFE = 0.5


def own_replies(
    model: Any, collate: Collator, rows: Sequence[Row], config: RewriterConfig, judge: Judge | None = None
) -> list[list[Beam]]:
    """Return `config.beams` replies to each row by beam search, without gradients.

    Their quality is the unigram F1 with the gold reply.

    Args:
        model: in training mode, in which it is left.
        collate: knows tokenizer and kind.
        rows: what to answer.
        config: the recipe.
        judge: if given, says which replies are unsafe: P >= 0.5.
    """
    model.eval()
    written = write(
        model,
        collate.tokenizer,
        collate.kind,
        [row.source for row in rows],
        max_new_tokens=config.max_reply_tokens,
        beams=config.beams,
    )
    model.train()
    texts = texts_of(collate.tokenizer, written)
    owners = [row for row in rows for _ in range(config.beams)]
    unsafe = [0.0] * len(texts)
    if judge is not None:
        unsafe = judge([(row.example.turns, text) for row, text in zip(owners, texts, strict=True)])
    found = [
        Beam(ids, unigram_f1(text, row.example.reply), p >= UNSAFE)
        for ids, text, row, p in zip(written, texts, owners, unsafe, strict=True)
    ]
    return [found[start : start + config.beams] for start in range(0, len(found), config.beams)]
