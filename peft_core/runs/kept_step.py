"""The step whose weights a run keeps, and the reason for the choice."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from peft_core.config import TrainConfig
from peft_core.errors import ConfigError
from peft_core.problem_types import LOWER_IS_BETTER, METRICS, REGRESSION, TITLES, headline


class Reason(StrEnum):
    """The reason why the weights of a step were kept."""

    BEST = "best"
    TURNED_OFF = "turned off"
    NO_VALIDATION = "no validation rows"
    NOT_EVALUATED = "ended before an evaluation"


_LAST_STEP = {
    Reason.TURNED_OFF: "keeping the best one was turned off",
    Reason.NO_VALIDATION: "there were no validation rows to choose on",
    Reason.NOT_EVALUATED: "training ended before any step could be compared",
}


@dataclass(frozen=True)
class KeptStep:
    """The step whose weights are kept.

    Attributes:
        step: The optimizer step.
        epoch: The epoch of that step.
        trained_steps: Steps that were trained.
        max_steps: Steps that were planned.
        reason: Why this step was chosen.
        metric: The metric that the step was chosen by; None where no step was chosen.
        value: The metric at that step, measured during training; None where no step was chosen.
        rows: Validation rows of each evaluation.
        evaluations: Steps that were evaluated.
        early_stopped_after: Evaluations without improvement that ended training, else 0.
    """

    step: int
    epoch: float
    trained_steps: int
    max_steps: int
    reason: Reason
    metric: str | None = None
    value: float | None = None
    rows: int = 0
    evaluations: int = 0
    early_stopped_after: int = 0

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "KeptStep":
        """Read what `to_dict` wrote; raises TypeError or ValueError for anything else."""
        return cls(**{**fields, "reason": Reason(fields["reason"])})

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return {**asdict(self), "reason": self.reason.value}

    def describe(self) -> str:
        """Return one or two sentences: the step, the reason, and where training ended."""
        return f"{self._choice()}{self._end()}"

    def _choice(self) -> str:
        if self.metric is None or self.value is None:
            return f"The last step, {self.step:,}, is kept: {_LAST_STEP[self.reason]}."
        extreme = "lowest" if self.metric in LOWER_IS_BETTER else "highest"
        return (
            f"Step {self.step:,} is kept: of {self.evaluations:,} evaluated, it has the {extreme} "
            f"{TITLES.get(self.metric, self.metric)} on {self.rows:,} validation rows ({self.value:.4g})."
        )

    def _end(self) -> str:
        where = f"step {self.trained_steps:,} of {self.max_steps:,}"
        if self.early_stopped_after:
            plural = "s" if self.early_stopped_after > 1 else ""
            return (
                f" Training ended early, at {where}: {self.early_stopped_after} evaluation{plural} in a row "
                "brought no improvement."
            )
        return f" Training ran to {where}."


def metric_for_best(config: TrainConfig, problem_type: str) -> str:
    """Return the metric that decides which step is best: the configured one, or the problem type's headline.

    With balanced class weights the default is macro-F1, because a rare label hardly changes the headline.

    Raises:
        ConfigError: The problem type does not have the configured metric.
    """
    balanced = config.class_weight != "none" and problem_type != REGRESSION
    metric = config.metric_for_best_model or ("macro_f1" if balanced else headline(problem_type))
    available = ("loss", *METRICS[problem_type])
    if metric not in available:
        raise ConfigError(
            f"metric_for_best_model is {metric!r}, which is not computed for these labels; choose one of "
            f"{', '.join(available)}, or leave it empty."
        )
    return metric
