"""How far a long piece of work is: what its callers hand in to hear of it."""

from collections.abc import Callable

Progress = Callable[[float, str], None]
"""Hears the share that is done, from 0 to 1, and in words what is being done."""


def unheard(share: float, what: str = "") -> None:
    """For callers who do not ask; also where the share alone is told."""
