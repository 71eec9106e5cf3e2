"""Location and reading of the table in an Excel workbook; its sheet and header row are chosen or guessed.

The guessed sheet is the first with two rows of at least two cells, then the first with two rows of one cell,
then the first that is not empty. Rows above a table are titles if they have one cell or a gap below them.
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

from peft_core.data.cells import first_error_line, to_cell
from peft_core.data.columns import KNOWN_COLUMN_NAMES
from peft_core.data.delimited import has_header, unique_names
from peft_core.data.formats import MAX_CELLS, MAX_UNPACKED_BYTES, ReadOptions, check_width
from peft_core.data.unpacking import check_workbook, read_error
from peft_core.errors import DataError

_HEAD_ROWS = 1000  # filled rows of a sheet from which the start of its table is inferred
_MAX_TITLE_ROWS = 20  # filled rows above a header with a known column name
_SAMPLE_ROWS = 50  # filled rows of each sheet from which the sheet of the table is inferred

NumberedRow = tuple[int, list[Any]]  # row number, from 1, and cells


@dataclass(frozen=True)
class SheetTable:
    """Location of the table in a workbook.

    Attributes:
        sheet: Title of the sheet of the table.
        sheets: Titles of all sheets.
        header_row: Row number of the header, or None.
        first_row: Row number of the first data row.
    """

    sheet: str
    sheets: tuple[str, ...]
    columns: tuple[str, ...]
    header_row: int | None
    first_row: int


@contextmanager
def open_book(
    name: str, file: "BinaryIO | Path", max_bytes: int | None = None
) -> Iterator[openpyxl.Workbook]:
    """Open a workbook for reading row by row.

    Args:
        name: File name for error messages.
        file: Path or stream of the workbook.
        max_bytes: Limit of the unpacked XML; None for MAX_UNPACKED_BYTES.

    Raises:
        DataError: If the workbook is damaged, locked or too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # openpyxl warns about styles and extensions
            check_workbook(name, file, max_bytes or MAX_UNPACKED_BYTES)
            book = openpyxl.load_workbook(file, read_only=True, data_only=True)
            try:
                yield book
            finally:
                book.close()
    except (DataError, MemoryError):
        raise
    except Exception as error:  # for damaged files openpyxl raises whatever its parsers raise
        damage = f"{name!r} is a damaged or locked Excel file ({first_error_line(error)}); save it again."
        raise read_error(name, error) or DataError(damage) from error


def find_table(name: str, book: openpyxl.Workbook, options: ReadOptions) -> SheetTable:
    """Locate the table that the options choose, or guess it.

    Raises:
        DataError: If there is no such sheet, the header row is empty, or there are no rows.
    """
    sheets = [sheet.title for sheet in book.worksheets]
    if not sheets:
        raise DataError(f"{name!r} has no sheet with rows; add one.")
    if options.sheet_name is not None and options.sheet_name not in sheets:
        has = ", ".join(map(repr, sheets[:20]))
        raise DataError(f"{name!r} has no sheet {options.sheet_name!r}; it has {has}.")
    sheet = options.sheet_name or _guess_sheet(book)
    rows = list(itertools.islice(filled_rows(name, book, sheet), _HEAD_ROWS))
    if options.header_row is not None:
        rows = list(
            itertools.islice(_rows_from(filled_rows(name, book, sheet), options.header_row), _HEAD_ROWS)
        )
        if not rows or rows[0][0] != options.header_row:
            raise DataError(
                f"Row {options.header_row} of the sheet {sheet!r} of {name!r}, the header_row, is empty; "
                "name another, or none."
            )
    elif rows:
        rows = rows[_table_start(rows) :]
    if not rows:
        raise DataError(f"The sheet {sheet!r} of {name!r} has no rows; add some.")
    texts = [["" if value is None else str(value) for value in values] for _, values in rows]
    header = options.header_row is not None or has_header(texts)
    width = max(map(len, texts))
    check_width(name, width)
    names = texts[0] + [""] * (width - len(texts[0])) if header else [""] * width
    top_row = rows[0][0]
    header_row, first_row = (top_row, top_row + 1) if header else (None, top_row)
    return SheetTable(sheet, tuple(sheets), tuple(unique_names(names)), header_row, first_row)


