"""The frozen layers below all that is trained run once for each text, and the step stays the same."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from test_speedups import assert_same_step, batch_of, built, step
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


def runs_of(layer: nn.Module) -> list[int]:
    """How often what lies in a layer runs."""
    seen: list[int] = []
    next(m for m in layer.modules() if isinstance(m, nn.Linear)).register_forward_hook(
        lambda *_: seen.append(1)
    )
    return seen


@pytest.mark.parametrize("padded", [True, False], ids=["padded", "whole"])
@pytest.mark.parametrize("family", FAMILIES)
def test_layers_below_the_adapters_run_once(family: str, padded: bool, tmp_path: Path) -> None:
    model, config = built(tmp_path / "model", family, top_layers=1, **TWICE)
    assert frozen_below(model) == 1
    batch = batch_of(model, padded=padded)
    half = {name: value[2:5] for name, value in batch.items()}
    wanted, of_half = step(model, batch), step(model, half)
    texts, below = texts_of([batch], tmp_path), runs_of(encoder_layers(model)[0])
    with optimize_training(model, config, batch, 1, texts=texts) as applied:
        assert applied.record.lower_layers == 1
        below.clear()
        assert_same_step(step(model, batch), wanted)
        assert_same_step(step(model, half), of_half)  # in another batch
        assert not below
        other = {**batch, "input_ids": batch["input_ids"] + 1}
        step(model, other)
        assert below  # texts that were not there before
    assert_same_step(step(model, batch), wanted, 0.0)
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_alone_reads_what_the_whole_encoder_made_once(family: str, tmp_path: Path) -> None:
    model, config = built(tmp_path / "model", family, method="head_only", **TWICE)
    batch = batch_of(model)
    wanted, below = step(model, batch), runs_of(encoder_layers(model)[-1])
    with optimize_training(model, config, batch, 1, texts=texts_of([batch], tmp_path)) as applied:
        assert applied.record.lower_layers == 2
        below.clear()
        assert_same_step(step(model, batch), wanted)
        assert not below


def test_the_texts_of_a_pair_are_told_apart(tmp_path: Path) -> None:
    model, config = built(tmp_path / "model", top_layers=1, **TWICE)
    kinds = torch.zeros(6, 9, dtype=torch.long)
    one = {**batch_of(model), "token_type_ids": kinds}
    other = {**one, "token_type_ids": (torch.arange(9) > 4).long().expand(6, 9)}
    wanted = step(model, one), step(model, other)
    assert wanted[0][0] != wanted[1][0]
    with optimize_training(model, config, one, 1, texts=texts_of([one, other], tmp_path)) as applied:
        assert applied.record.lower_layers == 1
        assert_same_step(step(model, one), wanted[0])
        assert_same_step(step(model, other), wanted[1])


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
def test_where_it_would_not_pay_or_not_be_the_same_every_layer_runs(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    model, config = built(tmp_path / "model", **{"top_layers": 1, **TWICE, **changes})
    batch = batch_of(model)
    with optimize_training(model, config, batch, 1, texts=texts_of([batch], tmp_path)) as applied:
        assert not applied.record.lower_layers


def test_layers_that_share_their_weights_or_stand_on_what_is_trained_are_not_below(tmp_path: Path) -> None:
    model, _ = built(tmp_path / "albert", "albert", method="head_only")
    assert frozen_below(model) == 0
    model, _ = built(tmp_path / "electra", "electra", target_modules=["embeddings_project"])
    assert frozen_below(model) == 0


def test_more_than_the_disk_may_hold_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="peft_core")
    model, config = built(tmp_path / "model", top_layers=1, **TWICE)
    batch = batch_of(model)
    texts = texts_of([batch], tmp_path)
    monkeypatch.setattr(lower_layers, "MOST_BYTES", texts.tokens * 32 * 4 - 1)
    with optimize_training(model, config, batch, 1, texts=texts) as applied:
        assert not applied.record.lower_layers
    assert "no room" in caplog.text
    monkeypatch.setattr(lower_layers, "MOST_BYTES", texts.tokens * 32 * 4)
    with optimize_training(model, config, batch, 1, texts=texts) as applied:
        assert applied.record.lower_layers == 1


def test_a_disk_that_fills_up_leaves_the_model_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, config = built(tmp_path / "model", top_layers=1, **TWICE)
    batch = batch_of(model)
    wanted = step(model, batch)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FrozenLayerCache, "_write", full)
    with optimize_training(model, config, batch, 1, texts=texts_of([batch], tmp_path)) as applied:
        assert not applied.record.lower_layers and applied.record.first_token
        assert_same_step(step(model, batch), wanted)
    assert model.training and not [m for m in model.modules() if "forward" in vars(m)]


def test_below_half_width_layers_the_step_stays_about_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speedups, "WORTH_IT", 1000)
    monkeypatch.setattr(speedups, "is_bfloat16_faster", lambda device: True)
    model, config = built(tmp_path / "model", top_layers=1, **TWICE)
    batch = batch_of(model)
    wanted = step(model, batch)
    with optimize_training(model, config, batch, 1, texts=texts_of([batch], tmp_path)) as applied:
        assert applied.record.dtype == "bfloat16" and applied.record.lower_layers == 1
        assert step(model, batch)[0] == pytest.approx(wanted[0], abs=0.02)


def test_a_run_in_the_top_layers_says_so_and_goes_on_after_a_stop(
    settings: dict[str, Any], train_here: Callable[..., Run], tmp_path: Path
) -> None:
    changes = {"top_layers": 1, "num_train_epochs": 10.0}
    run = train_here(**changes)
    assert run.result()["speedups"]["lower_layers"] == 1
    names = load_file(run.adapter / "adapter_model.safetensors")
    assert {name.split("layer.")[1][0] for name in names if "lora" in name} == {"1"}
    again = runs.create(tmp_path, run.config())
    with mock.patch.object(Run, "stop_requested", can_continue):
        train(again.folder)
    assert again.state().status == "KILLED"
    train(again.folder)
    assert again.result()["resumed_from"] > 0
    other = load_file(again.adapter / "adapter_model.safetensors")
    assert all(value.equal(other[name]) for name, value in names.items())
