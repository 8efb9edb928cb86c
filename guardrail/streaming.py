"""One guarded reply that is shown while it is written: the state machine of every stream, without I/O.

What an LLM sends is taken apart into words and the rest. Words are held back until the sentence that they
belong to is judged (by `Session`, which also judges a whole reply); the rest waits for the words before it.
On a rejection the LLM's stream must be closed, and another draft, or the repair, takes its place. However
the same reply is cut into pieces, the same words come out, and none that was not judged.

A `StreamForm` knows one kind of stream: strings, LangChain's chunks, OpenAI's events. Drivers in
`guardrail.stream_drivers` fetch and hand over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from .outcome import GuardedReply
from .reply_form import calls_tools, in_form
from .sentences import is_ended
from .session import Session

# The drafts of the LLM itself; under any other strategy the words are ours.
OWN_STRATEGIES = ("pass", "guided", "regenerated")
# Between what was shown of a draft that was rejected later and what takes its place.
BREAK = "\n\n"


@dataclass(frozen=True, slots=True)
class Words:
    """Words of the reply.

    Attributes:
        text: any number of characters.
        key: where they belong, e.g. an answer or the reasoning before it; words of one key in a row make
            one text, and a change of key ends a sentence.
    """

    text: str = field(repr=False)
    key: Hashable = None


@dataclass(frozen=True, slots=True)
class Mark:
    """Something without words (usage, the end of a block): shown as it is, behind the words before it."""

    item: Any = field(repr=False)


@dataclass(frozen=True, slots=True)
class Held:
    """Something that cannot be cut into sentences (a tool call): shown if the whole reply is fit.

    What comes behind it waits with it.
    """

    item: Any = field(repr=False)


Part = Words | Mark | Held


class StreamForm(Protocol):
    """How one kind of stream is read and written. One object serves one guarded reply."""

    def restart(self) -> None:
        """Forget what was read: another stream of the LLM begins, or none follows."""
        ...

    def parts(self, item: Any) -> Iterable[Part]:
        """Take an item of the LLM's stream apart.

        Raises:
            InputError: it is of a type that cannot be read.
        """
        ...

    def whole(self) -> Any:
        """Return the whole reply that was read, in a form that `read_reply` reads."""
        ...

    def words(self, key: Hashable, text: str) -> Iterable[Any]:
        """Return items that hold words of the LLM that may be shown."""
        ...

    def ours(self, text: str) -> Iterable[Any]:
        """Return items that hold words in place of the LLM's."""
        ...

    def end(self, reply: GuardedReply) -> Iterable[Any]:
        """Return items that tell the outcome and close the stream."""
        ...


class Breaks:
    """Puts the blank line between two drafts where it belongs: between texts of the same field.

    The state machine puts it before whatever is shown next, which may be another field. For forms that
    know fields.
    """

    def __init__(self) -> None:
        """Make it; it serves one reply."""
        self._written: set[str] = set()  # fields with words in them
        self._due: set[str] = set()  # those whose next words are of another draft
        self._given = False  # the next words bring a break with them

    def restart(self) -> None:
        """Take note that the words to come are of another draft."""
        self._due, self._given = set(self._written), bool(self._written)

    def placed(self, field: str, text: str) -> str:
        """Return words as they are to be written into a field."""
        if self._given:
            text = text.removeprefix(BREAK)
        if field in self._due:
            text = BREAK + text
        self._given = False
        self._due.discard(field)
        self._written.add(field)
        return text


@dataclass(slots=True)
class _Waiting:
    """A part that waits, and where the judged text ends with it."""

    part: Part
    end: int


