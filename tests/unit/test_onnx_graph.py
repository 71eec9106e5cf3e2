"""The ONNX files themselves: every family and prompt, in float32 and int8, against the model in torch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matrix import FAMILIES, SMALL
from tiny import MAX_TOKENS, make_tiny
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from peft_core.config import TrainConfig
from peft_core.errors import ExportError, RunError
from peft_core.export.onnx import graph
from peft_core.export.onnx.graph import write_fp32, write_int8
from peft_core.inference.batching import batched_logits
from peft_core.inference.onnx_session import FP32_FILE, INT8_FILE, OnnxModel, load_onnx
from peft_core.methods.adapters import apply_method


def spread_out(model: torch.nn.Module) -> torch.nn.Module:
    """Return the model with weights so large that a wrong graph changes its logits."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.normal_(0, 0.3)
    return model.eval()


def largest_difference(model: torch.nn.Module, tokenizer: Any, exported: OnnxModel) -> float:
    """Largest logit difference on texts of many lengths, alone and batched, relative to the largest logit."""
    texts = ["good", "the food was " + "really " * 90 + "bad", "We had salad.", "a b c " * 30]
    outputs = exported.logits(texts), np.concatenate([exported.logits([text]) for text in texts])
    expected = batched_logits(model, tokenizer, texts, tokenizer.model_max_length)
    assert np.ptp(expected, axis=0).min() > 0.1, "a model that says the same of all texts proves nothing"
    return max(np.abs(logits - expected).max() for logits in outputs) / np.abs(expected).max()


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "bert"])  # bert: test_onnx.py
def test_onnx_export_of_family_matches_torch_in_float32_and_int8(family: str, tmp_path: Path) -> None:
    layers = 2 if family == "modernbert" else 1  # its first has global attention, its second local
    folder = make_tiny(tmp_path / "model", family, num_hidden_layers=layers)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    check_both_files(spread_out(model), AutoTokenizer.from_pretrained(folder), tmp_path)


@pytest.mark.parametrize("method", ["prefix_tuning", "p_tuning"])  # prompt_tuning: test_onnx.py
def test_onnx_export_of_prompt_method_matches_torch(method: str, tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "model", "bert", num_hidden_layers=1)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    config = TrainConfig.from_dict({**SMALL, "method": method, "model_name_or_path": str(folder)})
    tokenizer = AutoTokenizer.from_pretrained(folder, model_max_length=MAX_TOKENS - 4)
    check_both_files(spread_out(apply_method(model, config)), tokenizer, tmp_path)


def check_both_files(model: torch.nn.Module, tokenizer: Any, folder: Path) -> None:
    (folder / "onnx").mkdir()
    tokenizer.save_pretrained(folder)
    assert not write_fp32(model, tokenizer, folder / FP32_FILE)
    write_int8(folder / FP32_FILE, folder / INT8_FILE)
    assert largest_difference(model, tokenizer, load_onnx(folder, FP32_FILE, 1)) < 1e-5
    assert 0 < largest_difference(model, tokenizer, load_onnx(folder, INT8_FILE, 1)) < 0.2


def test_write_fp32_of_an_unsupported_model_raises_export_error(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "model", "bert", num_hidden_layers=1)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    model.classifier.forward = lambda pooled: pooled if bool(pooled.sum() > 0) else -pooled
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with pytest.raises(ExportError, match="torch cannot write this bert model as ONNX; export the adapter"):
        write_fp32(model, tokenizer, tmp_path / "model.onnx")
    assert model.config._attn_implementation == "sdpa", "it is as it was before"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_write_int8_without_its_working_copy_raises_run_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime ignores errors when it writes its working copy, and then does not find it."""

    def lose_copy(*_: Any, **__: Any) -> None:
        raise FileNotFoundError(2, "No such file or directory", "model-inferred.onnx")

    monkeypatch.setattr(graph, "quantize_dynamic", lose_copy)
    source = tmp_path / "model.onnx"
    source.write_bytes(b"")
    with pytest.raises(RunError, match="The disk is full or reports an error"):
        write_int8(source, tmp_path / "quantized.onnx")
