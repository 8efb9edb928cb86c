"""What the exchange needs to know of an API: how its requests, replies and streams are read and written."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from guardrail.outcome import GuardedReply
from guardrail.streaming import OWN_STRATEGIES, StreamForm

from .sse import Event

# What a choice holds, in a form that `guardrail.conversation.read_reply` reads.
View = Mapping[str, Any]
# In a view, what nobody can judge (a picture): a reply that holds one is not shown.
UNREADABLE: Mapping[str, Any] = {"type": "unreadable"}


class StreamReader(Protocol):
    """Reads one stream of the upstream into items for a `WritingForm`."""

    done: bool
    """True once the upstream has said that nothing follows."""

    def feed(self, event: Event) -> Iterator[Any]:
        """Return the items of an event.

        Raises:
            UpstreamError: the event is garbage, or tells of a failure.
        """
        ...

    def finish(self) -> None:
        """Take note that the stream has ended.

        Raises:
            UpstreamError: it ended too early.
        """
        ...


class WritingForm(StreamForm, Protocol):
    """A form of stream that also writes the events for what a guarded stream shows."""

    def write(self, item: Any) -> Iterator[bytes]:
        """Return the bytes of the events for an item that may be shown."""
        ...


class Codec(Protocol):
    """One request of one API.

    Attributes:
        messages: the conversation, in a form that a session reads.
        choices: how many replies are wanted, >= 1.
        streaming: True if they are to be streamed.
        unread_history: True if turns before the request are known to the upstream alone.
    """

    messages: list[Any]
    choices: int
    streaming: bool
    unread_history: bool

    def request(self, messages: Any) -> dict[str, Any]:
        """Return the body of a request to the upstream for messages, perhaps with guidance in them."""
        ...

    def views(self, response: Any) -> list[View]:
        """Return what each choice of a whole reply holds.

        Raises:
            UpstreamError: it is no reply.
        """
        ...

    def answer(self, response: Mapping[str, Any] | None, replies: Sequence[GuardedReply]) -> dict[str, Any]:
        """Return the whole reply to show; the upstream's is None if it was never asked."""
        ...

    def form(self) -> WritingForm:
        """Return the form of the request's stream."""
        ...

    def reader(self) -> StreamReader:
        """Return a reader for one stream of the upstream."""
        ...


def is_own(reply: GuardedReply) -> bool:
    """Return True if what is shown is a draft of the LLM as it wrote it."""
    return reply.strategy in OWN_STRATEGIES


def joined(runs: Iterable[tuple[Hashable, str]]) -> list[str]:
    """Return the texts that clients put together out of several runs (key, words) of one key.

    A word may be cut between two of them, so that it stands in neither.
    """
    texts: dict[Hashable, list[str]] = {}
    for key, text in runs:
        texts.setdefault(key, []).append(text)
    return ["".join(found) for found in texts.values() if len(found) > 1]
