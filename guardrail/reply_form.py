"""Put text into the form of what an LLM returned: a string, a dict or a message."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any

# What may be kept of a draft that is replaced. Tool calls, reasoning, refusals, transcripts and
# token probabilities hold its words, so all other fields go.
KEPT_FIELDS = ("role", "type", "name", "id", "usage_metadata")


def in_form(template: Any, text: str) -> Any:
    """Return the text in the form of what the LLM returned: a string, a dict or a message."""
    if isinstance(template, Mapping):
        return {**{name: template[name] for name in KEPT_FIELDS if name in template}, "content": text}
    if not hasattr(type(template), "model_validate"):
        return text if isinstance(template, str) else _object_like(template, text)
    fields = {name: getattr(template, name) for name in KEPT_FIELDS if hasattr(template, name)}
    metadata = getattr(template, "response_metadata", None)
    if isinstance(metadata, Mapping):
        fields["response_metadata"] = {n: value for n, value in metadata.items() if n != "logprobs"}
    known = type(template).model_fields
    return type(template).model_validate(
        {**{name: value for name, value in fields.items() if name in known}, "content": text}
    )


def fields_of(item: Any) -> Mapping[str, Any]:
    """Return the fields of a dict, a message or another object; none where they cannot be told."""
    if isinstance(item, Mapping):
        return item
    if hasattr(item, "model_dump"):
        found: Mapping[str, Any] = item.model_dump()
        return found
    fields: Mapping[str, Any] = getattr(item, "__dict__", {"content": getattr(item, "content", None)})
    return fields


def calls_tools(reply: Any) -> bool:
    """Return True if what an LLM returned asks for a tool to be called."""
    calls = reply.get("tool_calls") if isinstance(reply, Mapping) else getattr(reply, "tool_calls", None)
    return bool(calls)


def _object_like(template: Any, text: str) -> Any:
    """Return an object of the template's class with the text; what it must not keep is None."""
    if not hasattr(template, "__dict__"):
        return text
    made = copy(template)
    for name in vars(template):
        if name not in KEPT_FIELDS:
            made.__dict__[name] = None
    made.__dict__["content"] = text
    return made
