"""Writers that copy a file in its own format, chunk by chunk, with added columns.

The input is not converted to cells: JSON objects keep their source text, Parquet columns their Arrow arrays,
and cells of a sheet their values and number formats. Cells of CSV are texts anyway.
"""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
from openpyxl.cell import WriteOnlyCell

from peft_core.data.cells import as_text
from peft_core.data.delimited import unique_names
from peft_core.data.streams import (
    CHUNK_ROWS,
    Chunk,
    DelimitedRows,
    ExcelRows,
    ParquetRows,
    RecordRows,
    RowStream,
)
from peft_core.data.workbooks import open_book, written_rows
from peft_core.errors import DataError

_FORMULA_PREFIXES = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # of formulas
_NUMBER = re.compile(r"[-+]?(\d[\d ., ]*|[.,]\d+)([eE][-+]?\d+)?%?")
_MAX_CELL_CHARACTERS = 32_767  # Excel limit of a cell
_ARROW = {str: pa.string(), float: pa.float64(), bool: pa.bool_()}
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")  # not allowed in a spreadsheet


class RowWriter:
    """Writes the rows of a stream with added columns; a missing value is None.

    Args:
        path: File to create.
        stream: The rows to copy.
        added: Type (str, float or bool) of each added column by name.

    Attributes:
        added: Names of the added columns, numbered where the stream has a column of that name.
        neutralized: Number of cells that a spreadsheet would have run as formulas.
    """

    suffix = ""

    def __init__(self, path: Path, stream: RowStream, added: Mapping[str, type]) -> None:
        self.added = _unique_names(stream.columns, tuple(added))
        self.columns = [*stream.columns, *self.added]
        self.types = tuple(added.values())
        self.neutralized = 0

    def write(self, rows: Chunk, added: Sequence[Sequence[Any]]) -> None:
        """Write one chunk of the stream with, row by row, the cells of the added columns."""
        raise NotImplementedError

    def close(self) -> None:
        """Finish the file."""
        raise NotImplementedError


def writer_for(stream: RowStream) -> type[RowWriter]:
    """Return the writer class for the stream's own format."""
    writers: dict[type[RowStream], type[RowWriter]] = {
        DelimitedRows: DelimitedWriter,
        ExcelRows: ExcelWriter,
        ParquetRows: ParquetWriter,
    }
    return writers.get(type(stream), JsonLinesWriter)


def escape_formula(text: str) -> str:
    """Prefix a text that a spreadsheet would read as a formula with an apostrophe; numbers are unchanged."""
    return f"'{text}" if text.startswith(_FORMULA_PREFIXES) and not _NUMBER.fullmatch(text) else text


class DelimitedWriter(RowWriter):
    """Writer of CSV or TSV with the delimiter of the input; UTF-8, with a BOM unless the input was UTF-8."""

    def __init__(self, path: Path, stream: DelimitedRows, added: Mapping[str, type]) -> None:
        super().__init__(path, stream, added)
        self.suffix = stream.file.format
        encoding = "utf-8" if stream.encoding in ("utf-8", "ascii") else "utf-8-sig"
        self._file = path.open("w", encoding=encoding, newline="")
        self._writer = csv.writer(self._file, delimiter=stream.delimiter)
        self._writer.writerow([self._neutralize(name) for name in self.columns])

    def write(self, rows: Chunk, added: Sequence[Sequence[Any]]) -> None:
        for row, added_cells in zip(rows, added, strict=True):
            self._writer.writerow([self._neutralize(value) for value in (*row, *added_cells)])

    def close(self) -> None:
        self._file.close()

    def _neutralize(self, value: Any) -> str:
        text = f"{value:.6g}" if isinstance(value, float) else as_text(value)
        safe = escape_formula(text)
        self.neutralized += safe is not text
        return safe


