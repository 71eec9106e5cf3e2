"""KeptStep: which step's weights a run ended with, and why."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from peft_core.config import TrainConfig
from peft_core.errors import ConfigError
from peft_core.problems import LOWER_IS_BETTER, METRICS, REGRESSION, TITLES, headline


class Reason(StrEnum):
    """Why a step's weights were kept."""

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
    """The step kept, of those trained and those planned.

    `metric` and `value` are what the step was chosen by, as measured during training on `rows` validation
    rows at `evaluations` steps; None where nothing was chosen. `epoch` is that of the step.
    `early_stopped_after` is the number of evaluations without improvement that ended training, else 0.
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
        """From `to_dict`'s JSON types; TypeError or ValueError if they are none."""
        return cls(**{**fields, "reason": Reason(fields["reason"])})

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types."""
        return {**asdict(self), "reason": self.reason.value}

    def describe(self) -> str:
        """One or two sentences: the step, the reason, and where training ended."""
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
    """The metric that decides which step is best: the configured one, or the problem type's headline.

    With balanced class weights it is macro-F1, since the headline hardly sees a rare label.
    Raises ConfigError for one that this problem type does not have.
    """
    balanced = config.class_weight != "none" and problem_type != REGRESSION
    metric = config.metric_for_best_model or ("macro_f1" if balanced else headline(problem_type))
    known = ("loss", *METRICS[problem_type])
    if metric not in known:
        raise ConfigError(
            f"metric_for_best_model is {metric!r}, which these labels are not measured by; choose one of "
            f"{', '.join(known)}, or leave it empty."
        )
    return metric
