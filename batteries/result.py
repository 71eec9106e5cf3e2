"""What every battery returns."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class BatteryResult:
    """A battery's name, how many cases ran, one sentence for each that failed, and how the rest ended.

    `passes_when` says in words what each case is checked for; `seconds` is how long the battery took. `date`,
    the `commit` of the code and the `machine` in words are those of a result that was written down.
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
        """The result that `to_dict` gave."""
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
        """The share of failing cases that 0 failures exclude at 95 % confidence: the rule of three."""
        return min(1.0, 3 / self.count) if self.count else 1.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            **asdict(self),
            "failures": list(self.failures),
            "outcomes": dict(self.outcomes),
            "passed": self.passed,
            "upper_bound_95": self.upper_bound_95 if self.passed else None,
        }
