"""Read rules of thumb: our own bank, or JSONL files in its schema."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..errors import InputError
from .schema import Rule

BANK_FOLDER = Path(__file__).parent


def load_bank() -> tuple[Rule, ...]:
    """Return the rules that ship with the library, in a fixed order."""
    rules: list[Rule] = []
    for path in sorted(BANK_FOLDER.glob("*.jsonl")):
        rules.extend(read_rules(path))
    return _unique(rules)


@cache
def load_general() -> Mapping[str, tuple[str, ...]]:
    """Return sentences for replies in which no rule is spoken of, by kind.

    "said", "asked": leads that quote what the user stated or asked, with `{quote}`; "plain": leads that do
    not; "concerns" and "offers"; "grave_concerns" and "grave_offers", for when somebody may come to harm.
    """
    rows = json.loads((BANK_FOLDER / "general.json").read_text(encoding="utf-8"))
    return {kind: tuple(sentences) for kind, sentences in rows.items()}


def read_rules(path: str | Path) -> tuple[Rule, ...]:
    """Read rules from a JSONL file; blank lines are skipped.

    Raises:
        InputError: the file cannot be read, or a line is broken; it names file, line and reason.
    """
    rules, problems = check_rules(path)
    if problems:
        more = (
            f" (and {len(problems) - 1} more; run: guardrail rules validate {path})" if problems[1:] else ""
        )
        raise InputError(problems[0] + more)
    return _unique(rules)


def check_rules(path: str | Path) -> tuple[tuple[Rule, ...], tuple[str, ...]]:
    """Read what can be read and return it with every problem, one line each.

    Raises:
        InputError: the file cannot be opened or is not UTF-8.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"expected a readable UTF-8 JSONL file of rules at {path}, got: {error}") from error
    rules: list[Rule] = []
    problems: list[str] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rule = Rule.model_validate_json(line)
        except ValidationError as error:
            problems.append(f"{path}, line {number}: {_reason(error)}")
            continue
        if rule.id in seen:
            problems.append(f"{path}, line {number}: id {rule.id!r} is taken by line {seen[rule.id]}")
            continue
        seen[rule.id] = number
        rules.append(rule)
    return tuple(rules), tuple(problems)


def as_rule(value: str | Mapping[str, Any] | Rule) -> Rule:
    """Return a rule from one line of text, a mapping in the schema, or a rule.

    A rule given as text gets the id `custom-` + a hash of it.

    Raises:
        InputError: it is blank or does not fit the schema; says which field and why.
    """
    if isinstance(value, Rule):
        return value
    if isinstance(value, str):
        value = {"rule": value}
    if not isinstance(value, Mapping):
        raise InputError(f"expected a rule as text, mapping or Rule, got {type(value).__name__}")
    text = value.get("rule", value.get("text"))
    fields = dict(value)
    try:
        if isinstance(text, str):
            digest = hashlib.blake2b(text.strip().encode(), digest_size=5).hexdigest()
            fields.setdefault("id", f"custom-{digest}")
        return Rule.model_validate(fields)
    except ValidationError as error:
        raise InputError(f"a rule does not fit the schema: {_reason(error)}") from None
    except UnicodeEncodeError as error:
        raise InputError("expected a rule of valid Unicode, got a lone surrogate; clean the text") from error


def rules_digest(rules: Iterable[Rule]) -> str:
    """Return the SHA-256 over ids and texts in order: what an index of them depends on."""
    body = json.dumps([[rule.id, rule.text] for rule in rules])
    return hashlib.sha256(body.encode()).hexdigest()


def _reason(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False)[0]
    place = ".".join(map(str, first["loc"])) or "the line"
    return f"{place}: {first['msg']}"


def _unique(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    by_id: dict[str, Rule] = {}
    for rule in rules:
        if by_id.setdefault(rule.id, rule) is not rule:
            raise InputError(f"expected every rule id once, got {rule.id!r} twice; rename one")
    return tuple(by_id.values())
