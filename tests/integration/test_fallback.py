"""A step that fails in its optimized form is repeated in the plain form; the run continues and reports it."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_speedups import batch_of, build_model, step
from torch import nn

from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.runs import Run
from peft_core.training import speedups
from peft_core.training.entry import train
from peft_core.training.fallback import AppliedOptimizations, TrainingOptimizations
from peft_core.training.speedups import optimize_training
from peft_core.training.trainer import RunTrainer
from peft_core.views.cards import result_card
from peft_core.views.components import run_progress

FAILURE = "expected m1 and m2 to have the same dtype, but got: float != c10::BFloat16"


class FailingLoRA:
    """A substitute for the fused LoRA layer that fails in the backward pass of one step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at_step: int, error: Exception) -> None:
        self.at_step, self.error = at_step, error
        self.failures = 0
        self._step = -1
        lora_linear, compute_loss = speedups.lora_linear, RunTrainer.compute_loss

        def failing(x: torch.Tensor, *args: Any) -> torch.Tensor:
            output = lora_linear(x, *args)
            if self._step == self.at_step and output.requires_grad:
                output.register_hook(self._fail)
            return output

        def counted(trainer: RunTrainer, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
            self._step = trainer.state.global_step if model.training else -1
            return compute_loss(trainer, model, *args, **kwargs)

        monkeypatch.setattr(speedups, "lora_linear", failing)
        monkeypatch.setattr(RunTrainer, "compute_loss", counted)

    def _fail(self, gradient: torch.Tensor) -> None:
        self.failures += 1
        raise self.error


@pytest.fixture
def run(settings: dict[str, Any], tmp_path: Path) -> Run:
    config = TrainConfig.from_dict({**settings, "dropout": 0.1, "num_train_epochs": 2})
    return runs.create(tmp_path / "runs", config)


@pytest.mark.parametrize(
    "error", [RuntimeError(FAILURE), TypeError(FAILURE)], ids=["RuntimeError", "TypeError"]
)
def test_run_with_failing_step_gives_results_of_plain_run(
    error: Exception,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    """Dropout makes the losses depend on the random numbers, which the repeated step must draw again."""
    failing = FailingLoRA(monkeypatch, 0, error)
    train(run.folder)
    assert failing.failures == 1 and run.state().status == "FINISHED"
    record = run.result()["speedups"]
    assert record["failed_at"] == 0 and record["failure"] == f"{type(error).__name__}: {FAILURE}"
    assert record["lora_layers"] == 4 and run.state().speedups == record
    assert "After step 0 the optimized training step failed" in caplog.text

    plain_run = runs.create(
        tmp_path / "plain", TrainConfig.from_dict({**run.config().to_dict(), "arithmetic": "plain"})
    )
    train(plain_run.folder)
    losses = [[row["loss"] for row in trained.metrics() if "loss" in row] for trained in (run, plain_run)]
    assert losses[0] == losses[1]
    assert run.result()["eval_loss"] == plain_run.result()["eval_loss"]


def test_resumed_run_after_failing_step_stays_plain(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = FailingLoRA(monkeypatch, 3, RuntimeError(FAILURE))
    with monkeypatch.context() as stopping:
        stopping.setattr(Run, "stop_requested", lambda run: (run.state().step or 0) > 5)
        train(run.folder)
    assert run.state().status == "KILLED" and run.state().speedups["failed_at"] == 3
    monkeypatch.setattr(speedups, "lora_linear", lambda *args: pytest.fail("the failed form was tried"))
    train(run.folder)
    assert failing.failures == 1 and run.state().status == "FINISHED"
    assert run.result()["speedups"]["failed_at"] == 3


@pytest.mark.parametrize(
    ("step", "lora_layers", "failed_at"), [(2, 4, None), (3, 0, 3), (9, 0, 3)], ids=["before", "at", "after"]
)
def test_at_step_before_failure_keeps_optimizations_and_after_drops_them(
    step: int, lora_layers: int, failed_at: int | None
) -> None:
    record = TrainingOptimizations(lora_layers=4, autocast=True, failed_at=3, failure="RuntimeError: no")
    before = TrainingOptimizations.at_step(record.to_dict(), step)
    assert (before.lora_layers, before.failed_at, before.autocast) == (lora_layers, failed_at, True)


def test_at_step_without_record_is_none() -> None:
    assert TrainingOptimizations.at_step(None, 3) is None
    assert TrainingOptimizations.at_step({"dtype": "bfloat16", "unknown": 1}, 3) == TrainingOptimizations(
        dtype="bfloat16"
    )


def test_failing_evaluation_step_is_repeated(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    lora_linear, failures = speedups.lora_linear, []

    def failing(*args: Any) -> torch.Tensor:
        if not torch.is_grad_enabled() and not failures:
            failures.append(1)
            raise RuntimeError(FAILURE)
        return lora_linear(*args)

    monkeypatch.setattr(speedups, "lora_linear", failing)
    train(run.folder)
    assert failures and run.state().status == "FINISHED"
    assert run.result()["speedups"]["failed_at"] == 5  # of 20 steps; the first evaluation of the curve


class Broken(nn.Module):
    """A model whose optimized form fails during the backward pass, after it drew random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.broken = True
        self.restored = 0

    def repair(self) -> None:
        self.broken = False
        self.restored += 1

    def step(self) -> torch.Tensor:
        noise = torch.rand(3)
        (self.weight * noise).sum().backward()
        if self.broken:
            raise RuntimeError(FAILURE)
        return noise


def applied_to(model: Broken) -> AppliedOptimizations:
    stack = contextlib.ExitStack()
    stack.callback(model.repair)
    return AppliedOptimizations(model, TrainingOptimizations(first_token=True), stack)


@pytest.mark.parametrize("accumulated", [None, 5.0])
def test_repeated_step_restores_random_state_and_gradients(
    accumulated: float | None,
) -> None:
    model = Broken()
    if accumulated:
        model.weight.grad = torch.full((3,), accumulated)
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    applied = applied_to(model)
    assert applied.run(model.step, step=7).equal(expected)
    assert model.weight.grad.equal(expected + (accumulated or 0.0))
    assert model.restored == 1 and applied.record.failed_at == 7 and not applied.active
    applied.run(model.step, step=8)
    assert model.restored == 1 and applied.record.failed_at == 7


def test_step_failing_in_plain_form_raises() -> None:
    model = Broken()
    applied = AppliedOptimizations(model, TrainingOptimizations(first_token=True), contextlib.ExitStack())
    for _ in range(2):
        with pytest.raises(RuntimeError, match="same dtype"):
            applied.run(model.step)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("full"), RuntimeError("can't allocate memory: 8 GB")]
)
def test_step_out_of_memory_keeps_optimizations(error: Exception) -> None:
    def step() -> None:
        raise error

    applied = applied_to(Broken())
    with pytest.raises(type(error)):
        applied.run(step)
    assert applied.active


def test_plain_model_step_error_is_not_recorded(tmp_path: Path) -> None:
    model, config = build_model(tmp_path, arithmetic="plain")
    with optimize_training(model, config, batch_of(model), 1) as applied:
        assert not applied.active

        def step_fails() -> None:
            raise RuntimeError("once")

        with pytest.raises(RuntimeError, match="once"):
            applied.run(step_fails)
        assert not applied.record.failed


def test_fallback_restores_plain_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speedups, "WORTH_IT", 1000)
    monkeypatch.setattr(speedups, "is_bfloat16_faster", lambda device: True)
    model, config = build_model(tmp_path)
    batch = batch_of(model)
    plain = step(model, batch)
    attempts: list[str] = []

    def fail_once() -> tuple[float, dict[str, torch.Tensor]]:
        attempts.append(str(model.base_model.model.bert.encoder.layer[0].output.dense.weight.dtype))
        if len(attempts) == 1:
            raise RuntimeError(FAILURE)
        return step(model, batch)

    with optimize_training(model, config, batch, 1) as applied:
        loss, gradients = applied.run(fail_once)
    assert attempts == ["torch.bfloat16", "torch.float32"]
    assert loss == plain[0] and all(gradients[name].equal(gradient) for name, gradient in plain[1].items())


def describe_run(run: Run) -> dict[str, Any]:
    state = run.state().to_dict()
    return {**state, "run_id": run.run_id, "settings": run.config().to_dict(), "result": run.result()}


def test_result_card_reports_failed_step(
    run: Run, monkeypatch: pytest.MonkeyPatch, train_here: Callable[..., Run]
) -> None:
    FailingLoRA(monkeypatch, 1, RuntimeError("a <b> c"))
    train(run.folder)
    description = describe_run(run)
    words = "After step 1 a step failed in its faster form (RuntimeError: a &lt;b&gt; c)"
    assert words in result_card(description)
    assert words in run_progress({**description, "status": "RUNNING", "stage": "training"})
    monkeypatch.undo()
    assert "faster form" not in result_card(describe_run(train_here()))
