"""The relevance model: reads a statement and a conversation together, on ONNX Runtime.

Tells whether a rule of thumb or a reply is about the conversation, and whether the last turn breaks
the rule. Slower than a look into the index, so it reads only what was retrieved or proposed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from .artifact import FileEntry, file_entry, read_listing, verify_file
from .calibration import Platt
from .conversation import turn_text
from .encoder import load_session
from .errors import ArtifactError, ModelError
from .normalize import normalize
from .tokenizer import TextTokenizer
from .types import Turn

MANIFEST = "relevance.json"
File = Literal["model.onnx", "tokenizer.json"]
FILES: tuple[File, ...] = get_args(File)
OUTPUT = "logits"
LOGITS = 2
# Of a statement, tokens; the end of a longer one is cut.
STATEMENT_TOKENS = 72
# Shortest limit of an input: beside the longest statement, some of the last turn is still read.
MIN_TOKENS = 96
# No token stands for more: the tokenizer cuts longer words. What lies beyond cannot fit into an input.
CHARACTERS_A_TOKEN = 100


class Settings(BaseModel):
    """What the folder holds.

    Attributes:
        format: version of this layout.
        max_tokens: longest input, tokens.
        about: calibration of the first logit.
        broken: of the second.
        files: size and hash of the model and the tokenizer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    max_tokens: Annotated[int, Field(ge=MIN_TOKENS, le=4096)]
    about: Platt
    broken: Platt
    files: dict[File, FileEntry]


@dataclass(frozen=True, slots=True)
class Relation:
    """How a statement relates to a conversation.

    Attributes:
        about: P(the statement is about this conversation), [0, 1].
        broken: P(the last turn breaks it), [0, 1]; means something for rules alone.
    """

    about: float
    broken: float


class PairTokenizer:
    """Writes a statement and a conversation as the model reads them, in training and at run time alike.

    `[CLS] statement [SEP] newest turn [SEP] older turn [SEP] ... [SEP]`
    """

    def __init__(self, path: Path, max_tokens: int) -> None:
        """Load a tokenizer.

        Args:
            path: its `tokenizer.json`.
            max_tokens: longest input, tokens; at least `MIN_TOKENS`.

        Raises:
            ArtifactError: the file is missing, is no tokenizer, or has no [CLS] or [SEP].
        """
        self._tokenizer = TextTokenizer(path)
        self._max_tokens = max_tokens

    def conversation(self, texts: Iterable[str]) -> list[int]:
        """Return the ids of a conversation, for `pair`; as many as may be needed.

        Args:
            texts: its turns, the newest first, each normalised and with its speaker.
        """
        ids: list[int] = []
        for text in texts:
            ids += [*self._read(text), self._tokenizer.sep_id]
            if len(ids) > self._max_tokens:
                break
        return ids[:-1]

    def pair(self, statement: str, conversation: Sequence[int]) -> list[int]:
        """Return the ids of an input; what does not fit is the oldest of the conversation."""
        cls_id, sep_id = self._tokenizer.cls_id, self._tokenizer.sep_id
        head = self._read(normalize(statement).text)[:STATEMENT_TOKENS]
        room = self._max_tokens - len(head) - 3
        return [cls_id, *head, sep_id, *conversation[:room], sep_id]

    def _read(self, text: str) -> list[int]:
        return self._tokenizer.tokenize(text[: self._max_tokens * CHARACTERS_A_TOKEN]).ids


class OnnxRelevance:
    """A small cross-encoder, on the CPU. Safe to use from many threads."""

    def __init__(self, folder: Path, *, threads: int = 1) -> None:
        """Check the hashes of a folder that `guardrail train relevance` wrote, and load it.

        Args:
            folder: holds `relevance.json`, `model.onnx` and `tokenizer.json`.
            threads: intra-op threads.

        Raises:
            ArtifactError: a file is missing, altered or not what it should be.
        """
        settings = _checked(folder)
        self._about, self._broken = settings.about, settings.broken
        self._tokenizer = PairTokenizer(folder / "tokenizer.json", settings.max_tokens)
        self._session = load_session(folder / "model.onnx", threads, (OUTPUT,))
        (shape,) = [output.shape for output in self._session.get_outputs() if output.name == OUTPUT]
        if shape[-1:] != [LOGITS]:
            raise ArtifactError(f"expected a model with {LOGITS} logits in {folder}, got the shape {shape}")

    def relations(self, turns: Sequence[Turn], statements: Sequence[str]) -> list[Relation]:
        """Read each statement together with a conversation.

        Args:
            turns: the conversation, oldest first, at least one turn; the oldest are cut if it is long.
            statements: rules of thumb or replies, in any number.

        Raises:
            ModelError: the runtime failed, or the model returned something that is not finite.
        """
        conversation = self._tokenizer.conversation(_newest_first(turns))
        return [self._relation(self._tokenizer.pair(statement, conversation)) for statement in statements]

    def _relation(self, ids: list[int]) -> Relation:
        row = np.array([ids], np.int64)
        try:
            (logits,) = self._session.run((OUTPUT,), {"input_ids": row, "attention_mask": np.ones_like(row)})
        except Exception as error:  # the runtime's own classes are private and have no common base
            raise ModelError("relevance", f"ONNX Runtime failed on {row.size} tokens") from error
        if not np.isfinite(logits).all():
            raise ModelError("relevance", "expected finite logits, got NaN or infinity; the file is broken")
        about, broken = self._about(logits[:, 0]), self._broken(logits[:, 1])
        return Relation(float(about[0]), float(broken[0]))


def _newest_first(turns: Sequence[Turn]) -> Iterator[str]:
    """Yield the turns as they are read, normalised; earlier blank ones say nothing and are left out."""
    for age, turn in enumerate(reversed(turns)):
        text = normalize(turn.text).text
        if age == 0 or text.strip():
            yield turn_text(Turn(turn.role, text))


def write_manifest(folder: Path, *, max_tokens: int, about: Platt, broken: Platt) -> None:
    """Hash the files in a folder and write `relevance.json`.

    Args:
        folder: holds `model.onnx` and `tokenizer.json`.
        max_tokens: longest input, tokens, from `MIN_TOKENS` to 4096.
        about: calibration of the first logit.
        broken: of the second.
    """
    files = {name: file_entry(folder / name) for name in FILES}
    settings = Settings(max_tokens=max_tokens, about=about, broken=broken, files=files)
    (folder / MANIFEST).write_text(settings.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _checked(folder: Path) -> Settings:
    path = folder / MANIFEST
    missing = f"expected a relevance model in {folder}, found no {MANIFEST}"
    settings = read_listing(path, Settings, f"settings of a relevance model in {path}", missing)
    for name in FILES:
        if name not in settings.files:
            raise ArtifactError(f"expected {name} in {path}, it is not listed")
        verify_file(folder, name, settings.files[name])
    return settings
