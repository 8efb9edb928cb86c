"""JSON and errors of the OpenAI API's wire format. Pure; knows nothing about endpoints."""

from __future__ import annotations

import json
import secrets
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any, NoReturn

from guardrail.errors import InputError, ModelError
from guardrail.words import is_name

# Longest body of a request or of a whole reply, and of all of a stream, bytes.
MOST_BYTES = 32 * 2**20
# Deepest nesting of JSON that is read.
MOST_DEPTH = 100
# Fields that name something, count, or are opaque; names in them are no words of a reply.
WORDLESS = frozenset(
    "id type role index object model status finish_reason native_finish_reason stop_reason format call_id "
    "item_id created created_by created_at completed_at system_fingerprint service_tier signature "
    "encrypted_content phase usage provider billing moderation incomplete_details content_filter_results "
    "prompt_filter_results content_filters".split()
)
_ENCRYPTED = ("reasoning.encrypted", "redacted_thinking")
# Longest token of an LLM, characters.
_MOST_TOKEN = 64


class RequestError(InputError):
    """A request cannot be read, or asks for something that cannot be guarded; answered with status 400.

    Attributes:
        param: the field of the request that is at fault, or None.
        code: a short name of the fault.
    """

    def __init__(self, message: str, param: str | None = None, code: str = "invalid_request") -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class UpstreamError(ModelError):
    """The upstream answered with something that is not a reply, or its stream broke off.

    Attributes:
        payload: the error object that the upstream sent inside its stream, if it did.
    """

    def __init__(self, message: str, payload: Mapping[str, Any] | None = None) -> None:
        super().__init__("llm", message)
        self.payload = payload

    def __reduce__(self) -> tuple[type[UpstreamError], tuple[str]]:  # type: ignore[override]
        return type(self), (self._message,)


def loads(data: bytes | str) -> Any:
    """Return what JSON says.

    Raises:
        ValueError: it is not JSON (which knows neither NaN nor infinity), or nested too deeply.
    """
    try:
        value = json.loads(data, parse_constant=_no_number, parse_float=_finite)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [value]
    for _ in range(MOST_DEPTH):
        level = [inner for outer in level for inner in _inner(outer)]
        if not level:
            return value
    raise ValueError("nested too deeply")


def dumps(value: Any) -> bytes:
    """Return JSON in ASCII: half of a surrogate pair, which no other encoding holds, comes through."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")


def payload(response: Any) -> Mapping[str, Any] | None:
    """Return the error object of a response that tells of a failure; None if there is none."""
    error = response.get("error") if isinstance(response, Mapping) else None
    return error if isinstance(error, Mapping) else None


def error_body(message: str, type_: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """Return an error as the API tells it."""
    return {"error": {"message": message, "type": type_, "param": param, "code": code}}


def made_up_id(prefix: str) -> str:
    """Return an id for something that the upstream gave none."""
    return f"{prefix}guardrail{secrets.token_hex(12)}"


def strings(value: Any) -> Iterator[str]:
    """Return every string in a JSON value that may hold words, in order; keys, too."""
    if isinstance(value, str):
        if value:
            yield value
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)
    elif isinstance(value, Mapping):
        opaque = value.get("type") in _ENCRYPTED
        for name, inner in value.items():
            if not is_name(name):
                yield name
            if name == "logprobs":
                yield from _token_texts(inner)
            elif name in WORDLESS or (opaque and name == "data"):
                yield from (text for text in every_string(inner) if not is_name(text))
            else:
                yield from strings(inner)


def every_string(value: Any) -> Iterator[str]:
    """Return every string in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield name
            yield from every_string(inner)
    elif isinstance(value, list):
        for item in value:
            yield from every_string(item)


def without_words(value: Any, known: Container[str] = ()) -> Any:
    """Return a JSON value with None in place of each string that may be words, and without such keys.

    Args:
        value: what nobody judges.
        known: strings that may stay.
    """
    if isinstance(value, str):
        return value if is_name(value) or value in known else None
    if isinstance(value, list):
        return [without_words(item, known) for item in value]
    if isinstance(value, Mapping):
        return {
            name: without_words(inner, known)
            for name, inner in value.items()
            if is_name(name) or name in known
        }
    return value


def call_view(name: Any, arguments: Any) -> dict[str, Any]:
    """Return a tool call as `read_reply` reads it."""
    if not isinstance(arguments, str):
        arguments = "" if arguments is None else json.dumps(arguments, ensure_ascii=False)
    return {"function": {"name": name if isinstance(name, str) else "", "arguments": arguments}}


def _token_texts(value: Any) -> Iterator[str]:
    """Return the words of token probabilities: texts that tokens in a row make up, and what is no token."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if not is_name(name):
                yield name
            yield from _token_texts(inner)
    elif isinstance(value, list):
        tokens = [item.get("token") for item in value if isinstance(item, Mapping)]
        yield "".join(token for token in tokens if isinstance(token, str))
        yield from (text for text in strings(value) if len(text.split()) > 1 or len(text) > _MOST_TOKEN)
    else:
        yield from strings(value)


def _inner(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _no_number(_: str) -> NoReturn:
    raise ValueError("not a finite number")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        _no_number(text)
    return number
