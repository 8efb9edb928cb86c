"""Write a trained encoder for the runtime: ONNX in fp32, fp16 or int8, or torch as it is."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from guardrail.artifact import TORCH_FOLDER, copy_files, load_encoder, torch_files
from guardrail.errors import ArtifactError
from guardrail.protocols import Encoder
from guardrail.torch_encoder import load_model

Format = Literal["fp32", "fp16", "int8", "torch"]
OUTPUTS = ("embedding", "violation", "level_logits")
# Longest window of the runtime, tokens: fewer where the base has fewer positions.
WINDOW_TOKENS = 256
# Smaller tensors stay in fp32: they weigh nothing, and masks hold numbers that fp16 does not have.
HALVED_FROM = 256


def load_trained(run: Path) -> SentenceTransformer:
    """Return the trained model of a run, on the CPU.

    Raises:
        ArtifactError: the run has none, or one that is not safe to read.
    """
    if not (run / TORCH_FOLDER / "modules.json").is_file():
        raise ArtifactError(f"expected a trained model in {run / TORCH_FOLDER}, found none; train first")
    return load_model(run / TORCH_FOLDER, torch.device("cpu"))


def write_encoder(model: SentenceTransformer, run: Path, folder: Path, form: Format) -> Encoder:
    """Write the encoder of a model folder and return it as the runtime loads it.

    Args:
        model: the trained model, `load_trained(run)`.
        run: its run.
        folder: where to write.
        form: "fp32", "fp16" (weights; computed in fp32) or "int8" ONNX, or "torch": the trained
            files as they are.
    """
    if form == "torch":
        copy_files(run, folder, torch_files(run))
    else:
        _write_onnx(model, folder, form)
    return runtime_encoder(model, folder, "torch" if form == "torch" else "onnx")


def runtime_encoder(model: SentenceTransformer, folder: Path, backend: Literal["onnx", "torch"]) -> Encoder:
    """Return the encoder in a folder that has no manifest yet, with the sizes of the trained model."""
    window = min(WINDOW_TOKENS, int(model[0].model.config.max_position_embeddings))
    return load_encoder(
        folder, backend, max_tokens=window, dimension=int(model.get_embedding_dimension() or 0)
    )


def _write_onnx(model: SentenceTransformer, folder: Path, form: Format) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        fp32 = export_fp32(model, Path(temporary) / "fp32.onnx")
        path = folder / "model.onnx"
        if form == "int8":
            quantize_int8(fp32, path)
        elif form == "fp16":
            halve_weights(fp32, path)
        else:
            shutil.copyfile(fp32, path)
        model[0].tokenizer.save_pretrained(temporary)
        shutil.copyfile(Path(temporary) / "tokenizer.json", folder / "tokenizer.json")


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
    return write_fp32(ExportableEncoder(model).cpu().eval(), path, OUTPUTS)


def write_fp32(module: nn.Module, path: Path, outputs: Sequence[str]) -> Path:
    """Write a module as one self-contained fp32 ONNX file.

    Args:
        module: on the CPU, in evaluation mode; takes ids and mask (b, t), returns one tensor (b, ...) for
            each output.
        path: of the file.
        outputs: their names.

    Returns:
        The path.
    """
    ids = torch.ones((2, 16), dtype=torch.int64)
    dynamic = {0: "batch", 1: "tokens"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (ids, torch.ones_like(ids)),
            str(path),
            input_names=["input_ids", "attention_mask"],
            output_names=list(outputs),
            dynamic_axes={
                "input_ids": dynamic,
                "attention_mask": dynamic,
                **{name: {0: "batch"} for name in outputs},
            },
            opset_version=17,
            dynamo=False,
        )
    onnx.checker.check_model(str(path))
    return path


def halve_weights(fp32: Path, path: Path) -> Path:
    """Write a version whose weights are stored as fp16 and cast to fp32 when it is loaded.

    Half the size on disk; speed, memory and arithmetic of fp32, because the runtime folds the casts.

    Returns:
        The path.
    """
    model = onnx.load(str(fp32))
    casts = []
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        largest = np.abs(values).max(initial=0) if tensor.data_type == TensorProto.FLOAT else np.inf
        if values.size < HALVED_FROM or largest > np.finfo(np.float16).max:
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}_fp16"))
        casts.append(helper.make_node("Cast", [f"{name}_fp16"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
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
