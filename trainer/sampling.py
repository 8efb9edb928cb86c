"""Which rows make a batch, and in which order the batches of several data sets come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers.base.sampler import DefaultBatchSampler, MultiDatasetDefaultBatchSampler

CHUNK = 64  # batches that are shuffled together before they are sorted by length


class LengthGroupedBatchSampler(DefaultBatchSampler):  # type: ignore[misc]  # untyped library
    """Batches of about equal length, in random order: on a CPU padding costs as much as text.

    With p processes a batch holds the rows of all of them, p times as many; `SameSetBatchSampler`
    shares them out.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *args: Any,
        n_pair_batch: int = 0,
        processes: int = 1,
        **kwargs: Any,
    ) -> None:
        text_columns = [name for name in dataset.column_names if name != "label"]
        if n_pair_batch and "text" in text_columns and "rule" in text_columns:
            rows = n_pair_batch
        else:
            # A step on pairs encodes two texts a row, so it takes half the rows.
            rows = max(2, batch_size // (1 if len(text_columns) == 1 else 2))
        super().__init__(dataset, rows * processes, *args, **kwargs)
        columns = [dataset[name] for name in text_columns]
        self.lengths = [sum(map(len, texts)) for texts in zip(*columns, strict=True)]

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches of the current epoch."""
        batches = length_grouped(self.lengths, self.batch_size, seed=self.seed + self.epoch)
        yield from (batch for batch in batches if not self.drop_last or len(batch) == self.batch_size)


def length_grouped(lengths: Sequence[int], batch_size: int, *, seed: int) -> list[list[int]]:
    """Return batches of about equal length, in random order; one may be short.

    Args:
        lengths: of the rows.
        batch_size: rows of a batch.
        seed: the same one gives the same batches.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    chunk = CHUNK * batch_size
    batches: list[list[int]] = []
    for start in range(0, len(order), chunk):
        members = sorted(order[start : start + chunk], key=lengths.__getitem__)
        batches += [members[i : i + batch_size] for i in range(0, len(members), batch_size)]
    return [batches[index] for index in torch.randperm(len(batches), generator=generator).tolist()]


class SameSetBatchSampler(MultiDatasetDefaultBatchSampler):  # type: ignore[misc]  # untyped library
    """Batches of all data sets in random order, each set as often as it has batches.

    With p processes every batch of a set is cut into p parts of one size, which follow each other:
    process k takes every k-th part. So at each step all are at the same loss with as many rows, which
    is what sharing their rules as negatives needs. Where a batch does not divide by p, up to p - 1 of
    its rows are seen twice; none is left out.
    """

    def __init__(self, *args: Any, processes: int = 1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The sets differ in it. accelerate hands out only rounds that end on a batch of this size, if any.
        self.batch_size = None
        self.processes = processes

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches of the current epoch, as positions in the joined data sets."""
        generator = torch.Generator().manual_seed((self.seed or 0) + self.epoch)
        offset = 0
        batches: list[list[int]] = []
        for dataset, sampler in zip(self.dataset.datasets, self.batch_samplers, strict=True):
            batches += [[row + offset for row in batch] for batch in sampler]
            offset += len(dataset)
        for index in torch.randperm(len(batches), generator=generator).tolist():
            yield from self._parts(batches[index])

    def __len__(self) -> int:
        """Return the number of batches of an epoch, of all processes together."""
        return self.processes * sum(map(len, self.batch_samplers))

    def _parts(self, batch: list[int]) -> Iterator[list[int]]:
        size = -(-len(batch) // self.processes)
        filled = [batch[number % len(batch)] for number in range(size * self.processes)]
        for process in range(self.processes):
            # Every k-th row: the rows come by length, and all processes should take as long.
            yield filled[process :: self.processes]
