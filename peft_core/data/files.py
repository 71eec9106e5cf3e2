"""The bytes of one file as a table of cells, with what was found out about them: encoding, delimiter, header.

A cell is a str exactly as typed, or what JSON, Parquet and Excel hold beside texts: a number, a bool, a list
of these, or None. The index numbers rows as a spreadsheet does (a header is row 1); JSON counts its lines.
"""

import csv
import io
import json
import math
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openpyxl
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from peft_core.data.delimited import has_header, read_delimited, unique_names
from peft_core.data.formats import MOST_BYTES, MOST_CELLS, MOST_ROWS, MOST_UNPACKED, SUFFIXES
from peft_core.errors import DataError

_BATCH = 1000

csv.field_size_limit(MOST_BYTES)  # the module's own limit of 131,072 characters refuses long texts


@dataclass(frozen=True)
class Table:
    """One file's cells; `class_names` holds label names that a Parquet file declares for a column."""

    frame: pd.DataFrame
    facts: dict[str, Any]
    class_names: dict[str, tuple[str, ...]] = field(default_factory=dict)


def read_table(path: Path) -> Table:
    """A file's table, and as JSON types its name, format, bytes, rows, columns and how its text was read.

    Raises DataError, one sentence that names the file and where it can the row and the column.
    """
    kind = path.suffix.lower()
    if kind not in SUFFIXES:
        raise DataError(f"{path.name!r} is no {' '.join(SUFFIXES)} file; save it as one of these.")
    data = _bytes(path)
    if not data.strip():
        raise DataError(f"The file {path.name!r} holds no rows; add some.")
    frame, facts, names = _READERS[kind](path.name, data)
    _check_characters(path.name, frame)
    if len(frame) > MOST_ROWS:
        raise DataError(
            f"{path.name!r} has {len(frame):,} rows; at most {MOST_ROWS:,} are read, so split it."
        )
    shape = {"rows": len(frame), "columns": list(frame.columns)}
    return Table(frame, {"name": path.name, "format": kind[1:], "bytes": len(data), **facts, **shape}, names)


def shown(value: Any, most: int = 40) -> str:
    """A cell or name as an error message quotes it: on one line, and short."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"


_Read = tuple[pd.DataFrame, dict[str, Any], dict[str, tuple[str, ...]]]


def _bytes(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise DataError(
                f"{path.name!r} has {size / 1e6:,.0f} MB; at most {MOST_BYTES / 1e6:,.0f} MB are read, "
                "so leave out rows or columns that are not needed."
            )
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path.name!r} cannot be opened: {error.strerror or error}.") from error


def decode(name: str, data: bytes) -> tuple[str, str]:
    """Text and its encoding's name: a byte order mark, else UTF-16 by its zeros, else UTF-8, else cp1252.

    Raises DataError for what is no text, or in an alphabet that only its writer knows the encoding of.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return _decoded(name, data, encoding), encoding
    zeros = [half.count(0) / max(1, len(half)) for half in (data[0:4000:2], data[1:4000:2])]
    if max(zeros) > 0.4 and min(zeros) < 0.1:
        encoding = "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
        return _decoded(name, data, encoding), encoding
    try:
        text, encoding = data.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        text, encoding = _western(name, data)
    if "\0" in text:
        raise DataError(f"{name!r} is no text file: it holds zero bytes. Save it again as CSV in UTF-8.")
    return text, encoding


_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


def _decoded(name: str, data: bytes, encoding: str) -> str:
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        row = data[: error.start].decode(encoding, "replace").count("\n") + 1
        raise DataError(
            f"{name!r}, row {row}: byte {error.start:,} is no {encoding}; save the file again in UTF-8."
        ) from error
    if "\0" in text:
        raise DataError(f"{name!r} is no text file: it holds zero bytes. Save it again as CSV in UTF-8.")
    return text


def _western(name: str, data: bytes) -> tuple[str, str]:
    """Bytes that are no UTF-8, as Windows or ISO Latin; refused where most letters would be accented."""
    try:
        text, encoding = data.decode("cp1252"), "cp1252"
    except UnicodeDecodeError:
        text, encoding = data.decode("latin-1"), "latin-1"
    letters = [c for c in text[:100_000] if c.isalpha() or not c.isascii()]
    odd = sum(not c.isascii() for c in letters)
    controls = sum(ord(c) < 32 and c not in "\t\n\r\f" for c in text[:100_000])
    if odd > 0.3 * len(letters) + 5 or controls > 0.01 * len(text[:100_000]) + 2:
        raise DataError(f"{name!r} is in no encoding that is known here; save it again in UTF-8.")
    return text, encoding


