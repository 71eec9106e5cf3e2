"""Batches too large for memory: split or checkpointed, with the same result."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from test_speedups import assert_same_step, batch_of, build_model, step
from transformers import Trainer
from transformers.models.bert.modeling_bert import BertModel

from peft_core import hardware
from peft_core.hardware import free_bytes
from peft_core.runs import Run
from peft_core.training import memory, speedups
from peft_core.training.entry import describe_failure
from peft_core.training.memory import SPARE, checkpointed, plan_memory, saved_bytes
from peft_core.training.speedups import optimize_training
from peft_core.training.trainer import is_out_of_memory, split
from peft_core.views.components import speed

FULL = (
    "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"
)


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """Make training steps of more than `texts` texts raise the memory errors of GPU and CPU in turn."""
    limits, compute_loss = {"texts": 1000, "failed": 0}, Trainer.compute_loss

    def small(self: Trainer, model: Any, inputs: dict[str, torch.Tensor], *args: Any) -> Any:
        if model.training and len(inputs["labels"]) > limits["texts"]:
            limits["failed"] += 1
            raise (torch.OutOfMemoryError("CUDA") if limits["failed"] % 2 else RuntimeError(FULL))
        return compute_loss(self, model, inputs, *args)

    monkeypatch.setattr(Trainer, "compute_loss", small)
    yield limits


def test_batch_too_large_for_memory_is_halved_until_it_fits(
    fits: dict[str, int], train_here: Callable[..., Run], caplog: pytest.LogCaptureFixture
) -> None:
    small_run = {"max_train_samples": 64, "num_train_epochs": 1}
    whole = train_here(**small_run)
    caplog.clear()
    fits["texts"] = 3
    parted = train_here(**small_run)
    assert parted.result()["batch_parts"] == 8 > whole.result()["batch_parts"] == 1
    assert [f"into {parts} parts" in caplog.text for parts in (2, 4, 8, 16)] == [True, True, True, False]
    assert parted.state().batch_parts == 8
    assert "each batch in 8 parts" in speed(parted.state().to_dict())
    for name in ("steps", "tokens", "accuracy"):
        assert parted.result()[name] == whole.result()[name]
    assert parted.result()["eval_loss"] == pytest.approx(whole.result()["eval_loss"], abs=1e-5)


@pytest.mark.parametrize(("fitting", "compared"), [(4, 4), (3, 2), (1, 1)])
def test_optimize_training_compares_as_many_texts_as_fit(
    fitting: int, compared: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, config = build_model(tmp_path)
    forward, batch_sizes = BertModel.forward, []

    def small(self: BertModel, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        if len(input_ids) > fitting:
            raise torch.OutOfMemoryError("CUDA")
        batch_sizes.append(len(input_ids))
        return forward(self, input_ids, **kwargs)

    monkeypatch.setattr(BertModel, "forward", small)
    model.eval()
    with optimize_training(model, config, batch_of(model), steps=1) as applied:
        assert applied.record.first_token and applied.record.lora_layers
    assert set(batch_sizes) == {compared} and not model.training  # restored, also after a failure

    monkeypatch.setattr(
        model, "parameters", lambda: iter([SimpleNamespace(is_cuda=True, requires_grad=False)])
    )
    assert not speedups._compiling_pays(model, batch_of(model), steps=10**9)


def test_single_text_too_large_for_memory_fails_with_a_message(
    fits: dict[str, int], train_here: Callable[..., Run]
) -> None:
    fits["texts"] = 0
    with pytest.raises((torch.OutOfMemoryError, RuntimeError)) as caught:
        train_here(max_train_samples=32)
    assert describe_failure(caught.value).startswith("The machine ran out of memory")


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError(FULL), True),
        (MemoryError(), True),
        (RuntimeError("shapes differ"), False),
        (ValueError("can't allocate memory"), False),
    ],
    ids=["gpu", "processor", "python", "another", "a value"],
)
def test_is_out_of_memory_recognizes_memory_errors(error: Exception, is_memory: bool) -> None:
    assert is_out_of_memory(error) == is_memory


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "modernbert"])
def test_plan_memory_forecast_matches_saved_bytes(family: str, tmp_path: Path) -> None:
    model, _ = build_model(tmp_path, family, max_length=128)
    batch = batch_of(model, texts=1, tokens=128, padded=False)
    assert plan_memory(model, batch).needed == pytest.approx(SPARE * saved_bytes(model, batch), rel=0.1)
    eight = batch_of(model, texts=8, tokens=128, padded=False)
    measured = SPARE * saved_bytes(model, eight)
    # DeBERTa saves relative positions once per batch; the forecast counts them once per text
    upper_bound = 1.7 if family == "deberta-v2" else 1.15
    assert 0.9 * measured < plan_memory(model, eight).needed < upper_bound * measured


def test_plan_memory_splits_batches_before_checkpointing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = build_model(tmp_path)
    batch = batch_of(model, texts=8, tokens=64)
    monkeypatch.setattr(memory, "SHARE", 1.0)
    needed = plan_memory(model, batch).needed

    def planned(free: float, **options: bool) -> tuple[int, bool]:
        monkeypatch.setattr(memory, "free_bytes", lambda device: int(free * needed))
        plan = plan_memory(model, batch, **options)
        return plan.parts, plan.checkpointing

    assert planned(1.01) == (1, False)
    assert planned(0.6) == (2, False)
    assert planned(0.3) == (4, False)
    assert planned(1 / 7.9)[1] and planned(0.01) == (8, True)
    assert planned(0.6, may_split=False) == (1, True)  # steps of several processes must stay in sync


@pytest.mark.parametrize("family", ["bert", "distilbert", "modernbert"])
def test_checkpointed_layers_save_memory_and_give_the_same_step(family: str, tmp_path: Path) -> None:
    model, config = build_model(tmp_path, family)
    batch = batch_of(model)
    with optimize_training(model, config, batch, 1):
        plain, plain_bytes = step(model, batch), saved_bytes(model, batch)
        with checkpointed(model, True) as is_checkpointed:
            assert is_checkpointed
            recomputed, checkpointed_bytes = step(model, batch), saved_bytes(model, batch)
        assert_same_step(recomputed, plain)
        assert checkpointed_bytes < 0.7 * plain_bytes
        assert_same_step(step(model, batch), plain, 0.0)


def test_run_with_little_memory_splits_and_checkpoints(
    train_here: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    small_run = {"max_train_samples": 64, "num_train_epochs": 1}
    whole = train_here(**small_run)
    assert not whole.result()["gradient_checkpointing"]
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)
    with caplog.at_level(logging.INFO, logger="peft_core"):
        small = train_here(**small_run)
    assert "it is split into 16 parts, with gradient checkpointing" in caplog.text
    run_result = small.result()
    assert run_result["gradient_checkpointing"] and run_result["batch_parts"] == 16
    assert "layers run again" in speed(run_result) and "in 16 parts" in speed(run_result)
    assert run_result["eval_loss"] == pytest.approx(whole.result()["eval_loss"], abs=1e-4)


def test_free_bytes_respects_the_cgroup_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(hardware, "_CGROUP", tmp_path)
    assert free_bytes(cpu) == pytest.approx(psutil.virtual_memory().available, rel=0.2)
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("3000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 500\n")
    assert free_bytes(cpu) == 2500
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes(cpu) > 10**6


def test_split_contains_every_text_once() -> None:
    batch = {"input_ids": torch.arange(14).view(7, 2), "labels": torch.arange(7)}
    for parts in (1, 2, 4, 16):
        batches = split(batch, parts)
        assert len(batches) == min(parts, 7)
        assert torch.cat([part["labels"] for part in batches]).equal(batch["labels"])
        assert torch.cat([part["input_ids"] for part in batches]).equal(batch["input_ids"])
