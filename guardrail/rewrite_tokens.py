"""Between text and the tokens of a rewrite model. Knows tokenizers of transformers without importing it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from .rewrite_format import (
    MAX_TURN_CHARACTERS,
    MAX_TURNS,
    RewriteInput,
    as_chat,
    as_source,
    bounded,
    without_system,
)
from .rewrite_text import recased
from .types import Turn

# How a model reads: an encoder-decoder its source, a causal model a text that it goes on with.
Kind = Literal["seq2seq", "causal"]
LEAST_CHARACTERS = 12


def source_ids(tokenizer: Any, kind: Kind, item: RewriteInput, max_tokens: int) -> list[int]:
    """Return the tokens of what a rewrite model reads.

    Text that reads like a special token ("[SEP]", "<|im_end|>") stays text. Of what is too long the
    oldest turns go first, then the ends of the last turn and of the draft; the format itself is not cut.

    Args:
        tokenizer: of transformers.
        kind: "seq2seq", or "causal" for a model that reads a chat.
        item: what to read.
        max_tokens: most tokens.

    Raises:
        jinja2.TemplateError: the chat template refuses the chat.
    """
    if _reads_chat(tokenizer, kind):
        item = _defused(tokenizer, bounded(item))
    ids: list[int] = []
    for turns in range(min(len(item.turns), MAX_TURNS), 0, -1):
        ids = _ids(tokenizer, kind, item, turns)
        if len(ids) <= max_tokens:
            return ids
    limit = MAX_TURN_CHARACTERS
    while len(ids) > max_tokens and limit > LEAST_CHARACTERS:
        limit //= 2
        ids = _ids(tokenizer, kind, _cut(item, limit), 1)
    return ids[:max_tokens]


def end_id(tokenizer: Any) -> int:
    """Return the id of the token that ends a reply: BERT's tokenizers call it separator."""
    return int(tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id)


def texts_of(tokenizer: Any, replies: Sequence[Sequence[int]]) -> list[str]:
    """Return replies as text; what an uncased tokenizer took away is put back as far as can be known."""
    texts: list[str] = tokenizer.batch_decode(replies, skip_special_tokens=True)
    return list(map(recased, texts)) if _is_uncased(tokenizer) else texts


def _is_uncased(tokenizer: Any) -> bool:
    upper, lower = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("The", "the"))
    return bool(upper == lower and tokenizer.decode(lower) == "the")


def _reads_chat(tokenizer: Any, kind: Kind) -> bool:
    return kind == "causal" and tokenizer.chat_template is not None


def _ids(tokenizer: Any, kind: Kind, item: RewriteInput, turns: int) -> list[int]:
    if _reads_chat(tokenizer, kind):
        text = _rendered(tokenizer, as_chat(item, turns))
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids
    ids = tokenizer(as_source(item, turns), split_special_tokens=True)["input_ids"]
    # A causal model goes on from here: what ends a text would end it before it has begun.
    return ids[:-1] if kind == "causal" and ids[-1:] == [tokenizer.eos_token_id] else ids


def _rendered(tokenizer: Any, chat: Sequence[dict[str, str]]) -> str:
    from jinja2 import TemplateError  # comes with torch, and no chat template works without it

    def write(messages: Sequence[dict[str, str]]) -> str:
        text: str = tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=False,
            enable_thinking=False,  # known to templates of models that would think aloud first
        )
        return text

    try:
        text = write(chat)
    except TemplateError:
        text = ""
    # Some templates refuse a system message, others leave it out without a word.
    return text if chat[0]["content"] in text else write(without_system(chat))


def _defused(tokenizer: Any, item: RewriteInput) -> RewriteInput:
    """Break what reads like a special token: in a rendered chat nothing else tells it from one."""
    names = sorted({*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}, key=len, reverse=True)

    def plain(text: str) -> str:
        for name in names:
            if len(name) > 1:
                text = text.replace(name, f"{name[0]} {name[1:]}")
        return text

    return RewriteInput(
        tuple(Turn(turn.role, plain(turn.text)) for turn in item.turns),
        tuple(map(plain, item.rules)),
        plain(item.draft),
    )


def _cut(item: RewriteInput, limit: int) -> RewriteInput:
    turns = tuple(Turn(turn.role, turn.text[:limit]) for turn in item.turns)
    return replace(item, turns=turns, draft=item.draft[:limit])
