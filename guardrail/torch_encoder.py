"""The torch encoder: a trained sentence-transformers model as it was saved, on CPU or GPU.

The only file of the runtime that touches torch, and imported only when such a model is loaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from .artifact import visible_files
from .encoder import finite
from .errors import ArtifactError, MissingDependencyError, ModelError
from .protocols import EncoderOutput, TokenizedText
from .tokenizer import TextTokenizer

try:
    import torch
    from sentence_transformers import SentenceTransformer

    from .torch_tools import device_of, no_progress_bar
except ImportError as error:
    raise MissingDependencyError("sentence-transformers", "train") from error

# What `guardrail train encoder` writes. Other modules of the library may read other kinds of files.
MODULES = frozenset({"Transformer", "Pooling", "Dense", "Normalize"})
# Weights in any other format can run code when they are read.
SAFE_SUFFIXES = frozenset({".json", ".safetensors", ".txt", ".md"})
_PLACE = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]*)?")
OUTPUTS = ("sentence_embedding", "violation_embedding", "level_logits")
BATCH = 32


class TorchEncoder:
    """A trained encoder that was not exported. It gives what fp32 ONNX gives, in batches.

    How many threads torch uses on a CPU is a setting of the whole process (`torch.set_num_threads`)
    and left alone here.

    Attributes:
        dimension: size d of an embedding.
        max_tokens: longest window, special tokens included.
        cls_id: id of the token that begins a window.
        sep_id: id of the token that ends a turn.
    """

    def __init__(self, folder: Path, *, max_tokens: int, dimension: int, device: str | None = None) -> None:
        """Load a model folder of sentence-transformers from disk: safetensors only, no remote code.

        Args:
            folder: what `SentenceTransformer.save` wrote.
            max_tokens: longest window, special tokens included.
            dimension: size of an embedding, as the manifest says.
            device: a device of torch, such as "cpu" or "cuda:1"; None takes a GPU if there is one.

        Raises:
            ArtifactError: the folder is missing, holds files that are not safe to read, or no model
                with the heads of `guardrail train encoder`.
            ConfigError: the device does not exist here.
        """
        self.dimension = dimension
        self.max_tokens = max_tokens
        self._tokenizer = TextTokenizer(folder / "tokenizer.json")
        self.cls_id, self.sep_id = self._tokenizer.cls_id, self._tokenizer.sep_id
        self._device = device_of(device)
        self._model = load_model(folder, self._device)
        self._pad_id = int(self._model[0].tokenizer.pad_token_id or 0)
        self._check(folder)

    def tokenize(self, text: str) -> TokenizedText:
        """Return the tokens of a text; "[SEP]" written in the text stays ordinary text."""
        return self._tokenizer.tokenize(text)

    def encode(self, windows: Sequence[Sequence[int]]) -> EncoderOutput:
        """Run the model on windows of ids, in padded batches.

        In fp32 a window's result depends on its neighbours by rounding alone (below 1e-5).

        Args:
            windows: n lists of ids, special tokens included, none longer than `max_tokens`.

        Returns:
            Arrays with n rows.

        Raises:
            ModelError: torch failed, or the model returned something that is not finite.
        """
        sizes = (self.dimension, self.dimension, 3)
        columns = [torch.empty((len(windows), size), dtype=torch.float32) for size in sizes]
        for start in range(0, len(windows), BATCH):
            rows = slice(start, start + BATCH)
            for column, output in zip(columns, self._run(windows[rows]), strict=True):
                column[rows] = output
        return finite(EncoderOutput(*(column.numpy() for column in columns)))

    @torch.inference_mode()
    def _run(self, windows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        longest = max(map(len, windows))
        padded = [[*window, *[self._pad_id] * (longest - len(window))] for window in windows]
        try:
            ids = torch.tensor(padded, device=self._device)  # (b, t)
            lengths = torch.tensor([len(window) for window in windows], device=self._device)
            mask = (torch.arange(longest, device=self._device) < lengths[:, None]).long()  # (b, t)
            features = self._model({"input_ids": ids, "attention_mask": mask})
            # To the CPU in here: a GPU computes later than it is asked to, and fails when it is read.
            return [features[name].float().cpu() for name in OUTPUTS]
        except Exception as error:  # out of memory, a device that went away: torch has no common base
            raise ModelError(
                "encoder", f"torch failed on {len(windows)} windows of up to {longest} tokens"
            ) from error

    def _check(self, folder: Path) -> None:
        """Run the smallest window: a model without our heads, or of another size, must not start."""
        try:
            shapes = [tuple(output.shape) for output in self._run([(self.cls_id, self.sep_id)])]
        except ModelError as error:
            raise ArtifactError(
                f"expected a model with outputs {', '.join(OUTPUTS)} in {folder}, it cannot be run; "
                f"was it trained by guardrail train encoder?"
            ) from error
        expected = [(1, self.dimension), (1, self.dimension), (1, 3)]
        if shapes != expected:
            raise ArtifactError(f"expected outputs of shapes {expected} from {folder}, got {shapes}")


def load_model(folder: Path, device: torch.device) -> SentenceTransformer:
    """Return a trained model from disk: safetensors only, no remote code, in fp32.

    Raises:
        ArtifactError: the folder is missing, holds files that are not safe to read, or no model.
    """
    _refuse_unsafe(folder)
    try:
        with no_progress_bar():
            return SentenceTransformer(
                str(folder),
                device=str(device),
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True, "dtype": torch.float32},
            ).eval()
    except Exception as error:  # json, safetensors and torch errors alike
        raise ArtifactError(f"expected a sentence-transformers model in {folder}, cannot load it") from error


def _refuse_unsafe(folder: Path) -> None:
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        types = [str(module["type"]) for module in modules]
        places = [str(module["path"]) for module in modules]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"expected a sentence-transformers model in {folder}, modules.json is missing or broken"
        ) from error
    for name in types:
        if not name.startswith("sentence_transformers.") or name.rpartition(".")[2] not in MODULES:
            raise ArtifactError(
                f"expected modules among {', '.join(sorted(MODULES))} in {folder}, got {name!r}"
            )
    for place in places:
        if not _PLACE.fullmatch(place):  # what lies elsewhere, or is hidden, is not looked at below
            raise ArtifactError(f"expected modules in plain folders of {folder}, got {place!r}")
    for path in visible_files(folder):
        if path.suffix not in SAFE_SUFFIXES:
            raise ArtifactError(
                f"expected only safetensors and JSON in {folder}, found {path.name}; "
                f"save the model with safe_serialization"
            )
