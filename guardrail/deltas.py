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
    lists = _Lists()
    for delta in deltas:
        lists.merge(whole, delta)
    return whole


class _Lists:
    """Merges in place, and remembers where the items of each list stand: long streams have many."""

    def __init__(self) -> None:
        self._places: dict[int, tuple[list[Any], dict[int, int]]] = {}  # by id; each list is kept alive

    def merge(self, whole: dict[str, Any], delta: Mapping[str, Any]) -> None:
        for name, value in delta.items():
            known = whole.get(name)
            if value is None:
                whole.setdefault(name, None)
            elif isinstance(value, Mapping):
                if not isinstance(known, dict):
                    whole[name] = known = {}
                self.merge(known, value)
            elif isinstance(value, list):
                if not isinstance(known, list):
                    whole[name] = known = []
                self._extend(known, value)
            elif isinstance(value, str) and isinstance(known, str) and name not in NAMES:
                whole[name] = known + value
            else:
                whole[name] = value

    def _extend(self, known: list[Any], more: list[Any]) -> None:
        """Add items to a list; those with the same `index` are one."""
        _, places = self._places.setdefault(id(known), (known, {}))
        for item in more:
            if not isinstance(item, Mapping):
                known.append(item)
                continue
            index = item.get("index")
            place = places.setdefault(index, len(known)) if isinstance(index, int) else len(known)
            if place == len(known):
                known.append({})
            self.merge(known[place], item)
