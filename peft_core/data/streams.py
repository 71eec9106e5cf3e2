"""Streaming of a file's rows in chunks of a few thousand, repeatable and in bounded memory."""

import contextlib
import csv
import io
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from peft_core.data.cells import to_cell
from peft_core.data.characters import check_cells, check_names
from peft_core.data.decoding import ZERO_BYTE_MARKER, decode, detect_encoding, is_damaged, repair_text
from peft_core.data.delimited import (
    detect_delimiter,
    has_header,
    read_preamble,
    uneven_row_message,
    unique_names,
)
from peft_core.data.formats import MAX_FILE_BYTES, ReadOptions, check_width
from peft_core.data.json_rows import RecordReader, describe_non_object, make_record_reader
from peft_core.data.json_shapes import detect_shape, is_json_lines, parse_json, raw_rows
from peft_core.data.parquet_columns import (
    batch_columns,
    check_decoded,
    check_unpacked,
    describe_parquet_errors,
    flat_columns,
    open_parquet,
)
from peft_core.data.quoting import cell_rows, choose_quoting, describe_stray_quote, fit_to_width, is_blank
from peft_core.data.unpacking import DataFile, describe_read_errors, locate, size_of
from peft_core.data.workbooks import find_table, open_book, table_rows
from peft_core.errors import DataError

CHUNK_ROWS = 4096  # in a chunk
MAX_STREAM_BYTES = (
    2_000_000_000  # of a file, which may be larger than one for training since it is read in pieces
)
_HEAD = 1_000_000  # bytes from which the format of a text file is inferred
_MAX_REPORTED_ROWS = 1000  # damaged rows whose numbers are recorded
_DEFAULT_OPTIONS = ReadOptions()

Chunk = list[list[Any]]  # rows of cells, as `files.Table` has them


class RowStream(ABC):
    """The rows of one file, in order; each call of `chunks()` starts from the first row.

    `chunks()` raises DataError, with the file and the row, for a row that cannot be read. Invalid bytes are
    replaced by � or a space.

    Attributes:
        columns: Column names.
        damaged: Number of rows with invalid bytes in the latest pass.
        damaged_rows: Numbers of the first of these rows.
    """

    def __init__(self, file: DataFile) -> None:
        self.file, self.path, self.columns = file, file.path, list[str]()
        self.damaged, self.damaged_rows = 0, list[int]()

    @abstractmethod
    def chunks(self) -> Iterator[Chunk]:
        """Yield the rows, at most `CHUNK_ROWS` at a time."""

    def facts(self) -> dict[str, Any]:
        """Return details of how the file is read that the user should know, as JSON types."""
        return {}

    def _checked_row(self, number: int, cells: list[Any]) -> list[Any]:
        """Return the cells; raise DataError, with the row, for a lone surrogate in one of them."""
        check_cells(self.path.name, number, self.columns, cells)
        return cells

    def _reset_damage(self) -> None:
        self.damaged, self.damaged_rows = 0, []

    def _note_damage(self, row: int) -> None:
        self.damaged += 1
        if len(self.damaged_rows) < _MAX_REPORTED_ROWS:
            self.damaged_rows.append(row)


def open_rows(path: Path, options: ReadOptions = _DEFAULT_OPTIONS) -> RowStream:
    """Open a CSV, TSV, JSONL, JSON, Parquet or Excel file, plain or compressed, as a stream of rows.

    Raises:
        DataError: If the file has another format, is too large or cannot be read.
    """
    file, size = locate(path), size_of(path)
    if size > MAX_STREAM_BYTES:
        raise DataError(f"{path.name!r} has {size / 1e9:,.1f} GB; at most 2 GB are read, so split it.")
    if file.format in (".csv", ".tsv"):
        return DelimitedRows(file, options)
    if file.format == ".parquet":
        return ParquetRows(file, options)
    if file.format == ".xlsx":
        return ExcelRows(file, options)
    return JsonLines(file) if is_json_lines(_head(file)[0]) else JsonDocument(file)


