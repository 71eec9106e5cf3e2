"""The result of a battery."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class BatteryResult:
    """The result of a battery.

    Attributes:
        count: number of cases.
        failures: one sentence per failed case.
        outcomes: number of cases, or a measurement, by name.
        passes_when: the criterion in words.
        date: of the run; `commit` and `machine` likewise are set when the result is written.
    """

    name: str
    count: int
    failures: tuple[str, ...]
    outcomes: tuple[tuple[str, int], ...] = ()
    passes_when: str = ""
    seconds: float = 0.0
    date: str = ""
    commit: str = ""
    machine: str = ""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "BatteryResult":
        """Restore a result from `to_dict`."""
        fields = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        sequences = {
            "failures": tuple(values["failures"]),
            "outcomes": tuple(sorted(values["outcomes"].items())),
        }
        return cls(**{**fields, **sequences})

    @property
    def passed(self) -> bool:
        """Whether cases ran and none failed."""
        return self.count > 0 and not self.failures

    @property
    def upper_bound_95(self) -> float:
        """Upper bound (95 % confidence) of the failure rate after 0 failures, by the rule of three."""
        return min(1.0, 3 / self.count) if self.count else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON types."""
        return {
            **asdict(self),
            "failures": list(self.failures),
            "outcomes": dict(self.outcomes),
            "passed": self.passed,
            "upper_bound_95": self.upper_bound_95 if self.passed else None,
        }
