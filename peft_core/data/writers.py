"""Rows written in the format that they were read in, a chunk at a time, with columns added."""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
from openpyxl.cell import WriteOnlyCell

from peft_core.data.columns import as_text
from peft_core.data.streams import ROWS, Chunk, DelimitedRows, ExcelRows, ParquetRows, RowStream

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
        self.columns = [*stream.columns, *_free(stream.columns, tuple(added))]
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
        self.suffix = stream.path.suffix
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
    """An object a line, whether the input was lines or an array."""

    suffix = ".jsonl"

    def __init__(self, path: Path, stream: RowStream, added: Mapping[str, type]) -> None:
        super().__init__(path, stream, added)
        self._file = path.open("w", encoding="utf-8")

    def write(self, rows: Chunk, added: Sequence[Sequence[Any]]) -> None:
        for row, more in zip(rows, added, strict=True):
            record = dict(zip(self.columns, (*row, *more), strict=True))
            self._file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def close(self) -> None:
        self._file.close()


class ParquetWriter(RowWriter):
    """The input's own columns, types and all, read once more beside the rows."""

    suffix = ".parquet"

    def __init__(self, path: Path, stream: ParquetRows, added: Mapping[str, type]) -> None:
        super().__init__(path, stream, added)
        self._source = pq.ParquetFile(stream.path)
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
    """A workbook of one sheet; a text is always text, whatever it begins with."""

    suffix = ".xlsx"

    def __init__(self, path: Path, stream: ExcelRows, added: Mapping[str, type]) -> None:
        super().__init__(path, stream, added)
        self._path, self._book = path, openpyxl.Workbook(write_only=True)
        self._sheet = self._book.create_sheet("predictions")
        self._sheet.append([self._cell(name) for name in self.columns])

    def write(self, rows: Chunk, added: Sequence[Sequence[Any]]) -> None:
        for row, more in zip(rows, added, strict=True):
            self._sheet.append([self._cell(value) for value in (*row, *more)])

    def close(self) -> None:
        self._book.save(self._path)
        self._book.close()

    def _cell(self, value: Any) -> Any:
        if not isinstance(value, str | list):
            return value
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
