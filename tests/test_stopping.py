"""Stop ends a run within two seconds of processor time in every stage, and says what was kept.

Processor time is what counts, because other processes on the machine may take the rest. Each test asks for
Stop inside the stage, which would then go on for a minute.
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
from peft_core.training.admission import PlainStep
from peft_core.training.entry import train
from peft_core.training.stopping import StopCheck, Stopped
from peft_core.training.trainer import RunTrainer

ANSWER = 2.0  # seconds of processor time from the request to the end
LONG = 60.0  # seconds that a stage would take


class StopRequest:
    """Asks a run to stop, once, and measures how long it goes on."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.requested_at: float | None = None

    def __call__(self) -> None:
        if self.requested_at is None:
            self.run.request_stop()
            self.requested_at = time.process_time()

    def assert_answered(self) -> None:
        assert self.requested_at is not None, "the run never reached the stage"
        assert time.process_time() - self.requested_at < ANSWER


@pytest.fixture
def run(settings: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest) -> Run:
    changes = getattr(request, "param", {})
    config = {**settings, "top_layers": 1, "target_modules": ["query", "value"], **changes}
    return runs.create(tmp_path / "runs", TrainConfig.from_dict(config))


@pytest.fixture
def request_stop(run: Run) -> StopRequest:
    return StopRequest(run)


