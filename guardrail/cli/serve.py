"""`guardrail serve`: the guard as an OpenAI-compatible server in front of any LLM.

Type checkers do not see that the folder integrations/ installs as guardrail.integrations, hence the ignore.
"""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError
from .options import ExtraRules, Model

KEY_ENV = "GUARDRAIL_API_KEY"
UPSTREAM_KEY_ENV = "GUARDRAIL_UPSTREAM_KEY"
GUARD, LIMITS = "The guard", "Limits"


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
    playground: Annotated[
        bool, typer.Option("--playground", help="A page at / to try the guard; callers may add rules.")
    ] = False,
    allow_rules: Annotated[
        bool, typer.Option("--allow-rules", help="Let callers add rules with POST /rules.")
    ] = False,
    log_format: Annotated[LogFormat, typer.Option(help="Log lines on stderr.")] = LogFormat.JSON,
    model: Model = None,
    rules: ExtraRules = None,
    rewriter: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="A trained rewrite model, for repairs.", rich_help_panel=GUARD),
    ] = None,
    judge_model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A model of the upstream that gives a second opinion where the guard is unsure.",
            rich_help_panel=GUARD,
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(help="Threads that judge; one for each core.", rich_help_panel=GUARD)
    ] = 2,
    on_error: Annotated[
        OnError,
        typer.Option(
            help="When the guard itself fails: a safe reply, an error, or let pass.", rich_help_panel=GUARD
        ),
    ] = OnError.CLOSED,
    on_intervention: Annotated[
        OnIntervention,
        typer.Option(
            help="Where somebody may come to harm: our reply, or the LLM guided.", rich_help_panel=GUARD
        ),
    ] = OnIntervention.REPLY,
    stream_release: Annotated[
        Release,
        typer.Option(
            help="Show streams sentence by sentence, or once they are judged whole.", rich_help_panel=GUARD
        ),
    ] = Release.SENTENCE,
    max_concurrency: Annotated[
        int, typer.Option(help="Requests at work at a time.", rich_help_panel=LIMITS)
    ] = 64,
    max_queue: Annotated[
        int, typer.Option(help="Requests that may wait; one more gets 503.", rich_help_panel=LIMITS)
    ] = 64,
    queue_seconds: Annotated[
        float, typer.Option(help="Longest wait; then 503.", rich_help_panel=LIMITS)
    ] = 10.0,
    per_client: Annotated[
        int | None,
        typer.Option(
            help="Requests of one key or address at a time; one more gets 429.", rich_help_panel=LIMITS
        ),
    ] = None,
    max_body_kib: Annotated[
        int, typer.Option(help="Longest body, KiB; else 413.", rich_help_panel=LIMITS)
    ] = 1024,
    body_seconds: Annotated[
        float, typer.Option(help="Time for a body to arrive; else 408.", rich_help_panel=LIMITS)
    ] = 30.0,
    max_turns: Annotated[
        int, typer.Option(help="Messages of a conversation; else 400.", rich_help_panel=LIMITS)
    ] = 512,
    max_checks: Annotated[
        int, typer.Option(help="Judgements in a request to /check; else 400.", rich_help_panel=LIMITS)
    ] = 64,
    deadline_seconds: Annotated[
        float, typer.Option(help="Time for a whole request; else 504.", rich_help_panel=LIMITS)
    ] = 300.0,
    connect_seconds: Annotated[
        float, typer.Option(help="Time to reach the upstream; else 504.", rich_help_panel=LIMITS)
    ] = 10.0,
    shutdown_seconds: Annotated[
        float, typer.Option(help="On SIGTERM, time to finish.", rich_help_panel=LIMITS)
    ] = 30.0,
    max_connections: Annotated[
        int, typer.Option(help="Open connections; one more gets 503.", rich_help_panel=LIMITS)
    ] = 512,
    header_seconds: Annotated[
        float, typer.Option(help="Time for a request's head to arrive.", rich_help_panel=LIMITS)
    ] = 10.0,
    keep_alive_seconds: Annotated[
        int, typer.Option(help="Time that an idle connection stays.", rich_help_panel=LIMITS)
    ] = 30,
    ready_seconds: Annotated[
        float, typer.Option(help="/readyz: time for the guard's canary.", rich_help_panel=LIMITS)
    ] = 2.0,
    ready_upstream: Annotated[
        bool, typer.Option("--ready-upstream", help="/readyz also asks the upstream.", rich_help_panel=LIMITS)
    ] = False,
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
        upstream_key=_upstream_key(upstream_key),
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
    judge = None
    if judge_model is not None:
        judge = proxy.upstream_judge(settings, judge_model, seconds=config.judge_deadline_ms / 1000)
    guard = Guardrail.load(model, config=config, rewriter=rewriter, judge=judge)
    guard.add_rules(added)
    proxy.serve(guard, settings)


def _upstream_key(variable: str) -> str | None:
    """Return the key for the upstream, if there is one.

    Raises:
        InputError: a variable was named, and there is nothing in it.
    """
    key = os.environ.get(variable, "").strip()
    if not key and variable != UPSTREAM_KEY_ENV:
        raise InputError(f"expected the upstream's key in the environment variable {variable}, got nothing")
    return key or None
