"""The Responses API: requests and whole replies. Pure; streams are in `responses_stream`.

What a response repeats of the request is told as it is where the request says the same; other words in it
(the instructions of a stored prompt) are left out, as the LLM may have written them.

`background` is refused: its reply is fetched later, past the guard. With `previous_response_id`,
`conversation` or references to items the upstream alone knows the turns before: the reply is judged with
the input that is there, and the facts say `unread_history`. Note that the upstream keeps the LLM's draft
then, not what was shown in its place; send the whole input with `store=False` where that matters.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from guardrail.outcome import GuardedReply

from .chat import is_streaming, wants_json
from .codec import View, is_own
from .facts import facts
from .responses_stream import ResponsesForm, ResponsesReader
from .responses_view import as_message, output_view
from .responses_write import ECHO, echo, made_up_response, message_item
from .wire import RequestError, UpstreamError, payload, without_words


class ResponsesCodec:
    """One request to `/responses`."""

    choices = 1

    def __init__(self, body: Mapping[str, Any]) -> None:
        """Read the body of a request.

        Raises:
            RequestError: it cannot be read, or asks for what cannot be guarded.
        """
        if body.get("background"):
            raise RequestError(
                "expected no background response: it is fetched later, past the guard; leave background out",
                "background",
            )
        items = body.get("input")
        items = [{"role": "user", "content": items}] if isinstance(items, str) else items
        if not isinstance(items, list) or not all(_is_item(item) for item in items):
            raise RequestError("expected input to be a string or a list of items", "input")
        self.streaming = is_streaming(body)
        self._items: list[Any] = items
        messages = [(message, item) for item in items if (message := as_message(item)) is not None]
        self.messages: list[Any] = [message for message, _ in messages]
        self.unread_history = len(messages) < len(items) or any(
            body.get(name) for name in ("previous_response_id", "conversation")
        )
        self._body = body

    def request(self, messages: Any) -> dict[str, Any]:
        """Return the body of a request to the upstream; guidance becomes a system item of the input."""
        known = {id(message) for message in self.messages}
        guidance = [message for message in messages if id(message) not in known]
        if not guidance:
            return dict(self._body)
        place = 0
        while place < len(self._items) and self._items[place].get("role") in ("system", "developer"):
            place += 1
        return {**self._body, "input": [*self._items[:place], *guidance, *self._items[place:]]}

    def views(self, response: Any) -> list[View]:
        """Return what the response holds.

        Raises:
            UpstreamError: it is no response.
        """
        output = response.get("output") if isinstance(response, Mapping) else None
        if output is not None and response.get("status") == "failed":
            raise UpstreamError("failed", payload(response))
        if not isinstance(output, list) or not all(isinstance(item, Mapping) for item in output):
            raise UpstreamError("expected a response with a list of output items, got something else")
        more = {name: value for name, value in response.items() if name not in (*ECHO, "output")}
        return [output_view(output, more)]

    def answer(self, response: Mapping[str, Any] | None, replies: Sequence[GuardedReply]) -> dict[str, Any]:
        """Return the response to show; one that passed is as it was, but for what `echo` leaves out."""
        told = {"guardrail": facts(replies, unread_history=self.unread_history)}
        if response is not None and is_own(replies[0]):
            return {**response, **echo(self._body, response), **told}
        kept = response or {}
        usage = {name: value for name, value in kept.items() if name == "usage"}
        return {
            **made_up_response(self._body, int(time.time())),
            **echo(self._body, kept),
            **without_words(usage),
            "output": [message_item(replies[0].text, self._kind)],
            **told,
        }

    def form(self) -> ResponsesForm:
        """Return the form of the request's stream."""
        made_up = made_up_response(self._body, int(time.time()))
        return ResponsesForm(
            made_up, partial(echo, self._body), kind=self._kind, unread_history=self.unread_history
        )

    def reader(self) -> ResponsesReader:
        """Return a reader for one stream of the upstream."""
        return ResponsesReader()

    @property
    def _kind(self) -> Any:
        """Where text of ours belongs."""
        text = self._body.get("text")
        return "refusal" if isinstance(text, Mapping) and wants_json(text.get("format")) else "text"


def _is_item(item: Any) -> bool:
    return isinstance(item, Mapping) and isinstance(item.get("type", ""), str)