def filled_rows(name: str, book: openpyxl.Workbook, sheet: str) -> Iterator[NumberedRow]:
    """Yield the non-blank rows of a sheet with their numbers; raise DataError for too many cells."""
    worksheet, cells = book[sheet], 0
    worksheet.reset_dimensions()  # the declared dimensions may be wrong
    for number, row in enumerate(worksheet.iter_rows(values_only=True), 1):
        cells += len(row)
        if cells > MAX_CELLS:
            raise DataError(f"{name!r} has over {MAX_CELLS:,} cells; delete the columns that are not needed.")
        values = filled_cells(row)
        if values:
            yield number, values


def table_rows(name: str, book: openpyxl.Workbook, table: SheetTable) -> Iterator[NumberedRow]:
    """Yield the data rows of a table, padded to its width; raise DataError for a wider row."""
    width = len(table.columns)
    for number, values in _rows_from(filled_rows(name, book, table.sheet), table.first_row):
        if len(values) > width:
            raise DataError(
                f"{name!r}, row {number}: the row has {len(values)} cells where {width} are expected; name "
                "the columns in the header, or delete the cells."
            )
        yield number, values + [None] * (width - len(values))


def written_rows(book: openpyxl.Workbook, table: SheetTable) -> Iterator[list[tuple[Any, str]]]:
    """Yield every data row of a table, also blank ones, as pairs of value and number format."""
    book[table.sheet].reset_dimensions()
    for row in book[table.sheet].iter_rows(min_row=table.first_row, max_col=len(table.columns)):
        yield [(cell.value, getattr(cell, "number_format", None) or "General") for cell in row]


def filled_cells(row: Sequence[Any]) -> list[Any]:
    """Return the cells of a row without the empty ones at its end."""
    values = [to_cell(value) for value in row]
    while values and values[-1] in (None, ""):
        values.pop()
    return values


def _guess_sheet(book: openpyxl.Workbook) -> str:
    """Return the title of the first sheet with a table; hidden sheets count only if all are hidden."""
    visible = [sheet for sheet in book.worksheets if sheet.sheet_state == "visible"] or book.worksheets
    widths: dict[str, list[int]] = {}
    for sheet in visible:
        sheet.reset_dimensions()
        rows = map(filled_cells, sheet.iter_rows(values_only=True))
        widths[sheet.title] = [
            _count_filled(values) for values in itertools.islice(filter(None, rows), _SAMPLE_ROWS)
        ]
    tables = [title for title, counts in widths.items() if sum(count > 1 for count in counts) > 1]
    lists = [title for title, counts in widths.items() if len(counts) > 1]
    filled = [title for title, counts in widths.items() if counts]
    return next(iter([*tables, *lists, *filled, *widths]))


def _table_start(rows: Sequence[NumberedRow]) -> int:
    """Return the position of the first row that is not a title; a title has one cell or a gap below it."""
    counts = [_count_filled(values) for _, values in rows]
    common_width = Counter(count for count in counts if count > 1).most_common(1)
    if not common_width:
        return 0
    start = next(i for i, count in enumerate(counts) if count > 1)
    first_full = next(i for i, count in enumerate(counts) if count >= common_width[0][0])
    for i in range(start + 1, first_full + 1):
        if rows[i][0] > rows[i - 1][0] + 1:
            start = i
    if not _has_known_name(rows[start][1]):
        below = range(start + 1, min(len(rows), _MAX_TITLE_ROWS))
        headers = (i for i in below if rows[i][0] > rows[i - 1][0] + 1 and _has_known_name(rows[i][1]))
        start = next(headers, start)
    above = rows[start - 1][1] if start else []
    names_all_but_first = len(above) == len(rows[start][1]) and above[0] in (None, "")
    return start - 1 if names_all_but_first and _count_filled(above) == len(above) - 1 else start


def _has_known_name(values: Sequence[Any]) -> bool:
    """Return whether a row contains a known name of a text or label column."""
    return any(isinstance(value, str) and value.strip().casefold() in KNOWN_COLUMN_NAMES for value in values)


def _count_filled(values: Sequence[Any]) -> int:
    return sum(value not in (None, "") for value in values)


def _rows_from(rows: Iterator[NumberedRow], first_row: int) -> Iterator[NumberedRow]:
    return itertools.dropwhile(lambda row: row[0] < first_row, rows)
