"""Who may give a second opinion, and how to make a judge of what an app has at hand.

Clients and chat models are known by their shape; nothing foreign is imported.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, TypeGuard, runtime_checkable

from .callables import is_async as gives_coroutine
from .errors import ConfigError, ModelError
from .judging import ChatMessages, Opinion, Question, chat_messages, parse_answer


@runtime_checkable
class Judge(Protocol):
    """Answers a question. Called from several threads at a time."""

    def judge(self, question: Question) -> Opinion:
        """Return the opinion; whatever is raised makes the guard fall back to the encoder."""
        ...


@runtime_checkable
class AsyncJudge(Protocol):
    """Answers a question without blocking the event loop. A judge may be both."""

    async def ajudge(self, question: Question) -> Opinion:
        """Return the opinion, as `Judge.judge`."""
        ...


AnyJudge = Judge | AsyncJudge


class CallableJudge:
    """A judge out of a function from messages to the answer (a string, a dict or a message)."""

    def __init__(self, complete: Callable[[ChatMessages], Any]) -> None:
        self._complete = complete

    def judge(self, question: Question) -> Opinion:
        """Ask and read strictly.

        Raises:
            ModelError: the answer is none.
        """
        return parse_answer(_content(self._complete(chat_messages(question))), question)


class AsyncCallableJudge:
    """A judge out of an async function from messages to the answer."""

    def __init__(self, complete: Callable[[ChatMessages], Awaitable[Any]]) -> None:
        self._complete = complete

    async def ajudge(self, question: Question) -> Opinion:
        """Ask and read strictly.

        Raises:
            ModelError: the answer is none.
        """
        return parse_answer(_content(await self._complete(chat_messages(question))), question)


class LangChainJudge:
    """A judge out of a LangChain chat model; callbacks of the chain around the guard hear nothing of it."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def judge(self, question: Question) -> Opinion:
        """Ask and read strictly.

        Raises:
            ModelError: the answer is none.
        """
        # In a context of its own: a model that calls another one would find the chain's callbacks there.
        reply = contextvars.Context().run(self._model.invoke, chat_messages(question), {"callbacks": []})
        return parse_answer(_content(reply), question)

    async def ajudge(self, question: Question) -> Opinion:
        """Do as `judge`, without blocking the event loop."""
        call = self._model.ainvoke(chat_messages(question), {"callbacks": []})
        reply = await asyncio.get_running_loop().create_task(call, context=contextvars.Context())
        return parse_answer(_content(reply), question)


def as_judge(source: Any, *, model: str | None = None, **options: Any) -> AnyJudge:
    """Return a judge out of what an app has at hand.

    Args:
        source: a judge; a sync or async function from role/content dicts to the answer; a LangChain
            chat model; or a client with `chat.completions.create`, sync or async, as that of OpenAI.
        model: name of the client's model; for a client only, and needed there.
        options: handed to each call of the client, e.g. `timeout=5, temperature=0`. Give it a
            timeout, and the client no retries (`max_retries=0`): a sync call that outlasts the
            guard's deadline goes on in the background.

    Raises:
        ConfigError: it is none of these, a class instead of an object, an async `judge`, or a client
            without a model.
    """
    if inspect.isclass(source):
        raise ConfigError(f"expected a judge, got the class {source.__name__}; make an object of it")
    create = getattr(getattr(getattr(source, "chat", None), "completions", None), "create", None)
    if callable(create):
        return _client_judge(create, model, options)
    if model is not None or options:
        raise ConfigError(
            f"expected a client with chat.completions.create beside model and options, "
            f"got {type(source).__name__}; bind them to it before"
        )
    if _has(source, "judge") and gives_coroutine(source.judge):
        raise ConfigError(
            f"expected a sync method 'judge' of {type(source).__name__}, got an async one; call it 'ajudge'"
        )
    if _has(source, "judge") or _has(source, "ajudge"):
        return source  # type: ignore[no-any-return]
    if _has(source, "invoke") and _has(source, "ainvoke"):
        return LangChainJudge(source)
    if not callable(source):
        raise ConfigError(
            f"expected a judge, a callable from messages to text, an OpenAI-compatible client or a "
            f"LangChain chat model, got {type(source).__name__}; pass one of these as judge="
        )
    return AsyncCallableJudge(source) if gives_coroutine(source, wrapped=True) else CallableJudge(source)


def is_sync(judge: AnyJudge) -> TypeGuard[Judge]:
    """Return True if the judge can be asked from a thread."""
    return _has(judge, "judge")


def is_async(judge: AnyJudge) -> TypeGuard[AsyncJudge]:
    """Return True if the judge can be awaited."""
    return _has(judge, "ajudge")


def _client_judge(create: Callable[..., Any], model: str | None, options: dict[str, Any]) -> AnyJudge:
    if model is None:
        raise ConfigError(
            "expected the name of the client's model, got none; "
            "pass judge=guardrail.judges.as_judge(client, model='...')"
        )

    if gives_coroutine(create, wrapped=True):

        async def acomplete(messages: ChatMessages) -> Any:
            return _choice(await create(model=model, messages=messages, **options))

        return AsyncCallableJudge(acomplete)

    def complete(messages: ChatMessages) -> Any:
        return _choice(create(model=model, messages=messages, **options))

    return CallableJudge(complete)


def _choice(completion: Any) -> Any:
    choices = getattr(completion, "choices", None)
    if not choices:
        raise ModelError("judge", "expected a completion with a choice, got none")
    return choices[0].message


def _content(reply: Any) -> str:
    """Return the text of a reply, without reasoning, tool calls and the like.

    Raises:
        ModelError: it holds no text.
    """
    if inspect.iscoroutine(reply):
        reply.close()
    content = reply
    if not isinstance(reply, str):
        content = reply.get("content") if isinstance(reply, Mapping) else getattr(reply, "content", None)
    if isinstance(content, list):
        texts = [part if isinstance(part, str) else _text_part(part) for part in content]
        content = "".join(texts)
    if not isinstance(content, str):
        raise ModelError("judge", f"expected text or a message with text content, got {type(reply).__name__}")
    return content


def _text_part(part: Any) -> str:
    text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
    return text if isinstance(text, str) else ""


def _has(source: Any, method: str) -> bool:
    return callable(getattr(source, method, None))
