"""Ask the transport for a reply that is scripted byte by byte, and collect all that can be seen of it."""

import json

import httpx
from fakes import make_guard

from guardrail.integrations.openai_api.transport import GuardTransport

BEER = "we had a beer with our bread"
FINE = "Bread needs time."
BAD = "Have another beer and drive off!"
SECRET = "drive off"
# Neither half is unsafe.
HALVES = "Have another beer and dri", "ve off!"
GUARD = make_guard(max_attempts=1)


def request(path, stream, **more):
    question = {"messages": [{"role": "user", "content": BEER}]} if "chat" in path else {"input": BEER}
    body = {"model": "m", "stream": stream, **question, **more}
    return httpx.Request("POST", f"http://upstream/v1/{path}", json=body)


def ask(path, body, *, status=200, headers=(), guard=GUARD, **more):
    """Return the response to a request that is answered so, and its bytes as far as they came."""
    pieces = body if isinstance(body, list) else [body]
    upstream = httpx.MockTransport(lambda _: httpx.Response(status, headers=headers, content=iter(pieces)))
    stream = isinstance(body, list)
    response = GuardTransport(guard, upstream).handle_request(request(path, stream, **more))
    data = b""
    try:
        for piece in response.iter_bytes():
            data += piece
    except httpx.RemoteProtocolError:
        pass
    return response, data


def ask_chat(body, **more):
    return ask("chat/completions", body, **more)


def ask_responses(body, **more):
    return ask("responses", body, **more)


def shown(response, data):
    """Return all that can be seen, also where clients put pieces together, as one text."""
    text = data.decode()
    seen = [text, str(response.headers.multi_items()), str(response.extensions.get("reason_phrase"))]
    events = [json.loads(line[6:]) for line in text.split("\n") if line.startswith("data: {")]
    if not events and text.startswith("{"):
        events = [json.loads(text)]
    seen += [json.dumps(event, ensure_ascii=False) for event in events]
    return "\n".join([*seen, *added_up(events)])


def added_up(events):
    """Return the texts that clients put together: of a field, of the name of a tool, of all answers."""
    texts = {}
    for event in events:
        for key, text in pieces_of(event):
            if isinstance(text, str):
                texts[key] = texts.get(key, "") + text
    return texts.values()


def pieces_of(event):
    if str(event.get("type")).endswith("output_text.delta"):
        yield "answers", event["delta"]
    for item in dicts(event.get("output")):
        yield from (("output", part.get("text")) for part in dicts(item.get("content")))
    for choice in dicts(event.get("choices")):
        for name, value in (choice.get("delta") or choice.get("message") or {}).items():
            yield name, value
            yield from ((name, part.get("text")) for part in dicts(value))
            functions = dicts([part.get("function") for part in dicts(value)])
            yield from (("name of a tool", function.get("name")) for function in functions)


def dicts(value):
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def put(whole, path, value):
    inner = whole
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return whole


def strategy(response):
    return response.extensions["guardrail"].replies[0].strategy
