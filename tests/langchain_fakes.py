"""Chat models for tests of the LangChain integration, and every way to read what comes out of one."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from functools import reduce
from operator import add
from typing import Any

from fakes import DRIVING, make_guard
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, SystemMessage, message_chunk_to_message
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import Field

from guardrail.integrations.langchain import GuardedChatModel

# Blocks that arrive letter by letter; others arrive whole.
WORDS_IN = {"text": "text", "reasoning": "reasoning", "thinking": "thinking"}


class ScriptedChatModel(BaseChatModel):
    """Says its replies in turn (the last for ever), in small pieces, and keeps what it was sent.

    With `guided` set it says that as soon as it sees guidance, in whatever order it is called.
    """

    replies: list[Any] = Field(repr=False)  # tracers show a model's repr
    guided: Any = Field(default=None, repr=False)
    size: int = 1  # characters in a piece
    requests: list[Any] = Field(default=[], repr=False)
    options: list[Any] = []
    closed: list[int] = []  # how many pieces were read of each stream, when it was over

    def _next(self, messages, stop, options) -> AIMessage:
        self.requests.append(list(messages))
        self.options.append({"stop": stop, **options})
        reply = self.replies[min(len(self.requests), len(self.replies)) - 1]
        if self.guided is not None and guidance_in(messages):
            reply = self.guided
        if isinstance(reply, Exception):
            raise reply
        return AIMessage(reply) if isinstance(reply, str) else reply.model_copy(deep=True)

    def _generate(self, messages, stop=None, run_manager=None, **kwargs) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self._next(messages, stop, kwargs))])

    def _stream(self, messages, stop=None, run_manager=None, **kwargs) -> Iterator[ChatGenerationChunk]:
        read = 0
        try:
            for chunk in in_pieces(self._next(messages, stop, kwargs), self.size):
                read += 1
                yield ChatGenerationChunk(message=chunk)
        finally:
            self.closed.append(read)

    async def _astream(self, messages, stop=None, run_manager=None, **kwargs):
        stream = self._stream(messages, stop, **kwargs)
        try:
            for chunk in stream:
                await asyncio.sleep(0)
                yield chunk
        finally:
            stream.close()

    def bind_tools(self, tools, *, tool_choice=None, **kwargs):
        names = [getattr(each, "name", None) or getattr(each, "__name__", "a schema") for each in tools]
        return self.bind(tools=names, tool_choice=tool_choice, **kwargs)

    @property
    def _llm_type(self) -> str:
        return "scripted"


def in_pieces(message: AIMessage, size: int) -> Iterator[AIMessageChunk]:
    """Yield the message as providers stream it: reasoning, content, tool calls, then the counts."""

    def chunk(**fields) -> AIMessageChunk:
        return AIMessageChunk(**{"content": "", "id": message.id, "name": message.name, **fields})

    more = dict(message.additional_kwargs)
    for piece in _split(more.pop("reasoning_content", ""), size):
        yield chunk(additional_kwargs={"reasoning_content": piece})
    if isinstance(message.content, str):
        yield from (chunk(content=piece) for piece in _split(message.content, size))
    else:
        for index, block in enumerate(message.content):
            yield from (chunk(content=[piece]) for piece in _split_block({"index": index, **block}, size))
    for index, call in enumerate([*message.tool_calls, *message.invalid_tool_calls], 10):
        begin = {"name": call["name"], "args": "", "id": call["id"], "index": index}
        yield chunk(tool_call_chunks=[begin])
        arguments = call["args"] if isinstance(call["args"], str) else json.dumps(call["args"])
        for piece in _split(arguments, size):
            yield chunk(tool_call_chunks=[{"name": None, "args": piece, "id": None, "index": index}])
    yield chunk(
        additional_kwargs=more,
        usage_metadata=message.usage_metadata,
        response_metadata=message.response_metadata,
    )


def _split(text: str, size: int) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


def _split_block(block: dict[str, Any], size: int) -> Iterator[dict[str, Any]]:
    name = WORDS_IN.get(block["type"])
    if name is None or name not in block:
        yield block
        return
    head = {"type": block["type"], "index": block["index"]}
    yield from ({**head, name: piece} for piece in _split(block[name], size))
    if rest := {key: value for key, value in block.items() if key not in (*head, name)}:
        yield {**head, **rest}


def scripted(*replies, guided=None, size=1, kind=ScriptedChatModel) -> Any:
    return kind(replies=list(replies), guided=guided, size=size, requests=[], options=[], closed=[])


def guarded(*replies, guided=None, size=1, **settings) -> GuardedChatModel:
    return GuardedChatModel(model=scripted(*replies, guided=guided, size=size), guard=make_guard(**settings))


def guidance_in(messages) -> list[Any]:
    return [m for m in messages if isinstance(m, SystemMessage) and DRIVING.text in str(m.content)]


async def drain(stream) -> list[Any]:
    return [item async for item in stream]


# Each returns what a chain or a model gave, as a list of its outputs or of the pieces of one.
MODES = {
    "invoke": lambda chain, given: [chain.invoke(given)],
    "ainvoke": lambda chain, given: [asyncio.run(chain.ainvoke(given))],
    "stream": lambda chain, given: list(chain.stream(given)),
    "astream": lambda chain, given: asyncio.run(drain(chain.astream(given))),
    "batch": lambda chain, given: chain.batch([given]),
    "abatch": lambda chain, given: asyncio.run(chain.abatch([given])),
}


def in_one(pieces: list[Any]) -> Any:
    """Return the pieces added up: one string, or one message that is no chunk."""
    whole = reduce(add, pieces)
    return whole if isinstance(whole, str) else message_chunk_to_message(whole)


class Recorder(BaseCallbackHandler):
    """Keeps all that an app's own callback hears from the model."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def on_chat_model_start(self, serialized, messages, **kwargs):
        self.heard.append((serialized, messages, kwargs))

    def on_llm_new_token(self, token, **kwargs):
        self.heard.append((token, kwargs))

    def on_llm_end(self, response, **kwargs):
        self.heard.append((response, kwargs))

    def on_llm_error(self, error, **kwargs):
        self.heard.append((repr(error), kwargs))

    def on_chain_start(self, serialized, inputs, **kwargs):
        self.heard.append((serialized, inputs, kwargs))

    def on_chain_end(self, outputs, **kwargs):
        self.heard.append((outputs, kwargs))

    def on_tool_start(self, serialized, input_str, **kwargs):
        self.heard.append((serialized, input_str, kwargs))

    def on_tool_end(self, output, **kwargs):
        self.heard.append((output, kwargs))


def message_without(package, module, folder):
    """Return what importing a module says in a process that lacks a package."""
    code = f"""
        import sys

        class Absent:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] == {package!r}:
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

        sys.meta_path.insert(0, Absent())
        import importlib
        from guardrail.errors import MissingDependencyError
        import guardrail.integrations  # the folder itself needs nothing
        if {package!r} == "langchain":
            import guardrail.integrations.langchain  # needs langchain-core alone
        try:
            importlib.import_module({module!r})
        except MissingDependencyError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True, cwd=folder
    )
    return done.stdout
