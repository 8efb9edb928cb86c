"""One vector for what a model has read, and one for each reply to it: what the ranking loss compares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .inputs import Collator, Row
from .losses import IGNORED, pooled
from .ranking import Candidate


def represented(
    model: Any, collate: Collator, rows: Sequence[Row], candidates: Sequence[Candidate]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pooled hidden states of the last layer; a reply is read after the source that it answers.

    Args:
        model: of transformers, not wrapped by a parallel one.
        collate: pads.
        rows: b sources.
        candidates: n replies to them.

    Returns:
        (b, d) of the sources and (n, d) of the replies.
    """
    owners = [candidate.owner for candidate in candidates]
    batch = collate.batch([rows[owner].source for owner in owners], [c.ids for c in candidates])
    batch = {name: value.to(model.device) for name, value in batch.items()}
    source, source_mask = (value.to(model.device) for value in collate.sources([row.source for row in rows]))
    replies = batch["labels"] != IGNORED
    if collate.kind == "causal":
        bare = _without_head(model)
        read = bare(input_ids=source, attention_mask=source_mask, use_cache=False).last_hidden_state
        both = bare(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
        return pooled(read, source_mask), pooled(both.last_hidden_state, replies)
    read = model.get_encoder()(input_ids=source, attention_mask=source_mask).last_hidden_state
    index = torch.tensor(owners, device=model.device)
    written = _without_head(model.get_decoder())(
        input_ids=batch["decoder_input_ids"],
        attention_mask=replies.long(),
        encoder_hidden_states=read[index],
        encoder_attention_mask=source_mask[index],
        use_cache=False,
    )
    return pooled(read, source_mask), pooled(written.last_hidden_state, replies)


def _without_head(model: Any) -> Any:
    """Return the part that ends in hidden states: logits over a vocabulary cost as much as all the rest."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # peft's wrapper
    return inner.base_model
