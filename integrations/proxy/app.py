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
from .door import Door
from .errors import ProxyError
from .gate import Answer, Call, Gated, Observed
from .health import Readiness, watching_routes
from .metrics import Metrics
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
    door = Door(settings)
    admission = door.admission
    metrics = Metrics(lambda: admission.running, lambda: admission.waiting, lambda: len(guard.rules))
    paths: list[tuple[str, str, Callable[[Call], Awaitable[Answer]]]] = [
        ("POST", "/v1/chat/completions", replies.guarded(guard, upstream, settings, "/chat/completions")),
        ("POST", "/v1/responses", replies.guarded(guard, upstream, settings, "/responses")),
        ("GET", "/v1/models", replies.models(upstream)),
        ("GET", "/v1/models/{model:path}", replies.one_model(upstream)),
        ("POST", "/v1/moderations", judging.moderations(guard, settings)),
        ("POST", "/check", judging.check(guard, settings)),
        ("POST", "/repair", judging.repair(guard, settings)),
        ("GET", "/rules", judging.find_rules(guard)),
        ("POST", "/rules", judging.add_rules(guard, settings)),
    ]
    routes: list[BaseRoute] = [
        Route(path, Gated(path.replace(":path", ""), door, settings, work), methods=[method])
        for method, path, work in paths
    ]
    routes += watching_routes(door, metrics, Readiness(guard, upstream, settings))
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


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ProxyError)
    request.scope[KEY].error = error.code
    return JSONResponse({"error": error.to_dict()}, error.status, error.headers)


async def _not_found(request: Request, error: Any) -> Response:
    """Answer what is none of the paths. Nothing of the path is said again."""
    if error.status_code == 405:
        allowed = (error.headers or {}).get("allow", "another")
        message = f"expected the method {allowed} for this path"
        return await _refused(request, ProxyError(405, "method_not_allowed", message, error.headers))
    message = (
        "expected a path that is guarded (POST /v1/chat/completions, POST /v1/responses) or one of the "
        "proxy's own; nothing else is sent on"
    )
    return await _refused(request, ProxyError(404, "not_found", message))
