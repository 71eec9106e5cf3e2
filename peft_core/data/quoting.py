"""Quotation marks in delimited text: how a file uses them, and its rows read that way.

Three ways are known: marks doubled inside a quoted cell (RFC 4180), marks after a backslash (what MySQL and
pandas' `escapechar` write), and marks that are plain text. A wrong choice merges rows or keeps marks in every
cell, so the choice is made over all rows, by the same function for training and for prediction. Only a way
that reads every row is taken; if none does, the file is refused at the first row that cannot be read.
"""

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from peft_core.data.formats import MOST_BYTES

_DIALECTS = {"doubled": {"strict": True}, "none": {"quoting": csv.QUOTE_NONE}}
_QUOTINGS = ("doubled", "backslash", "none")
_WRAPPED = re.compile(r'"(?:[^"\\]|""|\\[\s\S])*+"')
_INSIDE = re.compile(r'(?:[^"\\]++|\\["\\]|\\)*+')  # of a quoted cell, up to its closing mark
_ESCAPED = re.compile(r'\\(["\\])')
_CUT_ROWS = 10  # rows of a sample after which an error is put down to the cut at its end

csv.field_size_limit(MOST_BYTES)  # the module's own limit of 131,072 characters refuses long texts


class CellReader(Protocol):
    """Rows of cells, and the number of lines that were read for them, as `csv.reader` has it."""

    line_num: int

    def __iter__(self) -> Iterator[list[str]]: ...

    def __next__(self) -> list[str]: ...


def cell_rows(lines: Iterable[str], delimiter: str, quoting: str) -> CellReader:
    """The rows of cells in these lines, which keep their line ends; csv.Error for a stray quotation mark."""
    if quoting == "backslash":
        return BackslashReader(lines, delimiter)
    return csv.reader(lines, delimiter=delimiter, **_DIALECTS[quoting])


def choose_quoting(open_lines: Callable[[], Iterable[str]], delimiter: str, *, whole: bool = True) -> str:
    """The first way of quoting that reads every row, else the quoted way that reads the most rows.

    In a TSV two stray marks can enclose the rows between them as if they were one cell. Marks are taken as
    plain text there if each line is a whole row then: texts seldom hold tabs, let alone one in each line.

    Args:
        open_lines: Returns the lines anew with every call.
        whole: False for the lines of a sample, the last row of which may be cut.
    """
    rows: dict[str, int] = {}
    for quoting in _QUOTINGS:
        survey = _survey(open_lines(), delimiter, quoting, whole)
        if survey.is_right:
            if delimiter == "\t" and survey.lines > survey.rows:  # a cell runs over several lines
                literal = _survey(open_lines(), delimiter, "none", whole)
                return "none" if literal.is_right else quoting
            return quoting
        rows[quoting] = survey.rows
    return max(("doubled", "backslash"), key=rows.__getitem__)


def sample_rows(lines: Iterable[str], delimiter: str, *, whole: bool) -> Iterator[list[list[str]]]:
    """The rows of a sample in each way of quoting that reads it without a stray mark."""
    lines = list(lines)
    for quoting in _QUOTINGS:
        reader = cell_rows(lines, delimiter, quoting)
        try:
            rows = list(_until_cut(reader, whole))
        except csv.Error:
            continue
        if _has_its_marks(reader):
            yield rows


def stray_mark(quoting: str) -> str:
    """What is wrong with a row that cannot be read in a way of quoting, and what to do."""
    if quoting == "backslash":
        return 'its cells end in unclear places; write \\" for a mark inside a text and \\\\ for a backslash.'
    return (
        "a quotation mark stands within a cell or is never closed; "
        "double the mark inside a text, or close it."
    )


def is_blank(cells: Sequence[str]) -> bool:
    """Whether a row is a line that holds no delimiter and nothing but spaces."""
    return not cells or (len(cells) == 1 and not cells[0].strip())


