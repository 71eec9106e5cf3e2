"""A file's rows a few thousand at a time, as often as asked, without ever holding all of them."""

import contextlib
import csv
import io
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from peft_core.data.cells import cell
from peft_core.data.characters import check_cells, check_names
from peft_core.data.decoding import ZERO, decode, detect_encoding, is_damaged, mend
from peft_core.data.delimited import (
    delimiter_of,
    has_header,
    preamble_of,
    uneven_row,
    unique_names,
)
from peft_core.data.formats import MOST_BYTES as MOST_WHOLE
from peft_core.data.formats import ReadOptions, check_width
from peft_core.data.json_rows import RecordReader, not_an_object, reader_of
from peft_core.data.json_shapes import is_lines, parse, raw_rows, shape_of
from peft_core.data.parquet_columns import (
    batch_columns,
    check_decoded,
    check_unpacked,
    describe_parquet_errors,
    flat_columns,
    open_parquet,
)
from peft_core.data.quoting import cell_rows, choose_quoting, fitted, is_blank, stray_mark
from peft_core.data.unpacking import DataFile, describe_read_errors, locate, size_of
from peft_core.data.workbooks import find_table, open_book, table_rows
from peft_core.errors import DataError

ROWS = 4096  # in a chunk
MOST_BYTES = 2_000_000_000  # of a file, which is read in pieces and may be larger than one to train on
_HEAD = 1_000_000  # bytes that tell how a text file is written
_MOST_NAMED = 1000  # numbers of damaged rows that are kept
_DEFAULT = ReadOptions()

Chunk = list[list[Any]]  # rows of cells, as `files.Table` has them


class RowStream(ABC):
    """One file: its `columns`, and its rows in order by `chunks()`, which starts anew with every call.

    Chunks raise DataError, which names the file and the row, for one that cannot be read. Bytes that are no
    text are � or a space in them; `damaged` counts such rows of the latest pass, and `damaged_rows` has the
    numbers of the first.
    """

    def __init__(self, file: DataFile) -> None:
        self.file, self.path, self.columns = file, file.path, list[str]()
        self.damaged, self.damaged_rows = 0, list[int]()

    @abstractmethod
    def chunks(self) -> Iterator[Chunk]:
        """Rows, at most `ROWS` at a time."""

    def facts(self) -> dict[str, Any]:
        """What a person is to know of how the file is read, as JSON types."""
        return {}

    def _row(self, number: int, cells: list[Any]) -> list[Any]:
        """The cells; DataError, which names this row, for half a character in one of them."""
        check_cells(self.path.name, number, self.columns, cells)
        return cells

    def _reset_damage(self) -> None:
        self.damaged, self.damaged_rows = 0, []

    def _note_damage(self, row: int) -> None:
        self.damaged += 1
        if len(self.damaged_rows) < _MOST_NAMED:
            self.damaged_rows.append(row)


def open_rows(path: Path, options: ReadOptions = _DEFAULT) -> RowStream:
    """The stream of a CSV, TSV, JSONL, JSON, Parquet or Excel file, plain or packed.

    Raises DataError, one sentence, for a file that is none of these.
    """
    file, size = locate(path), size_of(path)
    if size > MOST_BYTES:
        raise DataError(f"{path.name!r} has {size / 1e9:,.1f} GB; at most 2 GB are read, so split it.")
    if file.format in (".csv", ".tsv"):
        return DelimitedRows(file, options)
    if file.format == ".parquet":
        return ParquetRows(file, options)
    if file.format == ".xlsx":
        return ExcelRows(file, options)
    return JsonLines(file) if is_lines(_head(file)[0]) else JsonDocument(file)


