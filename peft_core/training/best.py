"""The best step so far on the validation rows, and its weights on disk.

The weights of the best step are in `checkpoints/best.safetensors` while training runs. Each checkpoint
contains its own copy (`best.safetensors`, unless the checkpoint's step is itself the best), covered by the
checkpoint's manifest. A run that continues from any checkpoint therefore has the best step as of that
checkpoint, whichever other checkpoints were removed or damaged since. The evaluations before it are read from
`log_history` in Trainer's own `trainer_state.json`.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from peft_core.errors import RunError
from peft_core.files.atomic import atomic_file, atomic_file_alone, make_folder
from peft_core.files.hashing import sha256_of_file
from peft_core.problem_types import LOWER_IS_BETTER
from peft_core.runs.checkpoints import STATE_FILE, step_of
from peft_core.runs.kept_step import KeptStep, Reason
from peft_core.training.processes import is_main_process
from peft_core.training.trained_weights import load_trained, save_trained

BEST, TRAINER_STATE = "best.safetensors", "trainer_state.json"


@dataclass(frozen=True)
class BestStep:
    """The best step of the evaluations so far, and the number of evaluations without improvement since.

    Of two steps with equal metrics, the one with the lower loss is better, then the earlier one. For
    `patience`, an improvement is a gain above `threshold`, as in transformers' EarlyStoppingCallback.
    """

    metric: str
    patience: int = 0
    threshold: float = 0.0
    first_step: int = 0  # evaluations before this step do not count
    step: int = 0
    value: float | None = None
    loss: float = 0.0
    evaluations: int = 0
    without_improvement: int = 0

    @property
    def exhausted(self) -> bool:
        """Whether patience has run out."""
        return 0 < self.patience <= self.without_improvement

    def after(self, step: int, metrics: Mapping[str, float]) -> "BestStep":
        """Return the best step after an evaluation with these `eval_*` metrics."""
        if step < self.first_step:
            return self
        value, loss = metrics[f"eval_{self.metric}"], metrics["eval_loss"]
        gain = self._gain(value)
        improved = gain is None or gain > self.threshold
        counted = replace(
            self,
            evaluations=self.evaluations + 1,
            without_improvement=0 if improved else self.without_improvement + 1,
        )
        is_best = gain is None or gain > 0 or (gain == 0 and loss < self.loss)
        return replace(counted, step=step, value=value, loss=loss) if is_best else counted

    def _gain(self, value: float) -> float | None:
        """Return by how much a value is better than the best so far; None for the first value."""
        if self.value is None:
            return None
        return self.value - value if self.metric in LOWER_IS_BETTER else value - self.value


class BestWeights:
    """The file with the weights of the best step, written only by the main process and read at the end."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / BEST
        self._sha256 = ""

    def save(self, model: nn.Module) -> None:
        """Replace the file with the model's current weights."""
        make_folder(self.path.parent)
        with atomic_file_alone(self.path) as staging:
            save_trained(model, staging)
        self._sha256 = sha256_of_file(self.path)

    def restore(self, source: Path) -> None:
        """Copy the weights from a file of a verified checkpoint."""
        with atomic_file(self.path) as staging:
            shutil.copyfile(source, staging)
        self._sha256 = sha256_of_file(source)

    def copy_to(self, target: Path) -> None:
        """Copy the weights into a checkpoint that is being written; RunError if the file has changed."""
        self._verify()
        shutil.copyfile(self.path, target)

    def load_into(self, model: nn.Module) -> None:
        """Load the weights of the best step into the model; RunError if the file has changed."""
        self._verify()
        load_trained(model, self.path)

    def _verify(self) -> None:
        if not self.path.is_file() or sha256_of_file(self.path) != self._sha256:
            raise RunError("The weights of the best step were lost or changed on disk; continue the run.")


class StepKeeper:
    """Keeps the weights of the best step, and loads them at the end of training.

    Every process of a run has a keeper, and all decide alike; only the main process writes and reads.

    Args:
        folder: The folder with the run's checkpoints.
        best: The state before the first evaluation.
        rows: Validation rows of each evaluation.
        keeps_best: If False, the last step's weights are kept and evaluations only count for early stopping.
    """

    def __init__(self, folder: Path, best: BestStep, rows: int, *, keeps_best: bool) -> None:
        self.best, self._first = best, best
        self._weights, self._rows, self._keeps_best = BestWeights(folder), rows, keeps_best

    def record_evaluation(self, model: nn.Module, state: Any, metrics: Mapping[str, float]) -> None:
        """Record an evaluation at Trainer's current step; save the best weights if more steps follow."""
        self.best = self.best.after(state.global_step, metrics)
        more_follow = state.global_step < state.max_steps and not self.best.exhausted
        if self._keeps_best and self.best.step == state.global_step and more_follow and is_main_process():
            self._weights.save(model)

    def save_into(self, checkpoint: Path, step: int) -> None:
        """Add the best weights to a checkpoint that is being written at this step."""
        if self._keeps_best and self.best.value is not None and self.best.step != step:
            self._weights.copy_to(checkpoint / BEST)

    def restore(self, checkpoint: Path) -> None:
        """Continue from a verified checkpoint; without the best weights, no evaluation counts."""
        best = best_step_at(checkpoint, self._first)
        source = checkpoint / (STATE_FILE if step_of(checkpoint) == best.step else BEST)
        if self._keeps_best and best.value is not None:
            if not source.is_file():
                return
            if is_main_process():
                self._weights.restore(source)
        self.best = best

    def finish(self, model: nn.Module, state: Any) -> KeptStep:
        """Load the weights to keep into the model, and return their step."""
        if not self._rows:
            return kept_step(self.best, Reason.NO_VALIDATION, state, 0)
        if not self._keeps_best:
            return kept_step(self.best, Reason.TURNED_OFF, state, 0)
        if self.best.value is None:
            return kept_step(self.best, Reason.NOT_EVALUATED, state, 0)
        if self.best.step != state.global_step and is_main_process():
            self._weights.load_into(model)
        return kept_step(self.best, Reason.BEST, state, self._rows)


def best_step_at(checkpoint: Path, best: BestStep) -> BestStep:
    """Return `best` after the evaluations in a checkpoint's trainer_state.json."""
    state = json.loads((checkpoint / TRAINER_STATE).read_text(encoding="utf-8"))
    for logged in state["log_history"]:
        if f"eval_{best.metric}" in logged:
            best = best.after(logged["step"], logged)
    return best


def kept_step(best: BestStep, reason: Reason, state: Any, rows: int) -> KeptStep:
    """Return the record of the step whose weights are kept; `state` is Trainer's at the end of training."""
    is_best = reason == Reason.BEST
    step = best.step if is_best else state.global_step
    return KeptStep(
        step=step,
        epoch=_epoch_of(step, state),
        trained_steps=state.global_step,
        max_steps=state.max_steps,
        reason=reason,
        metric=best.metric if is_best else None,
        value=best.value if is_best else None,
        rows=rows if is_best else 0,
        evaluations=best.evaluations,
        early_stopped_after=best.without_improvement if best.exhausted else 0,
    )


def _epoch_of(step: int, state: Any) -> float:
    return next((logged["epoch"] for logged in state.log_history if logged["step"] == step), state.epoch)
