"""Delimited text as rows of cells: which delimiter, how it is quoted, and whether there is a header."""

import csv
import io
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from peft_core.data.columns import KNOWN_NAMES
from peft_core.errors import DataError

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
QUOTING = {
    "doubled": {"strict": True},
    "backslash": {"strict": True, "doublequote": False, "escapechar": "\\"},
    "none": {"quoting": csv.QUOTE_NONE},
}
_SAMPLE = 100_000  # characters that decide on the delimiter
_NUMBER = re.compile(r"\s*[-+]?\d+([.,]\d+)?\s*")


@dataclass(frozen=True)
class Delimited:
    """A frame of str cells, its index the row numbers, and in words how the text was read."""

    frame: pd.DataFrame
    delimiter: str
    header: bool
    quoting: str


def read_delimited(name: str, text: str) -> Delimited:
    """The cells of a CSV or TSV text exactly as typed; blank lines are passed over.

    Raises DataError that names the file, the row and the column of the first damaged row.
    """
    delimiter = delimiter_of(text)
    rows, quoting = _quoted(name, text, delimiter)
    if not rows:
        raise DataError(f"The file {name!r} holds no rows; add some.")
    header = has_header([cells for _, cells in rows[:1000]])
    width = len(rows[0][1])
    names = unique_names(rows[0][1] if header else [""] * width)
    kept = _even(name, rows[header:], names, delimiter)
    frame = pd.DataFrame([cells for _, cells in kept], columns=names, dtype=object)
    frame.index = pd.Index([number for number, _ in kept], dtype=int)
    return Delimited(frame, DELIMITERS[delimiter], header, quoting)


def has_header(rows: list[list[str]]) -> bool:
    """Whether the first of these rows names the columns: not if it looks like one more row of data."""
    first, rest = rows[0], rows[1:]
    if any(_NUMBER.fullmatch(cell) for cell in first) or any(len(cell) > 60 for cell in first):
        return False
    if not any(cell.strip() for cell in first[1:] or first):
        return False
    columns = [[row[i] for row in rest if i < len(row)] for i in range(len(first))]
    known = [cell.strip().casefold() in KNOWN_NAMES for cell in first]
    triples = list(zip(first, known, columns, strict=True))
    if any(is_known and cell not in below for cell, is_known, below in triples):
        return True  # labels may well be called what the other columns are
    for cell, is_known, below in triples:
        repeats = len(below) >= 2 * len(set(below))
        if cell and cell in below and (repeats or not is_known):
            return False
    return any(known) or not any(len(cell.split()) > 5 for cell in first)


def unique_names(cells: list[str]) -> list[str]:
    """Column names without spaces around them; an empty one is numbered, a repeated one too."""
    names: list[str] = []
    for i, cell in enumerate(cells, 1):
        name = str(cell).strip() or f"column {i}"
        names.append(name if name not in names else f"{name} ({i})")
    return names


def delimiter_of(text: str) -> str:
    """The delimiter that cuts the first rows into the same number of cells, more than one, most often."""
    sample = text[:_SAMPLE]
    scores = {mark: _evenness(sample, mark, whole=len(sample) == len(text)) for mark in DELIMITERS}
    best = max(scores, key=scores.get)
    return best if scores[best] > 0 else ","


def quoting_of(text: str, delimiter: str, *, whole: bool) -> str:
    """The first way of quoting under which all rows have one width, else the usual one."""
    for quoting in _ways(text):
        try:
            reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, **QUOTING[quoting])
            widths = [len(cells) for cells in _until_cut(reader, whole) if cells]
        except csv.Error:
            continue
        if len(set(widths if whole else widths[:-1])) == 1:
            return quoting
    return "doubled"


def _evenness(sample: str, delimiter: str, whole: bool) -> float:
    best = 0.0
    for quoting in _ways(sample):
        try:
            text = io.StringIO(sample, newline="")
            reader = csv.reader(text, delimiter=delimiter, **QUOTING[quoting])
            widths = [len(cells) for cells in _until_cut(reader, whole) if cells]
        except csv.Error:
            continue
        if not whole and len(widths) > 1:
            widths.pop()  # the sample may end within a row
        width, times = Counter(widths).most_common(1)[0] if widths else (1, 0)
        if width > 1 and widths[0] == width:
            best = max(best, times / len(widths))
    return best


def _until_cut(reader: Iterator[list[str]], whole: bool) -> Iterator[list[str]]:
    """Rows of a sample; an error at its very end is the cut's own."""
    seen = 0
    try:
        for cells in reader:
            seen += 1
            yield cells
    except csv.Error:
        if whole or seen < 10:
            raise


def _quoted(name: str, text: str, delimiter: str) -> tuple[list[tuple[int, list[str]]], str]:
    """Numbered rows by the first way of quoting under which all have one width; else by the usual one."""
    found: dict[str, list | DataError] = {}
    for quoting in _ways(text):
        try:
            found[quoting] = rows = _rows(name, text, delimiter, quoting)
        except DataError as error:
            found[quoting] = error
            continue
        if len({len(cells) for _, cells in rows}) == 1:
            return rows, quoting
    usual = found["doubled"]
    if isinstance(usual, DataError):
        raise usual
    return usual, "doubled"


def _ways(text: str) -> list[str]:
    """The ways of quoting worth a try: the csv module takes a stray mark for quoting by backslash."""
    return [quoting for quoting in QUOTING if quoting != "backslash" or '\\"' in text]


def _rows(name: str, text: str, delimiter: str, quoting: str) -> list[tuple[int, list[str]]]:
    rows: list[tuple[int, list[str]]] = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, **QUOTING[quoting])
    number = line = 0
    try:
        for number, cells in enumerate(reader, 1):
            line = reader.line_num
            if cells:
                rows.append((number, cells))
    except csv.Error as error:
        raise DataError(
            f"{name!r}, row {number + 1}, column {_bad_column(text, line, delimiter)}: "
            "a quotation mark stands within a cell or is never closed; "
            "double the mark inside a text, or close it."
        ) from error
    return rows


def _bad_column(text: str, line: int, delimiter: str) -> int:
    """The column, from 1, of the first cell with an odd quotation mark on the line after `line`."""
    lines = io.StringIO(text, newline="")
    cells = next(itertools.islice(lines, line, None), "").rstrip("\r\n").split(delimiter)
    return next((i for i, cell in enumerate(cells, 1) if cell.count('"') % 2), 1)


def _even(
    name: str, rows: list[tuple[int, list[str]]], names: list[str], delimiter: str
) -> list[tuple[int, list[str]]]:
    """The rows cut to the header's width where only empty cells are over; DataError for any other width."""
    width, even = len(names), []
    for number, cells in rows:
        if len(cells) > width and not any(cells[width:]):
            cells = cells[:width]
        if len(cells) != width:
            at = f"column {width + 1}" if len(cells) > width else f"column {names[len(cells)][:60]!r}"
            raise DataError(
                f"{name!r}, row {number}, {at}: the row has {len(cells)} cells where {width} are expected; "
                f"put a text that holds a {DELIMITERS[delimiter]} in quotation marks, or remove the row."
            )
        even.append((number, cells))
    return even