class DelimitedRows(RowStream):
    """CSV or TSV; `encoding`, `delimiter` (the character) and `header` are found in the first megabyte."""

    def __init__(self, file: DataFile, options: ReadOptions = _DEFAULT) -> None:
        super().__init__(file)
        head, self.encoding, whole = _head(file)
        self._start = preamble_of(file.name, head, options.header_row)
        head = head[self._start.length :]
        self.delimiter = self._start.delimiter or delimiter_of(head)
        if whole or size_of(self.path) <= MOST_WHOLE:
            self._quoting = choose_quoting(self._readable_lines, self.delimiter)
        else:  # no file to train on is as large
            self._quoting = choose_quoting(lambda: io.StringIO(head, newline=""), self.delimiter, whole=False)
        first = list(itertools.islice(self._readable_rows(), 1000))
        if not first:
            raise DataError(f"The file {self.path.name!r} holds no rows; add some.")
        check_width(self.path.name, len(first[0]))
        self.header = options.header_row is not None or has_header(first)
        self.columns = unique_names(first[0] if self.header else [""] * len(first[0]))
        check_names(self.path.name, self.columns)

    def chunks(self) -> Iterator[Chunk]:
        """Rows of str cells. A blank line between rows, or in a one-column file, is a row of empty cells.

        Blank lines at the end of a file of several columns are passed over.
        """
        self._reset_damage()
        text = _opened_text(self.file, self.encoding, newline="")
        with describe_read_errors(self.path.name), text:
            text.read(self._start.length)
            yield from _chunked(self._checked(cell_rows(_lines(text), self.delimiter, self._quoting)))

    def _readable_lines(self) -> Iterator[str]:
        """The lines below the preamble, up to bytes that cannot be decoded; `chunks` names those."""
        text = _opened_text(self.file, self.encoding, newline="")
        with describe_read_errors(self.path.name), text, contextlib.suppress(UnicodeError):
            text.read(self._start.length)
            yield from _lines(text)

    def _readable_rows(self) -> Iterator[list[str]]:
        """The rows that hold something, up to a stray quotation mark; `chunks` names that."""
        with contextlib.suppress(csv.Error):
            reader = cell_rows(self._readable_lines(), self.delimiter, self._quoting)
            yield from (cells for cells in reader if not is_blank(cells))

    def _checked(self, reader: Iterator[list[str]]) -> Iterator[list[str]]:
        number, width, blank = 0, len(self.columns), 0
        awaits_header = self.header
        try:
            for number, cells in enumerate(reader, self._start.lines + 1):
                if awaits_header:
                    awaits_header = is_blank(cells)
                    continue
                fit = fitted(cells, width)
                if fit is None:
                    blank += 1
                    continue
                if len(fit) != width:
                    raise DataError(
                        uneven_row(self.path.name, number, len(fit), self.columns, self.delimiter)
                    )
                yield from ([""] * width for _ in range(blank))
                blank = 0
                yield self._mended(number, fit)
        except csv.Error as error:
            sentence = f"{self.path.name!r}, row {number + 1}: {stray_mark(self._quoting)}"
            raise DataError(sentence) from error
        except UnicodeError as error:
            raise _undecodable(self, number) from error

    def _mended(self, number: int, cells: list[str]) -> list[str]:
        if not any(map(is_damaged, cells)):
            return cells
        self._note_damage(number)
        return [mend(text) for text in cells]


class RecordRows(RowStream):
    """Objects of JSON: `chunks()` has their cells, `raw()` their own characters, in the same order."""

    encoding: str
    _reader: RecordReader
    _keys: list[str]  # of the columns, as the objects have them

    @abstractmethod
    def raw(self) -> Iterator[str]:
        """Each object as it is written, on one line."""

    @abstractmethod
    def _records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Each object, parsed, with the number of its line or its place."""

    def chunks(self) -> Iterator[Chunk]:
        """Rows by the columns of the first `ROWS` objects; a key that comes later is no column."""
        self._reset_damage()
        rows = ((number, self._reader.cells(record)) for number, record in self._records())
        yield from _chunked(self._row(number, [row.get(key) for key in self._keys]) for number, row in rows)

    def _find_columns(self) -> None:
        first = [record for _, record in itertools.islice(self._records(), ROWS)]
        self._reader = reader_of(self.path.name, first)
        left_out: set[str] = set()
        columns: dict[str, None] = {}
        for record in first:
            cells, left = self._reader.flat(self._reader.annotated(record).cells)
            columns |= dict.fromkeys(cells)
            left_out |= set(left)
        self._keys = [name for name in columns if name not in left_out]
        check_width(self.path.name, len(self._keys))
        check_names(self.path.name, self._keys)
        self.columns = unique_names(self._keys)
        if not self.columns:
            raise DataError(f"The file {self.path.name!r} holds no rows; add some.")

    def _object(self, number: int, text: str) -> dict[str, Any]:
        if is_damaged(text):
            self._note_damage(number)
            text = mend(text)
        record = parse(self.path.name, text, number)
        if not isinstance(record, dict):
            raise DataError(not_an_object(self.path.name, number, record))
        return record


class JsonLines(RecordRows):
    """An object a line."""

    def __init__(self, file: DataFile) -> None:
        super().__init__(file)
        _, self.encoding, _ = _head(file)
        self._find_columns()

    def raw(self) -> Iterator[str]:
        return (mend(line) for _, line in self._numbered())

    def _records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        return ((number, self._object(number, line)) for number, line in self._numbered())

    def _numbered(self) -> Iterator[tuple[int, str]]:
        number = 0
        try:
            text = _opened_text(self.file, self.encoding, newline=None)
            with describe_read_errors(self.path.name), text:
                for number, line in enumerate(_lines(text), 1):
                    if line.strip():
                        yield number, line.strip("\n\r\t ")
        except UnicodeError as error:
            raise _undecodable(self, number) from error


class JsonDocument(RecordRows):
    """JSON that is one value: it cannot be read in pieces, so the limits of `files.read_table` hold."""

    def __init__(self, file: DataFile) -> None:
        super().__init__(file)
        decoded = decode(file.name, file.read(MOST_WHOLE))
        self.encoding = decoded.encoding
        if not decoded.text.strip():
            raise DataError(f"The file {file.name!r} holds no rows; add some.")
        shape = shape_of(file.name, parse(file.name, decoded.text))
        self._rows = [row.translate(_ONE_LINE) for row in raw_rows(decoded.text, shape)]
        self._find_columns()

    def raw(self) -> Iterator[str]:
        return (mend(row) for row in self._rows)

    def _records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        return ((number, self._object(number, row)) for number, row in enumerate(self._rows, 1))


class ParquetRows(RowStream):
    """Parquet, read by record batches; `schema` is the file's own, whose objects are columns here."""

    def __init__(self, file: DataFile, options: ReadOptions = _DEFAULT) -> None:
        super().__init__(file)
        self._most_unpacked = options.most_unpacked
        with describe_parquet_errors(self.path.name):
            self._open().close()  # which is beyond no limit then
            with pq.ParquetFile(self._bytes()) as parquet:
                self.schema = parquet.schema_arrow
            self._flat, _ = flat_columns(self.schema)
        self.columns = unique_names(self._flat)
        check_names(self.path.name, self.columns)

    def source(self) -> pq.ParquetFile:
        """The file, opened anew, with the types that it has. A batch is small once `chunks` has given it."""
        return pq.ParquetFile(self._bytes())

    def chunks(self) -> Iterator[Chunk]:
        name = self.path.name
        with describe_parquet_errors(name), self._open() as parquet:
            unpacked = 0
            for batch in parquet.iter_batches(ROWS):
                unpacked += check_decoded(name, batch)
                if self._most_unpacked is not None:
                    check_unpacked(name, unpacked, self._most_unpacked)
                columns = [list(map(cell, values)) for values in batch_columns(name, batch, self._flat)]
                yield [list(row) for row in zip(*columns, strict=True)]

    def _open(self) -> pq.ParquetFile:
        return open_parquet(self.path.name, self._bytes(), whole=False)

    def _bytes(self) -> "io.BytesIO | Path":
        return io.BytesIO(self.file.read(MOST_WHOLE)) if self.file.is_packed else self.path


