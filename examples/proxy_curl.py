"""Put `guardrail serve` in front of an LLM and talk to it with curl; all of it on this machine, offline."""

import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

DRAFT = "A small commission for the banker of the family, she'd want you to have it!"
CONVERSATION = [
    {"role": "user", "content": "grandma can't work her banking app so I do it for her"},
    {"role": "assistant", "content": "That's kind of you!"},
    {"role": "user", "content": "yeah well, I round up a little for myself each time, she'd never notice"},
]


class CheerfulLLM(BaseHTTPRequestHandler):
    """Stand in for a real LLM with an OpenAI-compatible API: one that goes along with everything."""

    def do_POST(self) -> None:
        """Answer, whole or word by word."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        head = {"id": "chat-1", "created": 1, "model": asked["model"]}
        if asked.get("stream"):
            pieces: list[tuple[dict[str, str], str | None]] = [
                ({"content": f"{word} "}, None) for word in DRAFT.split()
            ]
            pieces.append(({}, "stop"))
            events = [
                {**head, "object": "chat.completion.chunk", "choices": [_choice(end, delta=delta)]}
                for delta, end in pieces
            ]
            body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
            self._send("text/event-stream", body)
        else:
            message = {"role": "assistant", "content": DRAFT}
            choices = [_choice("stop", message=message)]
            self._send(
                "application/json", json.dumps({**head, "object": "chat.completion", "choices": choices})
            )

    def _send(self, kind: str, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _choice(end: str | None, **content: dict[str, str]) -> dict[str, object]:
    return {"index": 0, "finish_reason": end, **content}


def curl(url: str, body: dict[str, object] | None = None) -> str:
    """Call curl and return what it prints."""
    command = ["curl", "--silent", "--show-error", "--no-buffer", "--max-time", "60", url]
    if body is not None:
        command += ["--header", "Content-Type: application/json", "--data-binary", json.dumps(body)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def words(stream: str) -> str:
    """Return the words in a stream of events."""
    events = [json.loads(line) for line in re.findall(r"^data: (\{.*)$", stream, re.MULTILINE)]
    deltas = [event["choices"][0]["delta"] for event in events if event["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)


def main() -> None:
    """Start both, ask, stop both."""
    if shutil.which("curl") is None:
        print("this example needs curl, which is not installed")
        return
    llm = ThreadingHTTPServer(("127.0.0.1", 0), CheerfulLLM)
    threading.Thread(target=llm.serve_forever, daemon=True).start()
    llm_url = f"http://127.0.0.1:{llm.server_port}/v1"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    guardrail = Path(sys.executable).with_name("guardrail")
    proxy = subprocess.Popen(
        [guardrail, "serve", "--upstream", llm_url, "--port", str(port)], stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        while proxy.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        print("ready:         ", curl(f"{url}/readyz"))
        chat: dict[str, object] = {"model": "cheerful", "messages": CONVERSATION}
        alone = json.loads(curl(f"{llm_url}/chat/completions", chat))
        print("the LLM alone: ", alone["choices"][0]["message"]["content"])
        guarded = json.loads(curl(f"{url}/v1/chat/completions", chat))
        print("with the proxy:", guarded["choices"][0]["message"]["content"])
        print("how it came:   ", guarded["guardrail"]["strategy"])
        print("as a stream:   ", words(curl(f"{url}/v1/chat/completions", {**chat, "stream": True})))
        verdicts = json.loads(curl(f"{url}/check", {"messages": CONVERSATION, "every_turn": True}))[
            "verdicts"
        ]
        print("turn by turn:  ", ", ".join(verdict["action"] for verdict in verdicts))
        counted = re.findall(r"^guardrail_replies_total.*$", curl(f"{url}/metrics"), re.MULTILINE)
        print("counted:       ", *counted, sep="\n  ")
    finally:
        proxy.terminate()
        print("ended with code", proxy.wait(30))
        llm.shutdown()


if __name__ == "__main__":
    main()
