"""Put the guard around an LLM call: guide, call, judge, regenerate, and at last compose.

The logic is a plain state machine without I/O, `Session`; the sync and async drivers here only call the
LLM and hand its reply over. Nothing leaves a session that was not judged.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from .callables import is_async, with_arguments, yields, yields_async
from .calling import acall_within, call_within, close, is_stream
from .conversation import Messages
from .errors import InputError
from .outcome import GuardedReply
from .session import OnIntervention, Session, checked_intervention
from .stream_drivers import AsyncGuardedStream, GuardedStream
from .stream_forms import PlainForm
from .streaming import ReplyStream

if TYPE_CHECKING:
    from .pipeline import Guardrail


def generate(
    guard: Guardrail,
    llm: Callable[..., Any],
    messages: Messages,
    *args: Any,
    on_intervention: OnIntervention | None = None,
    form: Callable[[str], Any] | None = None,
    **kwargs: Any,
) -> GuardedReply:
    """Call an LLM with the guard around it.

    The conversation is judged first. Where a rule is broken or touched, the LLM is called with the
    rules in a system message. Its reply is judged in its context; an unfit one is made again, up to
    `max_attempts` calls, and at last a reply is composed from the rule. If the guard itself fails,
    a fixed sentence is returned and the LLM is not called (`on_error` decides).

    Args:
        guard: the guard.
        llm: takes messages, returns a string, a dict with "content" or a message.
        messages: the conversation, in any form that `check` takes and that `llm` understands.
        args: handed to the LLM.
        on_intervention: what happens when the user's turn asks for intervention: "reply" with the
            bank's caring replies, "guide" the LLM, or a function that gets messages and verdict and
            returns text, which is judged too. None takes the guard's setting.
        form: makes what is returned out of text that is not the LLM's own; without it such text
            has the form of the LLM's last draft, or is a plain string if there was none.
        kwargs: handed to the LLM.

    Returns:
        The reply with verdicts and attempts.

    Raises:
        InputError: messages or the LLM's return value cannot be read.
        Exception: whatever the LLM raises in its first call.
    """
    session = Session(guard, messages, on_intervention, form, hold=True)
    outcome = _drive(session, with_arguments(llm, args, kwargs), form)
    if isinstance(outcome, GuardedReply):
        return outcome
    for _ in outcome:
        pass
    assert outcome.result is not None
    return outcome.result


async def agenerate(
    guard: Guardrail,
    llm: Callable[..., Any],
    messages: Messages,
    *args: Any,
    on_intervention: OnIntervention | None = None,
    form: Callable[[str], Any] | None = None,
    **kwargs: Any,
) -> GuardedReply:
    """Do as `generate`, with an async or a sync LLM; judging and sync calls run in threads."""
    session = Session(guard, messages, on_intervention, form, hold=True)
    outcome = await _adrive(guard, session, with_arguments(llm, args, kwargs), form)
    if isinstance(outcome, GuardedReply):
        return outcome
    async for _ in outcome:
        pass
    assert outcome.result is not None
    return outcome.result


def stream(
    guard: Guardrail,
    llm: Callable[..., Any],
    messages: Messages,
    *args: Any,
    on_intervention: OnIntervention | None = None,
    form: Callable[[str], Any] | None = None,
    **kwargs: Any,
) -> GuardedStream:
    """Call an LLM that streams; what it says is shown sentence by sentence, each judged before.

    Where a draft is rejected its stream is closed, and another one, or the repair, takes its place. If
    some of it was shown by then, a blank line stands between. Where something unsafe is to be replaced
    or forestalled the whole reply is judged before any of it is shown.

    Args:
        guard: the guard.
        llm: takes messages; returns an iterator of strings, of dicts with "content", or of message chunks.
        messages: the conversation, in any form that `check` takes and that `llm` understands.
        args: handed to the LLM.
        on_intervention: as in `generate`.
        form: makes a piece out of text that is not the LLM's own; without it such text has the form of the
            LLM's last piece, or is a plain string if there was none.
        kwargs: handed to the LLM.

    Returns:
        An iterator of pieces like the LLM's; `result` is a `GuardedReply` once it has ended.

    Raises:
        InputError: the messages cannot be read; on the way, if a piece cannot be.
        Exception: on the way, whatever the LLM raises in its first call.
    """
    reply = ReplyStream(Session(guard, messages, on_intervention, form), PlainForm(form))
    return GuardedStream(reply, with_arguments(llm, args, kwargs))


def astream(
    guard: Guardrail,
    llm: Callable[..., Any],
    messages: Messages,
    *args: Any,
    on_intervention: OnIntervention | None = None,
    form: Callable[[str], Any] | None = None,
    **kwargs: Any,
) -> AsyncGuardedStream:
    """Do as `stream`, with an LLM that streams async or sync; judging runs in threads."""
    reply = ReplyStream(Session(guard, messages, on_intervention, form), PlainForm(form))
    return AsyncGuardedStream(guard, reply, with_arguments(llm, args, kwargs))


def wrap(
    guard: Guardrail,
    llm: Callable[..., Any],
    *,
    on_intervention: OnIntervention | None = None,
    form: Callable[[str], Any] | None = None,
) -> Callable[..., Any]:
    """Return a callable like `llm`, sync or async, whole or streaming, that returns only judged replies.

    Its first argument is the messages. A stream comes back as a stream of pieces of the same kind (see
    `stream`). A reply of the LLM comes back as the LLM returned it. Text
    that replaces one has the form of the replaced draft; where the LLM was not even called (an
    intervention, a failure of the guard) it is a plain string, unless `form` says otherwise. For
    verdicts and attempts call `generate` instead.

    Args:
        guard: the guard.
        llm: takes messages, returns a string, a dict with "content" or a message, or a stream of these:
            a function, an async one, a method, a generator, an async generator.
        on_intervention: as in `generate`.
        form: makes what is returned out of text, e.g. `lambda text: {"role": "assistant",
            "content": text}`.

    Raises:
        InputError: `llm` cannot be called.
        ConfigError: `on_intervention` is none of its forms.
    """
    if not callable(llm):
        raise InputError(
            f"expected a callable that takes messages, got {type(llm).__name__}; "
            f"for a LangChain model use guardrail.integrations.langchain, or pass model.invoke"
        )
    options: dict[str, Any] = {
        "on_intervention": checked_intervention(on_intervention or guard.config.on_intervention),
        "form": form,
    }
    if yields(llm) or yields_async(llm):
        streaming: Callable[..., Any] = astream if yields_async(llm) else stream

        def guarded_stream(messages: Messages, *args: Any, **kwargs: Any) -> Any:
            return streaming(guard, llm, messages, *args, **options, **kwargs)

        return _like(guarded_stream, llm)
    if is_async(llm):

        async def guarded_async(messages: Messages, *args: Any, **kwargs: Any) -> Any:
            session = Session(guard, messages, options["on_intervention"], form)
            outcome = await _adrive(guard, session, with_arguments(llm, args, kwargs), form)
            return outcome.reply if isinstance(outcome, GuardedReply) else outcome

        return _like(guarded_async, llm)

    def guarded(messages: Messages, *args: Any, **kwargs: Any) -> Any:
        session = Session(guard, messages, options["on_intervention"], form)
        outcome = _drive(session, with_arguments(llm, args, kwargs), form)
        return outcome.reply if isinstance(outcome, GuardedReply) else outcome

    return _like(guarded, llm)


def _drive(
    session: Session, call: Callable[[Any], Any], form: Callable[[str], Any] | None
) -> GuardedReply | GuardedStream:
    """Run a session to its end; or, if the LLM turns out to stream, return what is left to do."""
    session.start()
    while session.result is None:
        try:
            reply = call_within(session.seconds_left, call, session.request)
        except Exception as error:
            session.fail(error)
            continue
        if inspect.isawaitable(reply) or hasattr(reply, "__aiter__"):
            close(reply)
            raise InputError(
                "expected a sync LLM, its call returned an awaitable or an async stream; use agenerate or "
                "astream, or wrap an async def"
            )
        if is_stream(reply):
            stream = ReplyStream(session, PlainForm(form))
            return GuardedStream(stream, call, started=True, upstream=reply)
        session.offer(reply)
    return session.result


async def _adrive(
    guard: Guardrail, session: Session, call: Callable[[Any], Any], form: Callable[[str], Any] | None
) -> GuardedReply | AsyncGuardedStream:
    """Do as `_drive`, in async code."""
    await guard.in_thread(session.start)
    while session.result is None:
        try:
            reply = await acall_within(session.seconds_left, call, session.request)
        except Exception as error:
            await guard.in_thread(partial(session.fail, error))
            continue
        if is_stream(reply):
            stream = ReplyStream(session, PlainForm(form))
            return AsyncGuardedStream(guard, stream, call, started=True, upstream=reply)
        await guard.in_thread(partial(session.offer, reply))
    return session.result


def _like(wrapper: Callable[..., Any], llm: Callable[..., Any]) -> Callable[..., Any]:
    wrapper.__name__ = getattr(llm, "__name__", type(llm).__name__)
    wrapper.__doc__ = getattr(llm, "__doc__", None)
    wrapper.__wrapped__ = llm  # type: ignore[attr-defined]  # as functools.wraps does
    return wrapper
