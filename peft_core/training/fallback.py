"""The way back from a faster form of the training step to the plain one, in the middle of a run.

A speed-up is admitted on a few texts, and a later batch may still be of a kind that it cannot compute. Such a
step is repeated in the plain form with the same batch, the same random numbers and the same gradients as
before the failed attempt, so the run goes on as if that step had been plain from the start.
"""

import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self, TypeVar

import torch
from torch import nn

from peft_core.machine import is_out_of_memory

logger = logging.getLogger(__name__)
# A batch of a kind that was not expected, the compiler, or the file of the frozen layers' outputs.
STEP_FAILURES = (RuntimeError, TypeError, AttributeError, OSError)
_LONGEST = 200  # characters of a library's message that are kept

T = TypeVar("T")


@dataclass(frozen=True)
class Speedups:
    """What made a training step faster, and the difference of its gradient from the plain step's.

    Attributes:
        dtype: Of the layers' frozen weights.
        autocast: Whether a GPU is to compute in bfloat16 although the weights are float32.
        gradient_error: Of all changes together, in norms of the plain gradient.
        failed_at: The steps that were complete when one failed in this form; every later one is plain.
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
        return self.failed_at is not None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def at_step(cls, record: Mapping[str, Any] | None, step: int) -> Self | None:
        """What a run that continues after so many steps may use, by its own record; None without one.

        After the step that failed: nothing. Before it: the same forms again, so that the steps up to the
        failure come out as they did the first time.
        """
        if not record:
            return None
        names = {field.name for field in fields(cls)}
        before = cls(**{name: value for name, value in record.items() if name in names})
        if before.failed_at is None or step < before.failed_at:
            return replace(before, failed_at=None, failure="")
        return cls(autocast=before.autocast, failed_at=before.failed_at, failure=before.failure)


class AppliedSpeedups:
    """The speed-ups that a model runs with now, until one of its steps fails.

    `on_fall_back` is called with the new record when that happens.
    """

    def __init__(self, model: nn.Module, record: Speedups, undo: contextlib.ExitStack) -> None:
        self.record = record
        self.on_fall_back: Callable[[Speedups], None] = lambda record: None
        self._undo = undo
        self._trained = [p for p in model.parameters() if p.requires_grad]

    @property
    def active(self) -> bool:
        plain = Speedups(autocast=self.record.autocast, gradient_error=self.record.gradient_error)
        return self.record != plain and not self.record.failed

    def run(self, work: Callable[[], T], step: int = 0) -> T:
        """The result of `work`; if it fails in a faster form, of `work` repeated in the plain form.

        Args:
            work: A part of training that uses the model. It may add to gradients and draw random numbers.
            step: The number of complete steps, for the record.

        Raises:
            Whatever `work` raises in the plain form, and at once where memory is short, which is no fault of
            the form.
        """
        if not self.active:
            return work()
        random, gradients = random_state(), [_copy(p.grad) for p in self._trained]
        try:
            return work()
        except STEP_FAILURES as error:
            if is_out_of_memory(error):
                raise
            failure = _describe(error)
        self._fall_back(step, failure)
        set_random_state(random)
        for parameter, gradient in zip(self._trained, gradients, strict=True):
            parameter.grad = gradient
        return work()

    def _fall_back(self, step: int, failure: str) -> None:
        self._undo.close()
        self.record = replace(self.record, failed_at=step, failure=failure)
        logger.warning(
            "After step %d a step failed in its faster form (%s). The run goes on: this step is repeated in "
            "the plain form, and every later one is plain, too.",
            step,
            failure,
        )
        self.on_fall_back(self.record)


def random_state() -> list[torch.Tensor]:
    """The state of the generators that a training step draws from: of the CPU and of this process's GPU."""
    gpu = [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *gpu]


def set_random_state(state: list[torch.Tensor]) -> None:
    torch.set_rng_state(state[0])
    for gpu in state[1:]:
        torch.cuda.set_rng_state(gpu)


def _copy(gradient: torch.Tensor | None) -> torch.Tensor | None:
    """None at the first batch of a step, so that only accumulated gradients cost a copy."""
    return None if gradient is None else gradient.clone()


def _describe(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:_LONGEST]
