"""Nearest rules of thumb by cosine, on FAISS. Knows ids and vectors, nothing about texts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from .errors import ArtifactError, ConfigError, ModelError

# Up to here a search of all vectors takes well under a millisecond and is exact.
FLAT_LIMIT = 20_000
HNSW_LINKS = 32
HNSW_BUILD_BREADTH = 120
HNSW_SEARCH_BREADTH = 96


class RuleIndex:
    """Vectors of rules, searched by cosine: exactly while there are few, by HNSW when there are many.

    Positions count from 0 in the order of adding.
    """

    def __init__(self, dimension: int) -> None:
        """Make an empty index.

        Args:
            dimension: size of a vector, >= 1.

        Raises:
            ConfigError: the dimension is below 1.
        """
        if dimension < 1:
            raise ConfigError(f"expected dimension >= 1, got {dimension}")
        self.dimension = dimension
        self._index: faiss.Index = faiss.IndexFlatIP(dimension)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def add(self, vectors: NDArray[np.float32]) -> None:
        """Add vectors.

        Args:
            vectors: (n, d), rows of unit length.

        Raises:
            ModelError: another shape, values that are not finite, or rows not of unit length.
        """
        vectors = self._checked(vectors)
        norms = np.linalg.norm(vectors, axis=1)
        if len(norms) and np.abs(norms - 1).max() > 1e-2:
            raise ModelError("index", f"expected rows of unit length, got lengths up to {norms.max():.3f}")
        if isinstance(self._index, faiss.IndexFlatIP) and len(self) + len(vectors) > FLAT_LIMIT:
            self._index = self._as_hnsw()
        self._index.add(vectors)

    def search(self, queries: NDArray[np.float32], k: int) -> list[list[tuple[int, float]]]:
        """Return for each query its nearest rules.

        Args:
            queries: (n, d), rows of unit length.
            k: how many, >= 1; fewer come back if the index holds fewer.

        Returns:
            n lists of (position, cosine), highest cosine first.

        Raises:
            ModelError: another shape, or values that are not finite.
            ConfigError: k is below 1.
        """
        if k < 1:
            raise ConfigError(f"expected k >= 1, got {k}")
        queries = self._checked(queries)
        k = min(k, len(self))
        if k == 0:
            return [[] for _ in queries]
        cosines, positions = self._index.search(queries, k)
        # FAISS pads with position -1 where it has found fewer than k.
        return [
            [(int(p), float(c)) for p, c in zip(row_p, row_c, strict=True) if p >= 0]
            for row_p, row_c in zip(positions, cosines, strict=True)
        ]

    def vectors(self, positions: Sequence[int]) -> NDArray[np.float32]:
        """Return the (n, d) vectors at the given positions."""
        if not positions:
            return np.zeros((0, self.dimension), np.float32)
        return np.stack([self._index.reconstruct(int(position)) for position in positions])

    def copy(self) -> RuleIndex:
        """Return an index that can grow without touching this one."""
        twin = RuleIndex(self.dimension)
        twin._index = faiss.clone_index(self._index)
        return twin

    def save(self, path: Path) -> None:
        """Write the index to a file."""
        faiss.write_index(self._index, os.fspath(path))

    @classmethod
    def load(cls, path: Path, dimension: int) -> RuleIndex:
        """Read an index from a file.

        Raises:
            ArtifactError: the file is missing, is no index, or holds vectors of another size.
        """
        if not path.is_file():
            raise ArtifactError(f"expected a rule index at {path}, found none")
        try:
            index = faiss.read_index(os.fspath(path))
        except RuntimeError as error:
            raise ArtifactError(f"expected a FAISS index at {path}, FAISS cannot read it") from error
        if index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise ArtifactError(
                f"expected an index for cosines at {path}, got one for distances; build it again"
            )
        if index.d != dimension:
            raise ArtifactError(
                f"expected an index of dimension {dimension} at {path}, got {index.d}; "
                f"it was built with another encoder, build it again"
            )
        loaded = cls(dimension)
        loaded._index = index
        return loaded

    def _checked(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        array = np.ascontiguousarray(vectors, np.float32)
        if array.ndim != 2 or array.shape[1] != self.dimension:
            raise ModelError(
                "index",
                f"expected vectors of shape (n, {self.dimension}), got {array.shape}; "
                f"was the index built with another encoder?",
            )
        if not np.isfinite(array).all():
            raise ModelError("index", "expected finite vectors, got NaN or infinity")
        return array

    def _as_hnsw(self) -> faiss.Index:
        index = faiss.IndexHNSWFlat(self.dimension, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = HNSW_BUILD_BREADTH
        index.hnsw.efSearch = HNSW_SEARCH_BREADTH
        if len(self):
            index.add(self._index.reconstruct_n(0, len(self)))
        return index
