"""Every kind of callable, reply and messages: the result has the callable's own form, and only fit words."""

import asyncio
import functools
import inspect
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes import DRIVING, SAFE, make_guard
from pydantic import BaseModel

from guardrail import InputError

FINE = "Sure thing.  Bake bread!\n\nThen eat it. ok "
UNFIT = "Sure thing. Now drive off! It is Zorro's night."
WORDS = ("drive off", "Zorro")


class Message(BaseModel):
    """As SDKs have them: whole, or a piece."""

    role: str | None = None
    content: str | None = None
    tool_calls: list | None = None


# ------------------------------------------------------------ forms of replies


def cut(text):
    return [text[at : at + 6] for at in range(0, len(text), 6)]


def lc(name):
    return getattr(pytest.importorskip("langchain_core.messages"), name)


def chunk(text, **more):
    return lc("AIMessageChunk")(text, id="run-1", **more)


USAGE = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
WHOLE = {
    "str": lambda text: text,
    "dict": lambda text: {"role": "assistant", "content": text},
    "object": lambda text: SimpleNamespace(role="assistant", content=text),
    "pydantic": lambda text: Message(role="assistant", content=text),
    "langchain": lambda text: lc("AIMessage")(text, id="m-1", usage_metadata=USAGE),
}
PIECES = {
    "str": cut,
    "dict": lambda text: [{"role": "assistant", "content": piece} for piece in cut(text)],
    "deltas": lambda text: [
        {"role": "assistant", "content": ""},
        *({"content": piece} for piece in cut(text)),
        {"content": None, "finish_reason": "stop"},
    ],
    "object": lambda text: [SimpleNamespace(role="assistant", content=piece) for piece in cut(text)],
    "pydantic": lambda text: [Message(role="assistant"), *(Message(content=piece) for piece in cut(text))],
    "langchain": lambda text: [
        *map(chunk, cut(text)),
        chunk("", usage_metadata=USAGE, response_metadata={"finish_reason": "stop"}),
    ],
}
MESSAGES = {
    "string": lambda: "had beer and what now?",
    "strings": lambda: ["had beer", "And?", "what now?"],
    "dicts": lambda: [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "had beer and what now?"},
    ],
    "langchain": lambda: [lc("SystemMessage")("Be kind."), lc("HumanMessage")("had beer and what now?")],
}


def text_of(item):
    content = (
        item if isinstance(item, str) else item.get("content") if isinstance(item, dict) else item.content
    )
    return content or ""


# ------------------------------------------------------------ kinds of callables


class SDKStream:
    """Iterable and closable, as OpenAI's `Stream` is."""

    def __init__(self, items):
        self.items = iter(items)
        self.closed = False

    def __iter__(self):
        yield from self.items

    def close(self):
        self.closed = True


class AsyncSDKStream:
    def __init__(self, items):
        self.items = iter(items)
        self.closed = False

    async def __aiter__(self):
        for item in self.items:
            yield item

    async def close(self):
        self.closed = True


class App:
    """An app whose methods, and which itself, are LLMs; `made` is what each returns."""

    def __init__(self, made):
        self.made = made
        self.asked = []
        self.streams = []

    def _note(self, messages):
        self.asked.append(messages)
        return self.made

    def call(self, messages):
        return self._note(messages)

    async def acall(self, messages):
        return self._note(messages)

    def with_options(self, temperature, messages, **_):
        return self._note(messages)

    def generator(self, messages):
        yield from self._note(messages)

    async def agenerator(self, messages):
        for item in self._note(messages):
            yield item

    def iterator(self, messages):
        return iter(self._note(messages))

    async def aiterator(self, messages):
        return self.agenerator(messages)

    def late(self, messages):
        return self.agenerator(messages)

    def sdk(self, messages):
        self.streams.append(SDKStream(self._note(messages)))
        return self.streams[-1]

    async def asdk(self, messages):
        self.streams.append(AsyncSDKStream(self._note(messages)))
        return self.streams[-1]


def function(method):
    """Return a plain function of the same kind as a bound method."""
    if inspect.isasyncgenfunction(method):

        async def agenerator(messages):
            async for item in method(messages):
                yield item

        return agenerator
    if inspect.isgeneratorfunction(method):

        def generator(messages):
            yield from method(messages)

        return generator
    if inspect.iscoroutinefunction(method):

        async def acall(messages):
            return await method(messages)

        return acall
    return lambda messages: method(messages)


def called(method):
    """Return an object whose `__call__` is of the same kind as a bound method."""
    return type("Callable", (), {"__call__": staticmethod(function(method))})()


SYNC, ASYNC = {}, {}
for name, whole, calls in (
    ("call", True, SYNC),
    ("acall", True, ASYNC),
    ("generator", False, SYNC),
    ("agenerator", False, ASYNC),
):
    calls[f"function {name}"] = (whole, lambda app, name=name: function(getattr(app, name)))
    calls[f"method {name}"] = (whole, lambda app, name=name: getattr(app, name))
    calls[f"partial {name}"] = (whole, lambda app, name=name: functools.partial(getattr(app, name)))
    calls[f"object {name}"] = (whole, lambda app, name=name: called(getattr(app, name)))
