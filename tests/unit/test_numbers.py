"""Parsing of numbers: the decimal mark is inferred from all cells of a column."""

from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_core.data.numbers import COMMA, POINT, as_number, number_style

# decimal sign, thousands separator
LOCALES = {
    "English": (POINT, ","),
    "German": (COMMA, "."),
    "French": (COMMA, "\u202f"),
    "SI": (POINT, " "),
    "Swiss": (POINT, "’"),
    "plain point": (POINT, ""),
    "plain comma": (COMMA, ""),
}
numbers = st.decimals(-(10**9), 10**9, places=2, allow_nan=False)


def render(number: Decimal, locale: str, minus: str = "-") -> str:
    """Format a number in a locale, without trailing zeros in the fraction."""
    mark, separator = LOCALES[locale]
    whole, _, fraction = f"{abs(number):,.2f}".partition(".")
    fraction = fraction.rstrip("0")
    text = whole.replace(",", separator) + ({POINT: ".", COMMA: ","}[mark] + fraction if fraction else "")
    return (minus if number < 0 else "") + text


def read(cells: list) -> list[float | None]:
    mark = number_style(cells).decimal_mark
    return [as_number(cell, mark) for cell in cells]


@settings(max_examples=300, deadline=None)
@given(
    values=st.lists(numbers, min_size=1, max_size=30),
    locale=st.sampled_from(sorted(LOCALES)),
    minus=st.sampled_from(["-", "\u2212"]),
)
def test_numbers_of_any_locale_round_trip_or_are_ambiguous(
    values: list[Decimal], locale: str, minus: str
) -> None:
    cells = [render(value, locale, minus) for value in values]
    style = number_style(cells)
    mark = LOCALES[locale][0] if style.ambiguous else style.decimal_mark
    assert [as_number(cell, mark) for cell in cells] == [float(value) for value in values]


@settings(max_examples=100, deadline=None)
@given(values=st.lists(numbers, min_size=1, max_size=30), locale=st.sampled_from(sorted(LOCALES)))
def test_numbers_beside_a_short_fraction_are_never_ambiguous(values: list[Decimal], locale: str) -> None:
    cells = [render(value, locale) for value in [*values, Decimal("0.5")]]
    assert not number_style(cells).ambiguous
    assert read(cells) == [float(value) for value in [*values, Decimal("0.5")]]


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1,200", "950"], [1200, 950]),
        (["1,234", "950", "7"], [1234, 950, 7]),
        (["1.200", "950"], [1200, 950]),
        (["1,200", "12,500", "950", "1.50"], [1200, 12500, 950, 1.5]),
        (["1.200", "12.500,00", "950", "1,50"], [1200, 12500, 950, 1.5]),
        (["1,200", "0,5"], [1.2, 0.5]),
        (["1,200", "0,125"], [1.2, 0.125]),
        (["1,200", "2 000"], [1.2, 2000]),
        (["1.250", "12'000"], [1.25, 12000]),
        (["1,234,567", "1,200"], [1_234_567, 1200]),
        (["12,34,567", "1,200"], [1_234_567, 1200]),
        (["3,5", 2, "-1e-3", "much", ""], [3.5, 2.0, -0.001, None, None]),
        (["\u22121.234,5", "+7"], [-1234.5, 7]),
        ([1200, 1.5, True, None, "1e400", "1,2,3", "12,345.6,7"], [1200, 1.5, None, None, None, None, None]),
        (["1.5", "1,5"], [1.5, 1.5]),
    ],
)
def test_number_style_is_decided_by_the_whole_column(cells: list, expected: list) -> None:
    assert read(cells) == expected
    assert not number_style(cells).ambiguous


@pytest.mark.parametrize(
    "cells",
    [
        ["1,100", "2,107"],
        ["1.100", "2.107"],
        ["1,200", "2500"],
        ["3.125", "2"],
        ["1,200", "1.50", "1,50"],
        ["1,200", "1.200"],
    ],
)
def test_number_style_without_evidence_is_ambiguous(cells: list[str]) -> None:
    assert cells[0] in number_style(cells).ambiguous


def test_number_style_with_both_marks_names_them() -> None:
    style = number_style(["1.5", "2,5", "3"])
    assert style.mixed == ("1.5", "2,5") and not style.ambiguous
    assert not number_style(["1.5", "2.5"]).mixed
    assert not number_style(["3", 4]).has_marks
