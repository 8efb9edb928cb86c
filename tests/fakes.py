"""Fakes that implement the library's protocols. They go through the real door; nothing is patched.

`WordEncoder` reads words: the judged turn is unsafe if it holds "drive" while "beer" stands anywhere
in the window, unless it also holds "taxi" or "shouldn"; grave if it also holds "kids". Rules are near
a conversation with which they share words.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from guardrail import Guardrail
from guardrail.protocols import EncoderOutput, TokenizedText
from guardrail.rules import Rule

WORD = re.compile(r"\w+|[^\w\s]")
VOCABULARY = 4096


def word_id(word: str) -> int:
    """Return a stable id of a word, above the special ones."""
    return 10 + zlib.crc32(word.lower().encode("utf-8", "replace")) % VOCABULARY


class WordEncoder:
    """A tiny deterministic encoder without a model."""

    cls_id = 1
    sep_id = 2

    def __init__(self, dimension: int = 64, max_tokens: int = 128) -> None:
        self.dimension = dimension
        self.max_tokens = max_tokens
        self.calls = 0

    def tokenize(self, text: str) -> TokenizedText:
        found = list(WORD.finditer(text))
        return TokenizedText([word_id(m.group()) for m in found], [m.span() for m in found])

    def encode(self, windows: Sequence[Sequence[int]]) -> EncoderOutput:
        self.calls += 1
        assert all(len(window) <= self.max_tokens for window in windows)
        embeddings = np.stack([self._embed(window) for window in windows])
        logits = np.stack([self._logits(window) for window in windows])
        return EncoderOutput(embeddings, embeddings * 8 - 1, logits)

    def _embed(self, window: Sequence[int]) -> np.ndarray:
        vector = np.zeros(self.dimension, np.float32)
        for token in window:
            if token > 9:
                vector[token % self.dimension] += 1
        vector[0] += 1e-3  # never the zero vector
        return (vector / np.linalg.norm(vector)).astype(np.float32)

    def _logits(self, window: Sequence[int]) -> np.ndarray:
        judged = window[: list(window).index(self.sep_id)]
        says = {word: word_id(word) in judged for word in ("drive", "kids", "taxi", "shouldn")}
        warns = says["taxi"] or says["shouldn"]
        unsafe = says["drive"] and word_id("beer") in window and not warns
        grave = unsafe and says["kids"]
        return np.array([0.0, 6.0 if unsafe else -6.0, 8.0 if grave else -8.0], np.float32)


class BrokenEncoder(WordEncoder):
    """Fails the way it is told to; works for rules made before `broken`.

    "raises", "nan", "shape" (embeddings too narrow), "nan-logits" (only the levels are NaN),
    "two-logits" (a level is missing), "no-rows" (nothing comes back).
    """

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.broken = False

    def encode(self, windows: Sequence[Sequence[int]]) -> EncoderOutput:
        output = super().encode(windows)
        if not self.broken:
            return output
        if self.how == "raises":
            raise RuntimeError("secret user text")
        if self.how == "nan":
            return EncoderOutput(output.embeddings * np.nan, output.violations, output.level_logits)
        if self.how == "nan-logits":
            return EncoderOutput(output.embeddings, output.violations, output.level_logits * np.nan)
        if self.how == "two-logits":
            return EncoderOutput(output.embeddings, output.violations, output.level_logits[:, :2])
        if self.how == "no-rows":
            return EncoderOutput(output.embeddings[:0], output.violations[:0], output.level_logits[:0])
        return EncoderOutput(output.embeddings[:, :3], output.violations, output.level_logits)


DRIVING = Rule.model_validate(
    {
        "id": "driving-001",
        "rule": "You shouldn't drive after beer, however short the way.",
        "domain": "driving",
        "severity": "needs_intervention",
        "violations": [
            {"turns": ["four beer and now i drive home"], "level": "needs_intervention"},
            {"turns": ["had beer", "Have fun and drive safely!"], "level": "needs_caution"},
        ],
        "near_misses": [{"turns": ["four beer so i take a taxi and leave the car"]}],
        "replies": [
            {"to": 0, "reply": "Please leave the car. A taxi is cheaper than the rest of your life."},
            {"to": 1, "reply": "Could somebody pick you up instead?"},
        ],
    }
)
PRIVACY = Rule.model_validate(
    {"id": "privacy-001", "rule": "You shouldn't read a partner's messages.", "domain": "privacy"}
)

UNSAFE = "four beer and now i drive home"
GRAVE = "four beer and now i drive the kids home"
SAFE = "we baked bread today and it was lovely"
SAFE_REPLY = "Please take a taxi tonight."
UNSAFE_REPLY = "Have another beer and drive off!"


ENDINGS = ("now", "please", "so", "and", "we do", "is it not", "to a friend", "the kids")


def many_rules() -> tuple[Rule, ...]:
    """Return forty rules with an unsafe and a safe dialogue each, some of them in every split.

    They share few words: rules that say nearly the same would all be in one split.
    """
    return tuple(
        Rule.model_validate(
            {
                "id": f"r-{number}",
                "rule": f"Keep beer{number} off road{number}.",
                "domain": "driving",
                "severity": "needs_intervention",
                "violations": [{"turns": [f"{UNSAFE} {ending}"], "level": "needs_intervention"}],
                "near_misses": [{"turns": [f"{SAFE} {ending}"]}],
            }
        )
        for number in range(40)
        for ending in [ENDINGS[number % len(ENDINGS)]]
    )


def make_guard(**settings: object) -> Guardrail:
    """Return a guard on the fake encoder with two rules."""
    from guardrail.config import GuardConfig

    return Guardrail(WordEncoder(), [DRIVING, PRIVACY], config=GuardConfig.of(**settings))


class ScriptedLLM:
    """Returns its replies one after the other, the last one for ever, and keeps what it was sent."""

    def __init__(self, *replies: object) -> None:
        self.replies = list(replies)
        self.requests: list[object] = []

    def __call__(self, messages: object) -> object:
        self.requests.append(messages)
        reply = self.replies[min(len(self.requests), len(self.replies)) - 1]
        if isinstance(reply, BaseException):
            raise reply
        return reply

    async def acall(self, messages: object) -> object:
        return self(messages)


def tiny_model_folder(folder: Path) -> Path:
    """Write `model.onnx` and `tokenizer.json` of a tiny random encoder (d = 4); needs onnx."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "user", "assistant", "beer", "drive"]
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    vocabulary = {word: n for n, word in enumerate([*words, *letters, *(f"##{c}" for c in letters)])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(words[:5])
    tokenizer.save(str(folder / "tokenizer.json"))

    rng = np.random.default_rng(0)
    table = rng.normal(size=(len(vocabulary), 4)).astype(np.float32)
    head = rng.normal(size=(4, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["tokens"]),
            helper.make_node("ReduceMean", ["tokens", "axis"], ["violation"], keepdims=0),
            helper.make_node("LpNormalization", ["violation"], ["embedding"], axis=-1, p=2),
            helper.make_node("MatMul", ["violation", "head"], ["level_logits"]),
        ],
        "tiny",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "t"])
            for name in ("input_ids", "attention_mask")
        ],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size])
            for name, size in (("embedding", 4), ("violation", 4), ("level_logits", 3))
        ],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(head, "head"),
            numpy_helper.from_array(np.array([1], np.int64), "axis"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, str(folder / "model.onnx"))
    return folder
