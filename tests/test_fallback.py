"""A step that fails in an admitted form is repeated in the plain form, and the run goes on and says so."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_speedups import batch_of, built, step
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
    """Stands in for the fused LoRA layer, and fails in the backward pass of one step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at_step: int, error: Exception) -> None:
        self.at_step, self.error = at_step, error
        self.failures = 0
        self._step = -1
        lora_linear, compute_loss = speedups.lora_linear, RunTrainer.compute_loss

        def failing(x: torch.Tensor, *given: Any) -> torch.Tensor:
            output = lora_linear(x, *given)
            if self._step == self.at_step and output.requires_grad:
                output.register_hook(self._fail)
            return output

        def counted(trainer: RunTrainer, model: nn.Module, *given: Any, **named: Any) -> Any:
            self._step = trainer.state.global_step if model.training else -1
            return compute_loss(trainer, model, *given, **named)

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
def test_run_with_a_failing_step_finishes_as_one_that_never_used_that_form(
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
    assert "After step 0 a step failed in its faster form" in caplog.text

    plain = runs.create(
        tmp_path / "plain", TrainConfig.from_dict({**run.config().to_dict(), "arithmetic": "plain"})
    )
    train(plain.folder)
    losses = [[row["loss"] for row in one.metrics() if "loss" in row] for one in (run, plain)]
    assert losses[0] == losses[1]
    assert run.result()["eval_loss"] == plain.result()["eval_loss"]


def test_run_continued_after_its_failing_step_does_not_try_that_form_again(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = FailingLoRA(monkeypatch, 3, RuntimeError(FAILURE))
    with monkeypatch.context() as stopping:
        stopping.setattr(Run, "stop_requested", lambda run: (run.state().step or 0) > 5)
        train(run.folder)
    assert run.state().status == "KILLED" and run.state().speedups["failed_at"] == 3
    monkeypatch.setattr(speedups, "lora_linear", lambda *given: pytest.fail("the failed form was tried"))
    train(run.folder)
    assert failing.failures == 1 and run.state().status == "FINISHED"
    assert run.result()["speedups"]["failed_at"] == 3


@pytest.mark.parametrize(
    ("step", "used", "failed_at"), [(2, 4, None), (3, 0, 3), (9, 0, 3)], ids=["before", "at", "after"]
)
def test_speedups_of_a_continued_run_depend_on_where_it_goes_on(
    step: int, used: int, failed_at: int | None
) -> None:
    record = TrainingOptimizations(lora_layers=4, autocast=True, failed_at=3, failure="RuntimeError: no")
    before = TrainingOptimizations.at_step(record.to_dict(), step)
    assert (before.lora_layers, before.failed_at, before.autocast) == (used, failed_at, True)


def test_speedups_of_a_run_without_a_record_are_tried_anew() -> None:
    assert TrainingOptimizations.at_step(None, 3) is None
    assert TrainingOptimizations.at_step({"dtype": "bfloat16", "unknown": 1}, 3) == TrainingOptimizations(
        dtype="bfloat16"
    )


def test_failing_step_in_the_curve_is_repeated(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    lora_linear, failures = speedups.lora_linear, []

    def failing(*given: Any) -> torch.Tensor:
        if not torch.is_grad_enabled() and not failures:
            failures.append(1)
            raise RuntimeError(FAILURE)
        return lora_linear(*given)

    monkeypatch.setattr(speedups, "lora_linear", failing)
    train(run.folder)
    assert failures and run.state().status == "FINISHED"
    assert run.result()["speedups"]["failed_at"] == 5  # of 20 steps, where the curve has its first point


class Broken(nn.Module):
    """A model whose faster form fails halfway through its backward pass, after it drew random numbers."""

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
def test_repeated_step_has_the_same_random_numbers_and_the_gradients_from_before(
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


def test_step_that_fails_in_the_plain_form_too_raises() -> None:
    model = Broken()
    applied = AppliedOptimizations(model, TrainingOptimizations(first_token=True), contextlib.ExitStack())
    for _ in range(2):
        with pytest.raises(RuntimeError, match="same dtype"):
            applied.run(model.step)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("full"), RuntimeError("can't allocate memory: 8 GB")]
)
def test_step_out_of_memory_is_not_blamed_on_its_form(error: Exception) -> None:
    def step() -> None:
        raise error

    applied = applied_to(Broken())
    with pytest.raises(type(error)):
        applied.run(step)
    assert applied.active


def test_plain_model_runs_its_steps_without_a_copy(tmp_path: Path) -> None:
    model, config = built(tmp_path, arithmetic="plain")
    with optimize_training(model, config, batch_of(model), 1) as applied:
        assert not applied.active

        def step_fails() -> None:
            raise RuntimeError("once")

        with pytest.raises(RuntimeError, match="once"):
            applied.run(step_fails)
        assert not applied.record.failed


def test_fall_back_restores_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speedups, "WORTH_IT", 1000)
    monkeypatch.setattr(speedups, "is_bfloat16_faster", lambda device: True)
    model, config = built(tmp_path)
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
    assert loss == plain[0] and all(gradients[name].equal(value) for name, value in plain[1].items())


def described(run: Run) -> dict[str, Any]:
    state = run.state().to_dict()
    return {**state, "run_id": run.run_id, "settings": run.config().to_dict(), "result": run.result()}


def test_page_says_that_a_step_failed_in_its_faster_form(
    run: Run, monkeypatch: pytest.MonkeyPatch, train_here: Callable[..., Run]
) -> None:
    FailingLoRA(monkeypatch, 1, RuntimeError("a <b> c"))
    train(run.folder)
    description = described(run)
    words = "After step 1 a step failed in its faster form (RuntimeError: a &lt;b&gt; c)"
    assert words in result_card(description)
    assert words in run_progress({**description, "status": "RUNNING", "stage": "training"})
    monkeypatch.undo()
    assert "faster form" not in result_card(described(train_here()))
