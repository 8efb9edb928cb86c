"""The one guard that `guardrail.check` uses, loaded once, when first needed."""

from __future__ import annotations

import threading

from .pipeline import Guardrail

_lock = threading.Lock()
_guard: Guardrail | None = None


def default_guard() -> Guardrail:
    """Return the guard on the model that ships.

    Raises:
        ArtifactError: the model is missing or altered.
    """
    global _guard
    with _lock:
        if _guard is None:
            _guard = Guardrail.load()
        return _guard