def _delimited(name: str, data: bytes) -> _Read:
    text, encoding = decode(name, data)
    found = read_delimited(name, text)
    facts = {
        "encoding": encoding,
        "delimiter": found.delimiter,
        "header": found.header,
        "quoting": found.quoting,
    }
    return found.frame, facts, {}


def _json(name: str, data: bytes) -> _Read:
    text, encoding = decode(name, data)
    rows = _json_array(name, text) if text.lstrip()[:1] == "[" else _json_lines(name, text)
    numbers, records = zip(*rows, strict=True) if rows else ((), ())
    for number, record in rows:
        if not isinstance(record, dict):
            raise DataError(
                f"{name!r}, row {number}: {shown(record)} is no object; write each row as "
                '{"text": …, "label": …}.'
            )
    columns = list(dict.fromkeys(key for record in records for key in record))
    return _framed(name, numbers, records, columns), {"encoding": encoding}, {}


def _framed(name: str, numbers: Sequence[int], records: Sequence[dict], columns: list[str]) -> pd.DataFrame:
    """Objects as a table; a key that an object lacks is an empty cell."""
    if len(columns) * len(records) > MOST_CELLS:
        raise DataError(f"{name!r} has {len(columns):,} different keys; write the same few in each row.")
    cells = {key: pd.Series([cell(r.get(key)) for r in records], dtype=object) for key in columns}
    frame = pd.DataFrame(cells, columns=columns, dtype=object)
    frame.columns = unique_names(columns)
    frame.index = pd.Index(numbers, dtype=int)
    return frame


def _json_array(name: str, text: str) -> list[tuple[int, Any]]:
    return list(enumerate(_parsed(name, text, None), 1))


def _json_lines(name: str, text: str) -> list[tuple[int, Any]]:
    """A row a line; or one object that spreads over lines and holds the rows, by column or in a list."""
    lines = [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    if len(lines) > 1 and lines[0][1].strip() not in ("{", "["):
        return [(number, _parsed(name, line, number)) for number, line in lines]
    whole = _parsed(name, text, None)
    if isinstance(whole, dict) and whole and all(isinstance(v, list) for v in whole.values()):
        if len(whole) == 1 and all(isinstance(row, dict) for row in next(iter(whole.values()))):
            return list(enumerate(next(iter(whole.values())), 1))
        if len({len(v) for v in whole.values()}) == 1:
            keys, columns = list(whole), whole.values()
            rows = (dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True))
            return list(enumerate(rows, 1))
    return [(1, whole)]


def _parsed(name: str, text: str, number: int | None) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        row = number or getattr(error, "lineno", 1)
        where = f"character {error.colno}: {error.msg}" if hasattr(error, "colno") else _first_line(error)
        raise DataError(
            f"{name!r}, row {row} is no JSON ({where}); mend the row, or write one object a line."
        ) from error


def _parquet(name: str, data: bytes) -> _Read:
    try:
        file = pq.ParquetFile(io.BytesIO(data))
        if file.metadata.num_rows > MOST_ROWS:
            raise DataError(f"{name!r} has {file.metadata.num_rows:,} rows; at most {MOST_ROWS:,} are read.")
        batches = list(_batches(name, file))
    except DataError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, OverflowError, MemoryError) as error:
        raise DataError(
            f"{name!r} is a damaged Parquet file ({_first_line(error)}); write it again."
        ) from error
    columns = list(file.schema_arrow.names)
    cells = [[cell(v) for batch in batches for v in batch[i]] for i in range(len(columns))]
    frame = pd.DataFrame({i: pd.Series(c, dtype=object) for i, c in enumerate(cells)}, dtype=object)
    frame.columns = unique_names(columns)
    frame.index = pd.RangeIndex(1, len(frame) + 1)
    return frame, {}, _class_names(file.schema_arrow.metadata)


def _batches(name: str, file: pq.ParquetFile) -> Iterator[list[list]]:
    """The columns of some rows at a time, so that a small file that unpacks without end is stopped."""
    unpacked = 0
    for batch in file.iter_batches(_BATCH):
        unpacked += batch.nbytes
        if unpacked > MOST_UNPACKED:
            raise DataError(_too_large(name))
        yield [column.to_pylist() for column in batch.columns]


