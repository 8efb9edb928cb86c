"""From examples to padded batches of tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import torch

from guardrail.rewrite_format import RewriteInput
from guardrail.rewrite_tokens import Kind, end_id, source_ids

from ..loaders.common import digest, share
from ..replies import ReplyExample
from .config import RewriterConfig
from .losses import IGNORED


@dataclass(frozen=True, slots=True)
class Row:
    """One example in tokens.

    Attributes:
        source: what the model reads.
        reply: what it is to write.
        rejected: unsafe replies, the worst last.
        example: where they are from.
    """

    source: list[int]
    reply: list[int]
    rejected: list[list[int]]
    example: ReplyExample = field(repr=False)


def rows_of(
    examples: Sequence[ReplyExample], tokenizer: Any, kind: Kind, config: RewriterConfig
) -> list[Row]:
    """Return the rows to train on, an example as often as its source is repeated.

    Whether a known draft is shown is a stable choice by the seed, so that a resumed run sees the same rows.
    """
    return [
        Row(
            source=source_ids(tokenizer, kind, input_of(example, config), config.max_source_tokens),
            reply=reply_ids(tokenizer, example.reply, config.max_reply_tokens),
            rejected=[reply_ids(tokenizer, text, config.max_reply_tokens) for text in example.rejected],
            example=example,
        )
        for example in examples
        for _ in range(config.source_repeats.get(example.source, 1))
    ]


def summary_of(rows: Sequence[Row]) -> dict[str, object]:
    """Return how many rows there are, and a digest of them all."""
    content = json.dumps([[row.source, row.reply, row.rejected, row.example.weight] for row in rows])
    return {"replies": len(rows), "sha256": sha256(content.encode()).hexdigest()}


def input_of(example: ReplyExample, config: RewriterConfig) -> RewriteInput:
    """Return what the model gets to read of an example."""
    lot = share(f"{config.seed}:draft:{digest(*(turn.text for turn in example.turns), example.reply)}")
    return RewriteInput(example.turns, example.rules, example.draft if lot < config.draft_share else "")


def reply_ids(tokenizer: Any, reply: str, max_tokens: int) -> list[int]:
    """Return a reply's tokens and the token that ends it; a cut reply has no end."""
    ids: list[int] = tokenizer(reply, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return [*ids, end_id(tokenizer)][:max_tokens]


class Collator:
    """Pads rows to a batch."""

    def __init__(self, tokenizer: Any, kind: Kind, model: Any) -> None:
        """Remember how to pad.

        Args:
            tokenizer: of the base.
            kind: how the base reads.
            model: knows how a reply is shifted for its decoder.
        """
        self.tokenizer = tokenizer
        self.pad = int(tokenizer.pad_token_id)
        self.kind = kind
        self.model = model

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Return the tensors of `batch`, the `weights` (b,) and the `rows` themselves."""
        weights = torch.tensor([row.example.weight for row in rows], dtype=torch.float32)
        tensors = self.batch([row.source for row in rows], [row.reply for row in rows])
        return {**tensors, "weights": weights, "rows": list(rows)}

    def batch(self, sources: Sequence[list[int]], replies: Sequence[list[int]]) -> dict[str, torch.Tensor]:
        """Pad sources with the replies to them, one of each per row.

        A causal model reads both as one text, padded on the right: only the reply is learned.
        """
        if self.kind == "causal":
            texts = [source + reply for source, reply in zip(sources, replies, strict=True)]
            learned = [
                [IGNORED] * len(source) + reply for source, reply in zip(sources, replies, strict=True)
            ]
            ids, mask = self.sources(texts)
            return {"input_ids": ids, "attention_mask": mask, "labels": padded(learned, IGNORED)}  # (b, t)
        labels = padded(replies, IGNORED)  # (b, r)
        ids, mask = self.sources(sources)
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": labels,
            "decoder_input_ids": self.model.prepare_decoder_input_ids_from_labels(labels=labels),
        }

    def sources(self, sources: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Pad what is read: ids (b, s), and a mask that is 1 where they are not filled up."""
        return padded(sources, self.pad), padded([[1] * len(source) for source in sources], 0)


def padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """Return rows of ids as one tensor (rows, longest), filled up with `value` on the right."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])
