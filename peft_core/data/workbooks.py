"""The table in an Excel workbook: on which sheet, below which row, chosen or guessed.

The first sheet with two rows of two cells or more is the guess, then the first with two rows of one cell,
then the first that holds anything. Above a table stand titles: rows of one cell, or with a gap below them.
"""

import itertools
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import openpyxl

from peft_core.data.cells import cell, first_line
from peft_core.data.columns import KNOWN_NAMES
from peft_core.data.delimited import has_header, unique_names
from peft_core.data.formats import MOST_CELLS, MOST_UNPACKED, ReadOptions, check_width
from peft_core.data.unpacking import check_workbook, read_error
from peft_core.errors import DataError

HEAD = 1000  # filled rows of a sheet that decide where its table begins
_TITLES = 20  # filled rows that may stand above a header with a usual name
_GLANCE = 50  # filled rows of each sheet that decide which one holds the table

NumberedRow = tuple[int, list[Any]]


@dataclass(frozen=True)
class SheetTable:
    """Where a workbook's table is: data begins in `first_row`; `header_row` is None without a header."""

    sheet: str
    sheets: tuple[str, ...]
    columns: tuple[str, ...]
    header_row: int | None
    first_row: int


@contextmanager
def open_book(
    name: str, file: "BinaryIO | Path", most_bytes: int | None = None
) -> Iterator[openpyxl.Workbook]:
    """A workbook to be read row by row; DataError for damage, and for over `most_bytes` of XML.

    By default these are MOST_UNPACKED.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # openpyxl's remarks on styles and extensions
            check_workbook(name, file, most_bytes or MOST_UNPACKED)
            book = openpyxl.load_workbook(file, read_only=True, data_only=True)
            try:
                yield book
            finally:
                book.close()
    except (DataError, MemoryError):
        raise
    except Exception as error:  # openpyxl meets damage with whatever its parsers raise
        damage = f"{name!r} is a damaged or locked Excel file ({first_line(error)}); save it again."
        raise read_error(name, error) or DataError(damage) from error


def find_table(name: str, book: openpyxl.Workbook, options: ReadOptions) -> SheetTable:
    """The table that the options choose, or the guess. DataError for a sheet or a row that is not there."""
    sheets = [sheet.title for sheet in book.worksheets]
    if not sheets:
        raise DataError(f"{name!r} holds no sheet with rows; add one.")
    if options.sheet_name is not None and options.sheet_name not in sheets:
        has = ", ".join(map(repr, sheets[:20]))
        raise DataError(f"{name!r} has no sheet {options.sheet_name!r}; it has {has}.")
    sheet = options.sheet_name or _guess_sheet(book)
    rows = list(itertools.islice(filled_rows(name, book, sheet), HEAD))
    if options.header_row is not None:
        rows = list(itertools.islice(_from(filled_rows(name, book, sheet), options.header_row), HEAD))
        if not rows or rows[0][0] != options.header_row:
            raise DataError(
                f"Row {options.header_row} of the sheet {sheet!r} of {name!r}, the header_row, is empty; "
                "name another, or none."
            )
    elif rows:
        rows = rows[_start_of_table(rows) :]
    if not rows:
        raise DataError(f"The sheet {sheet!r} of {name!r} holds no rows; add some.")
    texts = [["" if value is None else str(value) for value in values] for _, values in rows]
    header = options.header_row is not None or has_header(texts)
    width = max(map(len, texts))
    check_width(name, width)
    names = texts[0] + [""] * (width - len(texts[0])) if header else [""] * width
    number = rows[0][0]
    header_row, first_row = (number, number + 1) if header else (None, number)
    return SheetTable(sheet, tuple(sheets), tuple(unique_names(names)), header_row, first_row)


def filled_rows(name: str, book: openpyxl.Workbook, sheet: str) -> Iterator[NumberedRow]:
    """A sheet's rows that hold something, each with its number; DataError for too many cells."""
    worksheet, cells = book[sheet], 0
    worksheet.reset_dimensions()  # what a file claims of its own size may be wrong
    for number, row in enumerate(worksheet.iter_rows(values_only=True), 1):
        cells += len(row)
        if cells > MOST_CELLS:
            raise DataError(
                f"{name!r} has over {MOST_CELLS:,} cells; delete the columns that are not needed."
            )
        values = filled_cells(row)
        if values:
            yield number, values


