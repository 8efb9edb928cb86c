"""Conversations from text, files, stdin and JSONL batches. Knows nothing about the guard."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from ..conversation import Messages, read_conversation
from ..errors import InputError

MAX_BYTES = 16 * 1024**2
MAX_LINE_BYTES = 1024**2
FORMS = "a string, a list of strings, a list of role/content objects, or an object with 'messages' or 'turns'"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a batch: a conversation, or why there is none.

    Attributes:
        number: counted from 1.
        size: bytes, line break included.
        messages: the conversation; None if the line is broken.
        error: why it is broken; empty if it is not.
    """

    number: int
    size: int
    messages: Messages | None = field(default=None, repr=False)
    error: str = ""


def read_file(path: Path, *, plain: bool) -> Messages:
    """Read one conversation from a file: `.json` is a conversation, all else the text of one user turn.

    Args:
        path: the file.
        plain: take it as text whatever its name.

    Raises:
        InputError: it is too large, not UTF-8, a `.jsonl` file, or not a conversation.
    """
    if path.suffix.lower() in (".jsonl", ".ndjson") and not plain:
        raise InputError(f"expected one conversation, got the JSONL file {path}; pass it with --batch")
    with path.open("rb") as file:
        text = _read_text(file, str(path))
    if path.suffix.lower() != ".json" or plain:
        return text
    return parse(text, str(path))


def read_stdin(*, plain: bool) -> Messages:
    """Read one conversation from stdin: JSON if it is a list or an object, else the text of one user turn.

    Raises:
        InputError: it is too large, not UTF-8, or a list or object that is no conversation.
    """
    text = _read_text(sys.stdin.buffer, "stdin")
    if plain:
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return _conversation(value, "stdin") if isinstance(value, list | dict) else text


def read_lines(file: BinaryIO) -> Iterator[Line]:
    """Yield the lines of a JSONL batch, blank ones left out; a broken line is yielded, never raised."""
    number = 0
    while data := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        size = len(data)
        if size > MAX_LINE_BYTES:
            while not data.endswith(b"\n") and (data := file.readline(MAX_LINE_BYTES)):
                size += len(data)
            yield Line(number, size, error=f"expected at most {MAX_LINE_BYTES} bytes, got {size}")
            continue
        try:
            text = _decode(data, "the line")
            if text.strip():
                yield Line(number, size, parse(text, "the line"))
        except InputError as error:
            yield Line(number, size, error=str(error))


def parse(text: str, where: str) -> Messages:
    """Read one conversation from JSON.

    Raises:
        InputError: it is not JSON or not a conversation; says where, and never shows the text.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise InputError(f"{where}: expected {FORMS}, got JSON that is nested too deeply") from None
    except json.JSONDecodeError as error:
        reason = f"{error.msg} at line {error.lineno}, column {error.colno}"
        raise InputError(f"{where}: expected {FORMS} as JSON, got broken JSON: {reason}") from None
    except ValueError as error:
        raise InputError(f"{where}: expected {FORMS} as JSON, got broken JSON") from error
    return _conversation(value, where)


def _conversation(value: object, where: str) -> Messages:
    messages = value
    if isinstance(value, Mapping):
        key = next((name for name in ("messages", "turns") if name in value), None)
        if key is not None:
            messages = value[key]
        elif "content" not in value:
            raise InputError(f"{where}: expected {FORMS}, got an object without 'messages' or 'turns'")
    if not isinstance(messages, str | list | dict):
        raise InputError(f"{where}: expected {FORMS}, got {type(messages).__name__}")
    try:
        read_conversation(messages)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    return messages


def _read_text(file: BinaryIO, where: str) -> str:
    data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise InputError(f"{where}: expected at most {MAX_BYTES} bytes, got more; split it")
    return _decode(data, where)


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The error's own text and context hold the bytes, which are the user's.
        raise InputError(
            f"{where}: expected UTF-8, got an invalid byte at position {error.start}; save it as UTF-8"
        ) from None
