"""What Trainer does, written into the run folder as it happens, and Stop as the run folder has it."""

import math
import time
from typing import Any

from transformers import TrainerCallback

from peft_core.problems import METRICS
from peft_core.runs import RunInTraining
from peft_core.training.fallback import random_state
from peft_core.training.processes import broadcast_from_main, processes
from peft_core.training.stopping import Stopped

LOOK_SECONDS = 0.5  # between two looks for Stop that several processes take together
SMALL = 10_000_000  # trained numbers up to which a checkpoint takes a fraction of a second


class RunProgress(TrainerCallback):
    """Writes what Trainer does into the run folder, and raises `Stopped` after a step once the folder says
    so: after the step's loss is logged, so that the curve of a run that continues has no gap.

    `start` is when training began, in seconds of `time.perf_counter`; of a run that continues, earlier by as
    many seconds as it had trained before. `random` is the state of the random numbers after the last whole
    step.
    """

    def __init__(self, run: RunInTraining, problem_type: str, start: float) -> None:
        self.run, self.metrics, self._start = run, METRICS[problem_type], start
        self.step_seconds = 0.0
        self.steps = self.tokens = 0
        self._step_start = self._written = 0.0
        self._steps_before = self._tokens_before = 0
        self._next_look = 0
        self._stopping = False
        self.random = random_state()

    def totals(self) -> dict[str, Any]:
        """Steps, tokens (padding left out) and tokens a second of the steps alone."""
        if self.step_seconds:
            speed = (self.tokens - self._tokens_before) / self.step_seconds
        else:
            speed = self.run.current.tokens_per_second or 0.0  # of the training before, where none follows
        return {"steps": self.steps, "tokens": self.tokens, "tokens_per_second": speed}

    def note_seconds(self) -> None:
        """Write how long the run has trained; to evaluate it is no training."""
        if not self.run.current.evaluate_only:
            self.run.update(train_seconds=time.perf_counter() - self._start)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._steps_before, self._tokens_before = state.global_step, int(state.num_input_tokens_seen)
        self.steps, self.tokens = self._steps_before, self._tokens_before
        self.run.update(step=state.global_step, max_steps=state.max_steps)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._step_start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        now = time.perf_counter()
        self.step_seconds += now - self._step_start
        self.steps, self.tokens = state.global_step, int(state.num_input_tokens_seen)
        if now - self._written > 0.5 or state.global_step == state.max_steps:
            self._written = now
            left = state.max_steps - state.global_step
            speed = self.totals()["tokens_per_second"]
            eta = left * self.step_seconds / (self.steps - self._steps_before)
            seconds = now - self._start
            self.run.update(step=self.steps, tokens_per_second=speed, eta=eta, train_seconds=seconds)
        if state.global_step >= state.max_steps:  # the curve reaches the end; the adapter comes next anyway
            control.should_evaluate = args.eval_strategy != "no"
            control.should_save = trained_numbers(named["model"]) <= SMALL  # for a Stop in the evaluation
        self.random = random_state()
        self._stopping = self._stop_requested()
        if self._stopping and not control.should_log:
            raise Stopped

    def _stop_requested(self) -> bool:
        """Whether this process, or all that share the run, are to stop.

        To agree takes several processes as long as a short step. They do so every half a second, at a step
        that the leader names.
        """
        if processes() == 1:
            return self.run.stop_requested()
        if self.steps < self._next_look:
            return False
        step_seconds = self.step_seconds / max(1, self.steps - self._steps_before)
        wait = max(1, int(LOOK_SECONDS / max(step_seconds, 1e-6)))
        stop, wait = broadcast_from_main((self.run.stop_requested(), wait))
        self._next_look = self.steps + wait
        return stop

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        kept = ("loss", "learning_rate", "grad_norm", "eval_loss", *(f"eval_{name}" for name in self.metrics))
        row = {key: float(logs[key]) for key in kept if key in logs and math.isfinite(logs[key])}
        if row:
            self.run.log_metrics(
                {"step": state.global_step, "epoch": state.epoch, "time": time.time(), **row}
            )
        if self._stopping:
            raise Stopped


def trained_numbers(model: Any) -> int:
    """How many numbers training changes."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def log_result(run: RunInTraining, result: dict[str, Any]) -> None:
    """The result as a point of its own, at the step kept: it is of the test rows, the curve of the validation
    rows."""
    row = {f"test_{name}": result[name] for name in METRICS[result["problem_type"]]}
    row["test_loss"], kept = result["eval_loss"], result["kept"]
    run.log_metrics({"step": kept["step"], "epoch": kept["epoch"], "time": time.time(), **row})
