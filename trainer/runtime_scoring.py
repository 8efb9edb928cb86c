"""Score conversations with an exported encoder, through the very windows that the runtime reads."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from guardrail.conversation import Conversation
from guardrail.protocols import Encoder, EncoderOutput
from guardrail.reading import read
from guardrail.types import Turn

from .scoring import Outputs


def score_conversations(
    encoder: Encoder, conversations: Sequence[Sequence[Turn]], workers: int = 2
) -> Outputs:
    """Return the outputs of the first window of each conversation, n rows in order.

    Args:
        encoder: an exported encoder.
        conversations: n conversations; the last turn of each is judged.
        workers: runs side by side.
    """

    def one(turns: Sequence[Turn]) -> EncoderOutput:
        conversation = Conversation(tuple(turns), tuple(range(len(turns))), (0,) * len(turns))
        readings, _ = read(conversation, encoder, 1)
        return encoder.encode([readings[0].packing.windows[0].ids])

    with ThreadPoolExecutor(workers) as pool:
        outputs = list(pool.map(one, conversations))
    return Outputs(
        np.concatenate([output.embeddings for output in outputs]),
        np.concatenate([output.violations for output in outputs]),
        np.concatenate([output.level_logits for output in outputs]),
    )
