"""An exported ONNX model at work: texts to raw outputs with ONNX Runtime, without torch's own model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime import InferenceSession, SessionOptions
from onnxruntime.capi import onnxruntime_pybind11_state as ort
from transformers import AutoTokenizer

from peft_core.data.labelled import cut
from peft_core.errors import RunError
from peft_core.inference.batching import batches
from peft_core.progress import unheard

FP32_FILE, INT8_FILE = "onnx/model.onnx", "onnx/model_quantized.onnx"
_DAMAGED = (
    OSError, ValueError, KeyError, TypeError, ort.NoSuchFile, ort.InvalidProtobuf, ort.InvalidGraph, ort.Fail,
    ort.InvalidArgument, ort.RuntimeException,
)  # fmt: skip


@dataclass(frozen=True)
class OnnxModel:
    """A session and the tokenizer that was exported with it, which knows how much of a text is read."""

    session: InferenceSession
    tokenizer: Any

    def logits(
        self,
        texts: Sequence[str],
        text_pairs: Sequence[str] | None = None,
        progress: Callable[[float], None] = unheard,
    ) -> np.ndarray:
        """Raw outputs, float32 (texts, labels) in the order given; batched by length, so little is padded.

        The int8 model scales its numbers by the largest of each batch, so a text's outputs differ a little
        with the texts beside it.
        """
        most = self.tokenizer.model_max_length
        sides = [texts] if text_pairs is None else [texts, text_pairs]
        short = [[cut(text, most) for text in side] for side in sides]
        out = np.empty((len(texts), self.session.get_outputs()[0].shape[-1]), dtype=np.float32)
        if not len(texts):
            return out
        rows, done = self.tokenizer(*short, truncation=True), 0
        for chosen in batches([len(ids) for ids in rows["input_ids"]]):
            out[chosen] = self._run({name: [rows[name][i] for i in chosen] for name in rows})
            done += len(chosen)
            progress(done / len(texts))
        return out

    def _run(self, batch: dict[str, list]) -> np.ndarray:
        padded = self.tokenizer.pad(batch, return_tensors="np")
        wanted = [given.name for given in self.session.get_inputs()]
        return self.session.run(["logits"], {name: padded[name].astype(np.int64) for name in wanted})[0]


def load_onnx(folder: Path, file: str = FP32_FILE, threads: int = 0) -> OnnxModel:
    """An exported model from its folder, on `threads` CPU threads (0: ONNX Runtime's own choice).

    Raises RunError if the folder has no such file, or it is damaged.
    """
    options = SessionOptions()
    options.intra_op_num_threads = threads
    # waiting threads would take the cores from torch and from other processes
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = InferenceSession(folder / file, options, providers=["CPUExecutionProvider"])
        return OnnxModel(session, AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
    except _DAMAGED as error:
        raise RunError(
            f"The {file} of {folder.parent.name!r} is lost or damaged; export it again."
        ) from error
