"""Detection of the quoting style of delimited text, and reading of its rows.

There are three styles: quotation marks doubled inside a quoted cell (RFC 4180), escaped by a backslash (as
MySQL and pandas' `escapechar` write them), and as plain text. A wrong choice merges rows or keeps marks in
every cell, so all rows decide, by the same function for training and for prediction. Only a style that parses
every row is chosen; if none does, the file is rejected at the first row that cannot be parsed.
"""

import csv
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from peft_core.data.formats import MAX_FILE_BYTES

_DIALECTS = {"doubled": {"strict": True}, "none": {"quoting": csv.QUOTE_NONE}}
_QUOTINGS = ("doubled", "backslash", "none")
_WRAPPED = re.compile(r'"(?:[^"\\]|""|\\[\s\S])*+"')
_INSIDE = re.compile(r'(?:[^"\\]++|\\["\\]|\\)*+')  # of a quoted cell, up to its closing quotation mark
_ESCAPED = re.compile(r'\\(["\\])')
_MIN_SAMPLE_ROWS = 10  # after so many rows an error is attributed to the truncated end of the sample

csv.field_size_limit(MAX_FILE_BYTES)  # the default limit of 131,072 characters rejects long texts


class CellReader(Protocol):
    """An iterator of rows that counts the lines read, with the interface of `csv.reader`."""

    line_num: int

    def __iter__(self) -> Iterator[list[str]]: ...

    def __next__(self) -> list[str]: ...


def cell_rows(lines: Iterable[str], delimiter: str, quoting: str) -> CellReader:
    """Return a reader of lines, which must keep their line ends; it raises csv.Error for a stray quote."""
    if quoting == "backslash":
        return BackslashReader(lines, delimiter)
    return csv.reader(lines, delimiter=delimiter, **_DIALECTS[quoting])


def choose_quoting(open_lines: Callable[[], Iterable[str]], delimiter: str, *, whole: bool = True) -> str:
    """Return the first quoting style that parses every row, else the quoted style that parses the most rows.

    In a TSV two stray marks can enclose the rows between them as if they were one cell. Marks are then read
    as plain text if that makes each line a complete row: texts rarely contain tabs, let alone in each line.

    Args:
        open_lines: Returns a new iterable of the lines with every call.
        whole: False for the lines of a sample, whose last row may be truncated.
    """
    parsed_rows: dict[str, int] = {}
    for quoting in _QUOTINGS:
        survey = _survey(open_lines(), delimiter, quoting, whole)
        if survey.is_valid:
            if delimiter == "\t" and survey.lines > survey.rows:  # a cell runs over several lines
                literal = _survey(open_lines(), delimiter, "none", whole)
                return "none" if literal.is_valid else quoting
            return quoting
        parsed_rows[quoting] = survey.rows
    return max(("doubled", "backslash"), key=parsed_rows.__getitem__)


def sample_rows(lines: Iterable[str], delimiter: str, *, whole: bool) -> Iterator[list[list[str]]]:
    """Yield the rows of a sample in each quoting style that parses it without an error."""
    lines = list(lines)
    for quoting in _QUOTINGS:
        reader = cell_rows(lines, delimiter, quoting)
        try:
            rows = list(_until_truncation(reader, whole))
        except csv.Error:
            continue
        if _has_escaped_marks(reader):
            yield rows


def describe_stray_quote(quoting: str) -> str:
    """Return the error message for a row that cannot be parsed in a quoting style, with advice."""
    if quoting == "backslash":
        return (
            'it is unclear where its cells end; write \\" for a mark inside a text and \\\\ for a backslash.'
        )
    return "a quotation mark is inside a cell or is never closed; double the mark inside a text, or close it."


def is_blank(cells: Sequence[str]) -> bool:
    """Return whether a row is a blank line: no delimiter, and nothing but spaces."""
    return not cells or (len(cells) == 1 and not cells[0].strip())


def fit_to_width(cells: list[str], width: int) -> list[str] | None:
    """Return a row without the empty cells beyond `width`; None for a blank line of several columns."""
    if is_blank(cells):
        return (cells or [""]) if width == 1 else None
    return cells[:width] if len(cells) > width and not any(cells[width:]) else cells


