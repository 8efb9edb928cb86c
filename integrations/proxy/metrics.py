"""Counters and histograms for Prometheus, in a registry of their own. Every label has few values."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

from .record import Record

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """What is counted of all requests."""

    def __init__(
        self, running: Callable[[], float], waiting: Callable[[], float], rules: Callable[[], float]
    ) -> None:
        """Make them.

        Args:
            running: how many requests are at work.
            waiting: how many wait for their turn.
            rules: how many rules are in force.
        """
        self._registry = CollectorRegistry()
        registry = self._registry
        self._requests = Counter(
            "guardrail_requests",
            "Requests that have ended, by endpoint, status of the answer, and code of its error.",
            ("endpoint", "status", "error"),
            registry=registry,
        )
        self._verdicts = Counter(
            "guardrail_verdicts",
            "Requests in which something was judged, by the gravest action and the worst status.",
            ("endpoint", "action", "status"),
            registry=registry,
        )
        self._replies = Counter(
            "guardrail_replies",
            "Guarded replies, by how the shown one came about.",
            ("endpoint", "strategy"),
            registry=registry,
        )
        self._total = _histogram("guardrail_request_seconds", "A whole request, seconds.", registry)
        self._queue = _histogram("guardrail_queue_seconds", "Waiting for a turn, seconds.", registry)
        self._upstream = _histogram("guardrail_upstream_seconds", "Waiting for the upstream.", registry)
        self._guard = _histogram(
            "guardrail_judging_seconds", "At work on a request besides: judging and repairing.", registry
        )
        for name, text, value in (
            ("guardrail_in_flight", "Requests at work.", running),
            ("guardrail_queue_length", "Requests that wait for their turn.", waiting),
            ("guardrail_rules", "Rules of thumb in force.", rules),
        ):
            Gauge(name, text, registry=registry).set_function(value)

    def add(self, record: Record) -> None:
        """Count a request that has ended."""
        endpoint = record.endpoint
        self._requests.labels(endpoint, str(record.status), record.error).inc()
        self._total.labels(endpoint).observe(record.seconds)
        if record.queue_seconds or record.guard_seconds:
            self._queue.labels(endpoint).observe(record.queue_seconds)
            self._guard.labels(endpoint).observe(record.guard_seconds)
        if record.upstream_seconds:
            self._upstream.labels(endpoint).observe(record.upstream_seconds)
        if record.action:
            self._verdicts.labels(endpoint, record.action, record.verdict_status).inc()
        if record.strategy:
            self._replies.labels(endpoint, record.strategy).inc()

    def text(self) -> bytes:
        """Return all of it in Prometheus's text form."""
        return generate_latest(self._registry)


def _histogram(name: str, text: str, registry: CollectorRegistry) -> Histogram:
    return Histogram(name, text, ("endpoint",), buckets=SECONDS, registry=registry)
