"""Training on a base in 4 or 8 bits, and merging into the original weights."""

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from peft_core.config import TrainConfig
from peft_core.counts import count_parameters
from peft_core.errors import ConfigError, ModelError
from peft_core.inference.predictor import Predictor
from peft_core.merging.merge import merge
from peft_core.models.encoder import load_base
from peft_core.runs import Run
from peft_core.runs.evaluation_rows import load_evaluation_texts
from peft_core.views.components import certificate


@pytest.mark.parametrize("bits", [4, 8])
def test_adapter_on_quantized_base_merges_into_original_weights(
    settings: dict[str, Any], train_here: Callable[..., Run], bits: int
) -> None:
    run = train_here(load_in_bits=bits)
    run_result = run.result()
    assert run_result["accuracy"] > 0.9
    expected = count_parameters(TrainConfig.from_dict({**settings, "load_in_bits": bits}))
    assert run_result["parameters"]["trainable"] == expected.trainable
    assert run_result["parameters"]["total"] == expected.total
    saved = load_file(run.adapter / "adapter_model.safetensors")
    assert all(tensor.is_floating_point() for tensor in saved.values())

    merge_certificate = merge(run.folder)
    assert merge_certificate.holds and merge_certificate.max_logit_diff_reloaded <= 1e-5
    assert merge_certificate.trained_in_bits == bits
    texts, _ = load_evaluation_texts(run)
    adapter, merged = (Predictor(run.folder, variant).logits(texts) for variant in ("adapter", "merged"))
    difference = np.abs(adapter - merged).max()
    assert difference > 1e-4  # quantization changes the weights
    assert merge_certificate.max_logit_diff_quantised == pytest.approx(difference, rel=1e-3)
    assert merge_certificate.label_flips_quantised == (adapter.argmax(-1) != merged.argmax(-1)).sum()
    assert f"in {bits} bits" in certificate(merge_certificate.to_dict())


def test_eva_init_on_quantized_base_trains_and_merges(train_here: Callable[..., Run]) -> None:
    run = train_here(load_in_bits=4, init_lora_weights="eva")
    assert run.result()["accuracy"] > 0.9 and merge(run.folder).holds


def test_load_base_quantizes_encoder_but_not_head(settings: dict[str, Any]) -> None:
    base = load_base(settings["model_name_or_path"], None, ["bad", "good"], bits=4)
    sizes = {name: p.dtype.itemsize for name, p in base.model.named_parameters()}
    assert sizes["bert.encoder.layer.0.attention.self.query.weight"] == 1
    assert sizes["classifier.weight"] == sizes["bert.pooler.dense.weight"] == 4
    assert base.untrained == ("classifier",)


def test_quantized_base_without_bitsandbytes_raises_model_error(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find_spec(name)
    )
    with pytest.raises(ModelError, match="not installed here; run pip install bitsandbytes"):
        count_parameters(TrainConfig.from_dict({**settings, "load_in_bits": 4}))


@pytest.mark.parametrize("bits", [5, 16, 33])
def test_load_in_bits_other_than_4_or_8_raises_config_error(bits: int) -> None:
    with pytest.raises(ConfigError, match="load_in_bits"):
        TrainConfig(load_in_bits=bits)