class BackslashReader:
    """Reader of rows in which a backslash escapes a quotation mark or a backslash.

    Unlike `csv.reader` with an `escapechar` it rejects text after a closing mark: that is how a cell that
    ends in a single backslash runs on into the next row. It keeps a backslash before any other character.
    In an unquoted cell a backslash also escapes a delimiter, as `csv.QUOTE_NONE` writes it.
    """

    def __init__(self, lines: Iterable[str], delimiter: str) -> None:
        self._lines, self._delimiter = iter(lines), delimiter
        self.line_num = 0
        self.has_escaped_marks = False
        mark = re.escape(delimiter)
        self._bare = re.compile(rf'(?:[^"\\\r\n{mark}]++|\\["\\{mark}]|\\)*+')
        self._bare_escaped = re.compile(rf'\\(["\\{mark}])')

    def __iter__(self) -> "BackslashReader":
        return self

    def __next__(self) -> list[str]:
        line, start = self._next_line(), 0
        if not line.strip("\r\n"):
            return []
        cells: list[str] = []
        while True:
            cell, line, end = self._cell(line, start)
            cells.append(cell)
            if end == len(line) or line[end] in "\r\n":
                return cells
            if line[end] != self._delimiter:
                raise csv.Error("text after a closing quotation mark")
            start = end + 1

    def _cell(self, line: str, start: int) -> tuple[str, str, int]:
        """Return the cell at `start`, and the line and the position at which it ends."""
        if not line.startswith('"', start):
            match = self._bare.match(line, start)
            assert match is not None  # the pattern matches the empty string
            return self._unescape(match.group(), self._bare_escaped), line, match.end()
        parts, start = [], start + 1
        while True:
            match = _INSIDE.match(line, start)
            assert match is not None  # the pattern matches the empty string
            parts.append(match.group())
            if match.end() < len(line):
                return self._unescape("".join(parts), _ESCAPED), line, match.end() + 1
            next_line = next(self._lines, None)
            if next_line is None:
                raise csv.Error("a quotation mark is never closed")
            line, start = next_line, 0
            self.line_num += 1

    def _unescape(self, raw: str, escaped: re.Pattern[str]) -> str:
        self.has_escaped_marks = self.has_escaped_marks or '\\"' in raw
        return escaped.sub(r"\1", raw) if "\\" in raw else raw

    def _next_line(self) -> str:
        line = next(self._lines)
        self.line_num += 1
        return line


@dataclass(frozen=True)
class _Survey:
    """How far a quoting style parses a file.

    Attributes:
        rows: Number of rows before the first invalid one.
        is_valid: Whether every row is valid.
        lines: Number of lines of these rows; more than `rows` if a cell contains a line break.
    """

    rows: int
    is_valid: bool
    lines: int = 0


class _LiteralMarks:
    """Counter of cells that begin with a quotation mark while marks are read as text.

    If at least as many of them are wrapped in marks as are not, the marks are quotes and the others are
    mistakes.
    """

    def __init__(self) -> None:
        self._wrapped = self._broken = 0

    @property
    def are_text(self) -> bool:
        """Whether the marks are plain text."""
        return self._wrapped < max(self._broken, 1)

    def add(self, cells: Sequence[str]) -> None:
        """Count the cells of a row."""
        for cell in cells:
            if cell.startswith('"'):
                is_wrapped = _WRAPPED.fullmatch(cell) is not None
                self._wrapped += is_wrapped
                self._broken += not is_wrapped


def _survey(lines: Iterable[str], delimiter: str, quoting: str, whole: bool) -> _Survey:
    reader, marks, number, width = cell_rows(lines, delimiter, quoting), _LiteralMarks(), 0, 0
    rows = _until_truncation(reader, whole)
    try:
        for number, cells in enumerate(rows if whole else _without_last(rows), 1):
            width = width or (0 if is_blank(cells) else len(cells))
            fitted = fit_to_width(cells, width)
            if width and fitted is not None and len(fitted) != width:
                return _Survey(number - 1, is_valid=False)
            if quoting == "none":
                marks.add(cells)
    except csv.Error:
        return _Survey(number, is_valid=False)
    if not _has_escaped_marks(reader):
        return _Survey(0, is_valid=False)
    return _Survey(number, is_valid=marks.are_text, lines=reader.line_num)


def _has_escaped_marks(reader: CellReader) -> bool:
    """Return whether a backslash reader has met an escaped quotation mark; true for any other reader."""
    return not isinstance(reader, BackslashReader) or reader.has_escaped_marks


def _until_truncation(reader: Iterator[list[str]], whole: bool) -> Iterator[list[str]]:
    """Yield the rows of a sample; an error at its end is ignored, since the sample is truncated there."""
    count = 0
    try:
        for cells in reader:
            count += 1
            yield cells
    except csv.Error:
        if whole or count < _MIN_SAMPLE_ROWS:
            raise


def _without_last(rows: Iterator[list[str]]) -> Iterator[list[str]]:
    """Yield all rows but the last."""
    for cells, _ in itertools.pairwise(rows):
        yield cells