def fitted(cells: list[str], width: int) -> list[str] | None:
    """A row without the empty cells beyond `width`; None for a blank line, unless one column is all."""
    if is_blank(cells):
        return (cells or [""]) if width == 1 else None
    return cells[:width] if len(cells) > width and not any(cells[width:]) else cells


class BackslashReader:
    """Rows in which a backslash before a quotation mark, or before a backslash, makes it plain text.

    Unlike `csv.reader` with an `escapechar` it refuses text after a closing mark, which is how a cell that
    ends in a single backslash runs on into the next row, and keeps a backslash before any other character.
    In a cell without marks a backslash also makes a delimiter plain text, as `csv.QUOTE_NONE` writes it.
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
        """The cell at `start`, and the line and the place where it ends."""
        if not line.startswith('"', start):
            match = self._bare.match(line, start)
            return self._text(match.group(), self._bare_escaped), line, match.end()
        parts, start = [], start + 1
        while (match := _INSIDE.match(line, start)).end() == len(line):
            parts.append(match.group())
            line, start = next(self._lines, None), 0
            if line is None:
                raise csv.Error("a quotation mark is never closed")
            self.line_num += 1
        parts.append(match.group())
        return self._text("".join(parts), _ESCAPED), line, match.end() + 1

    def _text(self, written: str, escaped: re.Pattern[str]) -> str:
        self.has_escaped_marks = self.has_escaped_marks or '\\"' in written
        return escaped.sub(r"\1", written) if "\\" in written else written

    def _next_line(self) -> str:
        line = next(self._lines)
        self.line_num += 1
        return line


@dataclass(frozen=True)
class _Survey:
    """Whether a way of quoting reads every row, and how many rows it reads before the first that is wrong.

    `lines` are those of these rows; more than rows if a cell holds a line break.
    """

    rows: int
    is_right: bool
    lines: int = 0


class _LiteralMarks:
    """Cells that begin with a quotation mark where marks are read as text.

    If as many of them are wholly wrapped in marks as are not, the marks are quotation and the others are
    mistakes.
    """

    def __init__(self) -> None:
        self._wrapped = self._broken = 0

    @property
    def are_text(self) -> bool:
        return self._wrapped < max(self._broken, 1)

    def add(self, cells: Sequence[str]) -> None:
        for cell in cells:
            if cell.startswith('"'):
                is_wrapped = _WRAPPED.fullmatch(cell) is not None
                self._wrapped += is_wrapped
                self._broken += not is_wrapped


def _survey(lines: Iterable[str], delimiter: str, quoting: str, whole: bool) -> _Survey:
    reader, marks, number, width = cell_rows(lines, delimiter, quoting), _LiteralMarks(), 0, 0
    rows = _until_cut(reader, whole)
    try:
        for number, cells in enumerate(rows if whole else _without_last(rows), 1):
            width = width or (0 if is_blank(cells) else len(cells))
            fit = fitted(cells, width)
            if width and fit is not None and len(fit) != width:
                return _Survey(number - 1, is_right=False)
            if quoting == "none":
                marks.add(cells)
    except csv.Error:
        return _Survey(number, is_right=False)
    if not _has_its_marks(reader):
        return _Survey(0, is_right=False)
    return _Survey(number, is_right=marks.are_text, lines=reader.line_num)


def _has_its_marks(reader: CellReader) -> bool:
    """Whether rows that were read by backslashes have a backslash before a quotation mark at all."""
    return not isinstance(reader, BackslashReader) or reader.has_escaped_marks


def _until_cut(reader: Iterator[list[str]], whole: bool) -> Iterator[list[str]]:
    """Rows of a sample; an error at its very end is the cut's own."""
    count = 0
    try:
        for cells in reader:
            count += 1
            yield cells
    except csv.Error:
        if whole or count < _CUT_ROWS:
            raise


def _without_last(rows: Iterator[list[str]]) -> Iterator[list[str]]:
    """All rows but the last."""
    previous = next(rows, None)
    for cells in rows:
        yield previous
        previous = cells