def _class_names(metadata: dict[bytes, bytes] | None) -> dict[str, tuple[str, ...]]:
    """The label names that the datasets library writes into a Parquet file, by column."""
    try:
        features = json.loads((metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        labels = {k: f.get("feature", f) for k, f in features.items() if isinstance(f, dict)}
        return {k: tuple(f["names"]) for k, f in labels.items() if f.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _excel(name: str, data: bytes) -> _Read:
    """The first sheet; formulas are the values that were last computed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # openpyxl's remarks on styles and extensions
            sheet, rows = _sheet(name, data)
    except DataError:
        raise
    except Exception as error:  # openpyxl meets damage with whatever its parsers raise
        raise DataError(
            f"{name!r} is a damaged or locked Excel file ({_first_line(error)}); save it again."
        ) from error
    frame = _sheet_frame(name, rows)
    return frame, {"sheet": sheet, "header": frame.attrs.pop("header")}, {}


def _sheet(name: str, data: bytes) -> tuple[str, list[tuple[int, list]]]:
    """The first sheet's name, and its rows that hold something, each with its number."""
    book = open_book(name, io.BytesIO(data))
    sheet, rows, cells = book.worksheets[0], [], 0
    sheet.reset_dimensions()  # what a file claims of its own size may be wrong
    for number, row in enumerate(sheet.iter_rows(values_only=True), 1):
        cells += len(row)
        if cells > MOST_CELLS:
            raise DataError(
                f"{name!r} has over {MOST_CELLS:,} cells; delete the columns that are not needed."
            )
        values = filled_cells(row)
        if values:
            rows.append((number, values))
    return sheet.title, rows


def filled_cells(row: Sequence[Any]) -> list[Any]:
    """A sheet's row without the empty cells at its end."""
    values = [cell(value) for value in row]
    while values and values[-1] in (None, ""):
        values.pop()
    return values


def open_book(name: str, file: Any) -> openpyxl.Workbook:
    """An Excel file to be read row by row; DataError for one that unpacks to too much."""
    with zipfile.ZipFile(file) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > MOST_UNPACKED:
            raise DataError(_too_large(name))
    return openpyxl.load_workbook(file, read_only=True, data_only=True)


def _sheet_frame(name: str, rows: list[tuple[int, list]]) -> pd.DataFrame:
    if not rows:
        raise DataError(f"The first sheet of {name!r} holds no rows; add some.")
    width = max(len(values) for _, values in rows)
    if width * len(rows) > MOST_CELLS:
        raise DataError(f"{name!r} has over {MOST_CELLS:,} cells; delete the columns that are not needed.")
    padded = [values + [None] * (width - len(values)) for _, values in rows]
    texts = [["" if value is None else str(value) for value in values] for values in padded[:1000]]
    header = has_header(texts)
    names = unique_names(texts[0]) if header else unique_names([""] * width)
    frame = pd.DataFrame(padded[header:], columns=names, dtype=object)
    frame.index = pd.Index([number for number, _ in rows[header:]], dtype=int)
    frame.attrs["header"] = header
    return frame


def cell(value: Any) -> Any:
    """A value of JSON, Parquet or Excel as a cell: what is neither text nor number is written out."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, int):
        return value if abs(value) < 2**63 else str(value)
    if isinstance(value, list | tuple):
        return [cell(one) for one in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value)


def _check_characters(name: str, frame: pd.DataFrame) -> None:
    """Raise DataError for half a character (a lone surrogate), which no file can hold."""
    for column in frame.columns:
        for number, value in frame[column].items():
            if isinstance(value, str) and not value.isascii():
                try:
                    value.encode("utf-8")
                except UnicodeEncodeError as error:
                    raise DataError(
                        f"{name!r}, row {number}, column {shown(column)} holds half a character; "
                        "write the cell again."
                    ) from error


def _too_large(name: str) -> str:
    return f"{name!r} unpacks to over {MOST_UNPACKED / 1e6:,.0f} MB; leave out rows or columns."


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


_READERS: dict[str, Callable[[str, bytes], _Read]] = {
    ".csv": _delimited,
    ".tsv": _delimited,
    ".jsonl": _json,
    ".json": _json,
    ".parquet": _parquet,
    ".xlsx": _excel,
}
