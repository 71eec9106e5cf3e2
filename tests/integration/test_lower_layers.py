"""Frozen layers below the trained ones: computed once per text, with unchanged training steps."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from test_speedups import assert_same_step, batch_of, build_model, step
from torch import nn

from peft_core import runs
from peft_core.models.modules import encoder_layers
from peft_core.runs import Run
from peft_core.runs.checkpoints import can_continue
from peft_core.training import lower_layers, speedups
from peft_core.training.entry import train
from peft_core.training.lower_layers import FrozenLayerCache, TextsToCache, frozen_below
from peft_core.training.speedups import optimize_training

FAMILIES = ("bert", "roberta", "electra", "distilbert", "deberta-v2", "modernbert", "mpnet")
TWICE = {"num_train_epochs": 2.0}


def texts_of(batches: list[dict[str, torch.Tensor]], folder: Path) -> TextsToCache:
    return TextsToCache(batches, sum(batch["input_ids"].numel() for batch in batches), folder)


def forward_calls(layer: nn.Module) -> list[int]:
    """Return a list that gains an element with each forward pass of the layer."""
    calls: list[int] = []
    next(m for m in layer.modules() if isinstance(m, nn.Linear)).register_forward_hook(
        lambda *_: calls.append(1)
    )
    return calls


@pytest.mark.parametrize("padded", [True, False], ids=["padded", "whole"])
@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_layers_below_adapters_run_once_per_text(family: str, padded: bool, tmp_path: Path) -> None:
    model, config = build_model(tmp_path / "model", family, top_layers=1, **TWICE)
    assert frozen_below(model) == 1
    batch = batch_of(model, padded=padded)
    half = {name: tensor[2:5] for name, tensor in batch.items()}
    expected, expected_half = step(model, batch), step(model, half)
    texts, calls = texts_of([batch], tmp_path), forward_calls(encoder_layers(model)[0])
    with optimize_training(model, config, batch, 1, texts=texts) as applied:
        assert applied.record.lower_layers == 1
        calls.clear()
        assert_same_step(step(model, batch), expected)
        assert_same_step(step(model, half), expected_half)  # in another batch
        assert not calls
        other = {**batch, "input_ids": batch["input_ids"] + 1}
        step(model, other)
        assert calls  # texts that are not in the cache
    assert_same_step(step(model, batch), expected, 0.0)
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("family", FAMILIES)
def test_head_only_runs_the_encoder_once_per_text(family: str, tmp_path: Path) -> None:
    model, config = build_model(tmp_path / "model", family, method="head_only", **TWICE)
    batch = batch_of(model)
    expected, calls = step(model, batch), forward_calls(encoder_layers(model)[-1])
    with optimize_training(model, config, batch, 1, texts=texts_of([batch], tmp_path)) as applied:
        assert applied.record.lower_layers == 2
        calls.clear()
        assert_same_step(step(model, batch), expected)
        assert not calls


def test_cache_distinguishes_token_types_of_pairs(tmp_path: Path) -> None:
    model, config = build_model(tmp_path / "model", top_layers=1, **TWICE)
    kinds = torch.zeros(6, 9, dtype=torch.long)
    single = {**batch_of(model), "token_type_ids": kinds}
    paired = {**single, "token_type_ids": (torch.arange(9) > 4).long().expand(6, 9)}
    expected = step(model, single), step(model, paired)
    assert expected[0][0] != expected[1][0]
    with optimize_training(model, config, single, 1, texts=texts_of([single, paired], tmp_path)) as applied:
        assert applied.record.lower_layers == 1
        assert_same_step(step(model, single), expected[0])
        assert_same_step(step(model, paired), expected[1])


@pytest.mark.parametrize(
    "changes",
    [
        {"num_train_epochs": 1.0},
        {"dropout": 0.1},
        {"arithmetic": "plain"},
        {"top_layers": 0},
        {"method": "full"},
        {"method": "bitfit"},
        {"method": "ln_tuning"},
        {"method": "prefix_tuning"},
        {"method": "p_tuning"},
    ],
    ids=str,
)
def test_cache_that_saves_nothing_or_changes_steps_is_not_used(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    model, config = build_model(tmp_path / "model", **{"top_layers": 1, **TWICE, **changes})
    batch = batch_of(model)
    with optimize_training(model, config, batch, 1, texts=texts_of([batch], tmp_path)) as applied:
        assert not applied.record.lower_layers


def test_frozen_below_excludes_shared_layers_and_layers_above_trained_ones(tmp_path: Path) -> None:
    model, _ = build_model(tmp_path / "albert", "albert", method="head_only")
    assert frozen_below(model) == 0
    model, _ = build_model(tmp_path / "electra", "electra", target_modules=["embeddings_project"])
    assert frozen_below(model) == 0


def test_cache_larger_than_its_limit_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="peft_core")
    model, config = build_model(tmp_path / "model", top_layers=1, **TWICE)
    batch = batch_of(model)
    texts = texts_of([batch], tmp_path)
    monkeypatch.setattr(lower_layers, "MOST_BYTES", texts.tokens * 32 * 4 - 1)
    with optimize_training(model, config, batch, 1, texts=texts) as applied:
        assert not applied.record.lower_layers
    assert "too little disk space" in caplog.text
    monkeypatch.setattr(lower_layers, "MOST_BYTES", texts.tokens * 32 * 4)
    with optimize_training(model, config, batch, 1, texts=texts) as applied:
        assert applied.record.lower_layers == 1


def test_cache_on_a_full_disk_leaves_model_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, config = build_model(tmp_path / "model", top_layers=1, **TWICE)
    batch = batch_of(model)
    expected = step(model, batch)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FrozenLayerCache, "_write", full)
    with optimize_training(model, config, batch, 1, texts=texts_of([batch], tmp_path)) as applied:
        assert not applied.record.lower_layers and applied.record.first_token
        assert_same_step(step(model, batch), expected)
    assert model.training and not [m for m in model.modules() if "forward" in vars(m)]


def test_cache_with_bfloat16_layers_keeps_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speedups, "WORTH_IT", 1000)
    monkeypatch.setattr(speedups, "is_bfloat16_faster", lambda device: True)
    model, config = build_model(tmp_path / "model", top_layers=1, **TWICE)
    batch = batch_of(model)
    expected = step(model, batch)
    with optimize_training(model, config, batch, 1, texts=texts_of([batch], tmp_path)) as applied:
        assert applied.record.dtype == "bfloat16" and applied.record.lower_layers == 1
        assert step(model, batch)[0] == pytest.approx(expected[0], abs=0.02)


def test_run_of_top_layers_records_the_cache_and_resumes_after_a_stop(
    settings: dict[str, Any], train_here: Callable[..., Run], tmp_path: Path
) -> None:
    changes = {"top_layers": 1, "num_train_epochs": 10.0}
    run = train_here(**changes)
    assert run.result()["speedups"]["lower_layers"] == 1
    weights = load_file(run.adapter / "adapter_model.safetensors")
    assert {name.split("layer.")[1][0] for name in weights if "lora" in name} == {"1"}
    stopped = runs.create(tmp_path, run.config())
    with mock.patch.object(Run, "stop_requested", can_continue):
        train(stopped.folder)
    assert stopped.state().status == "KILLED"
    train(stopped.folder)
    assert stopped.result()["resumed_from"] > 0
    resumed_weights = load_file(stopped.adapter / "adapter_model.safetensors")
    assert all(tensor.equal(resumed_weights[name]) for name, tensor in weights.items())
