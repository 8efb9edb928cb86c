"""The page at /: static files, told what the guard's threshold is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from .record import KEY

if TYPE_CHECKING:
    from guardrail import Guardrail

FOLDER = Path(__file__).parent / "playground"
KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
FLAGGED_FROM = b'data-flagged-from=""'
# The page loads its own files and asks its own server; nobody may put it into a frame.
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}


def page_routes(guard: Guardrail) -> list[BaseRoute]:
    """Return the page at / and its files under /playground/. They need no key and hold no data."""
    index = (FOLDER / "index.html").read_bytes()
    threshold = f'data-flagged-from="{guard.thresholds.caution:.4f}"'.encode()
    files = [path for path in sorted(FOLDER.iterdir()) if path.suffix in KINDS and path.name != "index.html"]
    return [
        _route("/", index.replace(FLAGGED_FROM, threshold), ".html"),
        *(_route(f"/playground/{path.name}", path.read_bytes(), path.suffix) for path in files),
    ]


def _route(path: str, content: bytes, suffix: str) -> BaseRoute:
    async def send(request: Request) -> Response:
        request.scope[KEY].endpoint = path
        return Response(content, media_type=KINDS[suffix], headers=HEADERS)

    return Route(path, send, methods=["GET"])
