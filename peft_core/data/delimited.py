"""Parse delimited text (CSV, TSV): detect the delimiter, the quoting and the header."""

import csv
import io
import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from peft_core.data.columns import KNOWN_COLUMN_NAMES
from peft_core.data.decoding import is_damaged, repair_text
from peft_core.data.formats import check_width
from peft_core.data.quoting import (
    cell_rows,
    choose_quoting,
    describe_stray_quote,
    fit_to_width,
    is_blank,
    sample_rows,
)
from peft_core.errors import DataError

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_SAMPLE = 100_000  # characters from which the delimiter is detected
_SEP_LINE = re.compile(r"\ufeff?sep=([^\r\n\"])[ \t]*(\r\n|\r|\n|$)", re.IGNORECASE)
_NUMBER = re.compile(r"\s*[-+]?\d+([.,]\d+)?\s*")


@dataclass(frozen=True)
class DelimitedTable:
    """The cells of a delimited text, and how it was parsed.

    Attributes:
        frame: Cells as str, indexed by row number.
        delimiter: Name of the delimiter (see `DELIMITERS`), or the delimiter itself.
        header: Whether a header names the columns.
        quoting: Quoting style (see `quoting.choose_quoting`).
        damaged_header: Row number of the header if a column name has invalid bytes.
    """

    frame: pd.DataFrame
    delimiter: str
    header: bool
    quoting: str
    damaged_header: int | None = None


@dataclass(frozen=True)
class Preamble:
    """The text above the rows of a delimited text: `length` characters in `lines` lines.

    `delimiter` comes from a first line such as `sep=;`, which Excel writes and reads.
    """

    length: int = 0
    lines: int = 0
    delimiter: str | None = None


def read_delimited(name: str, text: str, header_row: int | None = None) -> DelimitedTable:
    """Parse a CSV or TSV text; cells stay exactly as typed.

    Blank lines are skipped, except in a file of one column, where each is a row with an empty cell.

    Args:
        name: File name for messages.
        text: Content of the file.
        header_row: Line of the header, counted from 1; None detects whether there is one.

    Raises:
        DataError: With file, row and column of the first malformed row.
    """
    preamble = read_preamble(name, text, header_row)
    text = text[preamble.length :]
    delimiter = preamble.delimiter or detect_delimiter(text)
    quoting = choose_quoting(lambda: io.StringIO(text, newline=""), delimiter) if '"' in text else "doubled"
    rows = _parse_rows(name, text, delimiter, quoting, preamble.lines)
    filled = [cells for _, cells in rows if not is_blank(cells)]
    if not filled:
        raise DataError(f"The file {name!r} has no rows; add some.")
    check_width(name, len(filled[0]))
    header, width = header_row is not None or has_header(filled[:1000]), len(filled[0])
    damaged_header = None
    if header:
        place = next(i for i, (_, cells) in enumerate(rows) if not is_blank(cells))
        damaged_header = rows[place][0] if any(map(is_damaged, filled[0])) else None
        rows = rows[place + 1 :]
    names = unique_names(filled[0] if header else [""] * width)
    rows = _fit_rows(name, rows, names, delimiter)
    if width == 1 and all(is_blank(cells) for _, cells in rows):
        raise DataError(f"The file {name!r} has no rows below its column name; add some.")
    frame = pd.DataFrame([cells for _, cells in rows], columns=names, dtype=object)
    frame.index = pd.Index([number for number, _ in rows], dtype=int)
    return DelimitedTable(frame, DELIMITERS.get(delimiter, delimiter), header, quoting, damaged_header)


def read_preamble(name: str, text: str, header_row: int | None) -> Preamble:
    """Return the text above the header: the lines before `header_row`, or a line that names the delimiter.

    Raises:
        DataError: If the named delimiter is an invalid byte, or line `header_row` is blank or missing.
    """
    sep_line = _SEP_LINE.match(text)
    if header_row is None and sep_line is None:
        return Preamble()
    delimiter = sep_line.group(1) if sep_line else None
    if delimiter is not None and is_damaged(delimiter):
        raise DataError(
            f"{name!r}, row 1: sep= names a delimiter that is not a character; write sep=, or remove the row."
        )
    if header_row is None:
        assert sep_line is not None
        return Preamble(sep_line.end(), 1, delimiter)
    lines = io.StringIO(text, newline="")
    length = sum(len(line) for line in itertools.islice(lines, header_row - 1))
    if not next(lines, "").strip():
        raise DataError(f"{name!r} has nothing in line {header_row}, the header_row; name another, or none.")
    return Preamble(length, header_row - 1, delimiter)


