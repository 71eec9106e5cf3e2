"""Stop ends a run within two seconds of CPU time in every stage, and the run's note names what is kept.

CPU time is measured, because other processes may slow the test down. Each test requests Stop inside a stage
that would otherwise go on for a minute.
"""

import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from processes import start_python, wait_for
from torch import nn

from batteries.children import Report, fork_child
from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.data.labelled import load_labeled_splits
from peft_core.inference import batching
from peft_core.inference.predictor import Predictor
from peft_core.models.modules import encoder_layers
from peft_core.runs import Run, RunInTraining
from peft_core.runs.checkpoints import can_continue
from peft_core.training import entry as training_process
from peft_core.training import lower_layers, outputs, results, setup, stopping
from peft_core.training.entry import train
from peft_core.training.gradient_check import PlainStep
from peft_core.training.stopping import StopCheck, Stopped
from peft_core.training.trainer import RunTrainer

MAX_STOP_SECONDS = 2.0  # seconds of CPU time from the request to the end
STAGE_SECONDS = 60.0  # seconds that a stage would take


class StopRequest:
    """Requests Stop once and measures how long the run goes on."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.requested_at: float | None = None

    def __call__(self) -> None:
        if self.requested_at is None:
            self.run.request_stop()
            self.requested_at = time.process_time()

    def assert_answered(self) -> None:
        assert self.requested_at is not None, "the run never reached the stage"
        assert time.process_time() - self.requested_at < MAX_STOP_SECONDS


@pytest.fixture
def run(settings: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest) -> Run:
    changes = getattr(request, "param", {})
    config = {**settings, "top_layers": 1, "target_modules": ["query", "value"], **changes}
    return runs.create(tmp_path / "runs", TrainConfig.from_dict(config))


@pytest.fixture
def request_stop(run: Run) -> StopRequest:
    return StopRequest(run)


def work(seconds: float = STAGE_SECONDS) -> None:
    """Run Python code that never checks for Stop."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        len("busy")


def digest(run: Run) -> str:
    return hashlib.sha256((run.adapter / "adapter_model.safetensors").read_bytes()).hexdigest()


def replace_with_long_work(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, request_stop: StopRequest
) -> None:
    """Replace a function of a stage by one that requests Stop and then works for a minute."""

    def long_work(*_: Any, **__: Any) -> None:
        request_stop()
        work()
        raise AssertionError(f"{name} ran to its end")

    monkeypatch.setattr(owner, name, long_work)


