"""The endpoints that judge and repair without an LLM: /check, /repair, /v1/moderations, /rules."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse

from guardrail.conversation import read_conversation
from guardrail.rules import Rule
from guardrail.types import Verdict

from .body import check_turns, read_json
from .errors import ProxyError, bad_request
from .gate import Answer, Call
from .settings import ProxySettings

if TYPE_CHECKING:
    from guardrail import Guardrail

Work = Callable[[Call], Awaitable[Answer]]
UNSAFE = "unsafe"
MOST_ADDED = 100
MOST_RULES = 100_000
MOST_FOUND = 50
LONGEST_QUERY = 2000


def check(guard: Guardrail, settings: ProxySettings) -> Work:
    """Return what judges the last turn of a conversation, or with "every_turn" each of its turns."""

    async def work(call: Call) -> Answer:
        given = read_json(call.body, call.headers)
        _only(given, {"messages", "every_turn"})
        messages = _conversation(given, settings)
        every = given.get("every_turn", False)
        if not isinstance(every, bool):
            raise bad_request(f"expected every_turn to be true or false, got {type(every).__name__}")
        if not every:
            verdict = await guard.acheck(messages)
            call.record.add_verdicts([verdict])
            return JSONResponse(verdict.to_dict())
        items = messages if isinstance(messages, list) else [messages]
        starts = read_conversation(items).positions
        _bounded(len(starts), settings)
        verdicts = await _verdicts(guard, [items[: position + 1] for position in starts], call)
        return JSONResponse({"verdicts": [verdict.to_dict() for verdict in verdicts]})

    return work


def repair(guard: Guardrail, settings: ProxySettings) -> Work:
    """Return what gives a reply to show in place of a draft."""

    async def work(call: Call) -> Answer:
        given = read_json(call.body, call.headers)
        _only(given, {"messages", "draft"})
        draft = given.get("draft", "")
        if not isinstance(draft, str):
            raise bad_request(f"expected draft to be a string, got {type(draft).__name__}")
        reply = await guard.in_thread(partial(guard.repair, _conversation(given, settings), draft))
        call.record.add_replies([reply])
        return JSONResponse(reply.to_dict())

    return work


def moderations(guard: Guardrail, settings: ProxySettings) -> Work:
    """Return what answers as OpenAI's moderation endpoint does, with the guard's verdict."""

    async def work(call: Call) -> Answer:
        given = read_json(call.body, call.headers)
        texts = _texts(given.get("input"))
        _bounded(len(texts), settings)
        verdicts = await _verdicts(guard, texts, call)
        domains = _domains(guard.rules)
        return JSONResponse(
            {
                "id": f"modr-{uuid.uuid4().hex}",
                "model": "prosocial-guardrail",
                "results": [_result(verdict, domains, guard) for verdict in verdicts],
            }
        )

    return work


def find_rules(guard: Guardrail) -> Work:
    """Return what searches the rules in force."""

    async def work(call: Call) -> Answer:
        query, k = call.query.get("q", ""), call.query.get("k", "5")
        if not query.strip() or len(query) > LONGEST_QUERY:
            raise bad_request(f"expected a query, ?q=..., of 1 to {LONGEST_QUERY} characters")
        if not (k.isascii() and k.isdecimal()) or not 1 <= int(k[:4]) <= MOST_FOUND:
            raise bad_request(f"expected k from 1 to {MOST_FOUND}")
        found = await guard.in_thread(lambda: guard.search_rules(query, int(k)))
        rules = [{**_rule(rule), "similarity": round(cosine, 4)} for rule, cosine in found]
        return JSONResponse({"count": len(guard.rules), "rules": rules})

    return work


def add_rules(guard: Guardrail, settings: ProxySettings) -> Work:
    """Return what adds rules to the running guard, if that is allowed; they are gone when it ends."""

    async def work(call: Call) -> Answer:
        if not settings.changes_rules:
            raise ProxyError(
                403, "rules_fixed", "this proxy takes no rules; start it with --allow-rules or --playground"
            )
        given = read_json(call.body, call.headers)
        _only(given, {"rules"})
        rules = given.get("rules")
        if not isinstance(rules, list) or not 1 <= len(rules) <= MOST_ADDED:
            raise bad_request(f"expected rules to be a list of 1 to {MOST_ADDED} rules")
        if len(guard.rules) + len(rules) > MOST_RULES:
            raise bad_request(f"expected at most {MOST_RULES} rules in all", "too_many_rules")
        added = await guard.in_thread(lambda: guard.add_rules(rules))
        return JSONResponse({"count": len(guard.rules), "added": [_rule(rule) for rule in added]})

    return work


async def _verdicts(guard: Guardrail, conversations: Sequence[Any], call: Call) -> list[Verdict]:
    """Judge one after the other: one request must not take the turns of all others."""
    verdicts = [await guard.acheck(messages) for messages in conversations]
    call.record.add_verdicts(verdicts)
    return verdicts


def _conversation(given: dict[str, Any], settings: ProxySettings) -> Any:
    messages = given.get("messages")
    if not isinstance(messages, str | list):
        raise bad_request("expected messages to be a list of role/content objects, or a string")
    check_turns(messages, settings.max_turns)
    return messages


def _texts(given: object) -> list[str]:
    """Return the texts to be moderated: of a list of content parts one, as OpenAI does."""
    if isinstance(given, str):
        return [given]
    if isinstance(given, list) and given and all(isinstance(item, str) for item in given):
        return given
    parts = given if isinstance(given, list) and given else [None]
    texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
    if len(texts) != len(parts) or not all(isinstance(text, str) for text in texts):
        raise bad_request("expected input to be a string, a list of strings, or text parts; no images")
    return ["\n".join(map(str, texts))]


def _result(verdict: Verdict, domains: tuple[str, ...], guard: Guardrail) -> dict[str, Any]:
    """Return a verdict in OpenAI's shape. What was not read whole counts as flagged."""
    unread = not verdict.coverage.judged_turn_read and guard.config.on_error != "allow"
    flagged = verdict.flagged or unread
    scores = dict.fromkeys(domains, 0.0)
    for match in (*verdict.touched, *verdict.rules):
        domain = match.rule.domain
        scores[domain] = max(scores.get(domain, 0.0), round(match.probability, 4))
    scores[UNSAFE] = round(verdict.probability, 4)
    broken = {match.rule.domain for match in verdict.rules} | ({UNSAFE} if flagged else set())
    return {
        "flagged": flagged,
        "categories": {name: name in broken for name in scores},
        "category_scores": scores,
        "category_applied_input_types": {name: ["text"] for name in scores},
        "guardrail": verdict.to_dict(),
    }


def _domains(rules: Sequence[Rule]) -> tuple[str, ...]:
    return (UNSAFE, *sorted({rule.domain for rule in rules}))


def _rule(rule: Rule) -> dict[str, Any]:
    return {"rule_id": rule.id, "rule": rule.text, "domain": rule.domain, "severity": rule.severity}


def _only(given: dict[str, Any], known: set[str]) -> None:
    """Refuse what would be passed over in silence: a misspelt option looks like one that was heard."""
    if given.keys() - known:
        raise bad_request(f"expected no fields but {', '.join(sorted(known))}")


def _bounded(count: int, settings: ProxySettings) -> None:
    if count > settings.max_checks:
        raise bad_request(f"expected at most {settings.max_checks} texts to judge, got {count}")
