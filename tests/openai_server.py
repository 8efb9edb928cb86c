"""A local server that speaks the OpenAI API as it is told to, and notes what it was asked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
RESPONSE_USAGE = {
    "input_tokens": 7,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens": 5,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 12,
}

FINE = "Bread needs time. So do you, and that is fine."
SECRET = "drive off"
BEER = "we had a beer with our bread"


def user(text):
    return [{"role": "user", "content": text}]


@dataclass
class Answer:
    """What the server sends.

    Attributes:
        body: whole, or in pieces that are sent one by one.
        status: of HTTP.
        headers: more of them.
        hang: after the pieces, keep the stream open until the client closes it.
        cut: after the pieces, break the connection off.
        delay: before anything is sent, seconds.
    """

    body: bytes | list[bytes] = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    hang: bool = False
    cut: bool = False
    delay: float = 0.0


class OpenAIServer:
    """Answers with its script, one after the other, the last one for ever.

    Attributes:
        requests: (method, path, body as JSON) of every request.
        headers: of every request, names in lower case.
        peers: ports of the connections that were made.
        closed: set once a client has closed a stream that was not at its end.
    """

    def __init__(self, *script: Answer) -> None:
        self.script = list(script)
        self.requests: list[tuple[str, str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.peers: set[int] = set()
        self.closed = threading.Event()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> OpenAIServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def next(self) -> Answer:
        return self.script[min(len(self.requests), len(self.script)) - 1]

    def _handler(server) -> type[BaseHTTPRequestHandler]:  # noqa: C901
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                data = self.rfile.read(length)
                server.peers.add(self.client_address[1])
                server.headers.append({name.lower(): value for name, value in self.headers.items()})
                server.requests.append((self.command, self.path, _json(data)))
                try:
                    self.answer(server.next())
                except OSError:
                    server.closed.set()
                    self.close_connection = True

            do_POST = do_DELETE = do_GET

            def answer(self, answer: Answer) -> None:
                time.sleep(answer.delay)
                streaming = isinstance(answer.body, list)
                kind = "text/event-stream" if streaming else "application/json"
                length = ("transfer-encoding", "chunked")
                if not streaming:
                    length = ("content-length", str(len(answer.body)))
                self.send_response(answer.status)
                for name, value in {"content-type": kind, "x-request-id": "req-1", **answer.headers}.items():
                    self.send_header(name, value)
                self.send_header(*length)
                self.end_headers()
                if streaming:
                    self.stream(answer)
                else:
                    self.wfile.write(answer.body)

            def stream(self, answer: Answer) -> None:
                for piece in answer.body:
                    self.chunk(piece)
                until = time.monotonic() + 5
                while answer.hang and time.monotonic() < until:
                    self.chunk(b": alive\n\n")
                    time.sleep(0.005)
                if answer.cut:
                    self.close_connection = True
                else:
                    self.wfile.write(b"0\r\n\r\n")

            def chunk(self, piece: bytes) -> None:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                self.wfile.flush()

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


class _Server(ThreadingHTTPServer):
    request_queue_size = 256

    def handle_error(self, *_: Any) -> None:
        """Say nothing of clients that close their connection."""


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return data


def sse(data: Any, name: str = "") -> bytes:
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return (f"event: {name}\n" if name else "").encode() + b"data: " + text.encode() + b"\n\n"


# ---------------------------------------------------------------- chat completions


def chat(*contents: str | None, finish: str = "stop", **message: Any) -> Answer:
    """A whole chat completion, a choice for each content."""
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": content, "refusal": None, **message},
            "logprobs": None,
            "finish_reason": finish,
        }
        for index, content in enumerate(contents)
    ]
    whole = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "gpt-test",
        "choices": choices,
        "usage": USAGE,
        "system_fingerprint": "fp_1",
    }
    return Answer(json.dumps(whole, ensure_ascii=False).encode())


def chunk(delta: dict[str, Any], finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": "gpt-test",
        "system_fingerprint": "fp_1",
        "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}],
        **fields,
    }


def chat_stream(
    *deltas: str | dict[str, Any], finish: str = "stop", usage: bool = False, **answer: Any
) -> Answer:
    """A streamed chat completion; a string is a delta of content."""
    pieces = [sse(chunk({"role": "assistant", "content": ""}))]
    pieces += [sse(chunk({"content": delta} if isinstance(delta, str) else delta)) for delta in deltas]
    if not (answer.get("hang") or answer.get("cut")):
        pieces.append(sse(chunk({}, finish)))
        if usage:
            pieces.append(sse({**chunk({}), "choices": [], "usage": USAGE}))
        pieces.append(sse("[DONE]"))
    return Answer(pieces, **answer)


def tool_call(arguments: str, name: str = "look_up") -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}


# ---------------------------------------------------------------- responses


def message_item(text: str, **part: Any) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": [], "logprobs": [], **part}]
    return {
        "id": "msg_1",
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": content,
    }


def reasoning_item(*texts: str, **fields: Any) -> dict[str, Any]:
    summary = [{"type": "summary_text", "text": text} for text in texts]
    return {"id": "rs_1", "type": "reasoning", "summary": summary, **fields}


def function_item(arguments: str, name: str = "look_up") -> dict[str, Any]:
    return {
        "id": "fc_1",
        "type": "function_call",
        "status": "completed",
        "call_id": "call_1",
        "name": name,
        "arguments": arguments,
    }


def response_object(*items: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1700000000,
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": "gpt-test",
        "output": list(items),
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": RESPONSE_USAGE,
        **fields,
    }


def responses(*items: dict[str, Any], **fields: Any) -> Answer:
    """A whole response."""
    return Answer(json.dumps(response_object(*items, **fields), ensure_ascii=False).encode())


def response_events(*items: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The events of a response as OpenAI sends them, words in pieces of seven characters."""
    begun = response_object(status="in_progress", usage=None)
    yield {"type": "response.created", "response": begun}
    yield {"type": "response.in_progress", "response": begun}
    for index, item in enumerate(items):
        where = {"item_id": item["id"], "output_index": index}
        emptied = {"content": []} if item["type"] == "message" else {"summary": []}
        emptied = {"arguments": ""} if item["type"] == "function_call" else emptied
        yield {
            "type": "response.output_item.added",
            "output_index": index,
            "item": {**item, **emptied, "status": "in_progress"},
        }
        if item["type"] == "function_call":
            kind, words = "response.function_call_arguments", item["arguments"]
            for piece in _pieces(words):
                yield {"type": f"{kind}.delta", **where, "delta": piece}
            yield {"type": f"{kind}.done", **where, "name": item["name"], "arguments": words}
        spoken = item["type"] == "message"
        for place, part in enumerate(item.get("content" if spoken else "summary", [])):
            at = {**where, "content_index" if spoken else "summary_index": place}
            frame = "response.content_part" if spoken else "response.reasoning_summary_part"
            words = "response.output_text" if spoken else "response.reasoning_summary_text"
            more: dict[str, Any] = {"logprobs": []} if spoken else {}
            yield {"type": f"{frame}.added", **at, "part": {**part, "text": ""}}
            for piece in _pieces(part["text"]):
                yield {"type": f"{words}.delta", **at, "delta": piece, **more}
            yield {"type": f"{words}.done", **at, "text": part["text"], **more}
            yield {"type": f"{frame}.done", **at, "part": part}
        yield {"type": "response.output_item.done", "output_index": index, "item": item}
    yield {"type": "response.completed", "response": response_object(*items)}


def response_stream(*items: dict[str, Any], keep: int | None = None, **answer: Any) -> Answer:
    """A streamed response, or its first events."""
    events = [{**event, "sequence_number": n} for n, event in enumerate(response_events(*items))]
    return Answer([sse(event, event["type"]) for event in events[:keep]], **answer)


def _pieces(text: str) -> list[str]:
    return [text[start : start + 7] for start in range(0, len(text), 7)]
