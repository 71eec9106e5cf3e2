"""A step that does not fit into memory is taken in parts, and comes to the same."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from test_speedups import assert_same_step, batch_of, built, step
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
    """Training steps of more than `texts` texts run out of memory, as a GPU or a processor says it."""
    held, compute_loss = {"texts": 1000, "failed": 0}, Trainer.compute_loss

    def small(self: Trainer, model: Any, inputs: dict[str, torch.Tensor], *given: Any) -> Any:
        if model.training and len(inputs["labels"]) > held["texts"]:
            held["failed"] += 1
            raise (torch.OutOfMemoryError("CUDA") if held["failed"] % 2 else RuntimeError(FULL))
        return compute_loss(self, model, inputs, *given)

    monkeypatch.setattr(Trainer, "compute_loss", small)
    yield held


def test_a_batch_that_does_not_fit_is_halved_until_it_does(
    fits: dict[str, int], train_here: Callable[..., Run], caplog: pytest.LogCaptureFixture
) -> None:
    few = {"max_train_samples": 64, "num_train_epochs": 1}
    whole = train_here(**few)
    caplog.clear()
    fits["texts"] = 3
    parted = train_here(**few)
    assert parted.result()["batch_parts"] == 8 > whole.result()["batch_parts"] == 1
    assert [f"in {parts} parts" in caplog.text for parts in (2, 4, 8, 16)] == [True, True, True, False]
    assert parted.state().batch_parts == 8
    assert "each batch in 8 parts" in speed(parted.state().to_dict())
    for name in ("steps", "tokens", "accuracy"):
        assert parted.result()[name] == whole.result()[name]
    assert parted.result()["eval_loss"] == pytest.approx(whole.result()["eval_loss"], abs=1e-5)


@pytest.mark.parametrize(("fitting", "compared"), [(4, 4), (3, 2), (1, 1)])
def test_the_comparison_takes_as_many_texts_as_fit(
    fitting: int, compared: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, config = built(tmp_path)
    forward, seen = BertModel.forward, []

    def small(self: BertModel, input_ids: torch.Tensor, **named: Any) -> Any:
        if len(input_ids) > fitting:
            raise torch.OutOfMemoryError("CUDA")
        seen.append(len(input_ids))
        return forward(self, input_ids, **named)

    monkeypatch.setattr(BertModel, "forward", small)
    model.eval()
    with optimize_training(model, config, batch_of(model), steps=1) as applied:
        assert applied.record.first_token and applied.record.lora_layers
    assert set(seen) == {compared} and not model.training  # as it was, also after a failure

    monkeypatch.setattr(
        model, "parameters", lambda: iter([SimpleNamespace(is_cuda=True, requires_grad=False)])
    )
    assert not speedups._compiling_pays(model, batch_of(model), steps=10**9)


def test_a_single_text_that_does_not_fit_fails_the_run_in_words(
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
def test_what_counts_as_memory(error: Exception, is_memory: bool) -> None:
    assert is_out_of_memory(error) == is_memory


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "modernbert"])
def test_what_a_step_keeps_is_known_from_shorter_texts(family: str, tmp_path: Path) -> None:
    model, _ = built(tmp_path, family, max_length=128)
    batch = batch_of(model, texts=1, tokens=128, padded=False)
    assert plan_memory(model, batch).needed == pytest.approx(SPARE * saved_bytes(model, batch), rel=0.1)
    eight = batch_of(model, texts=8, tokens=128, padded=False)
    measured = SPARE * saved_bytes(model, eight)
    # DeBERTa keeps its relative positions once for all texts, which the forecast counts with each
    most = 1.7 if family == "deberta-v2" else 1.15
    assert 0.9 * measured < plan_memory(model, eight).needed < most * measured


def test_the_forecast_takes_parts_first_and_runs_layers_again_where_a_text_is_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = built(tmp_path)
    batch = batch_of(model, texts=8, tokens=64)
    monkeypatch.setattr(memory, "SHARE", 1.0)
    needed = plan_memory(model, batch).needed

    def planned(free: float, **how: bool) -> tuple[int, bool]:
        monkeypatch.setattr(memory, "free_bytes", lambda device: int(free * needed))
        found = plan_memory(model, batch, **how)
        return found.parts, found.checkpointing

    assert planned(1.01) == (1, False)
    assert planned(0.6) == (2, False)
    assert planned(0.3) == (4, False)
    assert planned(1 / 7.9)[1] and planned(0.01) == (8, True)
    assert planned(0.6, may_split=False) == (1, True)  # several processes, whose steps have to meet


@pytest.mark.parametrize("family", ["bert", "distilbert", "modernbert"])
def test_layers_that_run_again_keep_less_and_give_the_same_step(family: str, tmp_path: Path) -> None:
    model, config = built(tmp_path, family)
    batch = batch_of(model)
    with optimize_training(model, config, batch, 1):
        plain, kept = step(model, batch), saved_bytes(model, batch)
        with checkpointed(model, True) as does:
            assert does
            again, less = step(model, batch), saved_bytes(model, batch)
        assert_same_step(again, plain)
        assert less < 0.7 * kept
        assert_same_step(step(model, batch), plain, 0.0)


def test_a_run_follows_the_forecast_and_says_so(
    train_here: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    few = {"max_train_samples": 64, "num_train_epochs": 1}
    whole = train_here(**few)
    assert not whole.result()["gradient_checkpointing"]
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)
    with caplog.at_level(logging.INFO, logger="peft_core"):
        small = train_here(**few)
    assert "it is read in 16 parts, and the layers run again" in caplog.text
    result = small.result()
    assert result["gradient_checkpointing"] and result["batch_parts"] == 16
    assert "layers run again" in speed(result) and "in 16 parts" in speed(result)
    assert result["eval_loss"] == pytest.approx(whole.result()["eval_loss"], abs=1e-4)


def test_a_container_s_own_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(hardware, "_CGROUP", tmp_path)
    assert free_bytes(cpu) == pytest.approx(psutil.virtual_memory().available, rel=0.2)
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("3000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 500\n")
    assert free_bytes(cpu) == 2500
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes(cpu) > 10**6


def test_parts_hold_every_text_once() -> None:
    batch = {"input_ids": torch.arange(14).view(7, 2), "labels": torch.arange(7)}
    for parts in (1, 2, 4, 16):
        found = split(batch, parts)
        assert len(found) == min(parts, 7)
        assert torch.cat([part["labels"] for part in found]).equal(batch["labels"])
        assert torch.cat([part["input_ids"] for part in found]).equal(batch["input_ids"])
