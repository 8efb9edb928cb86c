"""What is noted of one request, for its log line, the metrics and its span. Never text, never keys."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from guardrail.outcome import GuardedReply
from guardrail.types import Action, Verdict

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
MOST_RULES = 16
UNKNOWN = "other"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
CLIENT_GONE = 499
KEY = "guardrail.record"
"""Where a record stands in an ASGI scope."""

CURRENT: ContextVar[Record | None] = ContextVar("guardrail_proxy_record", default=None)
"""The record of the request that is being answered."""


@dataclass(slots=True)
class Record:
    """One request.

    Attributes:
        request_id: the caller's own if it is a plain word, else a new one.
        method: of HTTP.
        endpoint: the path as the proxy knows it; "other" for any other.
        status: of the answer; 499 if the caller left before there was one.
        upstream_status: of the upstream's last answer; 0 if there was none.
        error: code of the error that it was answered with; else "".
        action: the gravest of the verdicts; "" if nothing was judged.
        verdict_status: the worst of the verdicts' status.
        strategy: how the reply that was shown came about.
        rules: ids of the rules that were broken.
        routine: True for a look at how the proxy is, of which there are many.
        streaming: True once a stream has begun.
        seconds: all told; then waiting for a turn, for the upstream, for the caller to read, and at work
            besides.
    """

    request_id: str
    method: str
    endpoint: str = UNKNOWN
    status: int = 0
    upstream_status: int = 0
    error: str = ""
    action: str = ""
    verdict_status: str = ""
    strategy: str = ""
    rules: tuple[str, ...] = ()
    bytes_in: int = 0
    bytes_out: int = 0
    routine: bool = False
    streaming: bool = False
    seconds: float = 0.0
    queue_seconds: float = 0.0
    upstream_seconds: float = 0.0
    sending_seconds: float = 0.0
    guard_seconds: float = 0.0
    started: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, method: str, request_id: str | None) -> Record:
        """Make one for a request that begins."""
        known = request_id if request_id and REQUEST_ID.fullmatch(request_id) else uuid.uuid4().hex
        return cls(known, method if method in METHODS else UNKNOWN)

    def add_verdicts(self, verdicts: Iterable[Verdict]) -> None:
        """Take note of judgements: the gravest action, the worst status, the rules broken."""
        actions = [self.action] if self.action else []
        stati = [self.verdict_status] if self.verdict_status else []
        rules = list(self.rules)
        for verdict in verdicts:
            actions.append(verdict.action.value)
            stati.append(verdict.status)
            rules += [match.rule.id for match in verdict.rules]
        self.action = max(actions, key=lambda action: Action(action).rank, default="")
        self.verdict_status = max(stati, key=("ok", "degraded", "error").index, default="")
        self.rules = tuple(dict.fromkeys(rules))[:MOST_RULES]

    def add_replies(self, replies: Iterable[GuardedReply]) -> None:
        """Take note of guarded replies; of several the last one that was not the LLM's own names the way."""
        for reply in replies:
            self.add_verdicts([reply.verdict_in])
            broken = [rule for attempt in reply.attempts if attempt.flagged for rule in attempt.rules]
            self.rules = tuple(dict.fromkeys((*self.rules, *broken)))[:MOST_RULES]
            if not self.strategy or reply.strategy != "pass":
                self.strategy = reply.strategy

    def close(self) -> None:
        """Take note of the end."""
        self.seconds = time.monotonic() - self.started
        self.status = self.status or CLIENT_GONE

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "request_id": self.request_id,
            "method": self.method,
            "path": self.endpoint,
            "status": self.status,
            "upstream_status": self.upstream_status,
            "error": self.error,
            "action": self.action,
            "verdict_status": self.verdict_status,
            "strategy": self.strategy,
            "rules": list(self.rules),
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "seconds": round(self.seconds, 4),
            "queue_seconds": round(self.queue_seconds, 4),
            "upstream_seconds": round(self.upstream_seconds, 4),
            "judging_seconds": round(self.guard_seconds, 4),
        }