@pytest.mark.parametrize(
    ("owner", "name", "stage"),
    [
        (setup, "load_labeled_splits", "reading the data"),
        (setup, "load_base", "loading the base model"),
        (setup, "encode", "encoding the texts"),
        (PlainStep, "__init__", "training"),
        (lower_layers.FrozenLayerCache, "_write", "training"),
    ],
    ids=["reading", "loading", "tokenizing", "admission", "frozen layers"],
)
def test_stop_before_first_step_ends_run_without_adapter(
    owner: Any, name: str, stage: str, run: Run, request_stop: StopRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_with_long_work(monkeypatch, owner, name, request_stop)
    train(run.folder)
    request_stop.assert_answered()
    state = run.state()
    assert state.status == "KILLED" and state.stage == stage
    assert state.notes[-1] == f"Stopped while {stage}; nothing was saved."
    assert not run.has_adapter and not can_continue(run)


def test_stop_during_tokenization_takes_effect_between_batches(
    run: Run, request_stop: StopRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = setup.encode

    def encode_many_times(*args: Any) -> Any:
        for _ in range(10_000):
            encode(*args[:-1])  # without the cache
            request_stop()
        raise AssertionError("tokenization ran to its end")

    monkeypatch.setattr(setup, "encode", encode_many_times)
    train(run.folder)
    request_stop.assert_answered()
    assert run.state().status == "KILLED"


def finish(run: Run) -> None:
    """Continue a stopped run to its end."""
    (run.folder / "stop").unlink()
    train(run.folder)
    assert run.state().status == "FINISHED"
    assert run.result()["resumed_from"] > 0


def measured_accuracy(run: Run) -> float:
    """Return the accuracy of the saved adapter on the test rows, from new predictions."""
    data = load_labeled_splits(run.config())
    predictions = Predictor(run.folder).predict(data.eval["text"])
    labels = [data.label_names[label] for label in data.eval["label"]]
    return sum(p.label == label for p, label in zip(predictions, labels, strict=True)) / len(labels)


def assert_adapter_kept(run: Run, step: int) -> None:
    state = run.state()
    assert state.status == "KILLED" and run.has_adapter
    where = (
        "after all 60 steps. The adapter" if step == 60 else f"at step {step} of 60. The adapter of that step"
    )
    assert state.notes[-1].startswith(f"Stopped {where} is kept; the test ")
    assert not (run.folder / "evaluation").exists()


@pytest.fixture
def uninterrupted(run: Run, tmp_path: Path) -> str:
    """The digest of the adapter from the same settings without a stop."""
    complete_run = runs.create(tmp_path / "whole", run.config())
    train(complete_run.folder)
    return digest(complete_run)


class LongLayer(torch.autograd.Function):
    """Identity that sleeps in the forward or the backward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, seconds: tuple[float, float]) -> torch.Tensor:
        ctx.seconds = seconds
        time.sleep(seconds[0])
        return hidden.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        time.sleep(ctx.seconds[1])
        return gradient, None


@pytest.mark.parametrize("part", ["forward", "backward"])
def test_stop_within_long_step_saves_adapter_of_previous_step(
    part: str,
    run: Run,
    request_stop: StopRequest,
    uninterrupted: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compute_loss = RunTrainer.compute_loss
    hooks: list[Any] = []

    def slow_layers(trainer: RunTrainer, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        slow = trainer.state.global_step == 3 and not hooks
        if slow:
            seconds = (0.3, 0.0) if part == "forward" else (0.0, 0.3)
            for layer in encoder_layers(model):
                hooks.append(
                    layer.register_forward_hook(
                        lambda _, __, out: (
                            (LongLayer.apply(out[0], seconds), *out[1:])
                            if isinstance(out, tuple)
                            else LongLayer.apply(out, seconds)
                        )
                    )
                )
            if part == "forward":
                request_stop()
        loss = compute_loss(trainer, model, *args, **kwargs)
        if slow:
            request_stop()
        return loss

    step_ends: list[int] = []
    monkeypatch.setattr(RunTrainer, "compute_loss", slow_layers)
    monkeypatch.setattr(
        training_process.RunProgress, "on_step_begin", lambda self, *args, **_: step_ends.append(0)
    )
    train(run.folder)
    for hook in hooks:
        hook.remove()
    request_stop.assert_answered()
    assert_adapter_kept(run, 3)
    assert len(step_ends) == 4  # the fourth step was interrupted
    monkeypatch.undo()
    finish(run)
    assert run.result()["resumed_from"] == 3
    assert digest(run) == uninterrupted


def test_stop_between_steps_takes_effect_at_next_step(
    run: Run, request_stop: StopRequest, uninterrupted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_step_end = training_process.RunProgress.on_step_end

    def stop_at_7(progress: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 7:
            request_stop()
        on_step_end(progress, args, state, control, **kwargs)

    monkeypatch.setattr(training_process.RunProgress, "on_step_end", stop_at_7)
    train(run.folder)
    request_stop.assert_answered()
    assert_adapter_kept(run, 7)
    monkeypatch.undo()
    finish(run)
    assert run.result()["resumed_from"] == 7 and digest(run) == uninterrupted
    assert [row["step"] for row in run.metrics() if "loss" in row] == list(range(1, 61))


@pytest.mark.parametrize("step", [7, 31])
def test_stopped_run_can_be_evaluated_and_then_continued(
    step: int, run: Run, uninterrupted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_step_end = training_process.RunProgress.on_step_end

    def stop_at_step(progress: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert state.global_step <= step
        if state.global_step == step:
            run.request_stop()
        on_step_end(progress, args, state, control, **kwargs)

    monkeypatch.setattr(training_process.RunProgress, "on_step_end", stop_at_step)
    train(run.folder)
    stopped_digest, seconds = digest(run), run.state().train_seconds
    (run.folder / "stop").unlink()
    run.update(evaluate_only=True)
    train(run.folder)
    run_result = run.result()
    assert run.state().status == "KILLED" and can_continue(run)
    assert f"Evaluated without further training, from the checkpoint of step {step}." in run.state().notes[-1]
    assert "Continued from" not in " ".join(run.state().notes)
    assert run_result["train_seconds"] == seconds > 0 and run_result["tokens_per_second"] > 0
    assert (
        run_result["eval_rows"] == 40 and run_result["steps"] == run_result["kept"]["trained_steps"] == step
    )
    best = run_result["kept"]["step"]
    assert best == (7 if step == 7 else 15 * round(best / 15)), "with evaluations behind it, the best of them"
    assert (digest(run) == stopped_digest) is (best == step)
    assert run_result["accuracy"] == measured_accuracy(run)
    monkeypatch.undo()
    assert not run.state().evaluate_only
    train(run.folder)
    assert run.state().status == "FINISHED" and run.result()["resumed_from"] == step
    assert run.result()["train_seconds"] > seconds, "of both trainings"
    assert digest(run) == uninterrupted
    assert len([row for row in run.metrics() if "test_loss" in row]) == 1


def train_until_stopped_in_validation(run: Run, request_stop: StopRequest, step: int) -> None:
    """Train, and request Stop during the evaluation of the validation rows at a step."""
    prediction_step = RunTrainer.prediction_step

    def stop_at_validation(trainer: RunTrainer, *args: Any, **kwargs: Any) -> Any:
        if trainer.state.global_step == step:
            request_stop()
            time.sleep(stopping.INTERVAL)
        return prediction_step(trainer, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunTrainer, "prediction_step", stop_at_validation)
        train(run.folder)


@pytest.mark.parametrize("run", [{"lora_dropout": 0.2}, {"dropout": 0.2}], indirect=True)
def test_stop_during_validation_with_dropout_continues_to_same_weights(
    run: Run, request_stop: StopRequest
) -> None:
    """Regression: a continued run drew the random number of the evaluation before restoring its state."""
    complete_run = runs.create(run.folder.parent, run.config())
    train(complete_run.folder)
    train_until_stopped_in_validation(run, request_stop, 15)
    finish(run)
    assert digest(run) == digest(complete_run)


@pytest.mark.parametrize("curve", [1, 2, 4], ids=["first curve", "second curve", "last curve"])
def test_stop_during_validation_saves_adapter_and_metrics(
    curve: int, run: Run, request_stop: StopRequest, uninterrupted: str
) -> None:
    train_until_stopped_in_validation(run, request_stop, 15 * curve)
    request_stop.assert_answered()
    assert_adapter_kept(run, 15 * curve)
    finish(run)
    assert run.result()["resumed_from"] == 15 * curve
    assert [row["step"] for row in run.metrics() if "eval_loss" in row] == [15, 30, 45, 60]
    assert run.result()["kept"]["evaluations"] == 4
    assert digest(run) == uninterrupted


def test_stop_during_evaluation_saves_adapter_and_continue_evaluates(
    run: Run, request_stop: StopRequest, uninterrupted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = batching.batches

    def stop_in_first_batch(*args: Any, **kwargs: Any) -> Iterator[Any]:
        for batch in batches(*args, **kwargs):
            request_stop()
            time.sleep(stopping.INTERVAL)
            yield batch
        raise AssertionError("the evaluation ran to its end")

    monkeypatch.setattr(batching, "batches", stop_in_first_batch)
    train(run.folder)
    request_stop.assert_answered()
    state = run.state()
    assert state.status == "KILLED" and run.has_adapter
    assert state.notes[-1] == (
        "Stopped after all 60 steps. The adapter is kept; the test rows were not evaluated. Continue "
        "evaluates them."
    )
    assert not (run.folder / "evaluation").exists()
    assert digest(run) == uninterrupted
    monkeypatch.undo()
    finish(run)
    assert run.result()["resumed_from"] == run.result()["steps"] == 60
    assert digest(run) == uninterrupted


def test_stop_during_confidence_interval_ends_run_with_adapter(
    run: Run, request_stop: StopRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def long_interval(*_: Any, on_progress: Callable[[], None], **__: Any) -> list[float]:
        end = time.monotonic() + STAGE_SECONDS
        while time.monotonic() < end:
            request_stop()
            on_progress()
        raise AssertionError("the interval was computed to its end")

    monkeypatch.setattr(results, "headline_interval", long_interval)
    train(run.folder)
    request_stop.assert_answered()
    assert run.state().status == "KILLED" and run.has_adapter
    assert not run.evaluation.exists()  # there is no result that these rows belong to


def test_stop_while_saving_lets_run_finish(
    run: Run, request_stop: StopRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_adapter = outputs.save_adapter

    def stop_while_saving(*args: Any) -> None:
        request_stop()
        save_adapter(*args)

    monkeypatch.setattr(outputs, "save_adapter", stop_while_saving)
    train(run.folder)
    request_stop.assert_answered()
    assert run.state().status == "FINISHED" and run.result()["steps"] == 60


def test_stop_while_continued_run_reads_data_keeps_adapter(
    run: Run, request_stop: StopRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_step_end = training_process.RunProgress.on_step_end

    def stop_at_7(progress: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 7:
            run.request_stop()
        on_step_end(progress, args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(training_process.RunProgress, "on_step_end", stop_at_7)
        train(run.folder)
    (run.folder / "stop").unlink()
    adapter = digest(run)
    replace_with_long_work(monkeypatch, setup, "load_labeled_splits", request_stop)
    train(run.folder)
    request_stop.assert_answered()
    assert run.state().notes[-1] == "Stopped while reading the data. Continue resumes from step 7."
    assert digest(run) == adapter


def test_stop_of_evaluated_run_removes_old_result(
    run: Run, request_stop: StopRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run stopped by an earlier version has a result that does not belong to its current adapter."""
    (run.folder / "evaluation").mkdir()
    (run.folder / "evaluation" / "result.json").write_text("{}")
    monkeypatch.setattr(Run, "stop_requested", lambda run: (run.state().step or 0) > 0)
    train(run.folder)
    assert run.has_adapter
    assert not (run.folder / "evaluation").exists()


def test_signal_right_after_begin_marks_run_stopped(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: the run was reported as ended unexpectedly, because nothing caught the signal yet."""
    begin = RunInTraining.begin

    def begin_then_receive_signal(run: RunInTraining) -> None:
        begin(run)
        raise SystemExit(143)  # as the handler of SIGTERM does

    monkeypatch.setattr(RunInTraining, "begin", begin_then_receive_signal)
    train(run.folder)
    assert run.state().status == "KILLED"
    assert run.state().notes == ["Stopped while starting; nothing was saved."]


def test_stop_ends_training_process(settings: dict[str, Any], tmp_path: Path) -> None:
    config = TrainConfig.from_dict({**settings, "num_train_epochs": 100})
    run = runs.create(tmp_path, config)
    process = start_python("-m", "peft_core.train", str(run.folder))
    try:
        wait_for(lambda: (run.state().step or 0) > 20, 120)
        before = sum(psutil.Process(process.pid).cpu_times()[:2])
        run.request_stop()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    finally:
        if process.returncode is None:
            process.kill()
            process.wait()
    assert process.returncode == 0
    assert usage.ru_utime + usage.ru_stime - before < MAX_STOP_SECONDS
    state = run.state()
    assert state.status == "KILLED" and "The adapter of that step is kept" in state.notes[-1]
    assert run.has_adapter and can_continue(run)


def test_stop_check_polls_at_most_ten_times_a_second() -> None:
    poll_times: list[float] = []
    check = StopCheck(lambda: bool(poll_times.append(time.monotonic())))
    start = time.monotonic()
    for _ in range(10_000):
        check()
    seconds = time.monotonic() - start
    assert 1 <= len(poll_times) <= 1 + seconds / stopping.INTERVAL


def test_stop_check_raises_for_every_caller() -> None:
    check = StopCheck(lambda: True)
    for _ in range(2):
        with pytest.raises(Stopped):
            check()


def test_interruptible_stop_passes_except_exception() -> None:
    requested: list[bool] = []
    check = StopCheck(lambda: bool(requested))

    def swallow_failures() -> None:
        try:
            requested.append(True)
            work()
        except Exception as error:
            raise AssertionError("taken for a failure") from error

    with pytest.raises(Stopped):
        check.interruptible(swallow_failures)


def test_interruptible_raises_nothing_after_return() -> None:
    requested: list[bool] = []
    check = StopCheck(lambda: bool(requested))
    assert check.interruptible(lambda: "answer") == "answer"
    requested.append(True)
    work(3 * stopping.INTERVAL)


def interrupt_many_times(report: Report) -> None:
    """Request Stop before, during and after the work, and report how often it was interrupted."""
    sys.setswitchinterval(0.00001)
    stopping.INTERVAL, stopping.GRACE = 0.0001, 0.05
    interrupted = 0
    for number in range(600):
        request_at = time.monotonic() + 0.000005 * number
        check = StopCheck(partial(is_past, request_at))
        try:
            check.interruptible(lambda: work(0.0015))
        except Stopped:
            interrupted += 1
        work(0.001)
    work(2 * stopping.GRACE)
    report("interrupted", interrupted)


def is_past(moment: float) -> bool:
    return time.monotonic() > moment


def test_interruptible_raises_only_during_call() -> None:
    """Runs in a child process, which a late exception would end."""
    child = fork_child(interrupt_many_times).finish(seconds=120)
    assert int(child.first("interrupted") or 0) > 10, child.messages


def test_interruptible_lets_later_traced_calls_return() -> None:
    """Regression: in Python 3.11 the next traced call never returned."""

    def trace_later_call(report: Report) -> None:
        StopCheck(lambda: False).interruptible(lambda: work(0))
        sys.settrace(lambda *_: None)
        work(0)
        sys.settrace(None)
        report("returned")

    assert fork_child(trace_later_call).finish(seconds=30).first("returned") is not None


def test_between_layers_removes_hooks_on_exit() -> None:
    model = nn.Module()
    model.layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    check = StopCheck(lambda: False)
    with check.between_layers(model):
        assert all(layer._forward_hooks and layer._forward_pre_hooks for layer in model.layers)
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.layers)
