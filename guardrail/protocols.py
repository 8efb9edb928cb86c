"""What the pipeline needs from its parts. Fakes in tests and other backends implement these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .relevance import Relation
    from .rewrite_format import RewriteInput
    from .types import Turn


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """Token ids of a text, without special tokens.

    Attributes:
        ids: token ids.
        offsets: for each token its (start, end) characters in the text.
    """

    ids: list[int] = field(repr=False)
    offsets: list[tuple[int, int]] = field(repr=False)


@dataclass(frozen=True, slots=True)
class EncoderOutput:
    """What one forward pass gives for n windows.

    Attributes:
        embeddings: (n, d) float32, rows of unit length.
        violations: (n, d) float32, what the judged turn does, in the space of rules.
        level_logits: (n, 3) float32, for casual, needs caution, needs intervention.
    """

    embeddings: NDArray[np.float32]
    violations: NDArray[np.float32]
    level_logits: NDArray[np.float32]


class Encoder(Protocol):
    """Reads token windows. `max_tokens` counts the special tokens in."""

    dimension: int
    max_tokens: int
    cls_id: int
    sep_id: int

    def tokenize(self, text: str) -> TokenizedText:
        """Return the tokens of a text; special tokens written in the text stay ordinary text."""
        ...

    def encode(self, windows: Sequence[Sequence[int]]) -> EncoderOutput:
        """Run the model on windows of ids, special tokens included."""
        ...


class Relevance(Protocol):
    """Reads a statement, a rule of thumb or a reply, together with a conversation."""

    def relations(self, turns: Sequence[Turn], statements: Sequence[str]) -> list[Relation]:
        """Return, for each statement, how it relates to the conversation."""
        ...


class Rewriter(Protocol):
    """Writes replies that are fit to send."""

    def rewrite(self, item: RewriteInput, *, count: int, seconds: float | None) -> Sequence[str]:
        """Return up to `count` candidates, in at most about `seconds`."""
        ...