def has_header(rows: list[list[str]]) -> bool:
    """Return whether the first row names the columns, that is, does not look like a data row."""
    first, rest = rows[0], rows[1:]
    if any(_NUMBER.fullmatch(cell) for cell in first) or any(len(cell) > 60 for cell in first):
        return False
    columns = [[row[i] for row in rest if i < len(row)] for i in range(len(first))]
    are_known = [cell.strip().casefold() in KNOWN_COLUMN_NAMES for cell in first]
    triples = list(zip(first, are_known, columns, strict=True))
    if any(is_known and cell not in below for cell, is_known, below in triples):
        return True  # labels may have the same names as columns
    if not any(cell.strip() for cell in first[1:] or first):
        return False
    for cell, is_known, below in triples:
        repeats = len(below) >= 2 * len(set(below))
        if cell and cell in below and (repeats or not is_known):
            return False
    return any(are_known) or not any(len(cell.split()) > 5 for cell in first)


def unique_names(cells: list[str]) -> list[str]:
    """Return stripped, repaired and unique column names; empty and repeated ones get a number."""
    names: dict[str, None] = {}
    for i, cell in enumerate(cells, 1):
        name = unique = repair_text(str(cell)).strip() or f"column {i}"
        number = i
        while unique in names:
            unique, number = f"{name} ({number})", number + 1
        names[unique] = None
    return list(names)


def detect_delimiter(text: str) -> str:
    """Return the delimiter for which the largest share of the first rows has the same number of cells.

    That number must be more than one; without such a delimiter the answer is a comma.
    """
    sample = text[:_SAMPLE]
    scores = {mark: _delimiter_score(sample, mark, whole=len(sample) == len(text)) for mark in DELIMITERS}
    best = max(scores, key=scores.__getitem__)
    return best if scores[best] > 0 else ","


def _delimiter_score(sample: str, delimiter: str, whole: bool) -> float:
    """Return the share of rows with the most frequent number of cells, 0 if that is one cell."""
    best = 0.0
    for rows in sample_rows(io.StringIO(sample, newline=""), delimiter, whole=whole):
        widths = [len(cells) for cells in rows if not is_blank(cells)]
        if not whole and len(widths) > 1:
            widths.pop()  # the sample may end within a row
        width, times = Counter(widths).most_common(1)[0] if widths else (1, 0)
        if width > 1 and widths[0] == width:
            best = max(best, times / len(widths))
    return best


def _parse_rows(
    name: str, text: str, delimiter: str, quoting: str, lines_above: int
) -> list[tuple[int, list[str]]]:
    """Return numbered rows including blank ones; `lines_above` is the number of lines above the first."""
    rows: list[tuple[int, list[str]]] = []
    reader = cell_rows(io.StringIO(text, newline=""), delimiter, quoting)
    number, line = lines_above, 0
    try:
        for number, cells in enumerate(reader, lines_above + 1):
            line = reader.line_num
            rows.append((number, cells))
    except csv.Error as error:
        column = _malformed_column(text, line, delimiter, quoting)
        raise DataError(
            f"{name!r}, row {number + 1}, column {column}: {describe_stray_quote(quoting)}"
        ) from error
    return rows


def _malformed_column(text: str, line: int, delimiter: str, quoting: str) -> int:
    """Return the number, from 1, of the first cell with an odd count of quotation marks after line `line`."""
    row = next(itertools.islice(io.StringIO(text, newline=""), line, None), "").rstrip("\r\n")
    if quoting == "backslash":
        row = row.replace("\\\\", "").replace('\\"', "")
    cells = row.split(delimiter)
    return next((i for i, cell in enumerate(cells, 1) if cell.count('"') % 2), 1)


def _fit_rows(
    name: str, rows: list[tuple[int, list[str]]], names: list[str], delimiter: str
) -> list[tuple[int, list[str]]]:
    """Cut surplus empty cells of each row to the header's width and drop blank rows.

    Raises:
        DataError: For a row of another width.
    """
    fitting: list[tuple[int, list[str]]] = []
    for number, cells in rows:
        fitted = fit_to_width(cells, len(names))
        if fitted is None:
            continue
        if len(fitted) != len(names):
            raise DataError(uneven_row_message(name, number, len(fitted), names, delimiter))
        fitting.append((number, fitted))
    return fitting


def uneven_row_message(name: str, number: int, cells: int, names: Sequence[str], delimiter: str) -> str:
    """Return the error message for a row with more or fewer cells than the header."""
    width = len(names)
    at = f"column {width + 1}" if cells > width else f"column {names[cells][:60]!r}"
    mark = DELIMITERS.get(delimiter, repr(delimiter))
    return (
        f"{name!r}, row {number}, {at}: the row has {cells} cells where {width} are expected; put a text "
        f"that holds a {mark} in quotation marks, or remove the row."
    )
