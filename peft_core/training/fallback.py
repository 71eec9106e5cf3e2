"""Fall back from an optimized training step to the plain one in the middle of a run.

An optimization is admitted on a few texts, and may fail on a later batch of another kind. Such a step is
repeated in the plain form with the same batch, random numbers and gradients as before the failed attempt, so
the run continues as if that step had been plain from the start.
"""

import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self, TypeVar

import torch
from torch import nn

from peft_core.hardware import is_out_of_memory

logger = logging.getLogger(__name__)
# Raised by an unexpected kind of batch, by the compiler, or by the file of the frozen layers' outputs.
STEP_FAILURES = (RuntimeError, TypeError, AttributeError, OSError)
_LONGEST = 200  # characters of an error message that are recorded

T = TypeVar("T")


@dataclass(frozen=True)
class TrainingOptimizations:
    """The optimizations of a training step, and the error of its gradient.

    Attributes:
        dtype: Dtype of the layers' frozen weights.
        first_token: Whether the last layer runs for the first token only.
        lora_layers: Number of LoRA layers that run as one operation.
        lower_layers: Number of frozen layers whose outputs are cached.
        compiled: Whether the layers are compiled.
        autocast: Whether a GPU computes in bfloat16 although the weights are float32.
        gradient_error: Error of all optimizations together, in norms of the plain gradient.
        failed_at: Number of complete steps when a step failed; every later step is plain.
        failure: The error of that step.
    """

    dtype: str = "float32"
    first_token: bool = False
    lora_layers: int = 0
    lower_layers: int = 0
    compiled: bool = False
    autocast: bool = False
    gradient_error: float = 0.0
    failed_at: int | None = None
    failure: str = ""

    @property
    def failed(self) -> bool:
        """Whether a step failed in its optimized form."""
        return self.failed_at is not None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return asdict(self)

    @classmethod
    def at_step(cls, record: Mapping[str, Any] | None, step: int) -> Self | None:
        """Return the optimizations for a run that continues after `step` steps; None without a record.

        After the step that failed: none. Before it: the recorded ones, so that the steps up to the failure
        have the same results as before.
        """
        if not record:
            return None
        names = {field.name for field in fields(cls)}
        recorded = cls(**{name: setting for name, setting in record.items() if name in names})
        if recorded.failed_at is None or step < recorded.failed_at:
            return replace(recorded, failed_at=None, failure="")
        return cls(autocast=recorded.autocast, failed_at=recorded.failed_at, failure=recorded.failure)


class AppliedOptimizations:
    """The optimizations of a model, which are undone once a step fails.

    Attributes:
        record: The optimizations in use.
        on_fall_back: Called with the new record after a step has failed.
    """

    def __init__(self, model: nn.Module, record: TrainingOptimizations, undo: contextlib.ExitStack) -> None:
        self.record = record
        self.on_fall_back: Callable[[TrainingOptimizations], None] = lambda record: None
        self._undo = undo
        self._trained = [p for p in model.parameters() if p.requires_grad]

    @property
    def active(self) -> bool:
        """Whether the step differs from the plain one."""
        plain = TrainingOptimizations(
            autocast=self.record.autocast, gradient_error=self.record.gradient_error
        )
        return self.record != plain and not self.record.failed

    def run(self, work: Callable[[], T], step: int = 0) -> T:
        """Return what `work` returns; if it fails in the optimized form, repeat it in the plain form.

        Args:
            work: A part of training that uses the model. It may add to gradients and draw random numbers.
            step: The number of complete steps, for the record.

        Raises:
            BaseException: What `work` raises in the plain form. An out-of-memory error is raised at once,
                because the form is not its cause.
        """
        if not self.active:
            return work()
        rng_state, gradients = random_state(), [_copy(p.grad) for p in self._trained]
        try:
            return work()
        except STEP_FAILURES as error:
            if is_out_of_memory(error):
                raise
            failure = _describe(error)
        self._fall_back(step, failure)
        set_random_state(rng_state)
        for parameter, gradient in zip(self._trained, gradients, strict=True):
            parameter.grad = gradient
        return work()

    def _fall_back(self, step: int, failure: str) -> None:
        self._undo.close()
        self.record = replace(self.record, failed_at=step, failure=failure)
        logger.warning(
            "After step %d the optimized training step failed (%s). The run continues: this step is repeated "
            "without optimizations, and so are all later steps.",
            step,
            failure,
        )
        self.on_fall_back(self.record)


def random_state() -> list[torch.Tensor]:
    """Return the random state of the CPU, and of this process's GPU if CUDA is in use."""
    gpu = [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *gpu]


def set_random_state(state: list[torch.Tensor]) -> None:
    """Restore a state that `random_state` returned."""
    torch.set_rng_state(state[0])
    for gpu in state[1:]:
        torch.cuda.set_rng_state(gpu)


def _copy(gradient: torch.Tensor | None) -> torch.Tensor | None:
    """Return a copy; the gradient is None at the first batch of a step, so only accumulation costs a copy."""
    return None if gradient is None else gradient.clone()


def _describe(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:_LONGEST]
