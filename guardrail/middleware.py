"""Put the guard around an LLM call: guide, call, judge, regenerate, and at last compose.

The logic is a plain state machine without I/O, `Session`; the sync and async drivers here only call the
LLM and hand its reply over. Nothing leaves a session that was not judged.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .callables import is_async
from .conversation import Messages
from .errors import InputError
from .outcome import GuardedReply
from .session import DeadlineError, OnIntervention, Session, checked_intervention

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
    session = Session(guard, messages, on_intervention, form)
    session.start()
    while session.result is None:
        try:
            reply = _call_within(session.seconds_left, llm, session.request, *args, **kwargs)
        except Exception as error:
            session.fail(error)
            continue
        if inspect.isawaitable(reply):
            _close(reply)
            raise InputError(
                "expected a sync LLM, its call returned an awaitable; use agenerate, or wrap an async def"
            )
        session.offer(reply)
    return session.result


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
    session = Session(guard, messages, on_intervention, form)
    await asyncio.to_thread(session.start)
    while session.result is None:
        try:
            reply = await _acall_within(session.seconds_left, llm, session.request, *args, **kwargs)
        except Exception as error:
            await asyncio.to_thread(session.fail, error)
            continue
        await asyncio.to_thread(session.offer, reply)
    return session.result


def wrap(
    guard: Guardrail,
    llm: Callable[..., Any],
    *,
    on_intervention: OnIntervention | None = None,
    form: Callable[[str], Any] | None = None,
) -> Callable[..., Any]:
    """Return a callable like `llm`, sync or async as it is, that returns only judged replies.

    Its first argument is the messages. A reply of the LLM comes back as the LLM returned it. Text
    that replaces one has the form of the replaced draft; where the LLM was not even called (an
    intervention, a failure of the guard) it is a plain string, unless `form` says otherwise. For
    verdicts and attempts call `generate` instead.

    Args:
        guard: the guard.
        llm: takes messages, returns a string, a dict with "content" or a message.
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
    if is_async(llm):

        async def guarded_async(messages: Messages, *args: Any, **kwargs: Any) -> Any:
            return (await agenerate(guard, llm, messages, *args, **options, **kwargs)).reply

        return _like(guarded_async, llm)

    def guarded(messages: Messages, *args: Any, **kwargs: Any) -> Any:
        return generate(guard, llm, messages, *args, **options, **kwargs).reply

    return _like(guarded, llm)


def _like(wrapper: Callable[..., Any], llm: Callable[..., Any]) -> Callable[..., Any]:
    wrapper.__name__ = getattr(llm, "__name__", type(llm).__name__)
    wrapper.__doc__ = getattr(llm, "__doc__", None)
    wrapper.__wrapped__ = llm  # type: ignore[attr-defined]  # as functools.wraps does
    return wrapper


async def _acall_within(seconds: float | None, llm: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    scope = asyncio.timeout(seconds)
    try:
        async with scope:
            return await _acall(llm, *args, **kwargs)
    except TimeoutError:
        if scope.expired():
            raise DeadlineError from None
        raise


async def _acall(llm: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if is_async(llm):
        return await llm(*args, **kwargs)
    reply = await asyncio.to_thread(llm, *args, **kwargs)
    return await reply if inspect.isawaitable(reply) else reply


def _call_within(seconds: float | None, llm: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call the LLM, in a thread of its own if there is a deadline: a sync call cannot be cancelled."""
    if seconds is None:
        return llm(*args, **kwargs)
    box: list[Any] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            box.append(llm(*args, **kwargs))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="guarded-llm-call", daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not box:
        raise DeadlineError
    return box[0]


def _close(awaitable: Any) -> None:
    if hasattr(awaitable, "close"):
        awaitable.close()
