"""The endpoints that talk to the upstream: chat completions, responses (both guarded), list of models."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
from starlette.responses import Response

from .body import check_turns, read_json
from .gate import Answer, Call
from .record import Record
from .settings import ProxySettings
from .upstream import STREAM, Upstream, read_whole, returned_headers

# Where each endpoint keeps its conversation.
CONVERSATIONS = {"/chat/completions": "messages", "/responses": "input"}


def guarded(upstream: Upstream, settings: ProxySettings, path: str) -> Callable[[Call], Awaitable[Answer]]:
    """Return what sends calls to a path of the upstream, through the guard."""

    async def work(call: Call) -> Answer:
        given = read_json(call.body, call.headers)
        check_turns(given.get(CONVERSATIONS[path]), settings.max_turns)
        # Written anew, so that the upstream reads what was judged, e.g. where a key stands twice.
        response = await upstream.post(path, json.dumps(given).encode(), call.headers)
        return await _answer(response, call.record)

    return work


def models(upstream: Upstream) -> Callable[[Call], Awaitable[Answer]]:
    """Return what asks the upstream for its models."""

    async def work(call: Call) -> Answer:
        return await _answer(await upstream.get("/models", call.headers), call.record)

    return work


class Piped:
    """A stream of the upstream, sent on piece by piece. Whatever ends it, the upstream is closed."""

    def __init__(self, response: httpx.Response, headers: list[tuple[str, str]], record: Record) -> None:
        """Make it; nothing is read yet."""
        self._response = response
        self._headers = headers
        self._record = record

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send it."""
        headers = [(name.encode(), value.encode()) for name, value in self._headers]
        status = self._response.status_code
        try:
            headers.append((b"cache-control", b"no-cache"))
            await send({"type": "http.response.start", "status": status, "headers": headers})
            self._record.streaming = True
            async for part in self._response.aiter_bytes():
                await send({"type": "http.response.body", "body": part, "more_body": True})
        finally:
            await self._response.aclose()
            _note(self._response, self._record)
        await send({"type": "http.response.body", "body": b""})


async def _answer(response: httpx.Response, record: Record) -> Answer:
    """Return what sends a response on: a stream as it comes, all else once it is there."""
    try:
        headers = returned_headers(response)
    except BaseException:
        await response.aclose()
        raise
    if response.headers.get("content-type", "").startswith(STREAM):
        return Piped(response, headers, record)
    try:
        body = await read_whole(response)
    finally:
        await response.aclose()
        _note(response, record)
    answer = Response(body, response.status_code)
    answer.raw_headers += [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    return answer


def _note(response: httpx.Response, record: Record) -> None:
    outcome = response.extensions.get("guardrail")
    if outcome is not None:
        record.add_verdicts([outcome.verdict])
        record.add_replies(outcome.replies)
