"""The bytes of one file as a table of cells, with what is known of them: encoding, delimiter, sheet, header.

A cell is a str exactly as typed, or what JSON, Parquet and Excel hold beside texts: a number, a bool, a list
of these, or None. The index numbers rows as a spreadsheet does (a header is row 1); JSON counts its lines.
"""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from peft_core.data.cells import cell, shown
from peft_core.data.characters import check_cells, check_names
from peft_core.data.decoding import decode, is_damaged, mend
from peft_core.data.delimited import read_delimited, unique_names
from peft_core.data.formats import MOST_BYTES, MOST_CELLS, MOST_ROWS, MOST_UNPACKED, ReadOptions, check_width
from peft_core.data.json_rows import read_records, texts_where_mixed
from peft_core.data.json_shapes import is_lines, parse, rows_of, shape_of
from peft_core.data.parquet_columns import (
    batch_columns,
    check_decoded,
    check_unpacked,
    describe_parquet_errors,
    flat_columns,
    open_parquet,
)
from peft_core.data.unpacking import locate, size_of
from peft_core.data.workbooks import find_table, open_book, table_rows
from peft_core.errors import DataError

__all__ = ["ReadingNote", "Table", "cell", "read_table", "shown"]
_BATCH = 1000
_MOST_NAMED = 1000  # row numbers that a note keeps
_DEFAULT = ReadOptions()


@dataclass(frozen=True)
class ReadingNote:
    """What a reader had to decide about a file: its kind, how many rows, their numbers, and one sentence."""

    kind: str
    count: int
    rows: tuple[int, ...]
    sentence: str


@dataclass(frozen=True)
class Table:
    """One file's cells; `class_names` holds label names that a Parquet file declares for a column."""

    frame: pd.DataFrame
    facts: dict[str, Any]
    class_names: dict[str, tuple[str, ...]] = field(default_factory=dict)


def read_table(path: Path, options: ReadOptions = _DEFAULT) -> Table:
    """A file's table, and as JSON types its name, format, bytes, rows, columns and how its text was read.

    Raises DataError, one sentence that names the file and where it can the row and the column.
    """
    file = locate(path)
    size, data = size_of(path), file.read(MOST_BYTES)
    if not data.strip():
        raise DataError(f"The file {path.name!r} holds no rows; add some.")
    reading = _READERS[file.format](path.name, data, options)
    frame, notes = _mended(reading)
    _check_characters(path.name, frame)
    if not len(frame) or not len(frame.columns):
        raise DataError(f"The file {path.name!r} holds no rows below its column names; add some.")
    if len(frame) > MOST_ROWS:
        raise DataError(
            f"{path.name!r} has {len(frame):,} rows; at most {MOST_ROWS:,} are read, so split it."
        )
    facts = {"name": path.name, "format": file.format[1:], "bytes": size, **reading.facts}
    facts |= {"rows": len(frame), "columns": list(frame.columns)}
    if file.member is not None:
        facts["member"] = file.member
    return Table(
        frame,
        {**facts, "notes": [{**asdict(note), "rows": list(note.rows)} for note in notes]},
        reading.class_names,
    )


@dataclass(frozen=True)
class _Reading:
    """What a reader of one format gives; `damaged` says that cells hold marks of bad or zero bytes."""

    frame: pd.DataFrame
    facts: dict[str, Any]
    class_names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[ReadingNote, ...] = ()
    damaged: bool = False
    damaged_rows: tuple[int, ...] = ()  # beside those of marked cells


def damage_note(rows: Sequence[int], count: int) -> ReadingNote:
    """The note on rows whose bytes are no text: `count` rows, the first of which are named."""
    named = ", ".join(f"{row:,}" for row in rows[:5]) + (" …" if count > 5 else "")
    sentence = (
        f"{count:,} row{'s hold' if count > 1 else ' holds'} bytes that are no text (row{'s' * (count > 1)} "
        f"{named}): each was read as � or a space, so save the file again in UTF-8 or mend the rows."
    )
    return ReadingNote("damaged_text", count, tuple(rows[:_MOST_NAMED]), sentence)


