"""Settings of the proxy, checked when they are made."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from guardrail.errors import ConfigError

LEAST_KEY = 8
SECRETS = frozenset({"api_keys", "upstream_key"})


class ProxySettings(BaseModel):
    """Where the proxy listens, whom it asks, and how much it takes.

    Attributes:
        upstream: base URL of the LLM's API, as a client of OpenAI would be given it: http://host/v1.
        host: address to listen on.
        port: likewise; 0 takes a free one.
        api_keys: whoever calls must show one of them; empty asks for none.
        upstream_key: shown to the upstream instead of the caller's own key.
        insecure: allow to listen beyond this machine without a key.
        max_concurrency: requests at work at a time.
        max_queue: requests that may wait for their turn; one more is refused with 503.
        queue_seconds: longest wait for a turn; then 503.
        per_client: requests of one client, by key or address, at work or waiting; one more is refused with
            429. None for no limit.
        max_body_kib: longest body of a request, KiB; else 413.
        body_seconds: longest time for a body to arrive; else 408.
        max_turns: most messages of a conversation; else 400.
        max_checks: most judgements that one request to /check or /v1/moderations may ask for; else 400.
        deadline_seconds: longest time for a request, all told; else 504, or an error event in a stream.
        connect_seconds: longest time to reach the upstream; else 504.
        shutdown_seconds: on SIGTERM, longest time for running requests to finish.
        max_connections: open connections; one more is refused with 503.
        header_seconds: longest time for a request's head to arrive; then the connection is closed.
        keep_alive_seconds: longest time that an idle connection stays open.
        ready_seconds: longest time for the guard to judge its canary for /readyz.
        ready_upstream: /readyz also asks the upstream.
        playground: serve the page at / and let it add rules.
        allow_rules: let POST /rules change the running guard.
        log_format: one JSON object a line, or plain text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    upstream: str
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8642
    api_keys: tuple[SecretStr, ...] = ()
    upstream_key: SecretStr | None = None
    insecure: bool = False
    max_concurrency: Annotated[int, Field(ge=1, le=10_000)] = 64
    max_queue: Annotated[int, Field(ge=0, le=100_000)] = 64
    queue_seconds: Annotated[float, Field(gt=0, le=3600)] = 10.0
    per_client: Annotated[int, Field(ge=1, le=10_000)] | None = None
    max_body_kib: Annotated[int, Field(ge=1, le=64 * 1024)] = 1024
    body_seconds: Annotated[float, Field(gt=0, le=3600)] = 30.0
    max_turns: Annotated[int, Field(ge=1, le=100_000)] = 512
    max_checks: Annotated[int, Field(ge=1, le=10_000)] = 64
    deadline_seconds: Annotated[float, Field(gt=0, le=86_400)] = 300.0
    connect_seconds: Annotated[float, Field(gt=0, le=3600)] = 10.0
    shutdown_seconds: Annotated[float, Field(gt=0, le=3600)] = 30.0
    max_connections: Annotated[int, Field(ge=2, le=100_000)] = 512
    header_seconds: Annotated[float, Field(gt=0, le=3600)] = 10.0
    keep_alive_seconds: Annotated[int, Field(ge=1, le=3600)] = 30
    ready_seconds: Annotated[float, Field(gt=0, le=60)] = 2.0
    ready_upstream: bool = False
    playground: bool = False
    allow_rules: bool = False
    log_format: Literal["json", "text"] = "json"

    @classmethod
    def of(cls, **settings: Any) -> ProxySettings:
        """Return checked settings.

        Raises:
            ConfigError: a name is unknown or a value out of range; names it, the range and the value, but
                never a key.
        """
        try:
            return cls(**settings)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            reason = first["msg"].removeprefix("Value error, ")
            if not name:  # settings that do not go together
                raise ConfigError(reason) from None
            got = "" if first["loc"][0] in SECRETS else f", got {settings.get(str(first['loc'][0]))!r}"
            raise ConfigError(f"setting {name!r}: {reason}{got}") from None

    @property
    def changes_rules(self) -> bool:
        """True if rules may be added while the proxy runs."""
        return self.playground or self.allow_rules

    @field_validator("upstream")
    @classmethod
    def _check_upstream(cls, url: str) -> str:
        parts = urlsplit(url)
        _ = parts.port  # raises ValueError if it is none
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("expected a URL like http://host/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("expected a URL without user, password, query and fragment")
        return url.rstrip("/")

    @field_validator("api_keys")
    @classmethod
    def _check_keys(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for key in keys:
            if not _is_key(key.get_secret_value()):
                raise ValueError(
                    f"expected keys of at least {LEAST_KEY} printable ASCII characters without space"
                )
        return keys

    @field_validator("upstream_key")
    @classmethod
    def _check_upstream_key(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and not _is_key(key.get_secret_value(), least=1):
            raise ValueError("expected printable ASCII characters without space")
        return key

    @model_validator(mode="after")
    def _check_together(self) -> ProxySettings:
        if not self.api_keys and not self.insecure and not is_loopback(self.host):
            raise ValueError(
                f"expected an API key when listening on {self.host}, where others can reach the proxy; "
                f"set one, listen on 127.0.0.1, or allow it with insecure"
            )
        parts = urlsplit(self.upstream)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        if parts.hostname in (self.host, "localhost") and is_loopback(self.host) and port == self.port:
            raise ValueError(f"expected another server as upstream, got the proxy itself: {self.upstream}")
        return self


def is_loopback(host: str) -> bool:
    """Return True if an address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_keys(path: Path) -> tuple[str, ...]:
    """Return the keys in a file, one a line; blank lines and lines that begin with # are left out.

    Raises:
        ConfigError: there is none in it, or it is no text.
        OSError: the file cannot be read.
    """
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except UnicodeDecodeError:
        raise ConfigError(f"expected a text file with one API key a line at {path}") from None
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise ConfigError(f"expected at least one API key in {path}, got none; write one a line")
    return keys


def _is_key(text: str, least: int = LEAST_KEY) -> bool:
    return len(text) >= least and text.isascii() and text.isprintable() and " " not in text