class DelimitedRows(RowStream):
    """Rows of a CSV or TSV file; encoding, delimiter and header are inferred from its first megabyte."""

    def __init__(self, file: DataFile, options: ReadOptions = _DEFAULT_OPTIONS) -> None:
        super().__init__(file)
        head, self.encoding, is_complete = _head(file)
        self._start = read_preamble(file.name, head, options.header_row)
        head = head[self._start.length :]
        self.delimiter = self._start.delimiter or detect_delimiter(head)
        if is_complete or size_of(self.path) <= MAX_FILE_BYTES:
            self._quoting = choose_quoting(self._readable_lines, self.delimiter)
        else:  # larger than any file for training
            self._quoting = choose_quoting(lambda: io.StringIO(head, newline=""), self.delimiter, whole=False)
        first = list(itertools.islice(self._readable_rows(), 1000))
        if not first:
            raise DataError(f"The file {self.path.name!r} has no rows; add some.")
        check_width(self.path.name, len(first[0]))
        self.header = options.header_row is not None or has_header(first)
        self.columns = unique_names(first[0] if self.header else [""] * len(first[0]))
        check_names(self.path.name, self.columns)

    def chunks(self) -> Iterator[Chunk]:
        """Yield rows of str cells.

        A blank line between rows, or in a file of one column, is a row of empty cells. Blank lines at the end
        of a file of several columns are skipped.
        """
        self._reset_damage()
        text = _open_text(self.file, self.encoding, newline="")
        with describe_read_errors(self.path.name), text:
            text.read(self._start.length)
            yield from _chunked(self._data_rows(cell_rows(_lines(text), self.delimiter, self._quoting)))

    def _readable_lines(self) -> Iterator[str]:
        """Yield the lines below the preamble, up to undecodable bytes, which `chunks` reports."""
        text = _open_text(self.file, self.encoding, newline="")
        with describe_read_errors(self.path.name), text, contextlib.suppress(UnicodeError):
            text.read(self._start.length)
            yield from _lines(text)

    def _readable_rows(self) -> Iterator[list[str]]:
        """Yield the rows that are not blank, up to a stray quotation mark, which `chunks` reports."""
        with contextlib.suppress(csv.Error):
            reader = cell_rows(self._readable_lines(), self.delimiter, self._quoting)
            yield from (cells for cells in reader if not is_blank(cells))

    def _data_rows(self, reader: Iterator[list[str]]) -> Iterator[list[str]]:
        number, width, blank = 0, len(self.columns), 0
        expects_header = self.header
        try:
            for number, cells in enumerate(reader, self._start.lines + 1):
                if expects_header:
                    expects_header = is_blank(cells)
                    continue
                fitted = fit_to_width(cells, width)
                if fitted is None:
                    blank += 1
                    continue
                if len(fitted) != width:
                    raise DataError(
                        uneven_row_message(self.path.name, number, len(fitted), self.columns, self.delimiter)
                    )
                yield from ([""] * width for _ in range(blank))
                blank = 0
                yield self._repaired(number, fitted)
        except csv.Error as error:
            sentence = f"{self.path.name!r}, row {number + 1}: {describe_stray_quote(self._quoting)}"
            raise DataError(sentence) from error
        except UnicodeError as error:
            raise _undecodable_error(self, number) from error

    def _repaired(self, number: int, cells: list[str]) -> list[str]:
        if not any(map(is_damaged, cells)):
            return cells
        self._note_damage(number)
        return [repair_text(text) for text in cells]


