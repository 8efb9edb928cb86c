"""Write a trained encoder as ONNX: fp32, and int8 weights for the CPU."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

OUTPUTS = ("embedding", "violation", "level_logits")


class ExportableEncoder(nn.Module):
    """The modules of a trained model as one function of ids and mask."""

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        self.modules_ = nn.ModuleList(model)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return embedding (b, d), violation (b, d) and level logits (b, 3)."""
        features = {"input_ids": input_ids, "attention_mask": attention_mask}
        for module in self.modules_:
            features = module(features)
        return features["sentence_embedding"], features["violation_embedding"], features["level_logits"]


def export_fp32(model: SentenceTransformer, path: Path) -> Path:
    """Write the model as one self-contained fp32 ONNX file with dynamic batch and length.

    Returns:
        The path.
    """
    encoder = ExportableEncoder(model).cpu().eval()
    ids = torch.ones((2, 16), dtype=torch.int64)
    dynamic = {0: "batch", 1: "tokens"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            encoder,
            (ids, torch.ones_like(ids)),
            str(path),
            input_names=["input_ids", "attention_mask"],
            output_names=list(OUTPUTS),
            dynamic_axes={
                "input_ids": dynamic,
                "attention_mask": dynamic,
                **{name: {0: "batch"} for name in OUTPUTS},
            },
            opset_version=17,
            dynamo=False,
        )
    onnx.checker.check_model(str(path))
    return path


def quantize_int8(fp32: Path, path: Path) -> Path:
    """Write an int8 version: weights per channel, activations at run time.

    Signed weights with a reduced range do not saturate on CPUs without VNNI.

    Returns:
        The path.
    """
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(fp32), str(prepared), skip_symbolic_shape=True)
        quantize_dynamic(
            str(prepared),
            str(path),
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            op_types_to_quantize=["MatMul", "Gather"],
        )
    return path
