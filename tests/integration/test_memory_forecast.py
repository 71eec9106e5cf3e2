"""The forecast of training memory: its accuracy against measurements, and what it grows with."""

import json
import os
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import ROOT
from test_speedups import TARGETS, batch_of, build_model
from tiny import FAMILIES

from benchmarks.bench_memory import measure, setting
from peft_core import hardware
from peft_core.config import EMBEDDED_MODEL, TrainConfig
from peft_core.errors import ConfigError
from peft_core.methods.registry import METHODS
from peft_core.service import tasks
from peft_core.service.limits import Limits
from peft_core.training import memory_forecast, speedups
from peft_core.training.memory import saved_bytes
from peft_core.training.memory_forecast import LIBRARIES, forecast_memory

MEASURED = json.loads((ROOT / "benchmarks/results/memory_cpu.json").read_text(encoding="utf-8"))
LEAST, MOST = 0.8, 1.45  # forecast over measured
UNKNOWN_TEXTS = {"dataset_name": "someone/long-texts", "num_labels": 2, "max_train_samples": 192}


@pytest.fixture
def set_bfloat16_faster(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Return a function that sets whether bfloat16 is faster, which decides what a step saves."""

    def set_faster(is_faster: bool) -> None:
        memory_forecast._model_memory.cache_clear()
        for module in (memory_forecast, speedups, hardware):
            monkeypatch.setattr(module, "is_bfloat16_faster", lambda device: is_faster)

    return set_faster


def forecast(free: int | None = None, **settings: Any) -> int:
    return forecast_memory(TrainConfig.from_dict({**UNKNOWN_TEXTS, **settings}), free)


def test_forecast_memory_of_recorded_trainings_is_within_its_band(
    set_bfloat16_faster: Callable[[bool], None],
) -> None:
    set_bfloat16_faster(True)
    assert all(row["half"] for row in MEASURED)
    ratios = {json.dumps(row["settings"]): forecast(**row["settings"]) / row["peak"] for row in MEASURED}
    assert {row["settings"]["method"] for row in MEASURED} == set(METHODS)
    assert {name: ratio for name, ratio in ratios.items() if not LEAST < ratio < MOST} == {}
    assert 0.95 < statistics.median(ratios.values()) < 1.1


def test_forecast_memory_of_a_training_on_this_machine_is_within_its_band(tmp_path: Path) -> None:
    settings = setting(EMBEDDED_MODEL, "lora", 32, 128)
    assert LEAST < forecast(**settings) / measure(settings, tmp_path) < MOST


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "deberta-v2"])
def test_forecast_memory_traces_saved_activations(
    family: str, tmp_path: Path, set_bfloat16_faster: Callable[[bool], None]
) -> None:
    set_bfloat16_faster(False)
    model, config = build_model(tmp_path, family, max_length=64, arithmetic="plain")
    batch = batch_of(model, texts=8, tokens=64, padded=False)
    del batch["attention_mask"]
    activations = memory_forecast._model_memory(config, 2).activation_bytes(8, 64)
    assert activations == pytest.approx(saved_bytes(model, batch), rel=0.1)


def test_forecast_memory_of_deberta_counts_its_relative_positions(tmp_path: Path) -> None:
    model, config = build_model(tmp_path, "deberta-v2", max_length=64, arithmetic="plain")
    batch = batch_of(model, texts=8, tokens=64, padded=False)
    activations = memory_forecast._model_memory(config, 2).activation_bytes(8, 64)
    assert 0.8 < activations / saved_bytes(model, batch) < 1.5


@pytest.mark.parametrize("family", ["distilbert", "roberta"])
def test_forecast_memory_of_a_folder_without_weights_reads_its_config(family: str, tmp_path: Path) -> None:
    build_model(tmp_path, family)
    for path in tmp_path.iterdir():
        if path.name != "config.json":
            path.unlink()
    targets = TARGETS.get(family, ["query", "value"])
    assert forecast(model_name_or_path=str(tmp_path), target_modules=targets, max_length=64) > LIBRARIES


def test_forecast_memory_grows_with_batch_length_and_trained_parameters() -> None:
    sizes = [
        forecast(per_device_train_batch_size=batch, max_length=length)
        for batch, length in ((8, 128), (32, 128), (32, 256), (64, 256))
    ]
    assert sizes == sorted(set(sizes))
    assert forecast(method="full") > forecast(method="head_only")
    assert forecast(model_name_or_path="google-bert/bert-base-uncased") > forecast()


def test_forecast_memory_of_known_texts_follows_their_mean_length() -> None:
    embedded = TrainConfig(per_device_train_batch_size=64, max_length=256)
    assert forecast_memory(embedded) < forecast(per_device_train_batch_size=64, max_length=256) / 1.5
    assert forecast_memory(embedded) == forecast_memory(replace(embedded, max_length=200))


def test_forecast_memory_with_little_free_splits_then_checkpoints() -> None:
    large = {"per_device_train_batch_size": 64, "max_length": 256, "arithmetic": "plain"}
    whole = forecast(**large)
    parted, checkpointed = (forecast(free, **large) for free in (whole, LIBRARIES + 150_000_000))
    assert LIBRARIES < checkpointed < parted < whole
    assert forecast(100 * whole, **large) == whole


def test_forecast_memory_of_an_untraceable_model_uses_a_formula(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {"max_length": 128, "arithmetic": "plain"}
    traced = forecast(**settings)

    def fail(*_: Any) -> None:
        raise RuntimeError("Tensor.item() cannot be called on fake tensors")

    memory_forecast._model_memory.cache_clear()
    monkeypatch.setattr(memory_forecast, "_traced_activations", fail)
    assert 0.6 < forecast(**settings) / traced < 1.6
    memory_forecast._model_memory.cache_clear()


def test_cost_task_returns_seconds_memory_and_free_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "free_bytes", lambda device: 8_000_000_000)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    answer = tasks.cost({})
    assert answer["trainable"] == 74_498 and answer["seconds"] > 0
    assert (answer["memory"], answer["free"]) == (forecast_memory(TrainConfig()), 8_000_000_000)
    assert tasks.forecast({}, os.getpid())["free"] > answer["free"] + 100_000_000
    assert tasks.forecast({}, 2**22 + 1)["free"] == answer["free"]  # a process that has ended


def test_forecast_task_on_a_gpu_returns_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    answer = tasks.forecast({})
    assert (answer["memory"], answer["free"]) == (None, None)
    Limits().check_forecast(answer)


def test_check_memory_beyond_the_share_raises_config_error() -> None:
    limits = Limits()
    limits.check_memory(7_000_000_000, 10_000_000_000)
    words = (
        r"forecast to take 7\.1 GB of memory; this public demo limits a run to 70% of the 10\.0 GB of "
        r"free memory\. Use a smaller batch, a shorter max length or a smaller model"
    )
    with pytest.raises(ConfigError, match=words):
        limits.check_memory(7_100_000_000, 10_000_000_000)
    with pytest.raises(ConfigError, match="GB of memory"):
        limits.check_forecast({"seconds": 1.0, "memory": 2_000_000_000, "free": 1_000_000_000})