class ExcelRows(RowStream):
    """A sheet of a workbook, chosen or guessed; formulas are the values that were last computed."""

    def __init__(self, file: DataFile, options: ReadOptions = _DEFAULT) -> None:
        super().__init__(file)
        with open_book(self.path.name, self.source(), options.most_unpacked) as book:
            self.table = find_table(self.path.name, book, options)
        self.header = self.table.header_row is not None
        self.columns = list(self.table.columns)
        check_names(self.path.name, self.columns)

    def source(self) -> Any:
        """What a workbook is opened from."""
        return io.BytesIO(self.file.read(MOST_WHOLE)) if self.file.is_packed else self.path

    def facts(self) -> dict[str, Any]:
        return {
            "sheet": self.table.sheet,
            "sheets": list(self.table.sheets),
            "header_row": self.table.header_row,
        }

    def chunks(self) -> Iterator[Chunk]:
        """Rows of cells; a blank row between two others is a row of empty cells."""
        with open_book(self.path.name, self.source()) as book:
            yield from _chunked(self._with_gaps(table_rows(self.path.name, book, self.table)))

    def _with_gaps(self, rows: Iterator[tuple[int, list[Any]]]) -> Iterator[list[Any]]:
        expected = self.table.first_row
        for number, cells in rows:
            yield from ([None] * len(self.columns) for _ in range(expected, number))
            yield self._row(number, cells)
            expected = number + 1


_ONE_LINE = str.maketrans("\r\n\t", "   ")  # between values alone: inside a text JSON has them escaped


def _head(file: DataFile) -> tuple[str, str, bool]:
    """The first megabyte's text up to a line's end, the whole file's encoding, and whether that is all."""
    with describe_read_errors(file.name), file.open(MOST_BYTES) as stream:
        data = stream.read(_HEAD)
        whole = not stream.read(1)
    encoding = detect_encoding(file.name, _blocks(file))
    if whole:
        return decode(file.name, data).text, encoding, True
    end = data.rfind(b"\n") + 1 or len(data)
    wide = 4 if "32" in encoding else 2 if "16" in encoding else 1
    text = data[: end - end % wide].decode(encoding, "surrogateescape" if wide == 1 else "replace")
    return text.replace("\0", ZERO), encoding, False


def _blocks(file: DataFile) -> Iterator[bytes]:
    with describe_read_errors(file.name), file.open(MOST_BYTES) as stream:
        while block := stream.read(_HEAD):
            yield block


def _opened_text(file: DataFile, encoding: str, newline: str | None) -> io.TextIOWrapper:
    errors = "strict" if encoding.startswith(("utf-16", "utf-32")) else "surrogateescape"
    return io.TextIOWrapper(file.open(MOST_BYTES), encoding, errors, newline)


def _lines(text: io.TextIOWrapper) -> Iterator[str]:
    """Lines in which a zero byte is `ZERO`."""
    return (line.replace("\0", ZERO) if "\0" in line else line for line in text)


def _undecodable(stream: RowStream, row: int) -> DataError:
    encoding = getattr(stream, "encoding", "text")
    return DataError(
        f"{stream.path.name!r}, after row {row}: bytes that are no {encoding}; save the file again in UTF-8."
    )


def _chunked(rows: Iterator[list[Any]]) -> Iterator[Chunk]:
    while chunk := list(itertools.islice(rows, ROWS)):
        yield chunk
