"""The guard around a client of OpenAI's: every reply that it returns was judged.

    from openai import OpenAI
    from guardrail.integrations.openai import guard_client

    client = guard_client(OpenAI())
    client.chat.completions.create(...)     # as before

The guard stands below the client, where it sends its HTTP requests. So `create`, `parse`, the stream helpers
and the raw responses are guarded alike and return what they always return. Chat completions and the
Responses API are guarded; models, embeddings, moderations, files and the like pass; other endpoints, and
websockets (realtime, live), are refused, as nothing could judge what comes back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from guardrail.default import default_guard
from guardrail.errors import InputError, MissingDependencyError
from guardrail.session import OnIntervention

from .openai_api.http import library_of
from .openai_api.transport import AsyncGuardTransport, GuardTransport

try:
    from openai import AsyncOpenAI, OpenAI
except ImportError as error:
    raise MissingDependencyError("openai", "openai") from error

if TYPE_CHECKING:
    from guardrail import Guardrail

__all__ = ["guard_client"]

Client = TypeVar("Client", OpenAI, AsyncOpenAI)


class _NoWebsocket:
    """Stands where the client looks for the place of its websockets, which no HTTP transport sees."""

    def __repr__(self) -> str:
        return "websockets pass the guard by: use chat completions or responses, or a client without guard"


def guard_client(
    client: Client, *, guard: Guardrail | None = None, on_intervention: OnIntervention | None = None
) -> Client:
    """Return a client like this one, of the same class, that returns only judged replies.

    Copies of it (`with_options`) are guarded, too. The given client stays as it is, and both use its
    connections: closing the guarded one leaves the given one open, which must be closed itself; once it is
    closed, the guarded one cannot send anything. Whole replies have an extra field `guardrail`, and so has
    the last chunk of a stream (of the Responses API, its last `response`); headers tell the verdict, too.

    Args:
        client: `OpenAI`, `AsyncOpenAI`, or a class derived from them (Azure's).
        guard: None takes the default one.
        on_intervention: what happens when the user's turn asks for intervention, as in
            `Guardrail.generate`; None takes the guard's setting.

    Raises:
        InputError: it is another object.
        ConfigError: `on_intervention` is none of its forms.
    """
    if not isinstance(client, OpenAI | AsyncOpenAI):
        raise InputError(
            f"expected a client made by openai.OpenAI(...) or openai.AsyncOpenAI(...), got "
            f"{type(client).__name__}; make one and pass it"
        )
    guard = guard or default_guard()
    inner: Any = client._client  # there is no public name for it
    library: Any = library_of(inner)
    options: dict[str, Any] = {
        "headers": inner.headers,
        "params": inner.params,
        "cookies": inner.cookies,
        "timeout": inner.timeout,
        "follow_redirects": inner.follow_redirects,
        "trust_env": False,  # a proxy from the environment would be a way around the transport
    }
    settings: dict[str, Any] = {"on_intervention": on_intervention, "owns_inner": False, "library": library}
    http_client: Any
    if isinstance(client, AsyncOpenAI):
        http_client = library.AsyncClient(transport=AsyncGuardTransport(guard, inner, **settings), **options)
    else:
        http_client = library.Client(transport=GuardTransport(guard, inner, **settings), **options)
    return client.copy(http_client=http_client, **_no_websocket(client))


def _no_websocket(client: Any) -> dict[str, Any]:
    """Return what keeps a client from opening websockets; older ones open none."""
    return {"websocket_base_url": _NoWebsocket()} if hasattr(client, "websocket_base_url") else {}