SYNC["partial with arguments"] = (True, lambda app: functools.partial(app.with_options, 0.5, seed=1))
SYNC["function that returns an iterator"] = (False, lambda app: app.iterator)
SYNC["function that returns an SDK's stream"] = (False, lambda app: app.sdk)
ASYNC["async function that returns an async iterator"] = (False, lambda app: app.aiterator)
ASYNC["async function that returns an SDK's stream"] = (False, lambda app: app.asdk)


def cases(kinds):
    return [
        pytest.param(whole, make, form, id=f"{name}-{form}")
        for name, (whole, make) in kinds.items()
        for form in (WHOLE if whole else PIECES)
    ]


def app_for(whole, form, draft):
    return App((WHOLE if whole else PIECES)[form](draft))


def judge_whole(app, found, draft):
    """Check a whole reply that came out."""
    assert type(found) is type(app.made)
    if draft == FINE:
        assert found is app.made
    else:
        assert not any(word in text_of(found) for word in WORDS)
        assert text_of(found).strip()


def judge_stream(app, found, draft):
    """Check the pieces that came out."""
    text = "".join(map(text_of, found))
    assert {type(piece) for piece in found} == {type(app.made[0])}
    if draft == FINE:
        assert text == FINE
        assert len(found) > 2  # sentence by sentence
    else:
        assert text.startswith("Sure thing.\n\n")
        assert not any(word in repr(found) for word in WORDS)
    assert all(stream.closed for stream in app.streams)


async def collected(stream):
    return [piece async for piece in stream]


@pytest.fixture(scope="module")
def guard():
    return make_guard(max_attempts=2)


both_drafts = pytest.mark.parametrize("draft", [FINE, UNFIT], ids=["fine", "unfit"])
all_messages = pytest.mark.parametrize("asked", MESSAGES)


@both_drafts
@all_messages
@pytest.mark.parametrize(("whole", "make", "form"), cases(SYNC))
def test_sync_callables(guard, whole, make, form, asked, draft):
    messages = MESSAGES[asked]()
    app = app_for(whole, form, draft)
    wrapped = guard.wrap(make(app))

    found = wrapped(messages)
    if whole:
        judge_whole(app, found, draft)
    else:
        judge_stream(app, list(found), draft)
    assert app.asked[0] == messages
    assert type(app.asked[0]) is type(messages)
    assert not inspect.iscoroutinefunction(wrapped)

    result = guard.generate(make(app), messages)
    pieces = guard.stream(make(app), messages)
    shown = list(pieces)
    assert pieces.result.strategy == result.strategy == ("pass" if draft == FINE else "composed")
    if whole:
        judge_whole(app, result.reply, draft)
        assert {type(piece) for piece in shown} == {type(app.made)}
        shown_text = "".join(map(text_of, shown))
        assert shown_text == FINE if draft == FINE else not any(word in shown_text for word in WORDS)
    else:
        judge_stream(app, shown, draft)
        assert result.text == FINE or not any(word in repr(result.reply) + result.text for word in WORDS)


@both_drafts
@all_messages
@pytest.mark.parametrize(("whole", "make", "form"), cases(ASYNC))
def test_async_callables(guard, whole, make, form, asked, draft):
    messages = MESSAGES[asked]()

    async def main():
        app = app_for(whole, form, draft)
        found = guard.wrap(make(app))(messages)
        if inspect.isawaitable(found):
            found = await found
        if whole:
            judge_whole(app, found, draft)
        else:
            judge_stream(app, await collected(found), draft)
        assert app.asked[0] == messages

        result = await guard.agenerate(make(app), messages)
        pieces = guard.astream(make(app), messages)
        shown = await collected(pieces)
        assert pieces.result.strategy == result.strategy == ("pass" if draft == FINE else "composed")
        if whole:
            judge_whole(app, result.reply, draft)
        else:
            judge_stream(app, shown, draft)

    asyncio.run(main())


@both_drafts
@pytest.mark.parametrize(("whole", "make", "form"), cases(SYNC))
def test_sync_callables_in_async_code(guard, whole, make, form, draft):
    app = app_for(whole, form, draft)

    async def main():
        result = await guard.agenerate(make(app), "had beer and what now?")
        return result, await collected(guard.astream(make(app), "had beer and what now?"))

    result, shown = asyncio.run(main())
    if whole:
        judge_whole(app, result.reply, draft)
    else:
        judge_stream(app, shown, draft)


@both_drafts
def test_a_sync_function_that_returns_an_async_stream_needs_async_code(guard, draft):
    app = app_for(False, "str", draft)

    judge_stream(app, asyncio.run(collected(guard.astream(app.late, "had beer and what now?"))), draft)
    for call in (guard.stream, guard.generate, lambda llm, messages: guard.wrap(llm)(messages)):
        with pytest.raises(InputError, match="async"):
            list(call(app.late, "had beer and what now?"))


def test_langchain_pieces_add_up_to_what_the_model_sent():
    made = PIECES["langchain"](FINE)
    found = list(make_guard().wrap(lambda messages: iter(made))("had beer and what now?"))

    total, sent = sum(found[1:], found[0]), sum(made[1:], made[0])
    assert total == sent
    assert total.usage_metadata == USAGE
    assert len(found) < len(made)


