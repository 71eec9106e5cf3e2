"""Parsing of numbers in any common notation: `1,200.5`, `1.200,5`, `1 200,5`, `1'200.5`, `-3e5`.

A single cell cannot tell whether `1,200` is 1200 or 1.2, so the decimal mark is inferred from a whole column:
`number_style` reads every cell, and `as_number` then parses one. If the column is ambiguous too, the style
says so and the user is asked.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

POINT, COMMA = "point", "comma"
_GROUPING = " \u00a0\u2009\u202f'\u2019"  # spaces and apostrophes, which are never a decimal mark
_MAX_NUMBER = 1e300


def _pattern(decimal: str, separator: str) -> re.Pattern[str]:
    """Return a pattern for plain digits, also with an exponent, and for digits grouped by one separator.

    Groups have three digits, or two in the Indian system.
    """
    groups = rf"[1-9]\d{{0,2}}(?P<by>[{re.escape(separator)}{_GROUPING}])\d{{3}}(?:(?P=by)\d{{3}})*"
    indian = r"|[1-9]\d?(?:,\d{2})+,\d{3}" if separator == "," else ""
    fraction = rf"(?:{re.escape(decimal)}\d+)?"
    return re.compile(
        rf"[-+\u2212]?(?:\d+{fraction}(?:[eE][-+]?\d+)?|(?:{groups}{indian}){fraction})", re.ASCII
    )


_MARKS = {POINT: ".", COMMA: ","}
_PATTERNS = {POINT: _pattern(".", ","), COMMA: _pattern(",", ".")}
_NORMALIZATION = {
    mark: str.maketrans("\u2212", "-", separator + _GROUPING)
    for mark, separator in ((POINT, ","), (COMMA, "."))
}


@dataclass(frozen=True)
class NumberStyle:
    """Notation of the numbers in a column.

    Attributes:
        decimal_mark: The best guess, `point` or `comma`.
        ambiguous: Examples that mean another number with the other mark, if the column does not decide.
        mixed: A number with a decimal point and one with a decimal comma, if the column has both.
        has_marks: Whether the decimal mark changes how any cell is read.
    """

    decimal_mark: str
    ambiguous: tuple[str, ...] = ()
    mixed: tuple[str, ...] = ()
    has_marks: bool = False


def as_number(value: Any, decimal_mark: str = POINT) -> float | None:
    """Parse the number of a cell; None if it holds none.

    Args:
        value: The cell.
        decimal_mark: Used for texts that are valid with either mark; the others are read with the only
            valid one.
    """
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return float(value)
    text = str(value).strip()
    number = _parse(text, decimal_mark)
    return _parse(text, COMMA if decimal_mark == POINT else POINT) if number is None else number


def number_style(cells: Iterable[Any]) -> NumberStyle:
    """Infer the notation of the numbers in a column from all of its cells.

    A number that is valid with only one decimal mark decides. Without any, digits grouped by spaces or
    apostrophes imply that the other mark is decimal, and whole numbers below 1,000 beside `1,200` imply that
    its comma groups digits.
    """
    evidence = _Evidence()
    for cell in dict.fromkeys(cell for cell in cells if isinstance(cell, str | int)):
        evidence.add(cell)
    return evidence.style()


class _Evidence:
    """Evidence for the decimal mark of one column."""

    def __init__(self) -> None:
        self.unambiguous: dict[str, str] = {}  # by mark, the first number that is valid with it alone
        self.ambiguous: list[str] = []
        self.has_other_groups = False  # grouped by spaces or apostrophes
        self.small_whole = self.large_whole = False

    def add(self, cell: str | int) -> None:
        """Add a cell of the column."""
        text = str(cell).strip()
        with_point, with_comma = _parse(text, POINT), _parse(text, COMMA)
        if isinstance(cell, bool) or (with_point is None and with_comma is None):
            return
        if with_point is None or with_comma is None:
            self.unambiguous.setdefault(COMMA if with_point is None else POINT, text)
        elif with_point != with_comma:
            self.ambiguous.append(text)
        elif any(character in _GROUPING for character in text):
            self.has_other_groups = True
        else:
            self.small_whole |= abs(with_point) < 1000
            self.large_whole |= abs(with_point) >= 1000

    def style(self) -> NumberStyle:
        """Return the notation that the cells imply."""
        mixed = tuple(self.unambiguous.values()) if len(self.unambiguous) > 1 else ()
        decimal_mark = self._infer_decimal_mark()
        ambiguous = () if decimal_mark else tuple(self.ambiguous[:3])
        return NumberStyle(decimal_mark or POINT, ambiguous, mixed, bool(self.unambiguous or self.ambiguous))

    def _infer_decimal_mark(self) -> str | None:
        if self.unambiguous:
            return next(iter(self.unambiguous)) if len(self.unambiguous) == 1 else None
        used = {mark for mark, sign in _MARKS.items() if any(sign in text for text in self.ambiguous)}
        if len(used) != 1:
            return None
        (mark,) = used
        if self.has_other_groups:
            return mark
        return (COMMA if mark == POINT else POINT) if self._groups_digits(mark) else None

    def _groups_digits(self, mark: str) -> bool:
        """Return whether the mark in `1,200` groups digits, judged by the whole numbers beside it.

        Beside decimals `950` would be written `950,000`. A point in `3.125` beside `2` is still more often
        decimal, unless a fraction ends in a zero, which a number without fixed decimals would not have.
        """
        if not self.small_whole or self.large_whole:
            return False
        return mark == COMMA or any(text.endswith("0") for text in self.ambiguous)


def _parse(text: str, decimal_mark: str) -> float | None:
    if not _PATTERNS[decimal_mark].fullmatch(text):
        return None
    number = float(text.translate(_NORMALIZATION[decimal_mark]).replace(_MARKS[decimal_mark], "."))
    return number if abs(number) < _MAX_NUMBER else None
