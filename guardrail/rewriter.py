"""The rewrite model at run time: it writes replies that could stand in for an unsafe one.

Its folder holds a model of transformers in safetensors, its tokenizer, and `rewriter.json`: how the
model reads, its limits, and the hash of every other file. Torch is imported when a model is loaded.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from .artifact import FileEntry, file_entry, read_listing, verify_file, visible_files
from .errors import ArtifactError, ConfigError, MissingDependencyError, ModelError
from .rewrite_format import RewriteInput
from .rewrite_text import whole_sentences
from .rewrite_tokens import Kind, source_ids, texts_of

DESCRIPTION = "rewriter.json"
FORMAT: Literal[1] = 1
# Weights in any other format can run code when they are read.
SAFE_SUFFIXES = frozenset({".json", ".safetensors", ".txt"})
TOP_P = 0.9
TEMPERATURE = 0.8
MOST = 32  # replies at once


class Description(BaseModel):
    """What the folder of a rewrite model holds.

    Attributes:
        format: version of this layout.
        kind: how the model reads.
        base: what it was trained from; for people.
        max_source_tokens: longest input.
        max_reply_tokens: longest reply.
        files: every other file in the folder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = FORMAT
    kind: Kind
    base: str
    max_source_tokens: Annotated[int, Field(ge=16, le=65536)]
    max_reply_tokens: Annotated[int, Field(ge=1, le=4096)]
    files: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")], FileEntry]


class TransformersRewriter:
    """A rewrite model of transformers, on CPU or GPU. Threads may share one; they take turns."""

    def __init__(
        self, model: Any, tokenizer: Any, description: Description, *, threads: int | None = 1
    ) -> None:
        """Take a loaded model; `load` reads one from a folder.

        Args:
            model: of transformers.
            tokenizer: its tokenizer.
            description: how it reads, and its limits.
            threads: of one run on a CPU; None takes what torch is set to. More than one can be many times
                slower where other programs keep the CPU busy.

        Raises:
            ConfigError: threads below 1.
        """
        if threads is not None and threads < 1:
            raise ConfigError(f"expected at least one thread, got {threads}")
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._description = description
        self._threads = threads
        self._lock = threading.Lock()  # a tokenizer cannot be used by two threads, nor a GPU well

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        device: str | None = None,
        threads: int | None = 1,
        int8: bool = False,
    ) -> TransformersRewriter:
        """Check every hash in a folder that `guardrail train rewriter` wrote, then load the model.

        Args:
            folder: RUN/model.
            device: a device of torch, such as "cpu" or "cuda:1"; None takes a GPU if there is one.
            threads: of one run on a CPU; None takes what torch is set to. More than one can be many times
                slower where other programs keep the CPU busy.
            int8: on a CPU, quantise the linear layers: two to three times as fast, and not quite the same
                replies. On any other device it changes nothing.

        Raises:
            ArtifactError: the folder is missing, incomplete, altered, holds what it should not, or no model.
            ConfigError: threads below 1, or a device that does not exist here.
            MissingDependencyError: torch or transformers are not installed.
        """
        try:
            from .torch_rewriter import load
        except ImportError as error:
            raise MissingDependencyError("transformers", "rewrite") from error
        place = Path(folder)
        description = read_description(place)
        model, tokenizer = load(place, description.kind, device, int8=int8)
        return cls(model, tokenizer, description, threads=threads)

    def rewrite(
        self, item: RewriteInput, *, count: int = 4, seed: int = 0, seconds: float | None = None
    ) -> tuple[str, ...]:
        """Return replies to a conversation, the likeliest first: one decoded greedily, the others drawn.

        They are whole sentences: one that was not brought to its end is left out, and so are replies of which
        nothing is left, and doubles. None of them has been judged.

        Args:
            item: what to answer.
            count: most replies, [1, 32]; all are written in one batch.
            seed: of the draws; the same one gives the same replies. Other random states are left alone.
            seconds: stop writing after so long, and keep what is whole by then; None for no limit.

        Returns:
            0 to `count` replies.

        Raises:
            ConfigError: `count` is out of range.
            ModelError: torch failed.
        """
        if not 1 <= count <= MOST:
            raise ConfigError(f"expected a count of 1 to {MOST}, got {count}")
        moment = None if seconds is None else time.monotonic() + seconds
        if not self._lock.acquire(timeout=-1 if seconds is None else max(0.0, seconds)):
            return ()
        try:
            texts = self._written(item, count, seed, moment)
        except Exception as error:  # out of memory, a device that went away: torch has no common base
            raise ModelError("rewriter", f"torch failed on {count} replies") from error
        finally:
            self._lock.release()
        whole = [whole_sentences(text) for text in texts]
        return tuple(dict.fromkeys(text for text in whole if text))

    def _written(self, item: RewriteInput, count: int, seed: int, moment: float | None) -> list[str]:
        from .torch_rewriter import sample

        known = self._description
        ids = source_ids(self._tokenizer, known.kind, item, known.max_source_tokens)
        replies = sample(
            self._model,
            self._tokenizer,
            known.kind,
            ids,
            count=count,
            seed=seed,
            top_p=TOP_P,
            temperature=TEMPERATURE,
            max_new_tokens=known.max_reply_tokens,
            moment=moment,
            threads=self._threads,
        )
        return texts_of(self._tokenizer, replies)


def read_description(folder: Path) -> Description:
    """Read `rewriter.json` and check every file in the folder against it.

    Raises:
        ArtifactError: something is missing, altered, a link, or not listed.
    """
    path = folder / DESCRIPTION
    missing = f"expected {DESCRIPTION} in {folder}, found none; is it RUN/model of guardrail train rewriter?"
    description = read_listing(path, Description, f"format {FORMAT} in {path}", missing)
    found = {item.relative_to(folder).as_posix() for item in visible_files(folder)} - {DESCRIPTION}
    for name in sorted(found ^ set(description.files)):
        what = "is not listed" if name in found else "is missing"
        raise ArtifactError(f"expected the files that {path} lists, {name} {what}; fetch the model again")
    for name, entry in description.files.items():
        if Path(name).suffix not in SAFE_SUFFIXES:
            raise ArtifactError(f"expected only safetensors, JSON and text in {folder}, found {name}")
        verify_file(folder, name, entry)
    return description


def write_rewriter(
    folder: Path,
    model: Any,
    tokenizer: Any,
    *,
    kind: Kind,
    base: str,
    max_source_tokens: int,
    max_reply_tokens: int,
) -> None:
    """Write the folder of a rewrite model.

    Args:
        folder: made if absent.
        model: of transformers.
        tokenizer: its tokenizer.
        kind: how it reads.
        base: what it was trained from.
        max_source_tokens: longest input.
        max_reply_tokens: longest reply.
    """
    model.save_pretrained(folder)
    # Else a chat template becomes a file of its own, in another format.
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    files = {path.name: file_entry(path) for path in visible_files(folder) if path.name != DESCRIPTION}
    description = Description(
        kind=kind,
        base=base,
        max_source_tokens=max_source_tokens,
        max_reply_tokens=max_reply_tokens,
        files=files,
    )
    (folder / DESCRIPTION).write_text(description.model_dump_json(indent=2) + "\n", encoding="utf-8")
