"""The endpoints that talk to the upstream: chat completions, responses (both guarded), models."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx
from starlette.responses import Response

from .body import check_spelling, check_turns, read_json
from .errors import bad_request
from .gate import Answer, Call
from .record import Record
from .settings import ProxySettings
from .upstream import STREAM, Upstream, read_whole, returned_headers

if TYPE_CHECKING:
    from guardrail import Guardrail

# Where each endpoint keeps its conversation.
CONVERSATIONS = {"/chat/completions": "messages", "/responses": "input"}
# The name of a model in a URL; some have a slash in it.
MODEL = re.compile(r"[A-Za-z0-9._~:@/-]{1,256}")


def guarded(
    guard: Guardrail, upstream: Upstream, settings: ProxySettings, path: str
) -> Callable[[Call], Awaitable[Answer]]:
    """Return what sends calls to a path of the upstream, through the guard."""
    conversation = CONVERSATIONS[path]

    def look(call: Call) -> None:
        given = read_json(call.body, call.headers)
        check_turns(given.get(conversation), settings.max_turns)
        check_spelling(given, conversation)

    async def work(call: Call) -> Answer:
        await guard.in_thread(partial(look, call))  # a body may hold a great many fields
        # What goes on is written anew by the guard from what it read, e.g. where a key stands twice.
        return await _answer(await upstream.post(path, call.body, call.headers), call.record)

    return work


def models(upstream: Upstream) -> Callable[[Call], Awaitable[Answer]]:
    """Return what asks the upstream for its models."""

    async def work(call: Call) -> Answer:
        return await _answer(await upstream.get("/models", call.headers), call.record)

    return work


def one_model(upstream: Upstream) -> Callable[[Call], Awaitable[Answer]]:
    """Return what asks the upstream for one of its models."""

    async def work(call: Call) -> Answer:
        if not MODEL.fullmatch(call.model) or {"", ".", ".."} & set(call.model.split("/")):
            raise bad_request("expected the name of a model in ASCII letters, digits, and -._~:@/")
        return await _answer(await upstream.get(f"/models/{call.model}", call.headers), call.record)

    return work


class Piped:
    """A stream of the upstream, sent on piece by piece. Whatever ends it, the upstream is closed."""

    def __init__(self, response: httpx.Response, headers: list[tuple[bytes, bytes]], record: Record) -> None:
        """Make it; nothing is read yet."""
        self._response = response
        self._headers = headers
        self._record = record

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send it."""
        headers = [*self._headers, (b"cache-control", b"no-cache")]
        status = self._response.status_code
        try:
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
    headers = returned_headers(response)
    if response.headers.get("content-type", "").startswith(STREAM):
        return Piped(response, headers, record)
    try:
        body = await read_whole(response)
    finally:
        await response.aclose()
        _note(response, record)
    answer = Response(body, response.status_code)
    answer.raw_headers += headers
    return answer


def _note(response: httpx.Response, record: Record) -> None:
    outcome = response.extensions.get("guardrail")
    if outcome is not None:
        record.add_verdicts([outcome.verdict])
        record.add_replies(outcome.replies)
