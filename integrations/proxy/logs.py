"""One line for each request, as JSON or as plain text; never a text, a key or an address of a caller."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Literal

from .record import Record

logger = logging.getLogger("guardrail.proxy")
# Their records may quote a request; what they have to say is counted in our own lines.
NOISY = ("uvicorn.access", "httpx", "httpcore", "asyncio")


class JsonFormatter(logging.Formatter):
    """One JSON object a line. Of an exception only the type is told: its text may hold a user's."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return json.dumps(_fields(record))


class TextFormatter(logging.Formatter):
    """The same for reading: name=value, empty ones left out."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields = _fields(record)
        head = [str(fields.pop(name)) for name in ("time", "level", "event")]
        rest = [f"{name}={_plain(value)}" for name, value in fields.items() if value not in ("", [], 0)]
        return " ".join([*head, *rest]).replace("\n", " ")


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname.lower(),
        "event": record.getMessage().strip(),
    }
    request = getattr(record, "request", None)
    if isinstance(request, Record):
        fields |= request.to_dict()
    if record.exc_info and record.exc_info[0] is not None:
        fields["exception"] = record.exc_info[0].__name__
    return fields


def log_request(record: Record) -> None:
    """Write the line of a request that has ended; probes that find all well come too often for one each."""
    level = logging.WARNING if record.status >= 500 else logging.INFO
    if record.routine and record.status == 200:
        level = logging.DEBUG
    logger.log(level, "request", extra={"request": record})


def set_up_logs(form: Literal["json", "text"]) -> None:
    """Send the proxy's and the server's lines to stderr, in one form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    for name in ("guardrail.proxy", "uvicorn"):
        known = logging.getLogger(name)
        known.handlers = [handler]
        known.propagate = False
    logger.setLevel(logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    for name in NOISY:
        quiet = logging.getLogger(name)
        quiet.handlers, quiet.propagate = [logging.NullHandler()], False


def _plain(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