class JsonLinesWriter(RowWriter):
    """Writer of JSON Lines, whatever the input's shape: the source text of each object and the added keys."""

    suffix = ".jsonl"

    def __init__(self, path: Path, stream: RecordRows, added: Mapping[str, type]) -> None:
        super().__init__(path, stream, added)
        self._name, self._raw, self._row = stream.path.name, stream.raw(), 0
        self._file = path.open("w", encoding="utf-8")

    def write(self, rows: Chunk, added: Sequence[Sequence[Any]]) -> None:
        for _, added_cells in zip(rows, added, strict=True):
            self._row += 1
            members = json.dumps(dict(zip(self.added, added_cells, strict=True)), ensure_ascii=False)[1:-1]
            self._file.write(self._with_members(next(self._raw), members))

    def close(self) -> None:
        self._file.close()

    def _with_members(self, raw: str, members: str) -> str:
        """Return the line of an object with members added before its closing brace."""
        inner = raw.rstrip().removesuffix("}").rstrip()
        repeated: set[str] = set()
        if any(name in raw for name in self.added):
            repeated = json.loads(raw).keys() & set(self.added)
        if repeated:
            raise DataError(
                f"{self._name!r}, object {self._row} has a key {min(repeated)!r}, which the prediction adds "
                f"and none of the first {CHUNK_ROWS:,} objects has; rename it."
            )
        return f"{inner}{'' if inner == '{' else ', '}{members}}}\n"


class ParquetWriter(RowWriter):
    """Writer of Parquet; the input's own columns are read once more, so they keep their types."""

    suffix = ".parquet"

    def __init__(self, path: Path, stream: ParquetRows, added: Mapping[str, type]) -> None:
        super().__init__(path, stream, added)
        own = unique_names(stream.schema.names)
        self.columns = [*own, *_unique_names([*own, *stream.columns], tuple(added))]
        self._source = stream.source()
        self._batches = self._source.iter_batches(CHUNK_ROWS)
        self._path, self._writer = path, None

    def write(self, rows: Chunk, added: Sequence[Sequence[Any]]) -> None:
        batch = next(self._batches)
        columns = zip(zip(*added, strict=True), self.types, strict=True)
        arrays = [pa.array(column, _ARROW[kind]) for column, kind in columns]
        table = pa.Table.from_arrays([*batch.columns, *arrays], names=self.columns)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, table.schema)
        self._writer.write_table(table)

    def close(self) -> None:
        self._source.close()
        if self._writer is not None:
            self._writer.close()


class ExcelWriter(RowWriter):
    """Writer of a workbook with one sheet that holds only the table; a text never becomes a formula."""

    suffix = ".xlsx"

    def __init__(self, path: Path, stream: ExcelRows, added: Mapping[str, type]) -> None:
        super().__init__(path, stream, added)
        self._path, self._book = path, openpyxl.Workbook(write_only=True)
        self._open, self._width = ExitStack(), len(stream.columns)
        source = self._open.enter_context(open_book(stream.path.name, stream.source()))
        self._rows = written_rows(source, stream.table)
        self._sheet = self._book.create_sheet("predictions")
        self._sheet.append([self._cell(name) for name in self.columns])

    def write(self, rows: Chunk, added: Sequence[Sequence[Any]]) -> None:
        for _, added_cells in zip(rows, added, strict=True):
            own = [self._cell(value, style) for value, style in next(self._rows)]
            own += [None] * (self._width - len(own))
            self._sheet.append([*own, *map(self._cell, added_cells)])

    def close(self) -> None:
        self._open.close()
        self._book.save(self._path)
        self._book.close()

    def _cell(self, value: Any, number_format: str = "General") -> Any:
        if not isinstance(value, str | list):
            if number_format == "General" or value is None:
                return value
            cell = WriteOnlyCell(self._sheet, value)
            cell.number_format = number_format
            return cell
        text = _CONTROLS.sub("", as_text(value))[:_MAX_CELL_CHARACTERS]
        cell = WriteOnlyCell(self._sheet, text)
        self.neutralized += cell.data_type != "s"
        cell.data_type = "s"
        return cell


def _unique_names(existing: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the names, numbered where a column of that name exists."""
    unique: list[str] = []
    for name in names:
        number, candidate = 2, name
        while candidate in (*existing, *unique):
            candidate, number = f"{name} ({number})", number + 1
        unique.append(candidate)
    return unique
