"""What Trainer does, written into the run folder as it happens."""

import math
import time
from typing import Any

from transformers import TrainerCallback

from peft_core.problems import METRICS
from peft_core.runs import Run
from peft_core.training.processes import as_the_leader

LOOKS = 4  # steps from one look for a stop to the next


class RunProgress(TrainerCallback):
    """Writes what Trainer does into the run folder, and stops it when the folder says so."""

    def __init__(self, run: Run, problem_type: str) -> None:
        self.run, self.metrics = run, METRICS[problem_type]
        self.step_seconds = 0.0
        self.steps = self.tokens = 0
        self._step_start = self._written = 0.0
        self._steps_before = self._tokens_before = 0

    def totals(self) -> dict[str, Any]:
        """Steps, tokens (padding left out) and tokens a second of the steps alone."""
        seen = self.tokens - self._tokens_before
        speed = seen / self.step_seconds if self.step_seconds else 0.0
        return {"steps": self.steps, "tokens": self.tokens, "tokens_per_second": speed}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._steps_before, self._tokens_before = state.global_step, int(state.num_input_tokens_seen)
        self.run.update(step=state.global_step, max_steps=state.max_steps)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._step_start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        now = time.perf_counter()
        self.step_seconds += now - self._step_start
        self.steps, self.tokens = state.global_step, int(state.num_input_tokens_seen)
        if now - self._written > 0.5 or state.global_step == state.max_steps:
            self._written = now
            left = state.max_steps - state.global_step
            speed = self.totals()["tokens_per_second"]
            eta = left * self.step_seconds / (self.steps - self._steps_before)
            self.run.update(step=self.steps, tokens_per_second=speed, eta=eta)
        if state.global_step >= state.max_steps:  # the curve reaches the end; the adapter comes next anyway
            control.should_evaluate, control.should_save = args.eval_strategy != "no", False
        if state.global_step % LOOKS == 0 and as_the_leader(self.run.stop_requested()):
            control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        kept = ("loss", "learning_rate", "grad_norm", "eval_loss", *(f"eval_{name}" for name in self.metrics))
        row = {key: float(logs[key]) for key in kept if key in logs and math.isfinite(logs[key])}
        if row:
            self.run.log_metrics(
                {"step": state.global_step, "epoch": state.epoch, "time": time.time(), **row}
            )


def log_result(run: Run, result: dict[str, Any]) -> None:
    """The result as a point of its own, at the step kept: it is of the test rows, the curve of the validation
    rows."""
    row = {f"test_{name}": result[name] for name in METRICS[result["problem_type"]]}
    row["test_loss"], kept = result["eval_loss"], result["kept"]
    run.log_metrics({"step": kept["step"], "epoch": kept["epoch"], "time": time.time(), **row})
