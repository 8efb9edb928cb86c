"""A second opinion from a model of the upstream, where the guard is not sure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx

from guardrail.errors import ModelError

from .settings import ProxySettings


def upstream_judge(
    settings: ProxySettings, model: str, *, seconds: float, transport: httpx.BaseTransport | None = None
) -> Callable[[Sequence[Mapping[str, str]]], Any]:
    """Return a judge for `Guardrail.load(judge=...)`: a function from messages to the answer, for threads.

    It shows the upstream the proxy's own key, never that of a caller. Where it fails the guard decides alone.

    Args:
        settings: where the upstream is, and its key.
        model: as the upstream names it.
        seconds: longest wait for an answer.
        transport: in place of the network, e.g. an `httpx.MockTransport`.
    """
    key = settings.upstream_key
    client = httpx.Client(
        headers={"authorization": f"Bearer {key.get_secret_value()}"} if key is not None else {},
        timeout=httpx.Timeout(seconds),
        trust_env=False,
        transport=transport,
    )

    def complete(messages: Sequence[Mapping[str, str]]) -> Any:
        answer = client.post(
            f"{settings.upstream}/chat/completions", json={"model": model, "messages": list(messages)}
        )
        try:
            return answer.raise_for_status().json()["choices"][0]["message"]
        except (httpx.HTTPStatusError, ValueError, LookupError, TypeError) as error:
            raise ModelError("judge", f"expected a chat completion, got {type(error).__name__}") from None

    return complete
