"""ONNX files of the trained model: float32 by torch's exporter, int8 by ONNX Runtime's quantizer."""

import contextlib
import errno
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
import torch
from google.protobuf.message import DecodeError
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from onnxruntime.quantization import QuantType, quantize_dynamic
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from peft_core.compat.transformers_internals import attention_implementation
from peft_core.errors import ExportError, RunError
from peft_core.files.atomic import DISK_FAILED

TrainedModel = PreTrainedModel | PeftModel
ONE_FILE_BYTES = 1_900_000_000  # a protobuf holds less than 2 GiB, so larger weights get a file beside it
_IGNORED_WARNINGS = {"# The axis name": UserWarning, "`isinstance.treespec, LeafSpec": FutureWarning}
_PREPROCESSED = {"onnx.quant.pre_process": "onnxruntime.quant"}


class _Logits(nn.Module):
    """Wrapper of a classifier that takes its inputs as positional tensors and returns the logits."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, tuple(names)

    def forward(self, *arrays: torch.Tensor) -> torch.Tensor:
        return self.model(**dict(zip(self.names, arrays, strict=True))).logits


def write_fp32(model: TrainedModel, tokenizer: Any, path: Path) -> bool:
    """Write the model in float32, with the tokenizer's inputs, the output `logits` and dynamic axes.

    Returns:
        Whether the weights are in a file of their own, `path` with the suffix `_data`.

    Raises:
        ExportError: torch's exporter does not support the architecture.
    """
    sample = dict(tokenizer(["a text of a few words", "short"], padding=True, return_tensors="pt"))
    axes = {0: "batch", 1: "sequence"}
    try:
        with _eager(model), warnings.catch_warnings():
            for message, category in _IGNORED_WARNINGS.items():
                warnings.filterwarnings("ignore", message, category)
            program = torch.onnx.export(
                _Logits(model, list(sample)).eval(),
                tuple(sample.values()),
                dynamo=True,
                verbose=False,
                dynamic_shapes=(tuple(axes for _ in sample),),
                input_names=list(sample),
                output_names=["logits"],
            )
    except torch.onnx.OnnxExporterError as error:
        model_type = model.config.model_type
        raise ExportError(
            f"torch cannot write this {model_type} model as ONNX; export the adapter or the merged model."
        ) from error
    assert program is not None  # it is None without `dynamo` only
    return _save(program.model, path)


def write_int8(source: Path, path: Path, excluded_nodes: Sequence[str] = ()) -> None:
    """Quantize the matrices and embeddings of a float32 file, except those of the excluded nodes.

    Scales are per channel. Weights use seven of the eight bits: on a CPU without VNNI the sum of two 8-bit
    products saturates its 16-bit accumulator, and the file may run on any CPU.

    Raises:
        OSError: the disk is full.
        RunError: a temporary copy was lost while it was written.
    """
    if shutil.disk_usage(path.parent).free < source.stat().st_size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    try:
        quantize_dynamic(
            source,
            path,
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(excluded_nodes),
        )
    except (DecodeError, FileNotFoundError, ValueError) as error:  # its temporary copy was lost
        if not source.exists() or (isinstance(error, ValueError) and "ai.onnx domain" not in str(error)):
            raise
        raise RunError(DISK_FAILED) from error


def narrowing_matrices(path: Path) -> list[str]:
    """Return the MatMul nodes whose matrix has more rows than columns: the second of each feed-forward block.

    Their inputs have the largest outliers, so they lose the most in int8.
    """
    graph = onnx.load(path, load_external_data=False).graph
    shapes = {weight.name: tuple(weight.dims) for weight in graph.initializer}
    products = [(node.name, shapes.get(node.input[1], ())) for node in graph.node if node.op_type == "MatMul"]
    return [name for name, shape in products if len(shape) == 2 and shape[0] > shape[1]]


@contextlib.contextmanager
def _eager(model: TrainedModel) -> Iterator[None]:
    """Use eager attention: on BERT it gives a quarter fewer ONNX nodes, which run slightly faster."""
    before = attention_implementation(model.config)
    assert before is not None  # set when the model is built
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _save(model: onnx_ir.Model, path: Path) -> bool:
    ClearMetadataAndDocStringPass()(model)  # removes stack traces, which hold paths of this machine
    model.metadata_props.update(_PREPROCESSED)  # torch has done the quantizer's shape inference and folding
    weights = (initializer.const_value for initializer in model.graph.initializers.values())
    is_external = sum(weight.nbytes for weight in weights if weight is not None) > ONE_FILE_BYTES
    onnx_ir.save(model, path, external_data=f"{path.name}_data" if is_external else None)
    return is_external