class RecordRows(RowStream):
    """Rows of JSON objects: `chunks()` yields their cells, `raw()` their source text, in the same order."""

    encoding: str
    _reader: RecordReader
    _keys: list[str]  # of the columns, as in the objects

    @abstractmethod
    def raw(self) -> Iterator[str]:
        """Yield the source text of each object on one line."""

    @abstractmethod
    def _records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the number of the line or row of each object, and the parsed object."""

    def chunks(self) -> Iterator[Chunk]:
        """Yield rows with the columns of the first `CHUNK_ROWS` objects; later keys are ignored."""
        self._reset_damage()
        rows = ((number, self._reader.cells(record)) for number, record in self._records())
        yield from _chunked(
            self._checked_row(number, [row.get(key) for key in self._keys]) for number, row in rows
        )

    def _find_columns(self) -> None:
        first_records = [record for _, record in itertools.islice(self._records(), CHUNK_ROWS)]
        self._reader = make_record_reader(self.path.name, first_records)
        left_out: set[str] = set()
        columns: dict[str, None] = {}
        for record in first_records:
            cells, nested_keys = self._reader.flatten(self._reader.parse_annotations(record).cells)
            columns |= dict.fromkeys(cells)
            left_out |= set(nested_keys)
        self._keys = [name for name in columns if name not in left_out]
        check_width(self.path.name, len(self._keys))
        check_names(self.path.name, self._keys)
        self.columns = unique_names(self._keys)
        if not self.columns:
            raise DataError(f"The file {self.path.name!r} has no rows; add some.")

    def _object(self, number: int, text: str) -> dict[str, Any]:
        if is_damaged(text):
            self._note_damage(number)
            text = repair_text(text)
        record = parse_json(self.path.name, text, number)
        if not isinstance(record, dict):
            raise DataError(describe_non_object(self.path.name, number, record))
        return record


class JsonLines(RecordRows):
    """Rows of a JSON Lines file."""

    def __init__(self, file: DataFile) -> None:
        super().__init__(file)
        _, self.encoding, _ = _head(file)
        self._find_columns()

    def raw(self) -> Iterator[str]:
        return (repair_text(line) for _, line in self._numbered())

    def _records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        return ((number, self._object(number, line)) for number, line in self._numbered())

    def _numbered(self) -> Iterator[tuple[int, str]]:
        number = 0
        try:
            text = _open_text(self.file, self.encoding, newline=None)
            with describe_read_errors(self.path.name), text:
                for number, line in enumerate(_lines(text), 1):
                    if line.strip():
                        yield number, line.strip("\n\r\t ")
        except UnicodeError as error:
            raise _undecodable_error(self, number) from error


class JsonDocument(RecordRows):
    """Rows of a single JSON value, which is read at once, so the limits of `files.read_table` apply."""

    def __init__(self, file: DataFile) -> None:
        super().__init__(file)
        decoded = decode(file.name, file.read(MAX_FILE_BYTES))
        self.encoding = decoded.encoding
        if not decoded.text.strip():
            raise DataError(f"The file {file.name!r} has no rows; add some.")
        shape = detect_shape(file.name, parse_json(file.name, decoded.text))
        self._rows = [row.translate(_ONE_LINE) for row in raw_rows(decoded.text, shape)]
        self._find_columns()

    def raw(self) -> Iterator[str]:
        return (repair_text(row) for row in self._rows)

    def _records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        return ((number, self._object(number, row)) for number, row in enumerate(self._rows, 1))


class ParquetRows(RowStream):
    """Rows of a Parquet file, read by record batches.

    Attributes:
        schema: Arrow schema of the file; its structs are flattened in `columns`.
    """

    def __init__(self, file: DataFile, options: ReadOptions = _DEFAULT_OPTIONS) -> None:
        super().__init__(file)
        self._most_unpacked = options.max_unpacked_bytes
        with describe_parquet_errors(self.path.name):
            self._open().close()  # checks the limits
            with pq.ParquetFile(self._bytes()) as parquet:
                self.schema = parquet.schema_arrow
            self._flat, _ = flat_columns(self.schema)
        self.columns = unique_names(self._flat)
        check_names(self.path.name, self.columns)

    def source(self) -> pq.ParquetFile:
        """Open the file once more, with its own types; `chunks` has checked the size of each batch."""
        return pq.ParquetFile(self._bytes())

    def chunks(self) -> Iterator[Chunk]:
        name = self.path.name
        with describe_parquet_errors(name), self._open() as parquet:
            unpacked = 0
            for batch in parquet.iter_batches(CHUNK_ROWS):
                unpacked += check_decoded(name, batch)
                if self._most_unpacked is not None:
                    check_unpacked(name, unpacked, self._most_unpacked)
                columns = [list(map(to_cell, values)) for values in batch_columns(name, batch, self._flat)]
                yield [list(row) for row in zip(*columns, strict=True)]

    def _open(self) -> pq.ParquetFile:
        return open_parquet(self.path.name, self._bytes(), whole=False)

    def _bytes(self) -> "io.BytesIO | Path":
        return io.BytesIO(self.file.read(MAX_FILE_BYTES)) if self.file.is_packed else self.path


class ExcelRows(RowStream):
    """Rows of a sheet of a workbook, chosen or guessed; formulas give the values that were last computed."""

    def __init__(self, file: DataFile, options: ReadOptions = _DEFAULT_OPTIONS) -> None:
        super().__init__(file)
        with open_book(self.path.name, self.source(), options.max_unpacked_bytes) as book:
            self.table = find_table(self.path.name, book, options)
        self.header = self.table.header_row is not None
        self.columns = list(self.table.columns)
        check_names(self.path.name, self.columns)

    def source(self) -> "io.BytesIO | Path":
        """Return the path of the workbook, or a stream of its unpacked bytes."""
        return io.BytesIO(self.file.read(MAX_FILE_BYTES)) if self.file.is_packed else self.path

    def facts(self) -> dict[str, Any]:
        return {
            "sheet": self.table.sheet,
            "sheets": list(self.table.sheets),
            "header_row": self.table.header_row,
        }

    def chunks(self) -> Iterator[Chunk]:
        """Yield rows of cells; a blank row between two others is a row of empty cells."""
        with open_book(self.path.name, self.source()) as book:
            yield from _chunked(self._with_gaps(table_rows(self.path.name, book, self.table)))

    def _with_gaps(self, rows: Iterator[tuple[int, list[Any]]]) -> Iterator[list[Any]]:
        expected = self.table.first_row
        for number, cells in rows:
            yield from ([None] * len(self.columns) for _ in range(expected, number))
            yield self._checked_row(number, cells)
            expected = number + 1


_ONE_LINE = str.maketrans("\r\n\t", "   ")  # only between values: inside a string JSON escapes them


def _head(file: DataFile) -> tuple[str, str, bool]:
    """Return the text of the first megabyte up to a line end, the encoding, and whether that is all."""
    with describe_read_errors(file.name), file.open(MAX_STREAM_BYTES) as stream:
        data = stream.read(_HEAD)
        is_complete = not stream.read(1)
    encoding = detect_encoding(file.name, _blocks(file))
    if is_complete:
        return decode(file.name, data).text, encoding, True
    end = data.rfind(b"\n") + 1 or len(data)
    unit = 4 if "32" in encoding else 2 if "16" in encoding else 1
    text = data[: end - end % unit].decode(encoding, "surrogateescape" if unit == 1 else "replace")
    return text.replace("\0", ZERO_BYTE_MARKER), encoding, False


def _blocks(file: DataFile) -> Iterator[bytes]:
    with describe_read_errors(file.name), file.open(MAX_STREAM_BYTES) as stream:
        while block := stream.read(_HEAD):
            yield block


def _open_text(file: DataFile, encoding: str, newline: str | None) -> io.TextIOWrapper:
    errors = "strict" if encoding.startswith(("utf-16", "utf-32")) else "surrogateescape"
    return io.TextIOWrapper(file.open(MAX_STREAM_BYTES), encoding, errors, newline)


def _lines(text: io.TextIOWrapper) -> Iterator[str]:
    """Yield lines with each zero byte replaced by `ZERO_BYTE_MARKER`."""
    return (line.replace("\0", ZERO_BYTE_MARKER) if "\0" in line else line for line in text)


def _undecodable_error(stream: RowStream, row: int) -> DataError:
    encoding = getattr(stream, "encoding", "text")
    return DataError(
        f"{stream.path.name!r}, after row {row}: bytes that are not valid {encoding}; "
        "save the file again in UTF-8."
    )


def _chunked(rows: Iterator[list[Any]]) -> Iterator[Chunk]:
    while chunk := list(itertools.islice(rows, CHUNK_ROWS)):
        yield chunk
