"""Write Trainer's progress and metrics into the run folder, and stop once the run folder asks for it."""

import math
import time
from typing import Any

from torch import nn
from transformers import TrainerCallback

from peft_core.problem_types import METRICS
from peft_core.runs import RunInTraining
from peft_core.training.fallback import random_state
from peft_core.training.processes import broadcast_from_main, processes
from peft_core.training.stopping import Stopped

STOP_POLL_SECONDS = 0.5  # between two checks for Stop that several processes make together
SMALL = 10_000_000  # trained parameters up to which a checkpoint takes a fraction of a second


class RunProgress(TrainerCallback):
    """Writes Trainer's progress into the run folder, and raises `Stopped` after a step if Stop is requested.

    It raises after the step's loss is logged, so that the curve of a run that continues has no gap.

    Attributes:
        step_seconds: Seconds of all steps of this process.
        steps: Complete steps of the run.
        tokens: Tokens of these steps, without padding.
        rng_state: The random state after the last complete step.
    """

    def __init__(self, run: RunInTraining, problem_type: str, start: float) -> None:
        """Create the callback.

        Args:
            run: The run.
            problem_type: Determines the metrics.
            start: When training began, on the clock of `time.perf_counter`; for a run that continues, earlier
                by the seconds that it had trained before.
        """
        self.run, self.metrics, self._start = run, METRICS[problem_type], start
        self.step_seconds = 0.0
        self.steps = self.tokens = 0
        self._step_start = self._written = 0.0
        self._steps_before = self._tokens_before = 0
        self._next_poll = 0
        self._stopping = False
        self.rng_state = random_state()

    def totals(self) -> dict[str, Any]:
        """Return the steps, the tokens without padding, and the tokens per second of the steps alone."""
        if self.step_seconds:
            speed = (self.tokens - self._tokens_before) / self.step_seconds
        else:
            # of the earlier training, if this process takes no step
            speed = self.run.current.tokens_per_second or 0.0
        return {"steps": self.steps, "tokens": self.tokens, "tokens_per_second": speed}

    def note_seconds(self) -> None:
        """Write how long the run has trained; an evaluation alone does not count."""
        if not self.run.current.evaluate_only:
            self.run.update(train_seconds=time.perf_counter() - self._start)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._steps_before, self._tokens_before = state.global_step, int(state.num_input_tokens_seen)
        self.steps, self.tokens = self._steps_before, self._tokens_before
        self.run.update(step=state.global_step, max_steps=state.max_steps)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._step_start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = time.perf_counter()
        self.step_seconds += now - self._step_start
        self.steps, self.tokens = state.global_step, int(state.num_input_tokens_seen)
        if now - self._written > 0.5 or state.global_step == state.max_steps:
            self._written = now
            remaining = state.max_steps - state.global_step
            speed = self.totals()["tokens_per_second"]
            eta = remaining * self.step_seconds / (self.steps - self._steps_before)
            seconds = now - self._start
            self.run.update(step=self.steps, tokens_per_second=speed, eta=eta, train_seconds=seconds)
        if state.global_step >= state.max_steps:  # the curve reaches the end, before the adapter is saved
            control.should_evaluate = args.eval_strategy != "no"
            control.should_save = count_trained(kwargs["model"]) <= SMALL  # for a Stop in the evaluation
        self.rng_state = random_state()
        self._stopping = self._stop_requested()
        if self._stopping and not control.should_log:
            raise Stopped

    def _stop_requested(self) -> bool:
        """Whether to stop, agreed among all processes of the run.

        Agreement takes several processes as long as a short step. They agree every half second, at a step
        that the main process chooses.
        """
        if processes() == 1:
            return self.run.stop_requested()
        if self.steps < self._next_poll:
            return False
        step_seconds = self.step_seconds / max(1, self.steps - self._steps_before)
        wait = max(1, int(STOP_POLL_SECONDS / max(step_seconds, 1e-6)))
        stop, wait = broadcast_from_main((self.run.stop_requested(), wait))
        self._next_poll = self.steps + wait
        return stop

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        logs: dict[str, float] = kwargs["logs"]
        keys = ("loss", "learning_rate", "grad_norm", "eval_loss", *(f"eval_{name}" for name in self.metrics))
        row = {key: float(logs[key]) for key in keys if key in logs and math.isfinite(logs[key])}
        if row:
            self.run.log_metrics(
                {"step": state.global_step, "epoch": state.epoch, "time": time.time(), **row}
            )
        if self._stopping:
            raise Stopped


def count_trained(model: nn.Module) -> int:
    """Return the number of trained parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def log_result(run: RunInTraining, result: dict[str, Any]) -> None:
    """Log the metrics on the test rows at the step whose weights are kept.

    They have names of their own, because the curve is of the validation rows.
    """
    row = {f"test_{name}": result[name] for name in METRICS[result["problem_type"]]}
    row["test_loss"], kept_step = result["eval_loss"], result["kept"]
    run.log_metrics({"step": kept_step["step"], "epoch": kept_step["epoch"], "time": time.time(), **row})
