"""Tests of the methods: built adapters, initialization, schedules, invalid settings and resuming."""

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from matrix import settings_of, variants
from safetensors.torch import load_file
from tiny import make_tiny
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.counts import count_model, count_parameters
from peft_core.errors import ConfigError, ModelError
from peft_core.methods.adapters import apply_method, loraplus_optimizer
from peft_core.runs import Run
from peft_core.runs.checkpoints import can_continue
from peft_core.training.entry import train


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("adapters") / "bert", "bert")


def config_of(model: Path, variant: str, **changes: Any) -> TrainConfig:
    settings = settings_of(variants()[variant], "bert")
    return TrainConfig.from_dict({**settings, "model_name_or_path": str(model), "num_labels": 2, **changes})


def load_classifier(model: Path) -> torch.nn.Module:
    return AutoModelForSequenceClassification.from_pretrained(model, num_labels=2)


@pytest.mark.parametrize("variant", variants())
def test_count_parameters_without_weights_matches_real_model(bert: Path, variant: str) -> None:
    config = config_of(bert, variant)
    assert count_parameters(config) == count_model(apply_method(load_classifier(bert), config))


@pytest.mark.parametrize("variant", ["LoRA, PiSSA start", "LoRA, OLoRA start"])
def test_weight_based_init_keeps_model_outputs(bert: Path, variant: str) -> None:
    torch.manual_seed(0)
    base = load_classifier(bert).eval()
    batch = {"input_ids": torch.arange(5, 45).reshape(2, 20)}
    with torch.inference_mode():
        before = base(**batch).logits
        model = apply_method(base, config_of(bert, variant)).eval()
        assert torch.allclose(model(**batch).logits, before, atol=1e-5)
        matrices = dict(model.named_parameters())
        assert all(matrices[name].abs().max() > 0 for name in matrices if "lora_B" in name)


def test_prompt_tuning_starts_from_label_name_embeddings(
    bert: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    small = {"learning_rate": 1e-12, "num_train_epochs": 1, "num_virtual_tokens": 6}
    run = runs.create(
        tmp_path, config_of(bert, "Prompt tuning", dataset_name=settings["dataset_name"], **small)
    )
    train(run.folder)
    (start,) = (
        tensor
        for name, tensor in load_file(run.adapter / "adapter_model.safetensors").items()
        if "prompt" in name
    )
    ids = AutoTokenizer.from_pretrained(bert)("bad good")["input_ids"]
    words = load_classifier(bert).get_input_embeddings().weight[[*ids, *ids][:6]]
    assert torch.allclose(start, words, atol=1e-6)
    saved = json.loads((run.adapter / "adapter_config.json").read_text())
    assert saved["tokenizer_name_or_path"] == saved["base_model_name_or_path"] == str(bert)


def test_adalora_ends_at_target_rank(bert: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    config = config_of(bert, "AdaLoRA", dataset_name=settings["dataset_name"], num_train_epochs=10)
    run = runs.create(tmp_path, config)
    train(run.folder)
    pattern = json.loads((run.adapter / "adapter_config.json").read_text())["rank_pattern"]
    matrices = 2 * 2  # query and value of two layers
    assert len(pattern) == matrices
    assert sum(sum(mask) for mask in pattern.values()) == config.target_r * matrices
    assert {len(mask) for mask in pattern.values()} == {config.init_r}


def test_eva_initializes_from_training_rows(bert: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    """With a learning rate near zero, the trained matrices equal the initial ones."""
    small = {"dataset_name": settings["dataset_name"], "learning_rate": 1e-12, "num_train_epochs": 1}
    weights = {}
    for variant in ("LoRA", "LoRA, EVA start"):
        run = runs.create(tmp_path, config_of(bert, variant, **small))
        train(run.folder)
        weights[variant] = load_file(run.adapter / "adapter_model.safetensors")
    first = next(name for name in weights["LoRA"] if "lora_A" in name)
    eva, plain = weights["LoRA, EVA start"][first], weights["LoRA"][first]
    directions = eva / eva.norm(dim=1, keepdim=True)
    assert torch.allclose(directions @ directions.T, torch.eye(len(eva)), atol=1e-4)  # singular vectors
    assert not torch.allclose(plain @ plain.T, torch.diag((plain**2).sum(1)), atol=1e-4)
    assert all(
        tensor.shape == weights["LoRA"][name].shape for name, tensor in weights["LoRA, EVA start"].items()
    )


def test_loraplus_optimizer_scales_rate_of_lora_b(bert: Path) -> None:
    config = config_of(bert, "LoRA, LoRA+", loraplus_lr_ratio=8.0, learning_rate=0.01)
    model = apply_method(load_classifier(bert), config)
    optimizer = loraplus_optimizer(model, config, torch.optim.AdamW, lr=config.learning_rate)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            assert rates[id(parameter)] == pytest.approx(0.08 if "lora_B" in name else 0.01), name
    assert loraplus_optimizer(model, config_of(bert, "LoRA"), torch.optim.AdamW, lr=0.01) is None


@pytest.mark.parametrize(
    "variant",
    [
        "LoRA, PiSSA start", "LoRA, EVA start", "LoRA, LoRA+", "AdaLoRA", "Full fine-tuning", "BitFit",
        "P-tuning",
    ],
)  # fmt: skip
def test_stopped_run_continues_to_the_same_weights(
    bert: Path, settings: dict[str, Any], tmp_path: Path, variant: str
) -> None:
    # 100 steps, 10 per epoch: the first checkpoint, at step 25, is in the middle of the third epoch
    config = config_of(bert, variant, dataset_name=settings["dataset_name"], num_train_epochs=10)
    run = runs.create(tmp_path, config)
    with mock.patch.object(Run, "stop_requested", can_continue):
        train(run.folder)
    assert run.state().status == "KILLED" and can_continue(run)
    train(run.folder)
    assert run.state().status == "FINISHED" and run.result()["resumed_from"] > 0
    straight = runs.create(tmp_path, config)
    train(straight.folder)
    continued_weights, straight_weights = (
        load_file(r.adapter / "adapter_model.safetensors") for r in (run, straight)
    )
    assert continued_weights.keys() == straight_weights.keys()
    assert all(torch.equal(continued_weights[name], straight_weights[name]) for name in continued_weights)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "adalora", "init_r": 8, "target_r": 8}, "not above target_r 8"),
        ({"load_in_bits": 5}, "takes 32, 8 or 4"),
        ({"load_in_bits": 4, "init_lora_weights": "pissa"}, "full-precision weights"),
        ({"method": "lora", "init_lora_weights": "magic"}, "default, gaussian, pissa"),
        ({"use_dora": "yes"}, "true or false"),
    ],
)
def test_config_with_incompatible_settings_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TrainConfig.from_dict(changes)


@pytest.mark.parametrize(
    ("variant", "changes", "words"),
    [
        ("C3A", {"block_size": 7}, "C3A cannot be built on this model"),
        ("BOFT", {"boft_block_size": 7}, "BOFT cannot be built on this model"),
        ("Prompt tuning", {"max_length": 126}, "at most 124 tokens beside 4 virtual tokens"),
        ("LoRA", {"target_modules": ["q_lin"]}, "matches nothing in this model; it has"),
    ],
)
def test_count_parameters_with_settings_unfit_for_model_raises(
    bert: Path, variant: str, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ModelError, match=words):
        count_parameters(config_of(bert, variant, **changes))
