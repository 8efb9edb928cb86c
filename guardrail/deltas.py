"""Add up the pieces in which OpenAI-compatible APIs stream a message. Pure; plain JSON types."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# Fields that name something: each piece repeats them, they are not continued.
NAMES = frozenset({"index", "id", "type", "role", "object", "model", "created", "finish_reason", "name"})


def merge_deltas(deltas: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return one message out of its pieces.

    Texts are joined, lists are joined by the `index` of their items, dicts key by key. The other values,
    and those that name something, are the last ones that were not null.

    Args:
        deltas: in order; e.g. `choices[0].delta` of each chunk.
    """
    whole: dict[str, Any] = {}
    for delta in deltas:
        _merge(whole, delta)
    return whole


def _merge(whole: dict[str, Any], delta: Mapping[str, Any]) -> None:
    for name, value in delta.items():
        known = whole.get(name)
        if value is None:
            whole.setdefault(name, None)
        elif isinstance(value, Mapping):
            inner = dict(known) if isinstance(known, dict) else {}
            _merge(inner, value)
            whole[name] = inner
        elif isinstance(value, list):
            whole[name] = _merged_lists(known if isinstance(known, list) else [], value)
        elif isinstance(value, str) and isinstance(known, str) and name not in NAMES:
            whole[name] = known + value
        else:
            whole[name] = value


def _merged_lists(known: list[Any], more: list[Any]) -> list[Any]:
    """Return the items of both; those with the same `index` are one."""
    merged = list(known)
    places = {item["index"]: place for place, item in enumerate(merged) if _has_index(item)}
    for item in more:
        if _has_index(item) and item["index"] in places:
            _merge(merged[places[item["index"]]], item)
        else:
            merged.append(dict(item) if isinstance(item, Mapping) else item)
            if _has_index(item):
                places[item["index"]] = len(merged) - 1
    return merged


def _has_index(item: Any) -> bool:
    return isinstance(item, Mapping) and isinstance(item.get("index"), int)
