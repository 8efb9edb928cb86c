"""Chat completions: requests and whole replies. Pure; streams are in `chat_stream`.

A reply that is replaced ends with the finish reason "stop": with "content_filter" the client's own helpers
raise an error instead of showing the text. Where the app asked for JSON the text stands in `refusal`, the
API's place for an answer that is not in the asked form; elsewhere it is the content.

A whole reply that passed keeps its token probabilities, if the app asked for them. The tokens in them that
were not chosen are no text: they are judged only if they are no tokens either.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from guardrail.outcome import GuardedReply

from .chat_stream import ChatForm, ChatReader
from .chat_view import view
from .codec import View, is_own
from .facts import facts
from .wire import RequestError, UpstreamError, made_up_id, payload, without_words

# What may be kept of a response whose reply is replaced.
KEPT = ("id", "object", "created", "model", "usage", "system_fingerprint", "service_tier")


class ChatCodec:
    """One request to `/chat/completions`."""

    unread_history = False

    def __init__(self, body: Mapping[str, Any]) -> None:
        """Read the body of a request.

        Raises:
            RequestError: it cannot be read, or asks for what cannot be guarded.
        """
        messages, choices = body.get("messages"), body.get("n")
        if not isinstance(messages, list) or not all(isinstance(message, Mapping) for message in messages):
            raise RequestError("expected messages to be a list of objects", "messages")
        if choices is not None and (type(choices) is not int or not 1 <= choices <= 128):
            raise RequestError("expected n to be a number from 1 to 128", "n")
        self.streaming = is_streaming(body)
        self.messages: list[Any] = messages
        self.choices = choices or 1
        if self.streaming and self.choices > 1:
            raise RequestError("expected n to be 1 in a guarded stream; ask for whole replies instead", "n")
        self._body = body

    def request(self, messages: Any) -> dict[str, Any]:
        """Return the body of a request to the upstream."""
        return {**self._body, "messages": messages}

    def views(self, response: Any) -> list[View]:
        """Return what each choice holds.

        Raises:
            UpstreamError: it is no chat completion.
        """
        found = response.get("choices") if isinstance(response, Mapping) else None
        if not isinstance(found, list) or not found:
            raise UpstreamError("expected a chat completion, got something else", payload(response))
        beside = {name: value for name, value in response.items() if name != "choices"}
        views: list[View] = []
        for choice in found[: self.choices]:
            message = choice.get("message") if isinstance(choice, Mapping) else None
            if not isinstance(message, Mapping):
                raise UpstreamError("expected each choice to hold a message, got something else")
            more = {name: value for name, value in choice.items() if name != "message"}
            views.append(view(message, [beside, more]))
        return views

    def answer(self, response: Mapping[str, Any] | None, replies: Sequence[GuardedReply]) -> dict[str, Any]:
        """Return the chat completion to show: fields of choices that passed are as they were."""
        given = response["choices"] if response is not None else []
        choices = [
            given[place] if is_own(reply) else self._choice(place, reply.text)
            for place, reply in enumerate(replies)
        ]
        if response is None:
            answer = self._made_up()
        elif all(is_own(reply) for reply in replies):
            answer = dict(response)
        else:
            answer = without_words({name: response[name] for name in KEPT if name in response})
        return {**answer, "choices": choices, "guardrail": facts(replies)}

    def form(self) -> ChatForm:
        """Return the form of the request's stream."""
        options = self._body.get("stream_options")
        usage = isinstance(options, Mapping) and bool(options.get("include_usage"))
        return ChatForm(str(self._body.get("model", "")), wants_usage=usage, field=self._field)

    def reader(self) -> ChatReader:
        """Return a reader for one stream of the upstream."""
        return ChatReader()

    @property
    def _field(self) -> str:
        """Where text of ours belongs."""
        return "refusal" if wants_json(self._body.get("response_format")) else "content"

    def _choice(self, index: int, text: str) -> dict[str, Any]:
        message = {"role": "assistant", "content": None, "refusal": None, self._field: text}
        return {"index": index, "message": message, "logprobs": None, "finish_reason": "stop"}

    def _made_up(self) -> dict[str, Any]:
        return {
            "id": made_up_id("chatcmpl-"),
            "object": "chat.completion",
            "created": int(time.time()),
            "model": str(self._body.get("model", "")),
            "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        }


def is_streaming(body: Mapping[str, Any]) -> bool:
    """Return True if a request asks for a stream.

    Raises:
        RequestError: it cannot be told; the upstream might understand it otherwise.
    """
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise RequestError("expected stream to be true or false", "stream")
    return bool(stream)


def wants_json(form: Any) -> bool:
    """Return True if a request asks for a reply in JSON."""
    return isinstance(form, Mapping) and form.get("type") in ("json_schema", "json_object")
