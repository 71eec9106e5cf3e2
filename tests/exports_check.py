"""In a fresh process with stock libraries alone: what each thing that was taken away says of some texts.

Reads JSON on standard input (`base`, `is_peft`, `ways` by folder, `texts`, `max_length`); prints logits, or
vectors, by way.
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


def adapter(folder: str, asked: dict[str, Any]) -> np.ndarray:
    """On the base model from its own folder, by PEFT; weights that are no adapter by their names."""
    model = AutoModelForSequenceClassification.from_pretrained(asked["base"], num_labels=2)
    if asked["is_peft"]:
        model = PeftModel.from_pretrained(model, folder)
    else:
        found = model.load_state_dict(load_file(f"{folder}/adapter_model.safetensors"), strict=False)
        assert not found.unexpected_keys
    return of_model(model, folder, asked)


def merged(folder: str, asked: dict[str, Any]) -> np.ndarray:
    """A plain model of transformers."""
    return of_model(AutoModelForSequenceClassification.from_pretrained(folder), folder, asked)


def of_model(model: Any, folder: str, asked: dict[str, Any]) -> np.ndarray:
    """Logits of a model in torch."""
    with torch.inference_mode():
        return model.eval()(**tokens(folder, asked, "pt")).logits.numpy()


def of_onnx(folder: str, asked: dict[str, Any], file: str) -> np.ndarray:
    """Logits of an ONNX file by ONNX Runtime."""
    session = onnxruntime.InferenceSession(Path(folder) / file, providers=["CPUExecutionProvider"])
    batch = tokens(folder, asked, "np")
    given = {one.name: batch[one.name].astype(np.int64) for one in session.get_inputs()}
    return session.run(["logits"], given)[0]


def of_page(folder: str, asked: dict[str, Any]) -> np.ndarray:
    """Logits of the file that a page brings to the browser."""
    (file,) = Path(folder).rglob("*.onnx")
    return of_onnx(str(file.parent.parent), asked, f"onnx/{file.name}")


def embeddings(folder: str, asked: dict[str, Any]) -> np.ndarray:
    """Sentence vectors."""
    return SentenceTransformer(folder, device="cpu").encode(asked["texts"], show_progress_bar=False)


def tokens(folder: str, asked: dict[str, Any], kind: str) -> Any:
    """The texts as one padded batch, by the tokenizer that came along."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    options = {"truncation": True, "max_length": asked["max_length"], "padding": True}
    return tokenizer(asked["texts"], **options, return_tensors=kind)


READERS = {
    "adapter": adapter,
    "merged": merged,
    "float32": lambda folder, asked: of_onnx(folder, asked, "onnx/model.onnx"),
    "int8": lambda folder, asked: of_onnx(folder, asked, "onnx/model_quantized.onnx"),
    "embeddings": embeddings,
    "page": of_page,
}


if __name__ == "__main__":
    logging.set_verbosity_error()
    given = json.load(sys.stdin)
    answers = {way: READERS[way](folder, given).tolist() for way, folder in given["ways"].items()}
    assert "peft_core" not in sys.modules
    sys.stdout.write(json.dumps(answers) + "\n")