def table_rows(name: str, book: openpyxl.Workbook, table: SheetTable) -> Iterator[NumberedRow]:
    """The data rows of a table, as wide as its columns; DataError for one that has more cells."""
    width = len(table.columns)
    for number, values in _from(filled_rows(name, book, table.sheet), table.first_row):
        if len(values) > width:
            raise DataError(
                f"{name!r}, row {number}: the row has {len(values)} cells where {width} are expected; name "
                "the columns in the header, or delete the cells."
            )
        yield number, values + [None] * (width - len(values))


def written_rows(book: openpyxl.Workbook, table: SheetTable) -> Iterator[list[tuple[Any, str]]]:
    """Every row of a table from its first, blank ones too: each cell's own value and its number format."""
    book[table.sheet].reset_dimensions()
    for row in book[table.sheet].iter_rows(min_row=table.first_row, max_col=len(table.columns)):
        yield [(cell.value, getattr(cell, "number_format", None) or "General") for cell in row]


def filled_cells(row: Sequence[Any]) -> list[Any]:
    """A sheet's row without the empty cells at its end."""
    values = [cell(value) for value in row]
    while values and values[-1] in (None, ""):
        values.pop()
    return values


def _guess_sheet(book: openpyxl.Workbook) -> str:
    """The title of the first sheet with a table; hidden sheets only where no other holds one."""
    visible = [sheet for sheet in book.worksheets if sheet.sheet_state == "visible"] or book.worksheets
    widths: dict[str, list[int]] = {}
    for sheet in visible:
        sheet.reset_dimensions()
        rows = map(filled_cells, sheet.iter_rows(values_only=True))
        widths[sheet.title] = [_filled(values) for values in itertools.islice(filter(None, rows), _GLANCE)]
    tables = [title for title, counts in widths.items() if sum(count > 1 for count in counts) > 1]
    columns = [title for title, counts in widths.items() if len(counts) > 1]
    filled = [title for title, counts in widths.items() if counts]
    return next(iter([*tables, *columns, *filled, *widths]))


def _start_of_table(rows: Sequence[NumberedRow]) -> int:
    """The place of the first row that is no title; a title has one cell, or a gap below it."""
    counts = [_filled(values) for _, values in rows]
    usual = Counter(count for count in counts if count > 1).most_common(1)
    if not usual:
        return 0
    start = next(i for i, count in enumerate(counts) if count > 1)
    first_usual = next(i for i, count in enumerate(counts) if count >= usual[0][0])
    for i in range(start + 1, first_usual + 1):
        if rows[i][0] > rows[i - 1][0] + 1:
            start = i
    if not _names_columns(rows[start][1]):
        below = range(start + 1, min(len(rows), _TITLES))
        named = (i for i in below if rows[i][0] > rows[i - 1][0] + 1 and _names_columns(rows[i][1]))
        start = next(named, start)
    above = rows[start - 1][1] if start else []
    names_all_but_first = len(above) == len(rows[start][1]) and above[0] in (None, "")
    return start - 1 if names_all_but_first and _filled(above) == len(above) - 1 else start


def _names_columns(values: Sequence[Any]) -> bool:
    """Whether a row holds a usual name of a text or a label column."""
    return any(isinstance(value, str) and value.strip().casefold() in KNOWN_NAMES for value in values)


def _filled(values: Sequence[Any]) -> int:
    return sum(value not in (None, "") for value in values)


def _from(rows: Iterator[NumberedRow], first: int) -> Iterator[NumberedRow]:
    return itertools.dropwhile(lambda row: row[0] < first, rows)
