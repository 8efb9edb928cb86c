"""Every accepted form of messages, and what is said about the others."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail import InputError, Turn
from guardrail.conversation import ROLES, read_conversation, read_reply, turn_text

CALL = {"id": "1", "type": "function", "function": {"name": "send", "arguments": '{"to": "Ann"}'}}
IMAGE = {"type": "image_url", "image_url": {"url": "https://x.example/y.png"}}


def pairs(messages):
    return [(turn.role, turn.text) for turn in read_conversation(messages).turns]


TWO = [("user", "hello"), ("assistant", "hi")]

ACCEPTED = {
    "string": ("hello", [("user", "hello")]),
    "blank string": ("", [("user", "")]),
    "strings in turn": (["a", "b", "c"], [("user", "a"), ("assistant", "b"), ("user", "c")]),
    "strings in a generator": ((text for text in ["a", "b"]), [("user", "a"), ("assistant", "b")]),
    "tuples": ([("user", "hello"), ("assistant", "hi")], TWO),
    "tuples in LangChain's words": ([("human", "hello"), ("ai", "hi")], TWO),
    "dicts": ([{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}], TWO),
    "dicts with type": ([{"type": "human", "content": "hello"}, {"type": "ai", "content": "hi"}], TWO),
    "one dict": ({"role": "assistant", "content": "hi"}, [("assistant", "hi")]),
    "roles in capitals": ([{"role": "User", "content": "hello"}, ("ASSISTANT", "hi")], TWO),
    "objects with a role": (
        [SimpleNamespace(role="user", content="hello"), SimpleNamespace(role="model", content="hi")],
        TWO,
    ),
    "one object": (SimpleNamespace(role="user", content="hello"), [("user", "hello")]),
    "a mix": (["hello", {"role": "assistant", "content": "hi"}, "c"], [*TWO, ("user", "c")]),
    "system left out": ([{"role": "system", "content": "be kind"}, "hello", "hi"], TWO),
    "developer left out": ([{"role": "developer", "content": "be kind"}, ("user", "x")], [("user", "x")]),
    "ends with system": ([("user", "hello"), ("assistant", "hi"), ("system", "stop")], TWO),
    "ends with tool": ([("user", "hello"), ("tool", "result")], [("user", "hello"), ("tool", "result")]),
    "function is a tool": ([("function", "result")], [("tool", "result")]),
    "tool dict": ([{"role": "tool", "tool_call_id": "1", "content": "result"}], [("tool", "result")]),
    "None content": ([{"role": "assistant", "content": None}], [("assistant", "")]),
    "missing content": ([{"role": "assistant"}], [("assistant", "")]),
    "content parts": (
        [{"role": "user", "content": [{"type": "text", "text": "a"}, IMAGE, {"type": "text", "text": "b"}]}],
        [("user", "a\nb")],
    ),
    "Responses API parts": (
        [{"role": "user", "content": [{"type": "input_text", "text": "a"}]}],
        [("user", "a")],
    ),
    "parts as strings": (
        [{"role": "user", "content": ["a", {"type": "text", "text": "b"}]}],
        [("user", "a\nb")],
    ),
    "refusal": (
        [("user", "x"), {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}],
        [("user", "x"), ("assistant", "no")],
    ),
    "thinking": (
        [{"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}]}],
        [("assistant", "hm")],
    ),
    "tool calls without text": (
        [{"role": "assistant", "content": None, "tool_calls": [CALL]}],
        [("assistant", 'send {"to": "Ann"}')],
    ),
    "tool calls beside text": (
        [{"role": "assistant", "content": "ok", "tool_calls": [CALL, CALL]}],
        [("assistant", 'ok\nsend {"to": "Ann"}')],
    ),
    "tool calls in LangChain's form": (
        [
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"name": "send", "args": {"to": "Zo\xeb"}, "id": "1"}],
            }
        ],
        [("assistant", 'send {"to": "Zo\xeb"}')],
    ),
    "the old function call": (
        [{"role": "assistant", "content": None, "function_call": CALL["function"]}],
        [("assistant", 'send {"to": "Ann"}')],
    ),
    "tool calls None": ([{"role": "assistant", "content": "ok", "tool_calls": None}], [("assistant", "ok")]),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_every_accepted_form_is_read(name):
    messages, expected = ACCEPTED[name]

    assert pairs(messages) == expected


@pytest.mark.parametrize("role", ROLES)
def test_every_known_role_is_read(role):
    turns = pairs([(role, "x"), ("user", "y")])

    assert turns[-1] == ("user", "y")
    assert turns[:-1] == ([] if ROLES[role] == "system" else [(ROLES[role], "x")])


def test_the_judged_turn_is_the_last_that_is_not_the_apps():
    conversation = read_conversation(
        [("system", "a"), ("user", "b"), ("system", "c"), ("assistant", "d"), ("system", "e")]
    )

    assert conversation.judged == Turn("assistant", "d")
    assert conversation.positions == (1, 3)


def test_strings_take_turns_whatever_system_messages_stand_between():
    messages = [{"role": "system", "content": "be kind"}, "a", ("system", "x"), "b", "c"]

    assert pairs(messages) == [("user", "a"), ("assistant", "b"), ("user", "c")]


def test_parts_that_are_no_text_are_skipped_and_counted():
    audio = {"type": "input_audio", "input_audio": {"data": "x"}}
    conversation = read_conversation(
        [
            {"role": "user", "content": [IMAGE, {"type": "text", "text": "a"}, audio]},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": [IMAGE]},
        ]
    )

    assert conversation.parts_skipped == (2, 0, 1)
    assert conversation.judged == Turn("user", "")


@pytest.mark.parametrize(
    "part", [{"type": "text"}, {"type": "text", "text": None}, {"type": "text", "text": 5}, {}, None, 5, b"x"]
)
def test_a_part_without_readable_text_is_counted_not_dropped_silently(part):
    conversation = read_conversation([{"role": "user", "content": [part, {"type": "text", "text": "a"}]}])

    assert (conversation.judged.text, conversation.parts_skipped) == ("a", (1,))


# ---------------------------------------------------------------- LangChain


def test_langchain_messages_are_read():
    m = pytest.importorskip("langchain_core.messages")
    given = [
        m.SystemMessage("be kind"),
        m.HumanMessage([{"type": "text", "text": "hello"}, IMAGE]),
        m.AIMessage("", tool_calls=[{"name": "send", "args": {"to": "Ann"}, "id": "1"}]),
        m.ToolMessage("sent", tool_call_id="1"),
        m.ChatMessage("hi", role="assistant"),
        m.HumanMessageChunk("and"),
        m.AIMessageChunk("done"),
    ]

    assert pairs(given) == [
        ("user", "hello"),
        ("assistant", 'send {"to": "Ann"}'),
        ("tool", "sent"),
        ("assistant", "hi"),
        ("user", "and"),
        ("assistant", "done"),
    ]
    assert read_conversation(given).parts_skipped == (1, 0, 0, 0, 0, 0)
    assert read_conversation(given).positions == (1, 2, 3, 4, 5, 6)


def test_one_langchain_message_is_read():
    m = pytest.importorskip("langchain_core.messages")

    assert pairs(m.HumanMessage("hello")) == [("user", "hello")]


def test_langchain_prompt_values_are_read():
    prompts = pytest.importorskip("langchain_core.prompts")
    chat = prompts.ChatPromptTemplate.from_messages([("system", "be {how}"), ("user", "{text}")])
    plain = prompts.PromptTemplate.from_template("{text}")

    assert pairs(chat.invoke({"how": "kind", "text": "hello"})) == [("user", "hello")]
    assert pairs(plain.invoke({"text": "hello"})) == [("user", "hello")]


# ---------------------------------------------------------------- what cannot be read


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (None, "got NoneType"),
        (5, "got int"),
        (1.5, "got float"),
        (b"hello", "got bytes"),
        (bytearray(b"hello"), "got bytearray"),
        (object(), "got object"),
        ([], "got an empty list"),
        ((), "got an empty tuple"),
        (iter([]), "got an empty list_iterator"),
        ([None], "message 0: .+got an item of type NoneType"),
        (["a", 5], "message 1: .+got an item of type int"),
        ([b"a"], "message 0: .+got an item of type bytes"),
        ([["a"]], "message 0: .+got an item of type list"),
        ([("user", "a", "b")], "message 0: .+got an item of type tuple"),
        ([("user", 5)], "message 0: .+got an item of type tuple"),
        (
            {"content": "hello"},
            "message 0: expected a role among ai, assistant, bot, .+; got another NoneType",
        ),
        (["a", {"role": "wizard", "content": "b"}], "message 1: expected a role among .+; got another str"),
        ([{"role": 5, "content": "b"}], "message 0: expected a role among .+; got another int"),
        (
            [{"role": "user", "content": 5}],
            "message 0: expected content to be a string, None or a list.+got int",
        ),
        ([{"role": "user", "content": b"x"}], "message 0: expected content to be a string.+got bytes"),
        (
            [{"role": "user", "content": {"text": "x"}}],
            "message 0: expected content to be a string.+got dict",
        ),
        ([("system", "a")], "expected at least one user, assistant or tool message to judge, got 1 messages"),
        ([{"role": "developer", "content": "a"}, ("system", "b")], "got 2 messages without one"),
    ],
)
def test_what_cannot_be_read_is_named_by_position_and_type(messages, reason):
    with pytest.raises(InputError, match=reason):
        read_conversation(messages)


@pytest.mark.parametrize(
    "messages",
    [
        [("my secret words", "hello")],
        [{"role": "my secret words", "content": "hello"}],
        [{"role": "user", "content": {"text": "my secret words"}}],
        [("system", "my secret words")],
        [("user", "my secret words"), None],
        {"content": "my secret words"},
    ],
)
def test_no_error_holds_text(messages):
    with pytest.raises(InputError, match="expected") as caught:
        read_conversation(messages)

    assert "secret" not in str(caught.value)
    assert "secret" not in repr(caught.value)


def test_no_representation_holds_text():
    conversation = read_conversation(["my secret words", "and more secret ones"])

    assert "secret" not in repr(conversation)
    assert "secret" not in repr(conversation.turns)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text() | st.binary(),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from(["role", "type", "content", "tool_calls", "text"]), inner)
            | st.tuples(st.sampled_from(["user", "ai"]), inner)
        ),
        max_leaves=8,
    )
)
def test_anything_is_read_or_refused_with_an_input_error(messages):
    try:
        conversation = read_conversation(messages)
    except InputError:
        return
    assert len(conversation.turns) == len(conversation.positions) == len(conversation.parts_skipped) > 0


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant", "tool"]), st.text()), min_size=1))
def test_all_forms_of_one_conversation_are_read_alike(turns):
    dicts = [{"role": role, "content": text} for role, text in turns]
    parts = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]

    assert pairs(turns) == pairs(dicts) == pairs(parts) == turns


# ---------------------------------------------------------------- what an LLM returned


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ("hi", "hi"),
        ({"content": "hi"}, "hi"),
        ({"role": "assistant", "content": [{"type": "text", "text": "hi"}]}, "hi"),
        (SimpleNamespace(content="hi"), "hi"),
        ({"content": None, "tool_calls": [CALL]}, 'send {"to": "Ann"}'),
    ],
)
def test_a_reply_is_read_as_an_assistant_turn(reply, text):
    assert read_reply(reply) == (Turn("assistant", text), 0)


@pytest.mark.parametrize("reply", [None, 5, b"hi", ["hi"]])
def test_a_reply_that_cannot_be_read_is_named_by_its_type(reply):
    with pytest.raises(
        InputError, match=rf"expected the LLM to return .+ got {type(reply).__name__}; return"
    ):
        read_reply(reply)


@pytest.mark.parametrize(
    ("role", "line"), [("user", "user: x"), ("assistant", "assistant: x"), ("tool", "user: x")]
)
def test_the_encoder_reads_who_speaks(role, line):
    assert turn_text(Turn(role, "x")) == line


@pytest.mark.parametrize(
    "reply",
    [
        {"content": "Fine.", "analysis": "the secret words"},
        {"content": [{"type": "text", "text": "Fine.", "note": {"deep": ["the secret words"]}}]},
        {"message": {"role": "assistant", "content": "Fine. the secret words"}, "done": True},
        {"content": "Fine.", "scores": {"the secret words": 1}},
        {"content": "Fine.", "tool_calls": [{"id": "the secret words", "name": "f", "args": {}}]},
        SimpleNamespace(content="Fine.", analysis="the secret words"),
    ],
)
def test_words_of_a_reply_are_read_under_any_name(reply):
    turn, _ = read_reply(reply)

    assert "Fine." in turn.text
    assert "the secret words" in turn.text


def test_names_and_numbers_beside_a_reply_are_not_read():
    reply = {
        "role": "assistant",
        "content": "Fine.",
        "id": "msg_1",
        "model": "some-model-4",
        "usage": {"note": "some words"},
        "created": 17,
    }

    assert read_reply(reply)[0].text == "Fine."
