"""Settings of a rewrite model's training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from ..config import Positive, Recipe, Weight
from ..loaders.replies import OWN_REPLIES, OWN_TALK, REPLY_SOURCES

SOURCES = (*OWN_REPLIES, OWN_TALK, *REPLY_SOURCES)
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class RewriterConfig(Recipe):
    """Everything that decides what comes out of `guardrail train rewriter`.

    Attributes:
        base: folder or hub id of an encoder-decoder or a causal language model, or of a BERT-like encoder,
            which becomes an encoder-decoder; "minilm" is such an encoder, found offline.
        kind: "seq2seq", "causal", or "auto" to see by the base.
        share_weights: a BERT-like base: decoder and encoder use the same weights, cross-attention apart.
        seed: of every random choice.
        epochs: passes over the examples.
        max_steps: stop after so many steps; -1 for no limit.
        batch_size: examples per forward pass and process.
        gradient_accumulation: forward passes per step.
        learning_rate: peak; linear warm-up and decay.
        warmup_ratio: share of the steps that warm up, [0, 1).
        label_smoothing: of the token loss, [0, 1).
        max_source_tokens: longest input; the oldest turns of a longer one are left out.
        max_reply_tokens: longest reply, in training and at run time.
        save_steps: steps between two checkpoints.
        bf16: mixed precision.
        lora_rank: 0 trains all weights, more trains low-rank updates alone (needs peft).
        lora_alpha: scale of the updates, in peft's terms.
        lora_targets: names of the layers to update; none for all linear ones.
        ranking_weight: lambda, of the ranking loss; 0 is the token loss alone.
        ranking_from_step: steps of the token loss alone before the ranking begins.
        margin: of the ranking loss, per rank; in units of cosine, [0, 2].
        temperature: of the softmax form of the ranking loss, > 0; 0 takes the pairwise form.
        beams: the model's own replies that are ranked, per example; 0 for none.
        beams_every: steps from one ranking with own beams to the next; decoding is slow.
        in_batch: most replies to other conversations of the batch that are ranked.
        draft_share: share of the examples with a known unsafe draft whose input shows it.
        source_limits: most examples of a source, chosen by the seed.
        source_repeats: how often the examples of a source are seen per epoch.
    """

    base: str = "minilm"
    kind: Literal["auto", "seq2seq", "causal"] = "auto"
    share_weights: bool = True
    seed: int = 13
    epochs: Positive = 5
    max_steps: int = -1
    batch_size: Annotated[int, Field(ge=1)] = 32
    gradient_accumulation: Annotated[int, Field(ge=1)] = 1
    learning_rate: Positive = 2e-4
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.06
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    max_source_tokens: Annotated[int, Field(ge=32, le=8192)] = 192
    max_reply_tokens: Annotated[int, Field(ge=8, le=1024)] = 64
    save_steps: Annotated[int, Field(ge=1)] = 250
    bf16: bool = True
    lora_rank: Count = 0
    lora_alpha: Positive = 32
    lora_targets: list[str] = []
    ranking_weight: Weight = 0.0
    ranking_from_step: Count = 0
    margin: Annotated[float, Field(ge=0, le=2)] = 0.01
    temperature: Weight = 0.0
    beams: Annotated[int, Field(ge=0, le=16)] = 0
    beams_every: Annotated[int, Field(ge=1)] = 4
    in_batch: Count = 8
    draft_share: Share = 0.5
    source_limits: dict[str, Count] = {}
    source_repeats: dict[str, Annotated[int, Field(ge=1)]] = {}

    @field_validator("source_limits", "source_repeats")
    @classmethod
    def _known(cls, counts: dict[str, int]) -> dict[str, int]:
        unknown = [name for name in counts if name not in SOURCES]
        if unknown:
            raise ValueError(f"expected names of sources ({', '.join(SOURCES)}), not {unknown[0]!r}")
        return counts
