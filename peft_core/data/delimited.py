"""Delimited text as rows of cells: which delimiter, how it is quoted, and whether there is a header."""

import csv
import io
import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from peft_core.data.columns import KNOWN_NAMES
from peft_core.data.decoding import is_damaged, mend
from peft_core.data.formats import check_width
from peft_core.data.quoting import cell_rows, choose_quoting, fitted, is_blank, sample_rows, stray_mark
from peft_core.errors import DataError

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_SAMPLE = 100_000  # characters that decide on the delimiter
_NAMED_DELIMITER = re.compile(r"\ufeff?sep=([^\r\n\"])[ \t]*(\r\n|\r|\n|$)", re.IGNORECASE)
_NUMBER = re.compile(r"\s*[-+]?\d+([.,]\d+)?\s*")


@dataclass(frozen=True)
class Delimited:
    """A frame of str cells, its index the row numbers, and in words how the text was read."""

    frame: pd.DataFrame
    delimiter: str
    header: bool
    quoting: str
    damaged_header: int | None = None  # the header's row number if a name holds bytes that are no text


@dataclass(frozen=True)
class Preamble:
    """What stands above the rows of a delimited text: `length` characters in `lines` lines.

    `delimiter` is the one that a first line `sep=;`, which Excel writes and reads, names.
    """

    length: int = 0
    lines: int = 0
    delimiter: str | None = None


def read_delimited(name: str, text: str, header_row: int | None = None) -> Delimited:
    """The cells of a CSV or TSV text exactly as typed; its header is in line `header_row`, or guessed.

    Blank lines are passed over, but not in a file of one column, where each is a row with an empty cell.
    Raises DataError that names the file, the row and the column of the first damaged row.
    """
    start = preamble_of(name, text, header_row)
    text = text[start.length :]
    delimiter = start.delimiter or delimiter_of(text)
    quoting = choose_quoting(lambda: io.StringIO(text, newline=""), delimiter) if '"' in text else "doubled"
    rows = _rows(name, text, delimiter, quoting, start.lines)
    filled = [cells for _, cells in rows if not is_blank(cells)]
    if not filled:
        raise DataError(f"The file {name!r} holds no rows; add some.")
    check_width(name, len(filled[0]))
    header, width = header_row is not None or has_header(filled[:1000]), len(filled[0])
    damaged_header = None
    if header:
        place = next(i for i, (_, cells) in enumerate(rows) if not is_blank(cells))
        damaged_header = rows[place][0] if any(map(is_damaged, filled[0])) else None
        rows = rows[place + 1 :]
    names = unique_names(filled[0] if header else [""] * width)
    kept = _even(name, rows, names, delimiter)
    if width == 1 and all(is_blank(cells) for _, cells in kept):
        raise DataError(f"The file {name!r} holds no rows below its column name; add some.")
    frame = pd.DataFrame([cells for _, cells in kept], columns=names, dtype=object)
    frame.index = pd.Index([number for number, _ in kept], dtype=int)
    return Delimited(frame, DELIMITERS.get(delimiter, delimiter), header, quoting, damaged_header)


def preamble_of(name: str, text: str, header_row: int | None) -> Preamble:
    """What stands above the header: the lines before `header_row`, or a line that names the delimiter.

    Raises DataError for a text with fewer lines.
    """
    named = _NAMED_DELIMITER.match(text)
    if header_row is None and named is None:
        return Preamble()
    delimiter = named.group(1) if named else None
    if delimiter is not None and is_damaged(delimiter):
        raise DataError(
            f"{name!r}, row 1: sep= names a delimiter that is no character; write sep=, or remove the row."
        )
    if header_row is None:
        return Preamble(named.end(), 1, delimiter)
    lines = io.StringIO(text, newline="")
    length = sum(len(line) for line in itertools.islice(lines, header_row - 1))
    if not next(lines, "").strip():
        raise DataError(f"{name!r} has nothing in line {header_row}, the header_row; name another, or none.")
    return Preamble(length, header_row - 1, delimiter)