def test_usage_in_a_dict_comes_once():
    made = [{"content": "One. Two."}, {"content": " Three", "usage_metadata": USAGE}]
    found = list(make_guard().stream(lambda _: iter(made), "had beer and what now?"))

    assert text_of(found[-1]) == ""
    assert sum("usage_metadata" in piece for piece in found) == 1


def test_deltas_keep_role_and_finish_reason():
    found = list(make_guard().stream(lambda messages: iter(PIECES["deltas"](FINE)), "had beer and what now?"))

    assert found[0] == {"role": "assistant", "content": ""}
    assert found[-1] == {"content": None, "finish_reason": "stop"}


def test_a_tool_call_in_pieces_is_held_until_it_is_judged_as_one():
    def deltas(arguments):
        yield {"role": "assistant", "content": "Let me see. "}
        yield {
            "tool_calls": [{"index": 0, "id": "1", "function": {"name": "car", "arguments": arguments[:5]}}]
        }
        yield {"tool_calls": [{"index": 0, "function": {"arguments": arguments[5:]}}]}

    guard = make_guard(max_attempts=1)
    fine = list(guard.stream(lambda _: deltas('{"do": "call a taxi"}'), "had beer and what now?"))
    unfit = list(guard.stream(lambda _: deltas('{"do": "drive home"}'), "had beer and what now?"))

    assert text_of(fine[0]) + text_of(fine[1]) == "Let me see. "
    assert fine[2:] == list(deltas('{"do": "call a taxi"}'))[1:]
    assert "car" not in repr(unfit)
    assert "drive home" not in repr(unfit)


@pytest.mark.parametrize(
    "beside",
    [
        {"note": "Zorro"},
        {"meta": {"draft": ["Zorro"]}},
        {"response_metadata": {"logprobs": [{"token": "Zorro"}]}},
    ],
)
def test_words_in_unknown_fields_wait_for_the_whole(beside):
    read = []

    def deltas(messages):
        read.clear()
        for text in ["One. ", "Two. ", "Three. ", "Four. ", "Five. "]:
            read.append(text)
            yield {"content": text, **(beside if text == "Two. " else {})}

    found = []
    for piece in make_guard().stream(deltas, "had beer and what now?"):
        assert "Zorro" not in repr(piece) or len(read) == 5
        found.append(piece)
    assert "Zorro" in repr(found)


def test_numbers_and_names_beside_the_words_do_not_hold_them():
    deltas = [
        {"content": "One. Two", "usage": {"prompt": 3}, "index": 0, "id": "x", "model": "m"},
        {"content": ". Three"},
    ]
    found = list(make_guard().stream(lambda _: iter(deltas), "had beer and what now?"))
    assert [piece["content"] for piece in found] == ["One.", " Two", "", ".", " Three"]


def test_pieces_of_none_count_as_silence():
    """As `yield chunk.choices[0].delta.content` has them."""
    found = list(
        make_guard().stream(lambda _: iter([None, "One. T", None, "wo", None]), "had beer and what now?")
    )
    assert found == ["One.", " Two"]


def test_no_reply_at_all_is_the_apps_error():
    guard = make_guard()
    for call in (guard.generate, guard.stream, lambda llm, messages: guard.wrap(llm)(messages)):
        with pytest.raises(InputError, match="NoneType|None"):
            list(call(lambda _: None, SAFE))


def test_bytes_and_numbers_are_refused():
    for item in (b"bytes", 3, ["list"]):
        with pytest.raises(InputError, match=type(item).__name__):
            list(make_guard().stream(lambda _, item=item: iter([item]), SAFE))


def test_an_object_that_is_replaced_keeps_none_of_its_words():
    made = SimpleNamespace(role="assistant", content=UNFIT, note="Zorro", id="7")
    found = make_guard(max_attempts=1).wrap(lambda _: made)("had beer and what now?")

    assert (found.role, found.id, found.note) == ("assistant", "7", None)
    assert made.content == UNFIT


def test_text_of_ours_has_the_form_that_was_asked_for():
    wrapped = make_guard(max_attempts=1).wrap(lambda _: iter(cut(UNFIT)), form=lambda text: {"said": text})
    found = list(wrapped("had beer and what now?"))

    assert found[0] == "Sure thing."
    assert DRIVING.text in found[-1]["said"]
    assert len(found) == 2


def test_the_page_on_streaming_runs_as_it_stands():
    page = (Path(__file__).parent.parent / "docs" / "streaming.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    said, names = [], {"print": lambda *texts, **_: said.append(texts[0])}
    for block in blocks:
        exec(compile(block, "streaming.md", "exec"), names)  # noqa: S102  # our own text

    assert len(blocks) == 5
    assert said[:3] == ["Cool the dough first.", " Then bake it hot.", "pass"]
    assert said[3] == ["Cool the dough first. Then bake it hot."]
    assert said[-2][-1] == {"content": None, "finish_reason": "stop"}
    assert said[-1] == ["Cool the dough.", " Then bake it."]
