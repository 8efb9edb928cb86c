"""/readyz: whether the guard works now, and if wanted the upstream answers."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import httpx

from guardrail.errors import GuardrailError

from .settings import ProxySettings
from .upstream import Upstream

if TYPE_CHECKING:
    from guardrail import Guardrail

# So long an answer is given again: probes must not become a load of their own.
FRESH_SECONDS = 1.0


class Readiness:
    """Has the guard judge its canary, at most one at a time and once a second."""

    def __init__(self, guard: Guardrail, upstream: Upstream, settings: ProxySettings) -> None:
        """Make it; nothing is judged yet."""
        self._guard = guard
        self._upstream = upstream
        self._settings = settings
        self._lock = asyncio.Lock()
        self._problem = ""
        self._until = 0.0

    async def problem(self) -> str:
        """Return what is wrong, as one word; "" if nothing is."""
        async with self._lock:
            if time.monotonic() >= self._until:
                self._problem = await self._look()
                self._until = time.monotonic() + FRESH_SECONDS
            return self._problem

    async def _look(self) -> str:
        try:
            async with asyncio.timeout(self._settings.ready_seconds):
                await self._guard.in_thread(self._guard.check_canary)
        except TimeoutError:
            return "guard_slow"
        except GuardrailError:
            return "guard_failed"
        if not self._settings.ready_upstream:
            return ""
        try:
            async with asyncio.timeout(self._settings.ready_seconds):
                response = await self._upstream.get("/models", {})
                await response.aclose()
        except (TimeoutError, httpx.HTTPError):
            return "upstream_unreachable"
        return "upstream_failing" if response.status_code >= 500 else ""
