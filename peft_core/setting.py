"""One setting: its default, label, help and bounds, as a field of a dataclass."""

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Setting:
    """What a form, an error message and a document say about one setting.

    `more_than` is an open lower bound; `minimum` and `maximum` are closed.
    """

    label: str
    help: str
    minimum: float | None = None
    maximum: float | None = None
    more_than: float | None = None
    choices: tuple[str, ...] = ()

    def bounds(self) -> str:
        """The bounds in words, such as 'from 1 to 512'."""
        if self.more_than is not None:
            return f"more than {plain_number(self.more_than)} and at most {plain_number(self.maximum)}"
        return f"from {plain_number(self.minimum)} to {plain_number(self.maximum)}"

    def holds(self, number: float) -> bool:
        """Whether a number lies within the bounds."""
        if self.more_than is not None and not number > self.more_than:
            return False
        return (self.minimum is None or number >= self.minimum) and (
            self.maximum is None or number <= self.maximum
        )


def setting(default: Any, label: str, help: str, **bounds: Any) -> Any:
    """A dataclass field that carries its own Setting."""
    return dataclasses.field(default=default, metadata={"setting": Setting(label, help, **bounds)})


def plain_number(number: float) -> str:
    """A number as people read it: 1,000,000 rather than 1e+06."""
    return f"{number:,.0f}" if float(number).is_integer() else f"{number:g}"
