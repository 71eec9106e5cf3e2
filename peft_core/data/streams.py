"""A file's rows a few thousand at a time, as often as asked, without ever holding all of them."""

import codecs
import csv
import io
import itertools
import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from peft_core.data.delimited import DELIMITERS, QUOTING, delimiter_of, has_header, quoting_of, unique_names
from peft_core.data.files import cell, decode, filled_cells, open_book, read_table, shown
from peft_core.data.formats import MOST_UNPACKED, SUFFIXES
from peft_core.errors import DataError

ROWS = 4096  # in a chunk
MOST_BYTES = 2_000_000_000  # of a file, which is read in pieces and may be larger than one to train on
_HEAD = 1_000_000  # bytes that tell how a text file is written

Chunk = list[list[Any]]  # rows of cells, as `files.Table` has them


class RowStream(ABC):
    """One file: its `columns`, and its rows in order by `chunks()`, which starts anew with every call.

    Chunks raise DataError, which names the file and the row, for one that cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.columns = path, list[str]()

    @abstractmethod
    def chunks(self) -> Iterator[Chunk]:
        """Rows, at most `ROWS` at a time."""


def open_rows(path: Path) -> RowStream:
    """The stream of a CSV, TSV, JSONL, JSON, Parquet or Excel file; DataError, one sentence, for others."""
    kind = path.suffix.lower()
    if kind not in SUFFIXES:
        raise DataError(f"{path.name!r} is no {' '.join(SUFFIXES)} file; save it as one of these.")
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise DataError(f"{path.name!r} has {size / 1e9:,.1f} GB; at most 2 GB are read, so split it.")
        return _STREAMS[kind](path)
    except OSError as error:
        raise DataError(f"{path.name!r} cannot be opened: {error.strerror or error}.") from error


class DelimitedRows(RowStream):
    """CSV or TSV. `encoding`, `delimiter` (the character) and `header` are found in the first megabyte."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        head, self.encoding, whole = _head(path)
        self.delimiter = delimiter_of(head)
        self._quoting = quoting_of(head, self.delimiter, whole=whole)
        first = list(itertools.islice(self._cut_off(head), 1000))
        if not first:
            raise DataError(f"The file {path.name!r} holds no rows; add some.")
        self.header = has_header(first)
        self.columns = unique_names(first[0] if self.header else [""] * len(first[0]))

    def chunks(self) -> Iterator[Chunk]:
        """As above; blank lines are passed over."""
        with self.path.open(encoding=self.encoding, newline="") as file:
            rows = self._checked(csv.reader(file, delimiter=self.delimiter, **QUOTING[self._quoting]))
            yield from _chunked(itertools.islice(rows, int(self.header), None))

    def _cut_off(self, head: str) -> Iterator[list[str]]:
        """The rows of the head, without an error that its end may bring."""
        reader = csv.reader(io.StringIO(head, newline=""), delimiter=self.delimiter, **QUOTING[self._quoting])
        try:
            yield from (cells for cells in reader if cells)
        except csv.Error:
            return

    def _checked(self, reader: Iterator[list[str]]) -> Iterator[list[str]]:
        number, width = 0, len(self.columns)
        try:
            for number, cells in enumerate(reader, 1):
                if len(cells) > width and not any(cells[width:]):
                    cells = cells[:width]
                if cells and len(cells) != width:
                    raise DataError(
                        f"{self.path.name!r}, row {number}: the row has {len(cells)} cells where {width} are "
                        f"expected; put a text that holds a {DELIMITERS[self.delimiter]} in quotation marks."
                    )
                if cells:
                    yield cells
        except csv.Error as error:
            raise DataError(
                f"{self.path.name!r}, row {number + 1}: a quotation mark stands within a cell or is never "
                "closed; double the mark inside a text, or close it."
            ) from error
        except UnicodeError as error:
            raise DataError(
                f"{self.path.name!r}, after row {number}: bytes that are no {self.encoding}; save the file "
                "again in UTF-8."
            ) from error


