"""The proxy as an ASGI app: its paths, and what stands behind each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from . import judging, replies
from .errors import ProxyError
from .gate import Answer, Call, Door, Gated, Observed
from .health import Readiness
from .keys import Keys
from .limits import Admission
from .metrics import CONTENT_TYPE, Metrics
from .page import page_routes
from .record import KEY
from .settings import ProxySettings
from .upstream import Upstream

if TYPE_CHECKING:
    from guardrail import Guardrail


def create_app(
    guard: Guardrail,
    settings: ProxySettings,
    *,
    upstream_transport: httpx.AsyncBaseTransport | None = None,
) -> Starlette:
    """Return the proxy as an ASGI app.

    Its `state.door.draining`, once set, has it refuse all that is new.

    Args:
        guard: judges what comes in and what goes out.
        settings: where to and how much.
        upstream_transport: in place of the network, e.g. an `httpx.ASGITransport` around a scripted LLM.
    """
    upstream = Upstream(guard, settings, upstream_transport)
    admission = Admission(
        settings.max_concurrency, settings.max_queue, settings.queue_seconds, settings.per_client
    )
    keys = Keys(key.get_secret_value() for key in settings.api_keys)
    door = Door(settings, keys, admission)
    metrics = Metrics(lambda: admission.running, lambda: admission.waiting, lambda: len(guard.rules))
    paths: list[tuple[str, str, Callable[[Call], Awaitable[Answer]]]] = [
        ("POST", "/v1/chat/completions", replies.guarded(upstream, settings, "/chat/completions")),
        ("POST", "/v1/responses", replies.guarded(upstream, settings, "/responses")),
        ("GET", "/v1/models", replies.models(upstream)),
        ("POST", "/v1/moderations", judging.moderations(guard, settings)),
        ("POST", "/check", judging.check(guard, settings)),
        ("POST", "/repair", judging.repair(guard, settings)),
        ("GET", "/rules", judging.find_rules(guard)),
        ("POST", "/rules", judging.add_rules(guard, settings)),
    ]
    routes: list[BaseRoute] = [
        Route(path, Gated(path, door, work), methods=[method]) for method, path, work in paths
    ]
    routes += _watching_routes(door, metrics, Readiness(guard, upstream, settings))
    if settings.playground:
        routes += page_routes(guard)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await upstream.aclose()

    app = Starlette(
        routes=routes,
        middleware=[Middleware(Observed, metrics=metrics)],
        exception_handlers={HTTPException: _not_found, ProxyError: _refused},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.door = door
    return app


def _watching_routes(door: Door, metrics: Metrics, readiness: Readiness) -> list[BaseRoute]:
    """Return the endpoints for those who run the proxy; no limit holds them up."""

    async def healthz(request: Request) -> Response:
        request.scope[KEY].endpoint = "/healthz"
        return JSONResponse({"status": "ok"})

    async def readyz(request: Request) -> Response:
        request.scope[KEY].endpoint = "/readyz"
        problem = "shutting_down" if door.draining else await readiness.problem()
        if problem:
            raise ProxyError(503, problem, f"the proxy is not ready: {problem}", {"retry-after": "1"})
        return JSONResponse({"status": "ready"})

    async def metrics_text(request: Request) -> Response:
        request.scope[KEY].endpoint = "/metrics"
        door.refuse_other_hosts(request.headers.get("host", ""))
        door.keys.caller(request.headers, "")
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    return [
        Route("/healthz", healthz, methods=["GET"]),
        Route("/readyz", readyz, methods=["GET"]),
        Route("/metrics", metrics_text, methods=["GET"]),
    ]


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ProxyError)
    request.scope[KEY].error = error.code
    return JSONResponse({"error": error.to_dict()}, error.status, error.headers)


async def _not_found(request: Request, error: Any) -> Response:
    """Answer what is none of the paths. Nothing of the path is said again."""
    code = "not_found" if error.status_code == 404 else "method_not_allowed"
    message = "expected one of the paths in the proxy's documentation"
    if error.status_code == 405:
        message = "expected another method for this path"
    return await _refused(request, ProxyError(error.status_code, code, message, error.headers))