def has_header(rows: list[list[str]]) -> bool:
    """Whether the first of these rows names the columns: not if it looks like one more row of data."""
    first, rest = rows[0], rows[1:]
    if any(_NUMBER.fullmatch(cell) for cell in first) or any(len(cell) > 60 for cell in first):
        return False
    columns = [[row[i] for row in rest if i < len(row)] for i in range(len(first))]
    known = [cell.strip().casefold() in KNOWN_NAMES for cell in first]
    triples = list(zip(first, known, columns, strict=True))
    if any(is_known and cell not in below for cell, is_known, below in triples):
        return True  # labels may well be called what the other columns are
    if not any(cell.strip() for cell in first[1:] or first):
        return False
    for cell, is_known, below in triples:
        repeats = len(below) >= 2 * len(set(below))
        if cell and cell in below and (repeats or not is_known):
            return False
    return any(known) or not any(len(cell.split()) > 5 for cell in first)


def unique_names(cells: list[str]) -> list[str]:
    """Readable column names without spaces around them; an empty one is numbered, a repeated one too."""
    names: dict[str, None] = {}
    for i, cell in enumerate(cells, 1):
        name = unique = mend(str(cell)).strip() or f"column {i}"
        number = i
        while unique in names:
            unique, number = f"{name} ({number})", number + 1
        names[unique] = None
    return list(names)


def delimiter_of(text: str) -> str:
    """The delimiter that cuts the first rows into the same number of cells, more than one, most often."""
    sample = text[:_SAMPLE]
    scores = {mark: _evenness(sample, mark, whole=len(sample) == len(text)) for mark in DELIMITERS}
    best = max(scores, key=scores.get)
    return best if scores[best] > 0 else ","


def _evenness(sample: str, delimiter: str, whole: bool) -> float:
    best = 0.0
    for rows in sample_rows(io.StringIO(sample, newline=""), delimiter, whole=whole):
        widths = [len(cells) for cells in rows if not is_blank(cells)]
        if not whole and len(widths) > 1:
            widths.pop()  # the sample may end within a row
        width, times = Counter(widths).most_common(1)[0] if widths else (1, 0)
        if width > 1 and widths[0] == width:
            best = max(best, times / len(widths))
    return best


def _rows(
    name: str, text: str, delimiter: str, quoting: str, lines_above: int
) -> list[tuple[int, list[str]]]:
    """Rows with their numbers, blank ones too; `lines_above` lines stand above the first."""
    rows: list[tuple[int, list[str]]] = []
    reader = cell_rows(io.StringIO(text, newline=""), delimiter, quoting)
    number, line = lines_above, 0
    try:
        for number, cells in enumerate(reader, lines_above + 1):
            line = reader.line_num
            rows.append((number, cells))
    except csv.Error as error:
        column = _bad_column(text, line, delimiter, quoting)
        raise DataError(f"{name!r}, row {number + 1}, column {column}: {stray_mark(quoting)}") from error
    return rows


def _bad_column(text: str, line: int, delimiter: str, quoting: str) -> int:
    """The column, from 1, of the first cell with an odd quotation mark on the line after `line`."""
    row = next(itertools.islice(io.StringIO(text, newline=""), line, None), "").rstrip("\r\n")
    if quoting == "backslash":
        row = row.replace("\\\\", "").replace('\\"', "")
    cells = row.split(delimiter)
    return next((i for i, cell in enumerate(cells, 1) if cell.count('"') % 2), 1)


def _even(
    name: str, rows: list[tuple[int, list[str]]], names: list[str], delimiter: str
) -> list[tuple[int, list[str]]]:
    """The rows cut to the header's width where only empty cells are over; DataError for any other width."""
    even = []
    for number, cells in rows:
        cells = fitted(cells, len(names))
        if cells is None:
            continue
        if len(cells) != len(names):
            raise DataError(uneven_row(name, number, len(cells), names, delimiter))
        even.append((number, cells))
    return even


def uneven_row(name: str, number: int, cells: int, names: Sequence[str], delimiter: str) -> str:
    """The sentence for a row that has more or fewer cells than the header."""
    width = len(names)
    at = f"column {width + 1}" if cells > width else f"column {names[cells][:60]!r}"
    mark = DELIMITERS.get(delimiter, repr(delimiter))
    return (
        f"{name!r}, row {number}, {at}: the row has {cells} cells where {width} are expected; put a text "
        f"that holds a {mark} in quotation marks, or remove the row."
    )
