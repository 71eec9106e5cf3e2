"""A setting as a dataclass field, with default, label, help and bounds."""

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Setting:
    """Label, help and bounds of a setting, for the form, error messages and documentation.

    Attributes:
        label: Label in the form.
        help: One sentence.
        minimum: Inclusive lower bound.
        maximum: Inclusive upper bound.
        more_than: Exclusive lower bound.
        choices: Allowed values; empty if any value is allowed.
    """

    label: str
    help: str
    minimum: float | None = None
    maximum: float | None = None
    more_than: float | None = None
    choices: tuple[str, ...] = ()

    def bounds(self) -> str:
        """Return the bounds in words, such as 'from 1 to 512'."""
        assert self.maximum is not None  # every setting that is a number has an upper bound
        if self.more_than is not None:
            return f"more than {format_number(self.more_than)} and at most {format_number(self.maximum)}"
        assert self.minimum is not None  # and a lower bound
        return f"from {format_number(self.minimum)} to {format_number(self.maximum)}"

    def allows(self, number: float) -> bool:
        """Return whether a number lies within the bounds."""
        if self.more_than is not None and not number > self.more_than:
            return False
        return (self.minimum is None or number >= self.minimum) and (
            self.maximum is None or number <= self.maximum
        )


def setting(default: Any, label: str, help: str, **bounds: Any) -> Any:
    """Return a dataclass field with a `Setting` in its metadata."""
    return dataclasses.field(default=default, metadata={"setting": Setting(label, help, **bounds)})


def format_number(number: float) -> str:
    """Format a number for display: 1,000,000 rather than 1e+06."""
    return f"{number:,.0f}" if float(number).is_integer() else f"{number:g}"