def _mended(reading: _Reading) -> tuple[pd.DataFrame, tuple[ReadingNote, ...]]:
    """The frame with readable characters for marks of damage, and a note on the rows that had any."""
    if not reading.damaged:
        return reading.frame, reading.notes
    frame, rows = reading.frame, set(reading.damaged_rows)
    mended = {}
    for place, column in enumerate(frame.columns):
        cells = frame[column].tolist()
        marked = [i for i, value in enumerate(cells) if _holds_damage(value)]
        rows |= {int(frame.index[i]) for i in marked}
        for i in marked:
            cells[i] = _mended_cell(cells[i])
        mended[place] = pd.Series(cells, index=frame.index, dtype=object)
    columns = frame.columns
    frame = pd.DataFrame(mended, index=frame.index, dtype=object)
    frame.columns = columns
    return frame, (*reading.notes, damage_note(sorted(rows), len(rows)))


def _holds_damage(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_holds_damage, value))
    return isinstance(value, str) and is_damaged(value)


def _mended_cell(value: Any) -> Any:
    if isinstance(value, list):
        return [_mended_cell(part) for part in value]
    return mend(value) if isinstance(value, str) else value


def _delimited(name: str, data: bytes, options: ReadOptions) -> _Reading:
    decoded = decode(name, data)
    table = read_delimited(name, decoded.text, options.header_row)
    facts = {
        "encoding": decoded.encoding,
        "delimiter": table.delimiter,
        "header": table.header,
        "quoting": table.quoting,
    }
    header = () if table.damaged_header is None else (table.damaged_header,)
    notes = _literal_marks(table.frame) if table.quoting == "none" else ()
    return _Reading(table.frame, facts, notes=notes, damaged=decoded.damaged, damaged_rows=header)


def _literal_marks(frame: pd.DataFrame) -> tuple[ReadingNote, ...]:
    """The note on rows whose cells begin with a quotation mark that is read as text."""
    marked = frame.map(lambda value: value.startswith('"')).any(axis=1)
    rows = [int(number) for number in frame.index[marked]]
    if not rows:
        return ()
    named = ", ".join(f"{row:,}" for row in rows[:5]) + (" …" if len(rows) > 5 else "")
    words = (
        f"Quotation marks are read as text, since they are not in pairs (see row {named}); "
        "if they wrap cells, double each mark inside a cell."
    )
    return (ReadingNote("literal_marks", len(rows), tuple(rows[:_MOST_NAMED]), words),)


def _json(name: str, data: bytes, options: ReadOptions) -> _Reading:
    decoded = decode(name, data)
    facts: dict[str, Any] = {"encoding": decoded.encoding}
    damaged_rows: list[int] = []
    if is_lines(decoded.text):
        numbers, records, damaged_rows = _lines(name, decoded.text)
    else:
        numbers, records = _document(name, decoded.text, facts)
    table = read_records(name, numbers, records)
    if table.export is not None:
        facts["export"] = table.export
    notes = []
    if table.left_out:
        columns = ", ".join(map(shown, table.left_out[:5])) + (" …" if len(table.left_out) > 5 else "")
        words = (
            f"Keys that hold lists of objects are left out, since they are no text and no label: {columns}."
        )
        notes.append(ReadingNote("left_out", len(table.left_out), (), words))
    if table.differ:
        words = (
            f"{len(table.differ):,} texts carry different answers of several annotators; the first is taken."
        )
        notes.append(ReadingNote("annotators", len(table.differ), tuple(table.differ[:_MOST_NAMED]), words))
    columns = list(dict.fromkeys(key for row in table.rows for key in row))
    frame = _framed(name, numbers, table.rows, columns)
    return _Reading(
        frame, facts, notes=tuple(notes), damaged=decoded.damaged, damaged_rows=tuple(damaged_rows)
    )


def _lines(name: str, text: str) -> tuple[list[int], list[Any], list[int]]:
    """Numbers and values of the lines that are not blank, and the numbers of those that hold damage."""
    lines = [(number, line) for number, line in enumerate(io.StringIO(text, newline=None), 1) if line.strip()]
    records = [parse(name, mend(line), number) for number, line in lines]
    return [number for number, _ in lines], records, [number for number, line in lines if is_damaged(line)]


def _document(name: str, text: str, facts: dict[str, Any]) -> tuple[list[int], list[Any]]:
    """The rows inside one JSON value; the keys that lead to them are put into the facts."""
    whole = parse(name, text)
    shape = shape_of(name, whole)
    if shape.path:
        facts["rows_under"] = ".".join(shape.path)
    records = rows_of(whole, shape)
    return list(range(1, len(records) + 1)), records


