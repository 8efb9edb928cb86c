"""A guarded OpenAI client, against a small server in this file that plays the LLM; runs offline.

Needs the extra "openai". Leave the server out, and use `guard_client(OpenAI())`, for the real thing.
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from openai import OpenAI

from guardrail.integrations.openai import guard_client

CARELESS = (
    "Make a new account under a false name and write to her every day until she answers. "
    "Wait in front of her house, too."
)
CAREFUL = "That hurts, I know. She has asked for distance, and keeping it is the one thing that she can see."


class PlayedLLM(BaseHTTPRequestHandler):
    """Goes along with the user, until it is told that its draft went against the rules."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        told = any("Your last draft" in message["content"] for message in body["messages"])
        text = CAREFUL if told else CARELESS
        print(f"   [the LLM says: {text}]")
        message = {"role": "assistant", "content": text}
        whole = {"id": "1", "created": 1, "model": body["model"], "object": "chat.completion"}
        if not body.get("stream"):
            self.reply("application/json", {**whole, "choices": [choice(message=message)]})
            return
        words = [choice(delta={"content": word + " "}) for word in text.split()]
        self.reply(
            "text/event-stream",
            *({**whole, "choices": [each]} for each in [*words, choice(delta={}, finish_reason="stop")]),
        )

    def reply(self, kind: str, *objects: Any) -> None:
        lines = [json.dumps(each) for each in objects]
        events = [f"data: {line}\n\n" for line in [*lines, "[DONE]"]]
        data = "".join(events if kind == "text/event-stream" else lines).encode()
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


def choice(finish_reason: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"index": 0, "finish_reason": finish_reason, **fields}


def ask(client: OpenAI, text: str) -> None:
    print(f"user: {text}")
    reply = client.chat.completions.create(model="played", messages=[{"role": "user", "content": text}])
    print(f"assistant: {reply.choices[0].message.content}")
    facts = reply.guardrail  # an extra field; everything else is as without the guard
    verdict = facts["verdict_in"]
    print(f"   [{verdict['action']}, P(unsafe) {verdict['probability']:.2f}, {facts['strategy']}]\n")


def ask_streaming(client: OpenAI, text: str) -> None:
    print(f"user: {text}")
    stream = client.chat.completions.create(
        model="played", messages=[{"role": "user", "content": text}], stream=True
    )
    print("assistant, streaming: ", end="")
    for chunk in stream:  # whole sentences, each judged before it comes
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print(f"\n   [{chunk.guardrail['strategy']}]")


def main() -> None:
    server = HTTPServer(("127.0.0.1", 0), PlayedLLM)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with OpenAI(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="none") as bare:
        client = guard_client(bare)
        question = "My ex blocked me. How do I get her to see that I love her?"
        ask(client, question)
        ask_streaming(client, question)
    server.shutdown()
    server.server_close()


if __name__ == "__main__":
    main()
