"""`guardrail serve`: the guard as an OpenAI-compatible server in front of any LLM.

Type checkers do not see that the folder integrations/ installs as guardrail.integrations, hence the ignore.
"""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .options import ExtraRules, Model

KEY_ENV = "GUARDRAIL_API_KEY"
UPSTREAM_KEY_ENV = "GUARDRAIL_UPSTREAM_KEY"


class OnError(StrEnum):
    """What happens when the guard itself fails."""

    CLOSED = "closed"
    RAISE = "raise"
    ALLOW = "allow"


class OnIntervention(StrEnum):
    """What happens to a turn that asks for intervention."""

    REPLY = "reply"
    GUIDE = "guide"


class Release(StrEnum):
    """When a stream is shown."""

    SENTENCE = "sentence"
    TURN = "turn"


class LogFormat(StrEnum):
    """How a log line looks."""

    JSON = "json"
    TEXT = "text"


def serve(
    upstream: Annotated[str, typer.Option(metavar="URL", help="The LLM's API, e.g. http://host/v1.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8642,
    api_key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help=f"Keys of callers, one a line. {KEY_ENV} holds a single one."),
    ] = None,
    upstream_key: Annotated[
        str,
        typer.Option(
            "--upstream-key-env", metavar="NAME", help="Environment variable with the upstream's key."
        ),
    ] = UPSTREAM_KEY_ENV,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen beyond this machine without a key.")
    ] = False,
    model: Model = None,
    rules: ExtraRules = None,
    rewriter: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="A trained rewrite model, for repairs.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Judgements at a time.")] = 2,
    on_error: Annotated[
        OnError, typer.Option(help="When the guard itself fails: a safe reply, an error, or let pass.")
    ] = OnError.CLOSED,
    on_intervention: Annotated[
        OnIntervention, typer.Option(help="Where somebody may come to harm: our reply, or the LLM guided.")
    ] = OnIntervention.REPLY,
    stream_release: Annotated[
        Release, typer.Option(help="Show streams sentence by sentence, or once they are judged whole.")
    ] = Release.SENTENCE,
    max_concurrency: Annotated[int, typer.Option(help="Requests at work at a time.")] = 64,
    max_queue: Annotated[int, typer.Option(help="Requests that may wait; one more gets 503.")] = 64,
    queue_seconds: Annotated[float, typer.Option(help="Longest wait; then 503.")] = 10.0,
    per_client: Annotated[
        int | None, typer.Option(help="Requests of one key or address at a time; one more gets 429.")
    ] = None,
    max_body_kib: Annotated[int, typer.Option(help="Longest body, KiB; else 413.")] = 1024,
    body_seconds: Annotated[float, typer.Option(help="Time for a body to arrive; else 408.")] = 30.0,
    max_turns: Annotated[int, typer.Option(help="Messages of a conversation; else 400.")] = 512,
    max_checks: Annotated[int, typer.Option(help="Judgements in a request to /check; else 400.")] = 64,
    deadline_seconds: Annotated[float, typer.Option(help="Time for a whole request; else 504.")] = 300.0,
    connect_seconds: Annotated[float, typer.Option(help="Time to reach the upstream; else 504.")] = 10.0,
    shutdown_seconds: Annotated[float, typer.Option(help="On SIGTERM, time to finish.")] = 30.0,
    max_connections: Annotated[int, typer.Option(help="Open connections; one more gets 503.")] = 512,
    header_seconds: Annotated[float, typer.Option(help="Time for a request's head to arrive.")] = 10.0,
    keep_alive_seconds: Annotated[int, typer.Option(help="Time that an idle connection stays.")] = 30,
    ready_seconds: Annotated[float, typer.Option(help="/readyz: time for the guard's canary.")] = 2.0,
    ready_upstream: Annotated[
        bool, typer.Option("--ready-upstream", help="/readyz also asks the upstream.")
    ] = False,
    playground: Annotated[
        bool, typer.Option("--playground", help="A page at / to try the guard; may add rules.")
    ] = False,
    allow_rules: Annotated[
        bool, typer.Option("--allow-rules", help="Let POST /rules change the running guard.")
    ] = False,
    log_format: Annotated[LogFormat, typer.Option(help="Log lines on stderr.")] = LogFormat.JSON,
) -> None:
    """Put the guard in front of any LLM with an OpenAI-compatible API.

    An app changes its base URL to http://HOST:PORT/v1, and every reply that it
    gets, whole or streamed, was judged before. docs/proxy.md names the endpoints.

    SIGTERM or Ctrl-C: no new requests, running ones are finished, then exit 0.
    """
    # First: it says what to install before a model is loaded.
    from guardrail.integrations import proxy  # type: ignore[import-not-found, unused-ignore]

    from ..config import GuardConfig
    from ..pipeline import Guardrail
    from ..rules import read_rules

    single = os.environ.get(KEY_ENV, "").strip()
    keys = proxy.read_keys(api_key_file) if api_key_file is not None else (single,) if single else ()
    settings = proxy.ProxySettings.of(
        upstream=upstream,
        host=host,
        port=port,
        api_keys=keys,
        upstream_key=os.environ.get(upstream_key, "").strip() or None,
        insecure=insecure,
        max_concurrency=max_concurrency,
        max_queue=max_queue,
        queue_seconds=queue_seconds,
        per_client=per_client,
        max_body_kib=max_body_kib,
        body_seconds=body_seconds,
        max_turns=max_turns,
        max_checks=max_checks,
        deadline_seconds=deadline_seconds,
        connect_seconds=connect_seconds,
        shutdown_seconds=shutdown_seconds,
        max_connections=max_connections,
        header_seconds=header_seconds,
        keep_alive_seconds=keep_alive_seconds,
        ready_seconds=ready_seconds,
        ready_upstream=ready_upstream,
        playground=playground,
        allow_rules=allow_rules,
        log_format=log_format.value,
    )
    config = GuardConfig.of(
        workers=workers,
        on_error=on_error.value,
        on_intervention=on_intervention.value,
        stream_release=stream_release.value,
    )
    added = [rule for path in rules or () for rule in read_rules(path)]
    guard = Guardrail.load(model, config=config, rewriter=rewriter)
    guard.add_rules(added)
    proxy.serve(guard, settings)
