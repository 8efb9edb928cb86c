"""What the files of the runtime that use torch share. Imported by them alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers.utils import logging as transformers_logging

from .errors import ConfigError


def device_of(name: str | None) -> torch.device:
    """Return a device by its name; None takes a GPU if there is one.

    Raises:
        ConfigError: there is none of that name here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except Exception as error:  # AssertionError without CUDA, RuntimeError for an unknown name
        raise ConfigError(f"expected a device that torch has here, got {name!r}; try 'cpu'") from error
    return device


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Keep transformers from drawing one on the host program's terminal."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
