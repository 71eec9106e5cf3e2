"""Checks for lone surrogates in texts, cells and column names, and for overlong column names.

UTF-8 cannot encode a lone surrogate, so no tokenizer reads it and no file can store it. JSON writes one as
the escape `\\ud800` without its other half, a workbook as `_xD800_`. The length of names is limited because
messages and the page show all of them.
"""

from collections.abc import Sequence
from typing import Any

from peft_core.data.cells import short_repr
from peft_core.data.formats import MAX_NAME_LENGTH
from peft_core.errors import DataError


def is_unicode(text: str) -> bool:
    """Return whether UTF-8 can encode the text, that is, whether it has no lone surrogate."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def check_text(text: str) -> None:
    """Raise DataError if a text that a user typed has a lone surrogate."""
    if not is_unicode(text):
        raise DataError(
            f"The text {short_repr(text)} contains a lone surrogate (half a character); type it again."
        )


def check_names(name: str, columns: Sequence[str]) -> None:
    """Raise DataError for a column name with a lone surrogate or more than MAX_NAME_LENGTH characters."""
    long = next((column for column in columns if len(column) > MAX_NAME_LENGTH), None)
    if long is not None:
        raise DataError(
            f"{name!r}: the column name {short_repr(long)} has {len(long):,} characters; at most "
            f"{MAX_NAME_LENGTH:,} are read, so shorten it."
        )
    invalid = next((column for column in columns if not is_unicode(column)), None)
    if invalid is not None:
        raise DataError(
            f"{name!r}: the column name {short_repr(invalid)} contains a lone surrogate; write it again."
        )


def check_cells(name: str, row: int, columns: Sequence[str], cells: Sequence[Any]) -> None:
    """Raise DataError if a cell of a row has a lone surrogate."""
    for column, cell in zip(columns, cells, strict=True):
        if not _is_unicode_cell(cell):
            raise DataError(
                f"{name!r}, row {row}, column {short_repr(column)} contains a lone surrogate; "
                "write the cell again."
            )


def _is_unicode_cell(cell: Any) -> bool:
    if isinstance(cell, str):
        return is_unicode(cell)
    return not isinstance(cell, list) or all(map(_is_unicode_cell, cell))
