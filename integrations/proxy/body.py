"""Read a request's body within limits, and what it says."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

from ..openai_api.wire import MOST_DEPTH, loads
from .errors import CLOSE, ProxyError, bad_request

Receive = Any  # Callable[[], Awaitable[MutableMapping[str, Any]]], as ASGI has it
LINGER_SECONDS = 1.0
# Objects in which an app names things as it likes.
FREE = frozenset({"parameters", "input_schema", "arguments", "metadata"})
# Fields of requests that decide what is said, and by whom.
READ = frozenset(
    "messages input instructions role content type text refusal stream n tools functions tool_calls "
    "function_call function name arguments output previous_response_id conversation background".split()
)


class ClientGoneError(Exception):
    """The caller has left; nobody reads an answer."""


async def read_body(receive: Receive, headers: Mapping[str, str], *, most: int, seconds: float) -> bytes:
    """Return the body.

    Args:
        receive: of ASGI.
        headers: of the request.
        most: bytes; no more are kept, whatever length was announced.
        seconds: time for all of it.

    Raises:
        ProxyError: it is longer (413), compressed (415), or takes longer (408).
        ClientGoneError: the caller left.
    """
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise ProxyError(
            415, "content_encoding", "expected a body that is not compressed", CLOSE, unread=True
        )
    announced = headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > most:
        raise _too_long(most)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGoneError
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > most:
                    raise _too_long(most)
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        raise ProxyError(408, "slow_body", "the body took too long to arrive", CLOSE, unread=True) from None


async def linger(receive: Receive) -> None:
    """Throw away what still comes, for a moment: closing at once would cut off the answer on its way."""
    try:
        async with asyncio.timeout(LINGER_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return


def read_json(body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
    """Return the JSON object in a body.

    Raises:
        ProxyError: it is none (400), or another type is announced (415). A page of another site could send
            that without asking, so it is refused.
    """
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ProxyError(415, "content_type", "expected the header 'Content-Type: application/json'")
    try:
        found = loads(body.decode("utf-8"))
    except ValueError:  # of the bytes or of the JSON; its text and context hold them
        raise bad_request(
            f"expected a JSON object in UTF-8, at most {MOST_DEPTH} levels deep and with finite numbers, got "
            f"something else",
            "invalid_json",
        ) from None
    if not isinstance(found, dict):
        raise bad_request(f"expected a JSON object, got {type(found).__name__}", "invalid_json")
    return found


def check_spelling(given: Mapping[str, Any], conversation: str) -> None:
    """Refuse fields that some upstreams would take for others.

    Servers written in Go take "Content" for "content", and the last of the two counts: they would read
    what was not judged.

    Args:
        given: the body of a request.
        conversation: the field with its messages.

    Raises:
        ProxyError: 400.
    """
    for name in _names(given, conversation):
        read = name.casefold()
        if read in READ and name != read:
            raise bad_request(f"expected the field {read!r} in lower case")


def _names(given: Mapping[str, Any], conversation: str) -> Iterator[str]:
    """Return the names of fields: of the body, and of all within its messages."""
    yield from given
    inner = [given.get(conversation)]
    while inner:
        value = inner.pop()
        if isinstance(value, list):
            inner += value
        elif isinstance(value, dict):
            yield from value
            inner += [held for name, held in value.items() if name not in FREE]


def check_turns(given: object, most: int) -> None:
    """Refuse a conversation of too many messages.

    Raises:
        ProxyError: 400.
    """
    if isinstance(given, list) and len(given) > most:
        raise bad_request(f"expected at most {most} messages, got {len(given)}", "too_many_turns")


def _too_long(most: int) -> ProxyError:
    return ProxyError(
        413, "body_too_long", f"expected a body of at most {most} bytes, got more", CLOSE, unread=True
    )