class JsonLines(RowStream):
    """An object a line; its columns are the keys of the first `ROWS` objects."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        _, self.encoding, _ = _head(path)
        keys = (key for record in itertools.islice(self._records(), ROWS) for key in record)
        self.columns = list(dict.fromkeys(keys))
        if not self.columns:
            raise DataError(f"The file {path.name!r} holds no rows; add some.")

    def chunks(self) -> Iterator[Chunk]:
        known = set(self.columns)
        rows = ([cell(record.get(key)) for key in self.columns] for record in self._known(known))
        yield from _chunked(rows)

    def _known(self, known: set[str]) -> Iterator[dict[str, Any]]:
        for number, record in enumerate(self._records(), 1):
            late = next((key for key in record if key not in known), None)
            if late is not None:
                raise DataError(
                    f"{self.path.name!r}, object {number} has a key {shown(late)} that none of the first "
                    f"{ROWS:,} has; write the same keys in each row."
                )
            yield record

    def _records(self) -> Iterator[dict[str, Any]]:
        number = 0
        try:
            with self.path.open(encoding=self.encoding, newline="\n") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        yield self._object(number, line)
        except UnicodeError as error:
            raise DataError(
                f"{self.path.name!r}, after row {number}: bytes that are no {self.encoding}; save the file "
                "again in UTF-8."
            ) from error

    def _object(self, number: int, line: str) -> dict[str, Any]:
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{self.path.name!r}, row {number} is no JSON; mend the row, or write one object a line."
            ) from error
        if not isinstance(found, dict):
            raise DataError(
                f"{self.path.name!r}, row {number}: {shown(found)} is no object; write each row as "
                '{"text": …}.'
            )
        return found


class ParquetRows(RowStream):
    """Parquet, read by record batches; `schema` is the file's own."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            with pq.ParquetFile(path) as file:
                self.schema = file.schema_arrow
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._damaged(error) from error
        self.columns = unique_names(list(self.schema.names))

    def chunks(self) -> Iterator[Chunk]:
        try:
            with pq.ParquetFile(self.path) as file:
                for batch in file.iter_batches(ROWS):
                    if batch.nbytes > MOST_UNPACKED:
                        raise DataError(f"{self.path.name!r} unpacks to too much; leave out columns.")
                    columns = [[cell(value) for value in column.to_pylist()] for column in batch.columns]
                    yield [list(row) for row in zip(*columns, strict=True)]
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> DataError:
        first = (str(error).splitlines() or [type(error).__name__])[0][:200]
        return DataError(f"{self.path.name!r} is a damaged Parquet file ({first}); write it again.")


class ExcelRows(RowStream):
    """The first sheet; formulas are the values that were last computed."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        first = list(itertools.islice(self._rows(), 1000))
        if not first:
            raise DataError(f"The first sheet of {path.name!r} holds no rows; add some.")
        texts = [["" if value is None else str(value) for value in row] for row in first]
        width = max(len(row) for row in first)
        self.header = has_header(texts)
        names = texts[0] + [""] * (width - len(texts[0])) if self.header else [""] * width
        self.columns = unique_names(names)

    def chunks(self) -> Iterator[Chunk]:
        width = len(self.columns)
        rows = (row[:width] + [None] * (width - len(row)) for row in self._rows())
        yield from _chunked(itertools.islice(rows, int(self.header), None))

    def _rows(self) -> Iterator[list[Any]]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # openpyxl's remarks on styles and extensions
                book = open_book(self.path.name, self.path)
                sheet = book.worksheets[0]
                sheet.reset_dimensions()  # what a file claims of its own size may be wrong
                yield from filter(None, map(filled_cells, sheet.iter_rows(values_only=True)))
                book.close()
        except DataError:
            raise
        except Exception as error:  # openpyxl meets damage with whatever its parsers raise
            raise DataError(
                f"{self.path.name!r} is a damaged or locked Excel file; save it again."
            ) from error


class WholeTable(RowStream):
    """JSON that is one array: it cannot be read in pieces, so the limits of `files.read_table` hold."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._frame: pd.DataFrame = read_table(path).frame
        self.columns = list(self._frame.columns)

    def chunks(self) -> Iterator[Chunk]:
        yield from _chunked(list(row) for row in self._frame.itertuples(index=False, name=None))


def _json(path: Path) -> RowStream:
    """Lines where the first is an object of its own, else the whole."""
    head, *_ = _head(path)
    first = head.lstrip().split("\n", 1)[0]
    try:
        one_a_line = isinstance(json.loads(first), dict) and "\n" in head.strip()
    except (ValueError, RecursionError):
        one_a_line = path.suffix.lower() == ".jsonl" and first.startswith("{") and first.strip() != "{"
    return JsonLines(path) if one_a_line else WholeTable(path)


def _head(path: Path) -> tuple[str, str, bool]:
    """The text of the first megabyte up to a line's end, the file's encoding, and whether that is all."""
    with path.open("rb") as file:
        data = file.read(_HEAD)
        whole = not file.read(1)
    if not whole and b"\n" in data:
        data = data[: data.rindex(b"\n") + 1]
        if b"\0" in data[:4000]:
            data = data[: len(data) - len(data) % 2]  # a line's end in UTF-16 is two bytes
    text, encoding = decode(path.name, data)
    if encoding == "utf-8" and not _is_utf8(path):
        encoding = "cp1252"
    return text, encoding, whole


def _is_utf8(path: Path) -> bool:
    """Whether the whole file is UTF-8: one far down may not be, though its first megabyte is plain."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with path.open("rb") as file:
            while block := file.read(_HEAD):
                decoder.decode(block)
        decoder.decode(b"", final=True)
        return True
    except UnicodeDecodeError:
        return False


def _chunked(rows: Iterator[list[Any]]) -> Iterator[Chunk]:
    while chunk := list(itertools.islice(rows, ROWS)):
        yield chunk


_STREAMS: dict[str, Any] = {
    ".csv": DelimitedRows,
    ".tsv": DelimitedRows,
    ".jsonl": _json,
    ".json": _json,
    ".parquet": ParquetRows,
    ".xlsx": ExcelRows,
}
