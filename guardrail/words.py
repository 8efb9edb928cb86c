"""Every word in a value of any shape: what a reply holds beside its text may be shown too. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

# Words may stand under names that no list would hold. Under these even a single one is read; under others all
# that is not one run of ASCII: a name, a number, a link, a signature.
WORD_KEYS = frozenset(
    """args arguments input partial_json text content summary reasoning reasoning_content thinking refusal
    transcript name title cited_text quote query code output""".split()
)
ARGUMENT_KEYS = frozenset({"args", "arguments", "input"})
_ONE_RUN = re.compile(r"[!-~]*")


def is_name(value: object) -> bool:
    """Return True for a string that can only be a name, an id or something opaque, and no words."""
    return isinstance(value, str) and _ONE_RUN.fullmatch(value) is not None


def words_in(value: object, name: str = "") -> Iterator[str]:
    """Yield all strings in a value that may be words, keys too.

    Args:
        value: plain JSON types, pydantic models, or a mix.
        name: under which it stands.
    """
    if hasattr(type(value), "model_fields"):  # e.g. what a client has parsed already
        value = fields_in(value)
    if isinstance(value, str):
        if value and (name in WORD_KEYS or not is_name(value)):
            yield value
    elif isinstance(value, Mapping):
        if value and name in ARGUMENT_KEYS:
            yield json.dumps(value, ensure_ascii=False, default=str)
            return
        for inner, held in value.items():
            if not is_name(inner):
                yield str(inner)
            yield from words_in(held, str(inner))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from words_in(item, name)


def fields_in(value: Any) -> dict[str, Any]:
    """Return the fields of a mapping, a pydantic model or a plain object; empty for anything else."""
    if isinstance(value, Mapping) or hasattr(type(value), "model_fields"):
        return dict(value)
    return dict(getattr(value, "__dict__", {}))
