"""Run the proxy on uvicorn: bounded heads, and an end that finishes what is running."""

from __future__ import annotations

import asyncio
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from .app import create_app
from .logs import logger, set_up_logs
from .settings import ProxySettings

if TYPE_CHECKING:
    from guardrail import Guardrail

MOST_HEAD_BYTES = 32 * 1024
# What is left to do once the last request has ended: closing its connection.
CLOSING_SECONDS = 2


def serve(guard: Guardrail, settings: ProxySettings) -> None:
    """Serve until SIGTERM or SIGINT; then finish what is running and return. A second signal ends at once.

    Args:
        guard: the guard.
        settings: of the proxy.

    Raises:
        SystemExit: 3, the address cannot be listened on; a log line says why.
    """
    set_up_logs(settings.log_format)
    server = ProxyServer(create_app(guard, settings), settings)
    server.run()


class ProxyServer(uvicorn.Server):
    """A uvicorn that goes on listening, to say 503, while running requests are finished."""

    def __init__(self, app: Starlette, settings: ProxySettings) -> None:
        """Make it; nothing is listened on yet."""
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                http=_bounded_protocol(settings.header_seconds),
                ws="none",
                loop="asyncio",
                access_log=False,
                log_config=None,
                proxy_headers=False,  # whoever calls may write what he likes into them
                server_header=False,
                limit_concurrency=settings.max_connections,
                timeout_keep_alive=settings.keep_alive_seconds,
                timeout_graceful_shutdown=CLOSING_SECONDS,
                h11_max_incomplete_event_size=MOST_HEAD_BYTES,
            )
        )
        self._door = app.state.door
        self._seconds = settings.shutdown_seconds
        self._ending: asyncio.Task[None] | None = None

    async def startup(self, sockets: Any = None) -> None:
        """Listen, and say where."""
        await super().startup(sockets)
        if self.started:
            for server in self.servers:
                for sock in server.sockets:
                    host, port = sock.getsockname()[:2]
                    logger.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; uvicorn would close its door at once, and die of the signal afterwards."""
        if self._door.draining:
            self._end_now()
        self._door.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Look ten times a second whether to end."""
        if self._door.draining and self._ending is None:
            logger.info("shutting down")
            self._ending = asyncio.create_task(self._drain())
        return await super().on_tick(counter)

    async def _drain(self) -> None:
        admission = self._door.admission
        try:
            async with asyncio.timeout(self._seconds):
                while admission.running or admission.waiting:
                    await asyncio.sleep(0.02)
        except TimeoutError:
            self._end_now()
        self.should_exit = True

    def _end_now(self) -> None:
        """End without waiting: what still runs is told that the proxy is shutting down."""
        self.config.timeout_graceful_shutdown = 0
        self.should_exit = True


def _bounded_protocol(seconds: float) -> type[asyncio.Protocol]:
    """Return HTTP/1.1 that closes a connection if a request's head takes too long; uvicorn never does."""

    class BoundedProtocol(H11Protocol):
        _head: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._unwatch()
            super().connection_lost(exc)

        def _watch(self) -> None:
            """Give the head its time from its first byte on; a connection in use has none of it."""
            busy = self.cycle is not None and not self.cycle.response_complete
            idle = self.timeout_keep_alive_task is not None  # watched by uvicorn itself
            if busy or idle:
                self._unwatch()
            elif self._head is None:
                self._head = self.loop.call_later(seconds, self.transport.close)

        def _unwatch(self) -> None:
            if self._head is not None:
                self._head.cancel()
                self._head = None

    return BoundedProtocol