def _framed(name: str, numbers: Sequence[int], records: Sequence[dict], columns: list[str]) -> pd.DataFrame:
    """Objects as a table; a key that an object lacks is an empty cell."""
    check_width(name, len(columns))
    if len(columns) * len(records) > MOST_CELLS:
        raise DataError(f"{name!r} has {len(columns):,} different keys; write the same few in each row.")
    check_names(name, list(map(mend, columns)))
    series = [pd.Series([r.get(key) for r in records], dtype=object) for key in columns]
    frame = pd.DataFrame(dict(enumerate(map(texts_where_mixed, series))), dtype=object)
    frame.columns = unique_names(columns)
    frame.index = pd.Index(numbers, dtype=int)
    return frame


def _parquet(name: str, data: bytes, options: ReadOptions) -> _Reading:
    with describe_parquet_errors(name):
        file = open_parquet(name, io.BytesIO(data), whole=True, most_bytes=options.most_unpacked)
        if file.metadata.num_rows > MOST_ROWS:
            raise DataError(f"{name!r} has {file.metadata.num_rows:,} rows; at most {MOST_ROWS:,} are read.")
        columns, left_out = flat_columns(file.schema_arrow)
        batches = list(_batches(name, file, columns, options.most_unpacked or MOST_UNPACKED))
    cells = [[cell(v) for batch in batches for v in batch[i]] for i in range(len(columns))]
    frame = pd.DataFrame({i: pd.Series(c, dtype=object) for i, c in enumerate(cells)}, dtype=object)
    frame.columns = unique_names(columns)
    frame.index = pd.RangeIndex(1, len(frame) + 1)
    notes = ()
    if left_out:
        words = f"Columns that hold lists of objects are left out: {', '.join(map(shown, left_out[:5]))}."
        notes = (ReadingNote("left_out", len(left_out), (), words),)
    return _Reading(frame, {}, _class_names(file.schema_arrow.metadata), notes)


def _batches(name: str, file: pq.ParquetFile, columns: list[str], most_bytes: int) -> Iterator[list[list]]:
    """The columns of some rows at a time, so that a small file that unpacks without end is stopped."""
    unpacked = 0
    for batch in file.iter_batches(_BATCH):
        unpacked += check_decoded(name, batch)
        check_unpacked(name, unpacked, most_bytes)
        yield batch_columns(name, batch, columns)


def _class_names(metadata: dict[bytes, bytes] | None) -> dict[str, tuple[str, ...]]:
    """The label names that the datasets library writes into a Parquet file, by column."""
    try:
        features = json.loads((metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        labels = {k: f.get("feature", f) for k, f in features.items() if isinstance(f, dict)}
        return {k: tuple(f["names"]) for k, f in labels.items() if f.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _excel(name: str, data: bytes, options: ReadOptions) -> _Reading:
    """The chosen or guessed sheet; formulas are the values that were last computed."""
    with open_book(name, io.BytesIO(data), options.most_unpacked) as book:
        table = find_table(name, book, options)
        rows = list(table_rows(name, book, table))
    numbers = pd.Index([number for number, _ in rows], dtype=int)
    columns = [[cells[i] for _, cells in rows] for i in range(len(table.columns))]
    series = [texts_where_mixed(pd.Series(cells, index=numbers, dtype=object)) for cells in columns]
    frame = pd.DataFrame(dict(enumerate(series)), index=numbers, dtype=object)
    frame.columns = list(table.columns)
    facts = {
        "sheet": table.sheet,
        "sheets": list(table.sheets),
        "header": table.header_row is not None,
        "header_row": table.header_row,
    }
    return _Reading(frame, facts)


def _check_characters(name: str, frame: pd.DataFrame) -> None:
    """Raise DataError for half a character in a column name or a cell."""
    columns = list(frame.columns)
    check_names(name, columns)
    for number, cells in zip(frame.index, frame.itertuples(index=False, name=None), strict=True):
        check_cells(name, number, columns, cells)


_READERS: dict[str, Callable[[str, bytes, ReadOptions], _Reading]] = {
    ".csv": _delimited,
    ".tsv": _delimited,
    ".jsonl": _json,
    ".json": _json,
    ".parquet": _parquet,
    ".xlsx": _excel,
}
