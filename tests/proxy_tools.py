"""A scripted LLM behind HTTP, and the proxy in front of it: in this process, on sockets or without."""

import asyncio
import json
import logging
import threading
import time
from contextlib import contextmanager

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from guardrail.integrations.proxy import ProxySettings, create_app
from guardrail.integrations.proxy.server import ProxyServer

SECRET = "zebra-marker-4711"
LEAK = f"Have another beer and drive off, {SECRET}!"
FINE = "Sure thing. That sounds fine to me."
ASK = f"I had a beer, what now? {SECRET}"
USAGE = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}


class ScriptedUpstream:
    """Says its replies one after the other, the last one for ever, whole or word by word."""

    def __init__(self, *replies, wait=0.0, chunk_wait=0.0, status=200, headers=None):
        self.replies = list(replies) or [FINE]
        self.wait = wait
        self.chunk_wait = chunk_wait
        self.status = status
        self.headers = headers or {}
        self.requests = []
        self.bodies = []
        self.running = 0
        self.most_running = 0
        self.closed_early = 0
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/responses", self.response, methods=["POST"]),
                Route("/v1/models", self.models),
                Route("/{path:path}", self.stray, methods=["GET", "POST", "DELETE"]),
            ]
        )

    def next_reply(self):
        return self.replies[min(len(self.bodies), len(self.replies)) - 1]

    async def note(self, request: Request):
        self.requests.append(request)
        body = json.loads(await request.body())
        self.bodies.append(body)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await asyncio.sleep(self.wait)
        finally:
            self.running -= 1
        return body

    async def chat(self, request: Request):
        body = await self.note(request)
        text = self.next_reply()
        if self.status != 200:
            return JSONResponse({"error": {"message": "no", "type": "x"}}, self.status, self.headers)
        if body.get("stream"):
            return StreamingResponse(self.chunks(text), media_type="text/event-stream", headers=self.headers)
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
        return JSONResponse(
            {"id": "c-1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
            | {"usage": USAGE},
            headers=self.headers,
        )

    async def chunks(self, text):
        head = {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        ended = False
        try:
            for number, word in enumerate(text.split(" ")):
                piece = {"role": "assistant"} if number == 0 else {}
                piece["content"] = word if number == 0 else f" {word}"
                yield event({**head, "choices": [{"index": 0, "delta": piece, "finish_reason": None}]})
                await asyncio.sleep(self.chunk_wait)
            yield event({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            yield "data: [DONE]\n\n"
            ended = True
        finally:
            self.closed_early += not ended

    async def response(self, request: Request):
        await self.note(request)
        part = {"type": "output_text", "text": self.next_reply(), "annotations": []}
        item = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [part],
        }
        return JSONResponse(
            {"id": "resp_1", "object": "response", "created_at": 1, "model": "m", "status": "completed"}
            | {"output": [item], "parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
        )

    async def models(self, request: Request):
        self.requests.append(request)
        if self.status in (301, 302, 307):
            return RedirectResponse("http://elsewhere.invalid/v1/models", self.status)
        return JSONResponse(
            {"object": "list", "data": [{"id": "m", "object": "model", "created": 1, "owned_by": "me"}]},
            self.status,
            self.headers,
        )

    async def stray(self, request: Request):
        self.requests.append(request)
        return Response("not guarded")


def event(value):
    return f"data: {json.dumps(value)}\n\n"


def chat_body(text=ASK, **more):
    return {"model": "m", "messages": [{"role": "user", "content": text}], **more}


def proxy_app(guard, upstream, **settings):
    """Return the proxy as an app, its upstream reached without a socket."""
    settings = ProxySettings.of(**{"upstream": "http://llm.invalid/v1", **settings})
    return create_app(guard, settings, upstream_transport=httpx.ASGITransport(upstream.app))


def client_of(app, **options):
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost", **options)


def ask(app, method, path, **options):
    """Send one request to an app and return the answer."""

    async def send():
        async with client_of(app) as client:
            return await client.request(method, path, **options)

    return asyncio.run(send())


@contextmanager
def on_socket(app):
    """Serve an app of the tests' own; yields its base URL."""
    config = uvicorn.Config(
        app,
        port=0,
        log_config=None,
        access_log=False,
        ws="none",
        lifespan="off",
        timeout_graceful_shutdown=0,
    )
    with _running(uvicorn.Server(config)) as url:
        yield url


@contextmanager
def proxy_on_socket(guard, upstream_url, **settings):
    """Serve the proxy as `guardrail serve` does; yields its base URL and its app."""
    settings = ProxySettings.of(upstream=f"{upstream_url}/v1", port=0, **settings)
    app = create_app(guard, settings)
    with _running(ProxyServer(app, settings)) as url:
        yield url, app


@contextmanager
def _running(server):
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 10
    while not server.started and time.monotonic() < until and thread.is_alive():
        time.sleep(0.005)
    assert server.started
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


class Lines(logging.Handler):
    """Collects what the proxy logs, as it would be written."""

    def __init__(self, formatter):
        super().__init__()
        self.setFormatter(formatter)
        self.lines = []

    def emit(self, record):
        self.lines.append(self.format(record))


@contextmanager
def logged(formatter):
    """Yield the lines that the proxy logs meanwhile."""
    handler, logger = Lines(formatter), logging.getLogger("guardrail.proxy")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield handler.lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def until(condition, seconds=5.0):
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)
