"""Numbers as people write them: `1,200.5`, `1.200,5`, `1 200,5`, `1'200.5`, `-3e5`.

One cell does not say whether `1,200` is 1200 or 1.2, so the decimal mark is decided from a whole column:
`number_style` looks at every cell, `as_number` then reads one. Where the column does not decide either, the
style says so and the person is asked.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

POINT, COMMA = "point", "comma"
_GROUPING = " \u00a0\u2009\u202f'\u2019"  # spaces and apostrophes: never a decimal mark
_LARGEST = 1e300


def _pattern(decimal: str, other: str) -> re.Pattern[str]:
    """Plain digits with an exponent, or groups of three (of two in India) that one separator parts."""
    groups = rf"[1-9]\d{{0,2}}(?P<by>[{re.escape(other)}{_GROUPING}])\d{{3}}(?:(?P=by)\d{{3}})*"
    indian = r"|[1-9]\d?(?:,\d{2})+,\d{3}" if other == "," else ""
    fraction = rf"(?:{re.escape(decimal)}\d+)?"
    return re.compile(
        rf"[-+\u2212]?(?:\d+{fraction}(?:[eE][-+]?\d+)?|(?:{groups}{indian}){fraction})", re.ASCII
    )


_MARKS = {POINT: ".", COMMA: ","}
_PATTERNS = {POINT: _pattern(".", ","), COMMA: _pattern(",", ".")}
_REMOVED = {
    mark: str.maketrans("\u2212", "-", other + _GROUPING) for mark, other in ((POINT, ","), (COMMA, "."))
}


@dataclass(frozen=True)
class NumberStyle:
    """How a column writes its numbers.

    `decimal_mark` is the best guess. `ambiguous` holds examples that another mark would read as other
    numbers, where nothing in the column decides. `mixed` holds a number with a decimal point and one with a
    decimal comma, where the column has both. Without marks (`has_marks`) the decimal mark does not matter.
    """

    decimal_mark: str
    ambiguous: tuple[str, ...] = ()
    mixed: tuple[str, ...] = ()
    has_marks: bool = False


def as_number(value: Any, decimal_mark: str = POINT) -> float | None:
    """A cell's number, or None if it holds none.

    A text that can be read with one decimal mark only is read with that one; `decimal_mark` settles the rest.
    """
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return float(value)
    text = str(value).strip()
    first = _read(text, decimal_mark)
    return _read(text, COMMA if decimal_mark == POINT else POINT) if first is None else first


def number_style(cells: Iterable[Any]) -> NumberStyle:
    """The decimal mark of a column, from all of its cells.

    A number that can be read in one way only decides. Without any, groups parted by spaces or apostrophes say
    that no other mark parts groups; and whole numbers below 1,000 beside `1,200` say that it is one of them.
    """
    evidence = _Evidence()
    for cell in dict.fromkeys(cell for cell in cells if isinstance(cell, str | int)):
        evidence.add(cell)
    return evidence.style()


class _Evidence:
    """What the cells of one column say of its decimal mark."""

    def __init__(self) -> None:
        self.only: dict[str, str] = {}  # by mark, the first number that no other mark can read
        self.ambiguous: list[str] = []
        self.grouped_otherwise = False
        self.small_whole = self.large_whole = False

    def add(self, cell: str | int) -> None:
        text = str(cell).strip()
        readings = {mark: _read(text, mark) for mark in _MARKS}
        marks = [mark for mark, number in readings.items() if number is not None]
        if isinstance(cell, bool) or not marks:
            return
        if len(marks) == 1:
            self.only.setdefault(marks[0], text)
        elif readings[POINT] != readings[COMMA]:
            self.ambiguous.append(text)
        elif any(character in _GROUPING for character in text):
            self.grouped_otherwise = True
        else:
            self.small_whole |= abs(readings[POINT]) < 1000
            self.large_whole |= abs(readings[POINT]) >= 1000

    def style(self) -> NumberStyle:
        mixed = tuple(self.only.values()) if len(self.only) > 1 else ()
        decimal_mark = self._decided()
        ambiguous = () if decimal_mark else tuple(self.ambiguous[:3])
        return NumberStyle(decimal_mark or POINT, ambiguous, mixed, bool(self.only or self.ambiguous))

    def _decided(self) -> str | None:
        if self.only:
            return next(iter(self.only)) if len(self.only) == 1 else None
        used = {mark for mark, sign in _MARKS.items() if any(sign in text for text in self.ambiguous)}
        if len(used) != 1:
            return None
        (mark,) = used
        if self.grouped_otherwise:
            return mark
        return (COMMA if mark == POINT else POINT) if self._are_groups(mark) else None

    def _are_groups(self, mark: str) -> bool:
        """Whether the mark in `1,200` parts groups, from the whole numbers beside it.

        `950` beside decimals would be written `950,000`. A point in `3.125` beside `2` is still more often a
        decimal one, unless some fraction ends in a zero that a number without fixed decimals would not have.
        """
        if not self.small_whole or self.large_whole:
            return False
        return mark == COMMA or any(text.endswith("0") for text in self.ambiguous)


def _read(text: str, decimal_mark: str) -> float | None:
    if not _PATTERNS[decimal_mark].fullmatch(text):
        return None
    number = float(text.translate(_REMOVED[decimal_mark]).replace(_MARKS[decimal_mark], "."))
    return number if abs(number) < _LARGEST else None
