"""The ONNX encoder: windows of tokens to embeddings and logits.

Knows nothing about conversations, rules or thresholds.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from .errors import ArtifactError, ConfigError, ModelError
from .protocols import EncoderOutput, TokenizedText
from .tokenizer import TextTokenizer

OUTPUTS = ("embedding", "violation", "level_logits")


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
        self._tokenizer = TextTokenizer(folder / "tokenizer.json")
        self.cls_id, self.sep_id = self._tokenizer.cls_id, self._tokenizer.sep_id
        self._session = load_session(folder / "model.onnx", threads, OUTPUTS)
        size = {output.name: output.shape[-1] for output in self._session.get_outputs()}["embedding"]
        if isinstance(size, int) and size != dimension:
            raise ArtifactError(f"expected a model of dimension {dimension} in {folder}, got {size}")

    def tokenize(self, text: str) -> TokenizedText:
        """Return the tokens of a text; "[SEP]" written in the text stays ordinary text."""
        return self._tokenizer.tokenize(text)

    def encode(self, windows: Sequence[Sequence[int]]) -> EncoderOutput:
        """Run the model on windows of ids, one at a time.

        One at a time, because the int8 model scales activations per run: in a batch a window's
        result would depend on its neighbours. It also needs no padding.

        Args:
            windows: n lists of ids, special tokens included, none longer than `max_tokens`.

        Returns:
            Arrays with n rows.

        Raises:
            ModelError: the runtime failed, or the model returned something that is not finite.
        """
        n = len(windows)
        embeddings = np.zeros((n, self.dimension), np.float32)
        violations = np.zeros((n, self.dimension), np.float32)
        level_logits = np.zeros((n, 3), np.float32)
        for row, window in enumerate(windows):
            embeddings[row], violations[row], level_logits[row] = self._run(window)
        return finite(EncoderOutput(embeddings, violations, level_logits))

    def _run(self, window: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        ids = np.array([window], np.int64)
        try:
            embedding, violation, logits = self._session.run(
                OUTPUTS, {"input_ids": ids, "attention_mask": np.ones_like(ids)}
            )
        except Exception as error:  # the runtime's own classes are private and have no common base
            raise ModelError("encoder", f"ONNX Runtime failed on a window of {ids.size} tokens") from error
        return embedding[0], violation[0], logits[0]


def finite(output: EncoderOutput) -> EncoderOutput:
    """Return the output as it is.

    Raises:
        ModelError: something in it is NaN or infinite.
    """
    if not all(np.isfinite(a).all() for a in (output.embeddings, output.violations, output.level_logits)):
        raise ModelError("encoder", "expected finite outputs, got NaN or infinity; the model file is broken")
    return output


def load_session(path: Path, threads: int, outputs: Sequence[str]) -> onnxruntime.InferenceSession:
    """Load a model for the CPU.

    Raises:
        ArtifactError: there is none, it cannot be loaded, or it lacks an output.
    """
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
    if not names.issuperset(outputs):
        raise ArtifactError(
            f"expected a model with outputs {', '.join(outputs)}, got {', '.join(sorted(names))}"
        )
    return session