def busy(seconds: float = LONG) -> None:
    """Work in Python that knows nothing of Stop."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        len("busy")


def digest(run: Run) -> str:
    return hashlib.sha256((run.adapter / "adapter_model.safetensors").read_bytes()).hexdigest()


def replace_with_long_work(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, request_stop: StopRequest
) -> None:
    """What the stage calls asks for Stop and is busy for a minute."""

    def long_work(*_: Any, **__: Any) -> None:
        request_stop()
        busy()
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
def test_stop_before_the_first_step_ends_the_run_and_keeps_nothing(
    owner: Any, name: str, stage: str, run: Run, request_stop: StopRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_with_long_work(monkeypatch, owner, name, request_stop)
    train(run.folder)
    request_stop.assert_answered()
    state = run.state()
    assert state.status == "KILLED" and state.stage == stage
    assert state.notes[-1] == f"Stopped while {stage}; there was nothing to keep."
    assert not run.has_adapter and not can_continue(run)


def test_stop_in_tokenization_of_many_texts_is_answered_between_batches(
    run: Run, request_stop: StopRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = setup.encode

    def encode_again_and_again(*given: Any) -> Any:
        for _ in range(10_000):
            encode(*given[:-1])  # without the cache
            request_stop()
        raise AssertionError("tokenization ran to its end")

    monkeypatch.setattr(setup, "encode", encode_again_and_again)
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
    """What the saved adapter reaches on the test rows, predicted anew."""
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
    """The digest of the adapter that the same settings give without a stop."""
    whole = runs.create(tmp_path / "whole", run.config())
    train(whole.folder)
    return digest(whole)


class LongLayer(torch.autograd.Function):
    """Passes a layer's input on, and takes a second in the forward or the backward pass from step 3 on."""

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
def test_stop_within_a_long_step_keeps_the_adapter_of_the_step_before(
    part: str,
    run: Run,
    request_stop: StopRequest,
    uninterrupted: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compute_loss = RunTrainer.compute_loss
    hooks: list[Any] = []

    def slow_layers(trainer: RunTrainer, model: nn.Module, *given: Any, **named: Any) -> Any:
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
        loss = compute_loss(trainer, model, *given, **named)
        if slow:
            request_stop()
        return loss

    step_ends: list[int] = []
    monkeypatch.setattr(RunTrainer, "compute_loss", slow_layers)
    monkeypatch.setattr(
        training_process.RunProgress, "on_step_begin", lambda self, *given, **_: step_ends.append(0)
    )
    train(run.folder)
    for hook in hooks:
        hook.remove()
    request_stop.assert_answered()
    assert_adapter_kept(run, 3)
    assert len(step_ends) == 4  # the fourth step was left in the middle
    monkeypatch.undo()
    finish(run)
    assert run.result()["resumed_from"] == 3
    assert digest(run) == uninterrupted


def test_stop_between_two_steps_is_answered_at_the_next(
    run: Run, request_stop: StopRequest, uninterrupted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_step_end = training_process.RunProgress.on_step_end

    def stop_at_7(progress: Any, args: Any, state: Any, control: Any, **named: Any) -> None:
        if state.global_step == 7:
            request_stop()
        on_step_end(progress, args, state, control, **named)

    monkeypatch.setattr(training_process.RunProgress, "on_step_end", stop_at_7)
    train(run.folder)
    request_stop.assert_answered()
    assert_adapter_kept(run, 7)
    monkeypatch.undo()
    finish(run)
    assert run.result()["resumed_from"] == 7 and digest(run) == uninterrupted
    assert [row["step"] for row in run.metrics() if "loss" in row] == list(range(1, 61))


@pytest.mark.parametrize("step", [7, 31])
def test_stopped_run_is_evaluated_as_it_is_and_continued_afterwards(
    step: int, run: Run, uninterrupted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_step_end = training_process.RunProgress.on_step_end

    def stop_at_step(progress: Any, args: Any, state: Any, control: Any, **named: Any) -> None:
        assert state.global_step <= step
        if state.global_step == step:
            run.request_stop()
        on_step_end(progress, args, state, control, **named)

    monkeypatch.setattr(training_process.RunProgress, "on_step_end", stop_at_step)
    train(run.folder)
    stopped_with, seconds = digest(run), run.state().train_seconds
    (run.folder / "stop").unlink()
    run.update(evaluate_only=True)
    train(run.folder)
    result = run.result()
    assert run.state().status == "KILLED" and can_continue(run)
    assert f"Evaluated without a further step, from the checkpoint of step {step}." in run.state().notes[-1]
    assert "Continued from" not in " ".join(run.state().notes)
    assert result["train_seconds"] == seconds > 0 and result["tokens_per_second"] > 0
    assert result["eval_rows"] == 40 and result["steps"] == result["kept"]["trained_steps"] == step
    best = result["kept"]["step"]
    assert best == (7 if step == 7 else 15 * round(best / 15)), "with evaluations behind it, the best of them"
    assert (digest(run) == stopped_with) is (best == step)
    assert result["accuracy"] == measured_accuracy(run)
    monkeypatch.undo()
    assert not run.state().evaluate_only
    train(run.folder)
    assert run.state().status == "FINISHED" and run.result()["resumed_from"] == step
    assert run.result()["train_seconds"] > seconds, "of both trainings"
    assert digest(run) == uninterrupted
    assert len([row for row in run.metrics() if "test_loss" in row]) == 1


def train_until_stopped_in_curve(run: Run, request_stop: StopRequest, step: int) -> None:
    """Train until the evaluation of the validation rows at a step, and stop in it."""
    prediction_step = RunTrainer.prediction_step

    def stop_in_curve(trainer: RunTrainer, *arguments: Any, **named: Any) -> Any:
        if trainer.state.global_step == step:
            request_stop()
            time.sleep(stopping.INTERVAL)
        return prediction_step(trainer, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunTrainer, "prediction_step", stop_in_curve)
        train(run.folder)


@pytest.mark.parametrize("run", [{"lora_dropout": 0.2}, {"dropout": 0.2}], indirect=True)
def test_stop_in_the_curve_with_dropout_continues_to_the_same_weights(
    run: Run, request_stop: StopRequest
) -> None:
    """The evaluation drew one random number, which a continued run drew before its state was restored."""
    whole = runs.create(run.folder.parent, run.config())
    train(whole.folder)
    train_until_stopped_in_curve(run, request_stop, 15)
    finish(run)
    assert digest(run) == digest(whole)


@pytest.mark.parametrize("curve", [1, 2, 4], ids=["first curve", "second curve", "last curve"])
def test_stop_in_the_curve_keeps_the_adapter_and_its_points(
    curve: int, run: Run, request_stop: StopRequest, uninterrupted: str
) -> None:
    train_until_stopped_in_curve(run, request_stop, 15 * curve)
    request_stop.assert_answered()
    assert_adapter_kept(run, 15 * curve)
    finish(run)
    assert run.result()["resumed_from"] == 15 * curve
    assert [row["step"] for row in run.metrics() if "eval_loss" in row] == [15, 30, 45, 60]
    assert run.result()["kept"]["evaluations"] == 4
    assert digest(run) == uninterrupted


def test_stop_in_the_evaluation_keeps_the_adapter_and_continue_evaluates(
    run: Run, request_stop: StopRequest, uninterrupted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = batching.batches

    def stop_in_first_batch(*given: Any, **named: Any) -> Iterator[Any]:
        for batch in batches(*given, **named):
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


def test_stop_in_the_numbers_of_the_evaluation_is_answered(
    run: Run, request_stop: StopRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def long_interval(*_: Any, on_progress: Callable[[], None], **__: Any) -> list[float]:
        end = time.monotonic() + LONG
        while time.monotonic() < end:
            request_stop()
            on_progress()
        raise AssertionError("the interval was computed to its end")

    monkeypatch.setattr(results, "headline_interval", long_interval)
    train(run.folder)
    request_stop.assert_answered()
    assert run.state().status == "KILLED" and run.has_adapter
    assert not run.evaluation.exists()  # rows of a result that is not there


def test_stop_while_saving_lets_the_run_finish(
    run: Run, request_stop: StopRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_adapter = outputs.save_adapter

    def stop_while_saving(*given: Any) -> None:
        request_stop()
        save_adapter(*given)

    monkeypatch.setattr(outputs, "save_adapter", stop_while_saving)
    train(run.folder)
    request_stop.assert_answered()
    assert run.state().status == "FINISHED" and run.result()["steps"] == 60


def test_stop_while_a_continued_run_reads_leaves_it_as_it_was(
    run: Run, request_stop: StopRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_step_end = training_process.RunProgress.on_step_end

    def stop_at_7(progress: Any, args: Any, state: Any, control: Any, **named: Any) -> None:
        if state.global_step == 7:
            run.request_stop()
        on_step_end(progress, args, state, control, **named)

    with monkeypatch.context() as first:
        first.setattr(training_process.RunProgress, "on_step_end", stop_at_7)
        train(run.folder)
    (run.folder / "stop").unlink()
    adapter = digest(run)
    replace_with_long_work(monkeypatch, setup, "load_labeled_splits", request_stop)
    train(run.folder)
    request_stop.assert_answered()
    assert run.state().notes[-1] == "Stopped while reading the data. Continue goes on from step 7."
    assert digest(run) == adapter


def test_stop_of_a_run_that_was_evaluated_before_forgets_that_result(
    run: Run, request_stop: StopRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run stopped by an earlier version has a result, which is not that of the adapter it has now."""
    (run.folder / "evaluation").mkdir()
    (run.folder / "evaluation" / "result.json").write_text("{}")
    monkeypatch.setattr(Run, "stop_requested", lambda run: (run.state().step or 0) > 0)
    train(run.folder)
    assert run.has_adapter
    assert not (run.folder / "evaluation").exists()


def test_signal_right_after_the_run_began_marks_it_stopped(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It read as ended unexpectedly: the signal of Stop came before anything waited for it."""
    begin = RunInTraining.begin

    def begin_and_meet_a_signal(run: RunInTraining) -> None:
        begin(run)
        raise SystemExit(143)  # as the handler of SIGTERM does

    monkeypatch.setattr(RunInTraining, "begin", begin_and_meet_a_signal)
    train(run.folder)
    assert run.state().status == "KILLED"
    assert run.state().notes == ["Stopped while starting; there was nothing to keep."]


def test_stop_ends_a_real_process(settings: dict[str, Any], tmp_path: Path) -> None:
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
    assert usage.ru_utime + usage.ru_stime - before < ANSWER
    state = run.state()
    assert state.status == "KILLED" and "The adapter of that step is kept" in state.notes[-1]
    assert run.has_adapter and can_continue(run)


def test_stop_check_asks_ten_times_a_second_at_most() -> None:
    asked: list[float] = []
    check = StopCheck(lambda: bool(asked.append(time.monotonic())))
    start = time.monotonic()
    for _ in range(10_000):
        check()
    seconds = time.monotonic() - start
    assert 1 <= len(asked) <= 1 + seconds / stopping.INTERVAL


def test_stop_check_raises_again_for_a_second_caller() -> None:
    check = StopCheck(lambda: True)
    for _ in range(2):
        with pytest.raises(Stopped):
            check()


def test_interruptible_passes_handlers_of_failures() -> None:
    requested: list[bool] = []
    check = StopCheck(lambda: bool(requested))

    def swallow_failures() -> None:
        try:
            requested.append(True)
            busy()
        except Exception as error:
            raise AssertionError("taken for a failure") from error

    with pytest.raises(Stopped):
        check.interruptible(swallow_failures)


def test_interruptible_raises_nothing_after_its_end() -> None:
    requested: list[bool] = []
    check = StopCheck(lambda: bool(requested))
    assert check.interruptible(lambda: "answer") == "answer"
    requested.append(True)
    busy(3 * stopping.INTERVAL)


def interrupt_again_and_again(report: Report) -> None:
    """Ask for Stop as the work begins, goes on or ends, and after it; report how often it was interrupted."""
    sys.setswitchinterval(0.00001)
    stopping.INTERVAL, stopping.GRACE = 0.0001, 0.05
    interrupted = 0
    for number in range(600):
        request_at = time.monotonic() + 0.000005 * number
        check = StopCheck(partial(is_past, request_at))
        try:
            check.interruptible(lambda: busy(0.0015))
        except Stopped:
            interrupted += 1
        busy(0.001)
    busy(2 * stopping.GRACE)
    report("interrupted", interrupted)


def is_past(moment: float) -> bool:
    return time.monotonic() > moment


def test_interruptible_raises_only_while_it_works() -> None:
    """In a process of its own, which a late exception ends."""
    child = fork_child(interrupt_again_and_again).finish(seconds=120)
    assert int(child.first("interrupted") or 0) > 10, child.messages


def test_interruptible_leaves_calls_that_a_debugger_traces_to_return() -> None:
    """In Python 3.11 the next one never did."""

    def traced(report: Report) -> None:
        StopCheck(lambda: False).interruptible(lambda: busy(0))
        sys.settrace(lambda *_: None)
        busy(0)
        sys.settrace(None)
        report("returned")

    assert fork_child(traced).finish(seconds=30).first("returned") is not None


def test_hooks_between_layers_are_gone_afterwards() -> None:
    model = nn.Module()
    model.layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    check = StopCheck(lambda: False)
    with check.between_layers(model):
        assert all(layer._forward_hooks and layer._forward_pre_hooks for layer in model.layers)
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.layers)
