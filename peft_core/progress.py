"""The callback by which a long operation reports its progress."""

from collections.abc import Callable

Progress = Callable[[float, str], None]
"""Called with the share that is done, from 0 to 1, and a message that says what is being done."""


def no_progress(share: float, message: str = "") -> None:
    """Do nothing: the default callback, also where only the share is reported."""
