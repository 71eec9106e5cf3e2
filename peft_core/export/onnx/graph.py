"""The trained model as an ONNX file: float32 by torch's exporter, int8 by ONNX Runtime's quantiser."""

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
from torch import nn

from peft_core.errors import ExportError, RunError
from peft_core.files import DISK_FAILED

ONE_FILE_BYTES = 1_900_000_000  # a protobuf holds less than 2 GiB, so larger weights get a file beside it
_NOISE = {"# The axis name": UserWarning, "`isinstance.treespec, LeafSpec": FutureWarning}
_PREPARED = {"onnx.quant.pre_process": "onnxruntime.quant"}


class _Logits(nn.Module):
    """A classifier, plain or with a prompt before its text, that takes arrays in order and returns logits."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, tuple(names)

    def forward(self, *arrays: torch.Tensor) -> torch.Tensor:
        return self.model(**dict(zip(self.names, arrays, strict=True))).logits


def write_fp32(model: nn.Module, tokenizer: Any, path: Path) -> bool:
    """Write the model; its inputs are the tokenizer's, its output is `logits`, batch and length are free.

    Returns whether the weights went into a file of their own, named as the model with `_data` behind it.
    Raises ExportError for an architecture that torch's exporter cannot follow.
    """
    sample = dict(tokenizer(["a text of a few words", "short"], padding=True, return_tensors="pt"))
    axes = {0: "batch", 1: "sequence"}
    try:
        with _eager(model), warnings.catch_warnings():
            for message, category in _NOISE.items():
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
        kind = model.config.model_type
        raise ExportError(
            f"torch cannot write this {kind} model as ONNX; take the adapter or the merged model."
        ) from error
    return _save(program.model, path)


def write_int8(source: Path, path: Path, left_out: Sequence[str] = ()) -> None:
    """Quantise the matrices and embeddings of a float32 file, but for the nodes named.

    Each column of a matrix has a scale of its own. Weights take seven of the eight bits: on a CPU without
    VNNI two products of eight bits overflow the sixteen in which they are added, and the file goes to
    machines that nobody knows. Raises OSError if the disk is full, RunError if it lost a part of a copy.
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
            nodes_to_exclude=list(left_out),
        )
    except (DecodeError, FileNotFoundError, ValueError) as error:  # its working copy was lost without a word
        if not source.exists() or (isinstance(error, ValueError) and "ai.onnx domain" not in str(error)):
            raise
        raise RunError(DISK_FAILED) from error


def narrowing_matrices(path: Path) -> list[str]:
    """The nodes that multiply by a matrix with more rows than columns: the second of each feed-forward block.

    What they read has the largest outliers, so in int8 they lose the most.
    """
    graph = onnx.load(path, load_external_data=False).graph
    shapes = {weight.name: tuple(weight.dims) for weight in graph.initializer}
    products = [(node.name, shapes.get(node.input[1], ())) for node in graph.node if node.op_type == "MatMul"]
    return [name for name, shape in products if len(shape) == 2 and shape[0] > shape[1]]


@contextlib.contextmanager
def _eager(model: nn.Module) -> Iterator[None]:
    """Attention as plain products and a softmax: on BERT a quarter fewer nodes, which run a little faster."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _save(model: onnx_ir.Model, path: Path) -> bool:
    ClearMetadataAndDocStringPass()(model)  # stack traces, with the paths of this machine
    model.metadata_props.update(_PREPARED)  # torch has folded and inferred what the quantiser would ask for
    apart = sum(weight.const_value.nbytes for weight in model.graph.initializers.values()) > ONE_FILE_BYTES
    onnx_ir.save(model, path, external_data=f"{path.name}_data" if apart else None)
    return apart
