"""What the transports need of httpx, in either of its two packages (`httpx`, `httpx2`)."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from types import ModuleType
from typing import Any

from guardrail.errors import InputError
from guardrail.words import is_name

from .wire import MOST_BYTES, UpstreamError

# They belong to the body as the upstream sent it, or to its connection; ours is another. And nobody is led
# to another place: what is there was not judged.
_ABOUT_THE_BODY = frozenset(
    "content-length content-encoding transfer-encoding content-type connection keep-alive trailer "
    "content-md5 digest etag location".split()
)
# Their values are no single words. A header that has words in it and is not among these is left out.
_KNOWN_HEADERS = frozenset(
    "alt-svc cache-control date expires last-modified retry-after set-cookie strict-transport-security "
    "vary".split()
)
_ABOUT_THE_REQUEST = frozenset("content-length content-encoding transfer-encoding accept-encoding".split())


class UpstreamRefusedError(Exception):
    """The upstream answered with a status that is no success.

    Attributes:
        response: it is closed.
        body: of it.
    """

    def __init__(self, response: Any, body: bytes) -> None:
        super().__init__(f"the upstream answered with status {response.status_code}")
        self.response = response
        self.body = body


def library_of(inner: Any) -> ModuleType:
    """Return the package that a client or a transport is from.

    Raises:
        InputError: it is neither.
    """
    for name in ("httpx2", "httpx"):
        module = sys.modules.get(name)
        if module is None:
            continue
        if isinstance(
            inner, (module.Client, module.AsyncClient, module.BaseTransport, module.AsyncBaseTransport)
        ):
            return module
    raise InputError(
        f"expected a client or a transport of httpx or httpx2, got {type(inner).__name__}; pass one, or say "
        f"which library it is made for"
    )


def upstream_request(library: Any, request: Any, body: bytes, *, again: bool) -> Any:
    """Return a request like the app's, with another body.

    Args:
        library: `httpx` or `httpx2`.
        request: the app's.
        body: JSON.
        again: True for another try: its answer must not be the first one's, by way of the same key.
    """
    dropped = _ABOUT_THE_REQUEST | ({"idempotency-key"} if again else set())
    headers = [(name, value) for name, value in request.headers.multi_items() if name.lower() not in dropped]
    return library.Request(
        request.method,
        request.url,
        # Nothing is packed: words are to come as soon as they are written.
        headers=[*headers, ("accept-encoding", "identity")],
        content=body,
        extensions=request.extensions,
    )


def kept_headers(upstream: Any) -> list[tuple[str, str]]:
    """Return the headers of the upstream's answer that hold for ours, too; none, if there was no answer."""
    return [
        (name, value)
        for name, value in (upstream.headers.multi_items() if upstream is not None else [])
        # Another guard behind this one speaks for itself alone.
        if name not in _ABOUT_THE_BODY
        and not name.startswith("x-guardrail-")
        and (name in _KNOWN_HEADERS or is_name(value))
    ]


def json_response(
    library: Any,
    status: int,
    body: bytes,
    headers: list[tuple[str, str]],
    extensions: Mapping[str, Any] | None = None,
) -> Any:
    """Return a response with a body of JSON."""
    headers = [*headers, ("content-type", "application/json")]
    return library.Response(status, headers=headers, content=body, extensions=dict(extensions or {}))


def is_success(response: Any) -> bool:
    """Return True if a response's status says that its body is what was asked for."""
    return bool(200 <= response.status_code < 300)


def check_size(size: int) -> None:
    """Let a body that is not too long pass.

    Raises:
        UpstreamError: it is.
    """
    if size > MOST_BYTES:
        raise UpstreamError(f"expected a reply of at most {MOST_BYTES} bytes, got a longer one")


@cache
def stream_class(library: ModuleType, base: type, kind: str) -> type:
    """Return a class that is the library's "SyncByteStream" or "AsyncByteStream", and does as `base`."""
    return type(base.__name__.lstrip("_"), (base, getattr(library, kind)), {})
