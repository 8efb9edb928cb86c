"""Put text into the form of what an LLM returned: a string, a dict or a message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What may be kept of a draft that is replaced. Tool calls, reasoning, refusals, transcripts and
# token probabilities hold its words, so all other fields go.
KEPT_FIELDS = ("role", "type", "name", "id", "usage_metadata")


def in_form(template: Any, text: str) -> Any:
    """Return the text in the form of what the LLM returned: a string, a dict or a message."""
    if isinstance(template, Mapping):
        return {**{name: template[name] for name in KEPT_FIELDS if name in template}, "content": text}
    if not hasattr(type(template), "model_validate"):
        return text
    fields = {name: getattr(template, name) for name in KEPT_FIELDS if hasattr(template, name)}
    metadata = getattr(template, "response_metadata", None)
    if isinstance(metadata, Mapping):
        fields["response_metadata"] = {n: value for n, value in metadata.items() if n != "logprobs"}
    known = type(template).model_fields
    return type(template).model_validate(
        {**{name: value for name, value in fields.items() if name in known}, "content": text}
    )


def calls_tools(reply: Any) -> bool:
    """Return True if what an LLM returned asks for a tool to be called."""
    calls = reply.get("tool_calls") if isinstance(reply, Mapping) else getattr(reply, "tool_calls", None)
    return bool(calls)
