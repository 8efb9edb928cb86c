"""Settings of a relevance training."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from guardrail.relevance import MIN_TOKENS

from ..config import Positive, Recipe


class RelevanceConfig(Recipe):
    """Everything that decides what comes out of `guardrail train relevance`.

    Attributes:
        base: "minilm", a run of `guardrail train encoder`, or a folder or hub id of a BERT-like encoder.
        seed: of every random choice.
        epochs: passes over the rows.
        max_steps: stop after so many steps; -1 for no limit.
        batch_size: conversations a step, each with one right and two wrong statements.
        learning_rate: peak.
        warmup_ratio: share of the steps that warm up, [0, 1).
        max_tokens: longest input, tokens.
        bf16: mixed precision.
        stance_weight: of "does the last turn break the rule".
        public_rules: most situations of the public sets with their rule of thumb.
        public_replies: most replies of the public sets.
        max_rows: most rows of each kind, rules and replies, chosen by the seed; None for all.
        save_steps: steps between two checkpoints.
    """

    base: str = "minilm"
    seed: int = 13
    epochs: Positive = 2
    max_steps: int = -1
    batch_size: Annotated[int, Field(ge=1)] = 12
    learning_rate: Positive = 8e-5
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.06
    max_tokens: Annotated[int, Field(ge=MIN_TOKENS, le=512)] = 112
    bf16: bool = True
    stance_weight: Annotated[float, Field(ge=0)] = 0.5
    public_rules: Annotated[int, Field(ge=0)] = 4000
    public_replies: Annotated[int, Field(ge=0)] = 3000
    max_rows: Annotated[int, Field(ge=1)] | None = None
    save_steps: Annotated[int, Field(ge=1)] = 200
