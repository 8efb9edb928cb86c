"""Several processes in one training, as torchrun starts them: how many there are, and which is the first."""

from __future__ import annotations

import os

from torch import distributed


def process_count() -> int:
    """Return how many processes train together; known before they have met."""
    return int(os.environ.get("WORLD_SIZE", "1")) if _started_together() else 1


def is_first() -> bool:
    """Return True in the process that writes what is written once."""
    return not _started_together() or int(os.environ.get("RANK", "0")) == 0


def _started_together() -> bool:
    # As the trainer sees it: clusters set the size alone, for processes that know nothing of each other.
    return int(os.environ.get("LOCAL_RANK", "-1")) >= 0


def last_to_work() -> bool:
    """Wait for the other processes and part from them; return True in the one that goes on alone.

    What comes after a training may take longer than processes wait for each other.
    """
    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()
    return is_first()
