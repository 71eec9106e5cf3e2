"""Half a character (a lone surrogate) in texts, cells and names: no file holds it and no tokenizer reads it.

JSON writes one as the escape `\\ud800` without its other half, and a workbook as `_xD800_`. Names are bounded
as well, since messages and the page show all of them.
"""

from collections.abc import Sequence
from typing import Any

from peft_core.data.cells import shown
from peft_core.data.formats import MOST_NAME
from peft_core.errors import DataError


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can encode a text: no lone surrogate is in it."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def check_text(text: str) -> None:
    """Raise DataError for a typed text with half a character."""
    if not is_unicode(text):
        raise DataError(f"The text {shown(text)} holds half a character (a lone surrogate); type it again.")


def check_names(name: str, columns: Sequence[str]) -> None:
    """Raise DataError for a column name with half a character, or one that is too long."""
    long = next((column for column in columns if len(column) > MOST_NAME), None)
    if long is not None:
        raise DataError(
            f"{name!r}: the column name {shown(long)} has {len(long):,} characters; at most {MOST_NAME:,} "
            "are read, so shorten it."
        )
    wrong = next((column for column in columns if not is_unicode(column)), None)
    if wrong is not None:
        raise DataError(f"{name!r}: the column name {shown(wrong)} holds half a character; write it again.")


def check_cells(name: str, row: int, columns: Sequence[str], cells: Sequence[Any]) -> None:
    """Raise DataError for a row with half a character in one of its cells."""
    for column, value in zip(columns, cells, strict=True):
        if not _is_cell_unicode(value):
            raise DataError(
                f"{name!r}, row {row}, column {shown(column)} holds half a character; write the cell again."
            )


def _is_cell_unicode(value: Any) -> bool:
    if isinstance(value, str):
        return is_unicode(value)
    return not isinstance(value, list) or all(map(_is_cell_unicode, value))
