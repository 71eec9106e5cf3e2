"""Loads every export with stock libraries only, in a fresh process, and prints its outputs for some texts.

Reads JSON from standard input (`base`, `is_peft`, `formats` with their folders, `texts`, `max_length`) and
prints logits, or vectors, by format.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from peft import PeftModel
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging


def adapter(folder: str, request: dict[str, Any]) -> np.ndarray:
    """Return the logits of an adapter on its base model, by PEFT; weights of other methods by their names."""
    model = AutoModelForSequenceClassification.from_pretrained(request["base"], num_labels=2)
    if request["is_peft"]:
        model = PeftModel.from_pretrained(model, folder)
    else:
        keys = model.load_state_dict(load_file(f"{folder}/adapter_model.safetensors"), strict=False)
        assert not keys.unexpected_keys
    return of_model(model, folder, request)


def merged(folder: str, request: dict[str, Any]) -> np.ndarray:
    """Return the logits of a plain transformers model."""
    return of_model(AutoModelForSequenceClassification.from_pretrained(folder), folder, request)


def of_model(model: Any, folder: str, request: dict[str, Any]) -> np.ndarray:
    """Return the logits of a torch model."""
    with torch.inference_mode():
        return model.eval()(**tokens(folder, request, "pt")).logits.numpy()


def of_onnx(folder: str, request: dict[str, Any], file: str) -> np.ndarray:
    """Return the logits of an ONNX file by ONNX Runtime."""
    session = onnxruntime.InferenceSession(Path(folder) / file, providers=["CPUExecutionProvider"])
    batch = tokens(folder, request, "np")
    inputs = {node.name: batch[node.name].astype(np.int64) for node in session.get_inputs()}
    return session.run(["logits"], inputs)[0]


def of_page(folder: str, request: dict[str, Any]) -> np.ndarray:
    """Return the logits of the ONNX file that an exported page loads in the browser."""
    (file,) = Path(folder).rglob("*.onnx")
    return of_onnx(str(file.parent.parent), request, f"onnx/{file.name}")


def embeddings(folder: str, request: dict[str, Any]) -> np.ndarray:
    """Return the sentence vectors."""
    return SentenceTransformer(folder, device="cpu").encode(request["texts"], show_progress_bar=False)


def tokens(folder: str, request: dict[str, Any], kind: str) -> Any:
    """Return the texts as one padded batch, by the exported tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    options = {"truncation": True, "max_length": request["max_length"], "padding": True}
    return tokenizer(request["texts"], **options, return_tensors=kind)


READERS = {
    "adapter": adapter,
    "merged": merged,
    "float32": lambda folder, request: of_onnx(folder, request, "onnx/model.onnx"),
    "int8": lambda folder, request: of_onnx(folder, request, "onnx/model_quantized.onnx"),
    "embeddings": embeddings,
    "page": of_page,
}


if __name__ == "__main__":
    logging.set_verbosity_error()
    stdin = json.load(sys.stdin)
    outputs = {name: READERS[name](folder, stdin).tolist() for name, folder in stdin["formats"].items()}
    assert "peft_core" not in sys.modules
    sys.stdout.write(json.dumps(outputs) + "\n")
