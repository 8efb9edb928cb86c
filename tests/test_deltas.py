"""Pieces of a message, as OpenAI-compatible APIs stream them, added up."""

import copy
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail.deltas import merge_deltas


def test_text_is_joined_and_names_are_not():
    found = merge_deltas(
        [
            {"role": "assistant", "content": ""},
            {"role": "assistant", "content": "Hel"},
            {"content": "lo"},
            {"content": None},
        ]
    )
    assert found == {"role": "assistant", "content": "Hello"}


def test_null_gives_way_and_stays_if_nothing_else_comes():
    assert merge_deltas([{"content": None, "refusal": None}, {"content": "Hi"}]) == {
        "content": "Hi",
        "refusal": None,
    }


def test_tool_calls_are_joined_by_their_index():
    deltas = [
        {
            "tool_calls": [
                {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"x"'}}]},
        {"tool_calls": [{"index": 1, "id": "b", "function": {"name": "g", "arguments": "{}"}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]},
    ]
    before = copy.deepcopy(deltas)

    assert merge_deltas(deltas)["tool_calls"] == [
        {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}},
        {"index": 1, "id": "b", "function": {"name": "g", "arguments": "{}"}},
    ]
    assert deltas == before


def test_calls_in_one_delta_with_one_index_are_one():
    found = merge_deltas([{"tool_calls": [{"index": 0, "x": "a"}, {"index": 0, "x": "b"}]}])
    assert found["tool_calls"] == [{"index": 0, "x": "ab"}]


def test_lists_without_index_are_joined_end_to_end():
    assert merge_deltas([{"parts": [1, {"a": 1}]}, {"parts": ["x"]}]) == {"parts": [1, {"a": 1}, "x"]}


def test_numbers_are_the_last_and_dicts_are_merged():
    found = merge_deltas([{"usage": {"in": 1}, "n": 1}, {"usage": {"out": 2}, "n": 2}])
    assert found == {"usage": {"in": 1, "out": 2}, "n": 2}


def test_a_value_of_another_kind_takes_the_place():
    assert merge_deltas([{"content": "a"}, {"content": [{"text": "b"}]}, {"content": {"c": "d"}}]) == {
        "content": {"c": "d"}
    }


def test_nothing_gives_nothing():
    assert merge_deltas([]) == {}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.text(max_size=30), st.lists(st.integers(0, 30)))
def test_any_split_of_a_text_gives_it_back(text, ends):
    marks = sorted({0, len(text), *(min(end, len(text)) for end in ends)})
    deltas = [{"content": text[a:b], "role": "assistant"} for a, b in zip(marks, marks[1:], strict=False)]
    assert merge_deltas(deltas).get("content", "") == text


def test_the_work_grows_with_the_stream_and_not_with_its_square():
    deltas = [{"calls": [{"index": index, "name": "f"}]} for index in range(20_000)]
    start = time.process_time()

    assert len(merge_deltas(deltas)["calls"]) == 20_000
    assert time.process_time() - start < 1.0


def test_the_pieces_stay_as_they_are():
    deltas = [{"a": {"b": ["x"]}, "c": [{"index": 0, "d": {"e": "f"}}]} for _ in range(2)]
    before = copy.deepcopy(deltas)

    assert merge_deltas(deltas) == {"a": {"b": ["x", "x"]}, "c": [{"index": 0, "d": {"e": "ff"}}]}
    assert deltas == before
