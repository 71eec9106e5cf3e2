"""Rows written in the format that they were read in, a chunk at a time, with columns added.

Nothing of the input goes through the cells that a model reads: CSV cells are texts anyway, JSON objects keep
their own characters, Parquet columns their own arrays, and cells of a sheet their values and formats.
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

from peft_core.data.columns import as_text
from peft_core.data.delimited import unique_names
from peft_core.data.streams import ROWS, Chunk, DelimitedRows, ExcelRows, ParquetRows, RecordRows, RowStream
from peft_core.data.workbooks import open_book, written_rows
from peft_core.errors import DataError

_RUNS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # what spreadsheets take for formulas
_NUMBER = re.compile(r"[-+]?(\d[\d ., ]*|[.,]\d+)([eE][-+]?\d+)?%?")
_SHEET_CELL = 32_767  # characters that a cell of a spreadsheet holds
_ARROW = {str: pa.string(), float: pa.float64(), bool: pa.bool_()}
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")  # what no spreadsheet can hold


class RowWriter:
    """Adds columns (a name and str, float or bool) to a stream's rows; a value that is not known is None.

    `neutralised` counts cells that a spreadsheet would have run.
    """

    suffix = ""

    def __init__(self, path: Path, stream: RowStream, added: Mapping[str, type]) -> None:
        self.added = _free(stream.columns, tuple(added))
        self.columns = [*stream.columns, *self.added]
        self.types = tuple(added.values())
        self.neutralised = 0

    def write(self, rows: Chunk, added: Sequence[Sequence[Any]]) -> None:
        """One chunk of the stream and, row by row, the cells of the added columns."""
        raise NotImplementedError

    def close(self) -> None:
        """Finish the file."""
        raise NotImplementedError


def writer_for(stream: RowStream) -> type[RowWriter]:
    """The writer of the stream's own format."""
    kinds = {DelimitedRows: DelimitedWriter, ExcelRows: ExcelWriter, ParquetRows: ParquetWriter}
    return kinds.get(type(stream), JsonLinesWriter)


def neutral(text: str) -> str:
    """A cell as text that no spreadsheet takes for a formula; numbers stay as they are."""
    return f"'{text}" if text.startswith(_RUNS) and not _NUMBER.fullmatch(text) else text


class DelimitedWriter(RowWriter):
    """CSV or TSV with the delimiter of the input; UTF-8, with a mark where the input was not plain UTF-8."""

    def __init__(self, path: Path, stream: DelimitedRows, added: Mapping[str, type]) -> None:
        super().__init__(path, stream, added)
        self.suffix = stream.file.format
        encoding = "utf-8" if stream.encoding in ("utf-8", "ascii") else "utf-8-sig"
        self._file = path.open("w", encoding=encoding, newline="")
        self._writer = csv.writer(self._file, delimiter=stream.delimiter)
        self._writer.writerow([self._neutral(name) for name in self.columns])

    def write(self, rows: Chunk, added: Sequence[Sequence[Any]]) -> None:
        for row, more in zip(rows, added, strict=True):
            self._writer.writerow([self._neutral(value) for value in (*row, *more)])

    def close(self) -> None:
        self._file.close()

    def _neutral(self, value: Any) -> str:
        text = f"{value:.6g}" if isinstance(value, float) else as_text(value)
        safe = neutral(text)
        self.neutralised += safe is not text
        return safe


class JsonLinesWriter(RowWriter):
    """An object a line, whatever the input's shape: its own characters and the added keys."""

    suffix = ".jsonl"

    def __init__(self, path: Path, stream: RecordRows, added: Mapping[str, type]) -> None:
        super().__init__(path, stream, added)
        self._name, self._raw, self._row = stream.path.name, stream.raw(), 0
        self._file = path.open("w", encoding="utf-8")

    def write(self, rows: Chunk, added: Sequence[Sequence[Any]]) -> None:
        for _, more in zip(rows, added, strict=True):
            self._row += 1
            members = json.dumps(dict(zip(self.added, more, strict=True)), ensure_ascii=False)[1:-1]
            self._file.write(self._with_members(next(self._raw), members))

    def close(self) -> None:
        self._file.close()

    def _with_members(self, raw: str, members: str) -> str:
        """An object's line with members added before its closing brace."""
        inner = raw.rstrip().removesuffix("}").rstrip()
        own = json.loads(raw).keys() & set(self.added) if any(name in raw for name in self.added) else ()
        if own:
            raise DataError(
                f"{self._name!r}, object {self._row} has a key {min(own)!r}, which the prediction adds and "
                f"none of the first {ROWS:,} objects has; rename it."
            )
        return f"{inner}{'' if inner == '{' else ', '}{members}}}\n"


class ParquetWriter(RowWriter):
    """The input's own columns, types and all, read once more beside the rows."""

    suffix = ".parquet"

    def __init__(self, path: Path, stream: ParquetRows, added: Mapping[str, type]) -> None:
        super().__init__(path, stream, added)
        own = unique_names(stream.schema.names)
        self.columns = [*own, *_free([*own, *stream.columns], tuple(added))]
        self._source = stream.source()
        self._batches = self._source.iter_batches(ROWS)
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
    """A workbook of one sheet with the table alone; a text is always text, whatever it begins with."""

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
        for _, more in zip(rows, added, strict=True):
            own = [self._cell(value, style) for value, style in next(self._rows)]
            own += [None] * (self._width - len(own))
            self._sheet.append([*own, *map(self._cell, more)])

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
        text = _CONTROLS.sub("", as_text(value))[:_SHEET_CELL]
        cell = WriteOnlyCell(self._sheet, text)
        self.neutralised += cell.data_type != "s"
        cell.data_type = "s"
        return cell


def _free(taken: Sequence[str], names: Sequence[str]) -> list[str]:
    """The names, numbered where a column has one already."""
    found: list[str] = []
    for name in names:
        number, free = 2, name
        while free in (*taken, *found):
            free, number = f"{name} ({number})", number + 1
        found.append(free)
    return found
