"""What every battery returns."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class BatteryResult:
    """A battery's name, how many cases ran, one sentence for each that failed, and how the rest ended."""

    name: str
    count: int
    failures: tuple[str, ...]
    outcomes: tuple[tuple[str, int], ...] = ()

    @property
    def passed(self) -> bool:
        """Whether no case failed."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {**asdict(self), "failures": list(self.failures), "outcomes": dict(self.outcomes)}
