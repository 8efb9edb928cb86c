"""The endpoints for those who run the proxy: /healthz, /readyz, /metrics. No limit holds them up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import httpx
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from guardrail.errors import GuardrailError

from .door import Door
from .errors import ProxyError
from .metrics import CONTENT_TYPE, Metrics
from .record import KEY, Record
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
        except ProxyError as error:
            return error.code
        return "upstream_failing" if response.status_code >= 500 else ""


def watching_routes(door: Door, metrics: Metrics, readiness: Readiness) -> list[BaseRoute]:
    """Return the endpoints."""

    async def healthz(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(request: Request) -> Response:
        problem = "shutting_down" if door.draining else await readiness.problem()
        if problem:
            raise ProxyError(503, problem, f"the proxy is not ready: {problem}", {"retry-after": "1"})
        return JSONResponse({"status": "ready"})

    async def metrics_text(request: Request) -> Response:
        door.caller(request.headers, "")
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    return [_route("/healthz", healthz), _route("/readyz", readyz), _route("/metrics", metrics_text)]


def _route(path: str, answer: Callable[[Request], Awaitable[Response]]) -> BaseRoute:
    async def named(request: Request) -> Response:
        record: Record = request.scope[KEY]
        record.endpoint, record.routine = path, True
        return await answer(request)

    return Route(path, named, methods=["GET"])
