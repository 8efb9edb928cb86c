"""A span for each request where OpenTelemetry is installed, else nothing. Spans hold no text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .record import Record

try:
    from opentelemetry import propagate, trace
except ModuleNotFoundError:  # it is not asked for
    installed = False
else:
    installed = True


@contextmanager
def request_span(record: Record, headers: Mapping[str, str]) -> Iterator[None]:
    """Trace a request, as a part of the caller's trace if it names one.

    Args:
        record: filled while the span is open; read at its end.
        headers: of the request.
    """
    if not installed:
        yield
        return
    tracer = trace.get_tracer("guardrail.proxy")
    context = propagate.extract(dict(headers))
    with tracer.start_as_current_span(
        "guardrail.proxy request",
        context,
        trace.SpanKind.SERVER,
        record_exception=False,  # an exception's text may hold a user's
        set_status_on_exception=False,
    ) as span:
        try:
            yield
        finally:
            if span.is_recording():
                span.update_name(f"{record.method} {record.endpoint}")
                span.set_attributes(_attributes(record))
                if record.status >= 500:
                    span.set_status(trace.StatusCode.ERROR)


def trace_headers() -> dict[str, str]:
    """Return headers that make the upstream's spans a part of this trace."""
    headers: dict[str, str] = {}
    if installed:
        propagate.inject(headers)
    return headers


def _attributes(record: Record) -> dict[str, Any]:
    return {
        "http.request.method": record.method,
        "http.route": record.endpoint,
        "http.response.status_code": record.status,
        "error.type": record.error,
        "guardrail.request_id": record.request_id,
        "guardrail.action": record.action,
        "guardrail.verdict_status": record.verdict_status,
        "guardrail.strategy": record.strategy,
        "guardrail.rules": list(record.rules),
        "guardrail.queue_seconds": record.queue_seconds,
        "guardrail.upstream_seconds": record.upstream_seconds,
        "guardrail.judging_seconds": record.guard_seconds,
    }