class ReplyStream:
    """One guarded reply, piece by piece.

    Call `start`; while there is no `result`, call the LLM with `request`, hand each item of its stream to
    `feed`, call `judge` where that says so, and `finish` or `fail` at its end. Once `closed` is set, the
    LLM's stream is not wanted any more: close it, then call `go_on`. Show what `take` returns, after every
    call.

    Attributes:
        result: the outcome, once there is one; `text` is all that was shown.
        closed: True if the LLM's present stream is not to be read on.
    """

    def __init__(self, session: Session, form: StreamForm) -> None:
        """Prepare; nothing is judged yet."""
        self._session = session
        self._form = form
        self._out: list[Any] = []
        self._shown: list[str] = []
        self.result: GuardedReply | None = None
        self.closed = False
        # The draft at hand:
        self._waiting: deque[_Waiting] = deque()
        self._saying: list[Words] = []  # words that go out together
        self._text = ""  # all of its words, as they are judged
        self._key: Hashable = None
        self._template: Any = None
        self._broken_off: set[Hashable] = set()  # keys whose words ended in the middle of a sentence
        self._most: int | None = None  # no more of the text may be shown before the whole is judged
        self._break_due = False
        self._broke = False  # something of an earlier draft was shown

    @property
    def request(self) -> Any:
        """The messages to call the LLM with."""
        return self._session.request

    @property
    def seconds_left(self) -> float | None:
        """Time until the deadline, at least 0; None if there is none."""
        return self._session.seconds_left

    def start(self) -> None:
        """Judge the conversation.

        Raises:
            InputError: the intervention hook returned something that is not text.
            ModelError: a stage failed and `on_error` is "raise".
        """
        self._session.start()
        self._settle()

    def feed(self, item: Any) -> bool:
        """Take an item of the LLM's stream; nothing is judged here.

        Returns:
            True if `judge` has something to do.

        Raises:
            InputError: the item is of a type that cannot be read.
        """
        self.closed = False
        self._template = item
        for part in self._form.parts(item):
            self._queue(part)
        return self._session.has_more(self._text)

    def judge(self) -> None:
        """Judge the sentences that are complete, and let go what is fit.

        Raises:
            ModelError: a stage failed and `on_error` is "raise".
        """
        fit = self._session.advance(self._text, self._template)
        if fit:
            self._let_go(fit if self._most is None else min(fit, self._most))
        if self._session.rejected:
            self._forget()
            self.closed = True

    def go_on(self) -> None:
        """Have another draft made, or repair, once `judge` has set `closed` and the LLM's stream is closed.

        Raises:
            ModelError: a stage failed and `on_error` is "raise".
        """
        self._session.go_on()
        self._drop()

    def finish(self) -> None:
        """Judge the whole reply: the LLM's stream has ended.

        Raises:
            InputError: the reply is of a type that cannot be read.
            ModelError: a stage failed and `on_error` is "raise".
        """
        self._session.offer(self._form.whole())
        found = self._session.result
        if found is not None and found.strategy in OWN_STRATEGIES:
            self._let_go(None)
            self._settle()
        else:
            self._drop()

    def fail(self, error: BaseException) -> None:
        """Take note that the LLM failed or ran out of time.

        Raises:
            BaseException: the error itself, as `Session.fail` says; what was held back is gone then.
        """
        self._waiting.clear()
        self._session.fail(error)
        self._drop()

    def take(self) -> list[Any]:
        """Return what may be shown now, and forget it."""
        out, self._out = self._out, []
        return out

    def _queue(self, part: Part) -> None:
        if isinstance(part, Words):
            if not part.text:
                return
            if self._text and part.key != self._key:
                self._change_key(part.key)
            self._key = part.key
            self._text += part.text
        self._waiting.append(_Waiting(part, len(self._text)))

    def _change_key(self, key: Hashable) -> None:
        """End a sentence. What goes on where it broke off was judged in fragments, so it is held."""
        if not is_ended(self._text):
            self._broken_off.add(self._key)
        if key in self._broken_off and self._most is None:
            self._most = len(self._text)
        self._text += "\n"

    def _let_go(self, fit: int | None) -> None:
        """Show what waits up to a position of the judged text; None for all of it."""
        while self._waiting:
            waiting = self._waiting[0]
            part = waiting.part
            if fit is not None and (isinstance(part, Held) or waiting.end > fit):
                if isinstance(part, Words) and (over := waiting.end - fit) < len(part.text):
                    self._say(part.text[:-over], part.key)
                    waiting.part = Words(part.text[-over:], part.key)
                break
            self._waiting.popleft()
            if isinstance(part, Words):
                self._say(part.text, part.key)
            else:
                self._speak()
                self._out.append(part.item)
        self._speak()

    def _say(self, text: str, key: Hashable) -> None:
        """Gather words of one key; they go out together."""
        if self._saying and self._saying[0].key != key:
            self._speak()
        self._saying.append(Words(text, key))

    def _speak(self) -> None:
        if self._saying:
            key, text = self._saying[0].key, "".join(words.text for words in self._saying)
            self._saying = []
            self._out += self._form.words(key, self._with_break(text))

    def _with_break(self, text: str) -> str:
        """Return text to be shown, set apart from what was shown of a rejected draft."""
        text = BREAK + text if self._break_due else text
        self._broke, self._break_due = self._broke or self._break_due, False
        self._shown.append(text)
        return text

    def _drop(self) -> None:
        """Forget the draft: it was rejected, or its stream broke off."""
        self._form.restart()
        self._forget()
        self.closed = True
        self._settle()

    def _forget(self) -> None:
        self._waiting.clear()
        self._saying = []
        self._text, self._key, self._template = "", None, None
        self._broken_off, self._most = set(), None
        self._break_due = bool(self._shown)

    def _settle(self) -> None:
        """Say the last of it, if the session is over."""
        found = self._session.result
        if found is None:
            return
        if found.strategy not in OWN_STRATEGIES:
            self._out += self._form.ours(self._with_break(found.text))
        text = "".join(self._shown)
        if self._broke and not calls_tools(found.reply):
            found = replace(found, reply=in_form(found.reply, text))
        self.result = replace(found, text=text)
        self._out += self._form.end(self.result)
