"""The ONNX encoder: text to tokens, windows of tokens to embeddings and logits.

Knows nothing about conversations, rules or thresholds.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from .errors import ArtifactError, ConfigError, ModelError
from .protocols import EncoderOutput, TokenizedText

OUTPUTS = ("embedding", "violation", "level_logits")
# Windows run together are padded to the longest; more at a time only costs memory.
BATCH = 16


class OnnxEncoder:
    """A MiniLM-size encoder on ONNX Runtime, on the CPU.

    Attributes:
        dimension: size d of an embedding.
        max_tokens: longest window, special tokens included.
        cls_id: id of the token that begins a window.
        sep_id: id of the token that ends a turn.
    """

    def __init__(self, folder: Path, *, max_tokens: int, dimension: int, threads: int = 1) -> None:
        """Load `model.onnx` and `tokenizer.json` from a folder.

        Args:
            folder: where the two files are.
            max_tokens: longest window, special tokens included.
            dimension: size of an embedding, as the manifest says.
            threads: intra-op threads. One by default: with a busy neighbour more threads are slower.

        Raises:
            ArtifactError: a file is missing or is not what it should be.
            ConfigError: `threads` is below 1.
        """
        if threads < 1:
            raise ConfigError(f"expected threads >= 1, got {threads}")
        self.dimension = dimension
        self.max_tokens = max_tokens
        self._tokenizer = _load_tokenizer(folder / "tokenizer.json")
        self.cls_id, self.sep_id, self._pad_id = (
            _special_id(self._tokenizer, token) for token in ("[CLS]", "[SEP]", "[PAD]")
        )
        self._session = _load_session(folder / "model.onnx", threads)

    def tokenize(self, text: str) -> TokenizedText:
        """Return the tokens of a text; "[SEP]" written in the text stays ordinary text."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return TokenizedText(encoding.ids, encoding.offsets)

    def encode(self, windows: Sequence[Sequence[int]]) -> EncoderOutput:
        """Run the model on windows of ids.

        Windows of similar length run together; the order of the result is that of the input.

        Args:
            windows: n lists of ids, special tokens included, none longer than `max_tokens`.

        Returns:
            Arrays with n rows.

        Raises:
            ModelError: the runtime failed, or the model returned something that is not finite.
        """
        n = len(windows)
        output = EncoderOutput(
            np.zeros((n, self.dimension), np.float32),
            np.zeros((n, self.dimension), np.float32),
            np.zeros((n, 3), np.float32),
        )
        order = sorted(range(n), key=lambda index: len(windows[index]))
        for start in range(0, n, BATCH):
            rows = order[start : start + BATCH]
            arrays = self._run([windows[row] for row in rows])
            for whole, part in zip(
                (output.embeddings, output.violations, output.level_logits), arrays, strict=True
            ):
                whole[rows] = part
        if not all(np.isfinite(a).all() for a in (output.embeddings, output.violations, output.level_logits)):
            raise ModelError(
                "encoder", "expected finite outputs, got NaN or infinity; the model file is broken"
            )
        return output

    def _run(self, windows: Sequence[Sequence[int]]) -> list[np.ndarray]:
        length = max(map(len, windows))
        ids = np.full((len(windows), length), self._pad_id, np.int64)
        mask = np.zeros_like(ids)
        for row, window in enumerate(windows):
            ids[row, : len(window)] = window
            mask[row, : len(window)] = 1
        try:
            arrays: list[np.ndarray] = self._session.run(OUTPUTS, {"input_ids": ids, "attention_mask": mask})
        except Exception as error:  # the runtime's own classes are private and have no common base
            raise ModelError("encoder", f"ONNX Runtime failed on a batch of shape {ids.shape}") from error
        return arrays


def _load_tokenizer(path: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(f"expected a tokenizer at {path}: {error.strerror}") from error
    except Exception as error:  # tokenizers raises plain Exception
        raise ArtifactError(f"expected a Hugging Face tokenizer file at {path}, could not read it") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # Without this a user could write "[SEP]" and forge a turn boundary.
    tokenizer.encode_special_tokens = True
    return tokenizer


def _special_id(tokenizer: Tokenizer, token: str) -> int:
    index = tokenizer.token_to_id(token)
    if index is None:
        raise ArtifactError(f"expected a tokenizer with the token {token}, got one without it")
    return index


def _load_session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    if not path.is_file():
        raise ArtifactError(f"expected a model at {path}, found none")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # Spinning threads burn a core of the host program between two calls.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ArtifactError(f"expected an ONNX model at {path}, ONNX Runtime cannot load it") from error
    names = {output.name for output in session.get_outputs()}
    if not names.issuperset(OUTPUTS):
        raise ArtifactError(
            f"expected a model with outputs {', '.join(OUTPUTS)}, got {', '.join(sorted(names))}"
        )
    return session
