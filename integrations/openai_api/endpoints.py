"""Which requests are guarded, which pass, and which are refused. Pure."""

from __future__ import annotations

from typing import Literal
from urllib.parse import unquote

from .wire import RequestError

Endpoint = Literal["chat", "responses", "pass"]

# Ends of paths that are guarded; what stands before them (/v1, /openai/deployments/name) is the app's own.
_GUARDED: dict[tuple[str, ...], Endpoint] = {
    ("chat", "completions"): "chat",
    ("responses",): "responses",
}
# Those that return no generated conversation: data of the app itself, numbers, or what a user said.
# Not among them, as there is nothing that could judge what they return: stored completions and responses,
# threads, batches and their files' content, conversations, images (whose prompts are rewritten), evals.
_PASSING = (
    "GET models",
    "GET models/*",
    "POST embeddings",
    "POST moderations",
    "POST tokenize",
    "POST responses/input_tokens",
    "DELETE responses/*",
    "DELETE chat/completions/*",
    "GET files",
    "POST files",
    "GET files/*",
    "DELETE files/*",
    "POST uploads",
    "POST uploads/*/parts",
    "POST uploads/*/complete",
    "POST uploads/*/cancel",
    "POST audio/transcriptions",
    "POST audio/translations",
    "POST audio/speech",
    "GET vector_stores",
    "POST vector_stores",
    "GET vector_stores/*",
    "POST vector_stores/*",
    "DELETE vector_stores/*",
    "POST vector_stores/*/search",
    "GET vector_stores/*/files",
    "POST vector_stores/*/files",
    "GET vector_stores/*/files/*",
    "DELETE vector_stores/*/files/*",
    "POST vector_stores/*/file_batches",
    "GET vector_stores/*/file_batches/*",
)
_PATTERNS = tuple((method, tuple(path.split("/"))) for method, path in (line.split() for line in _PASSING))


def endpoint(method: str, raw_path: bytes) -> Endpoint:
    """Return what a request is for.

    Args:
        method: "GET", "POST", ...
        raw_path: path of the URL as it is sent, percent-encoded, perhaps with a query.

    Raises:
        RequestError: it may return generated words that nobody judges.
    """
    path = raw_path.partition(b"?")[0].decode("ascii", "replace")
    parts = tuple(part for part in path.split("/") if part)
    if not any(".." in unquote(part) for part in parts):
        for end, found in _GUARDED.items():
            if method == "POST" and parts[-len(end) :] == end:
                return found
        if any(method == verb and _ends_with(parts, pattern) for verb, pattern in _PATTERNS):
            return "pass"
    raise RequestError(
        f"expected a request that the guard can judge (POST chat/completions, POST responses) or one that "
        f"returns no generated text (models, embeddings, moderations, ...), got another {method} request; "
        f"send it with a client that is not guarded, if nobody is shown what it returns",
        code="not_guarded",
    )


def _ends_with(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    end = parts[-len(pattern) :]
    return len(end) == len(pattern) and all(
        want in ("*", part) for part, want in zip(end, pattern, strict=True)
    )
