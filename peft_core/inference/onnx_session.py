"""Run an exported ONNX model with ONNX Runtime, without the torch model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime import (
    InferenceSession,
    SessionOptions,  # pyright: ignore[reportAttributeAccessIssue]  # compiled, no stubs
)
from onnxruntime.capi import (
    onnxruntime_pybind11_state as ort,  # pyright: ignore[reportAttributeAccessIssue]  # compiled, no stubs
)
from transformers import AutoTokenizer

from peft_core.data.labelled import truncate_text
from peft_core.errors import RunError
from peft_core.inference.batching import batches
from peft_core.progress import no_progress

FP32_FILE, INT8_FILE = "onnx/model.onnx", "onnx/model_quantized.onnx"
_DAMAGED = (
    OSError, ValueError, KeyError, TypeError, ort.NoSuchFile, ort.InvalidProtobuf, ort.InvalidGraph, ort.Fail,
    ort.InvalidArgument, ort.RuntimeException,
)  # fmt: skip


@dataclass(frozen=True)
class OnnxModel:
    """A session and the tokenizer exported with it, whose `model_max_length` limits the texts."""

    session: InferenceSession
    tokenizer: Any

    def logits(
        self,
        texts: Sequence[str],
        text_pairs: Sequence[str] | None = None,
        progress: Callable[[float], None] = no_progress,
    ) -> np.ndarray:
        """Return logits, float32 (texts, labels), in the order of the texts.

        Texts are batched by length. The int8 model quantizes activations by the largest of each batch, so a
        text's logits depend a little on the other texts of its batch.

        Args:
            texts: The texts.
            text_pairs: The second text of each row.
            progress: Called with the share of texts done, from 0 to 1.
        """
        max_length = self.tokenizer.model_max_length
        sides = [texts] if text_pairs is None else [texts, text_pairs]
        truncated = [[truncate_text(text, max_length) for text in side] for side in sides]
        out = np.empty((len(texts), self.session.get_outputs()[0].shape[-1]), dtype=np.float32)
        if not len(texts):
            return out
        rows, done = self.tokenizer(*truncated, truncation=True), 0
        for indices in batches([len(ids) for ids in rows["input_ids"]]):
            out[indices] = self._run({name: [rows[name][i] for i in indices] for name in rows})
            done += len(indices)
            progress(done / len(texts))
        return out

    def _run(self, batch: dict[str, list]) -> np.ndarray:
        padded = self.tokenizer.pad(batch, return_tensors="np")
        names = [model_input.name for model_input in self.session.get_inputs()]
        (logits,) = self.session.run(["logits"], {name: padded[name].astype(np.int64) for name in names})
        assert isinstance(logits, np.ndarray)  # the graph's output is a tensor
        return logits


def load_onnx(folder: Path, file: str = FP32_FILE, threads: int = 0) -> OnnxModel:
    """Load an exported model from its folder.

    Args:
        folder: The run's `onnx/` folder.
        file: FP32_FILE or INT8_FILE.
        threads: CPU threads; 0 for ONNX Runtime's default.

    Raises:
        RunError: If the file is missing or damaged.
    """
    options = SessionOptions()
    options.intra_op_num_threads = threads
    # spinning threads would take the cores from torch and from other processes
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = InferenceSession(folder / file, options, providers=["CPUExecutionProvider"])
        return OnnxModel(session, AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
    except _DAMAGED as error:
        raise RunError(
            f"The {file} of {folder.parent.name!r} is missing or damaged; export it again."
        ) from error
