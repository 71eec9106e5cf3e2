"""Read one file as a table of cells, with facts about it: encoding, delimiter, sheet, header.

A cell is a str exactly as typed, or a value of JSON, Parquet or Excel: a number, a bool, a list of these, or
None. The index numbers rows as a spreadsheet does (a header is row 1); in JSON it counts lines.
"""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from peft_core.data.cells import short_repr, to_cell
from peft_core.data.characters import check_cells, check_names
from peft_core.data.decoding import decode, is_damaged, repair_text
from peft_core.data.delimited import read_delimited, unique_names
from peft_core.data.formats import (
    MAX_CELLS,
    MAX_FILE_BYTES,
    MAX_ROWS,
    MAX_UNPACKED_BYTES,
    ReadOptions,
    check_width,
)
from peft_core.data.json_rows import RecordTable, read_records, stringify_mixed_column
from peft_core.data.json_shapes import detect_shape, extract_rows, is_json_lines, parse_json
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

_BATCH_ROWS = 1000  # of a Parquet file that are decoded at a time
_MAX_NOTE_ROWS = 1000  # row numbers that a note stores
_DEFAULT_OPTIONS = ReadOptions()


@dataclass(frozen=True)
class ReadingNote:
    """A decision that a reader made about a file.

    `rows` are the numbers of at most `_MAX_NOTE_ROWS` affected rows; `sentence` describes the decision.
    """

    kind: str
    count: int
    rows: tuple[int, ...]
    sentence: str


@dataclass(frozen=True)
class Table:
    """The cells of one file; `class_names` are the label names that a Parquet file declares, by column."""

    frame: pd.DataFrame
    facts: dict[str, Any]
    class_names: dict[str, tuple[str, ...]] = field(default_factory=dict)


def read_table(path: Path, options: ReadOptions = _DEFAULT_OPTIONS) -> Table:
    """Read a file; `facts` are its name, format, bytes, rows, columns and reader decisions as JSON types.

    Raises:
        DataError: With the file name and, where possible, the row and the column.
    """
    file = locate(path)
    size, data = size_of(path), file.read(MAX_FILE_BYTES)
    if not data.strip():
        raise DataError(f"The file {path.name!r} has no rows; add some.")
    parsed = _PARSERS[file.format](path.name, data, options)
    frame, notes = _repair_cells(parsed)
    _check_characters(path.name, frame)
    if not len(frame) or not len(frame.columns):
        raise DataError(f"The file {path.name!r} has no rows below its column names; add some.")
    if len(frame) > MAX_ROWS:
        raise DataError(f"{path.name!r} has {len(frame):,} rows; at most {MAX_ROWS:,} are read, so split it.")
    facts = {"name": path.name, "format": file.format[1:], "bytes": size, **parsed.facts}
    facts |= {"rows": len(frame), "columns": list(frame.columns)}
    if file.member is not None:
        facts["member"] = file.member
    return Table(
        frame,
        {**facts, "notes": [{**asdict(note), "rows": list(note.rows)} for note in notes]},
        parsed.class_names,
    )


@dataclass(frozen=True)
class _ParsedFile:
    """The result of the parser of one format.

    Attributes:
        damaged: Whether cells may have markers of invalid or zero bytes.
        damaged_rows: Numbers of further rows with such bytes, besides those whose cells have markers.
    """

    frame: pd.DataFrame
    facts: dict[str, Any]
    class_names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[ReadingNote, ...] = ()
    damaged: bool = False
    damaged_rows: tuple[int, ...] = ()


def damage_note(rows: Sequence[int], count: int) -> ReadingNote:
    """Return the note about `count` rows with invalid bytes; `rows` are the numbers of the first of them."""
    sentence = (
        f"{count:,} row{'s contain' if count > 1 else ' contains'} bytes that are not text "
        f"(row{'s' * (count > 1)} {_list_rows(rows, count)}): each was read as � or a space, so save the "
        "file again in UTF-8 or correct the rows."
    )
    return ReadingNote("damaged_text", count, tuple(rows[:_MAX_NOTE_ROWS]), sentence)


def _list_rows(rows: Sequence[int], count: int) -> str:
    return ", ".join(f"{row:,}" for row in rows[:5]) + (" …" if count > 5 else "")


def _repair_cells(parsed: _ParsedFile) -> tuple[pd.DataFrame, tuple[ReadingNote, ...]]:
    """Replace markers of invalid bytes by readable characters, and add a note about their rows."""
    if not parsed.damaged:
        return parsed.frame, parsed.notes
    frame, rows = parsed.frame, set(parsed.damaged_rows)
    columns: dict[int, pd.Series] = {}
    for position, name in enumerate(frame.columns):
        cells = frame[name].tolist()
        damaged = [i for i, cell in enumerate(cells) if _is_damaged_cell(cell)]
        rows |= {int(frame.index[i]) for i in damaged}
        for i in damaged:
            cells[i] = _repair_cell(cells[i])
        columns[position] = pd.Series(cells, index=frame.index, dtype=object)
    repaired = pd.DataFrame(columns, index=frame.index, dtype=object)
    repaired.columns = frame.columns
    return repaired, (*parsed.notes, damage_note(sorted(rows), len(rows)))


def _is_damaged_cell(cell: Any) -> bool:
    if isinstance(cell, list):
        return any(map(_is_damaged_cell, cell))
    return isinstance(cell, str) and is_damaged(cell)


def _repair_cell(cell: Any) -> Any:
    if isinstance(cell, list):
        return [_repair_cell(entry) for entry in cell]
    return repair_text(cell) if isinstance(cell, str) else cell


def _parse_delimited(name: str, data: bytes, options: ReadOptions) -> _ParsedFile:
    decoded = decode(name, data)
    table = read_delimited(name, decoded.text, options.header_row)
    facts = {
        "encoding": decoded.encoding,
        "delimiter": table.delimiter,
        "header": table.header,
        "quoting": table.quoting,
    }
    header = () if table.damaged_header is None else (table.damaged_header,)
    notes = _literal_quote_notes(table.frame) if table.quoting == "none" else ()
    return _ParsedFile(table.frame, facts, notes=notes, damaged=decoded.damaged, damaged_rows=header)


def _literal_quote_notes(frame: pd.DataFrame) -> tuple[ReadingNote, ...]:
    """Return a note about rows with a cell that begins with a quotation mark, which is read as text."""
    begins_with_quote = frame.map(lambda cell: cell.startswith('"')).any(axis=1)
    rows = [int(number) for number in frame.index[begins_with_quote]]
    if not rows:
        return ()
    sentence = (
        "Quotation marks are read as text, since they are not in pairs (see row "
        f"{_list_rows(rows, len(rows))}); if they wrap cells, double each mark inside a cell."
    )
    return (ReadingNote("literal_marks", len(rows), tuple(rows[:_MAX_NOTE_ROWS]), sentence),)


def _parse_json_file(name: str, data: bytes, options: ReadOptions) -> _ParsedFile:
    decoded = decode(name, data)
    facts: dict[str, Any] = {"encoding": decoded.encoding}
    damaged_rows: list[int] = []
    if is_json_lines(decoded.text):
        numbers, records, damaged_rows = _parse_lines(name, decoded.text)
    else:
        numbers, records = _parse_document(name, decoded.text, facts)
    table = read_records(name, numbers, records)
    if table.export is not None:
        facts["export"] = table.export
    columns = list(dict.fromkeys(key for row in table.rows for key in row))
    frame = _build_frame(name, numbers, table.rows, columns)
    return _ParsedFile(
        frame,
        facts,
        notes=_json_notes(table),
        damaged=decoded.damaged,
        damaged_rows=tuple(damaged_rows),
    )


def _json_notes(table: RecordTable) -> tuple[ReadingNote, ...]:
    """Return the notes about keys that were left out and about annotators that disagree."""
    notes: list[ReadingNote] = []
    if table.left_out:
        columns = ", ".join(map(short_repr, table.left_out[:5])) + (" …" if len(table.left_out) > 5 else "")
        sentence = (
            f"Keys that hold lists of objects are left out, since they are neither text nor label: {columns}."
        )
        notes.append(ReadingNote("left_out", len(table.left_out), (), sentence))
    rows = table.disagreeing_rows
    if rows:
        sentence = f"{len(rows):,} texts have different labels from several annotators; the first is used."
        notes.append(ReadingNote("annotators", len(rows), tuple(rows[:_MAX_NOTE_ROWS]), sentence))
    return tuple(notes)


def _parse_lines(name: str, text: str) -> tuple[list[int], list[Any], list[int]]:
    """Return the numbers and values of non-blank lines, and the numbers of lines with invalid bytes."""
    lines = [(number, line) for number, line in enumerate(io.StringIO(text, newline=None), 1) if line.strip()]
    records = [parse_json(name, repair_text(line), number) for number, line in lines]
    return [number for number, _ in lines], records, [number for number, line in lines if is_damaged(line)]


def _parse_document(name: str, text: str, facts: dict[str, Any]) -> tuple[list[int], list[Any]]:
    """Return the rows inside one JSON value; the keys that lead to them are added to the facts."""
    whole = parse_json(name, text)
    shape = detect_shape(name, whole)
    if shape.path:
        facts["rows_under"] = ".".join(shape.path)
    records = extract_rows(whole, shape)
    return list(range(1, len(records) + 1)), records


def _build_frame(
    name: str, numbers: Sequence[int], records: Sequence[dict[str, Any]], columns: list[str]
) -> pd.DataFrame:
    """Return objects as a table; a key that an object lacks becomes an empty cell."""
    check_width(name, len(columns))
    if len(columns) * len(records) > MAX_CELLS:
        raise DataError(f"{name!r} has {len(columns):,} different keys; use the same keys in each row.")
    check_names(name, list(map(repair_text, columns)))
    series = [pd.Series([record.get(key) for record in records], dtype=object) for key in columns]
    frame = pd.DataFrame(dict(enumerate(map(stringify_mixed_column, series))), dtype=object)
    frame.columns = unique_names(columns)
    frame.index = pd.Index(numbers, dtype=int)
    return frame


def _parse_parquet(name: str, data: bytes, options: ReadOptions) -> _ParsedFile:
    with describe_parquet_errors(name):
        file = open_parquet(name, io.BytesIO(data), whole=True, max_bytes=options.max_unpacked_bytes)
        if file.metadata.num_rows > MAX_ROWS:
            raise DataError(f"{name!r} has {file.metadata.num_rows:,} rows; at most {MAX_ROWS:,} are read.")
        columns, left_out = flat_columns(file.schema_arrow)
        batches = list(_batches(name, file, columns, options.max_unpacked_bytes or MAX_UNPACKED_BYTES))
    series = [
        pd.Series([to_cell(value) for batch in batches for value in batch[i]], dtype=object)
        for i in range(len(columns))
    ]
    frame = pd.DataFrame(dict(enumerate(series)), dtype=object)
    frame.columns = unique_names(columns)
    frame.index = pd.RangeIndex(1, len(frame) + 1)
    notes: tuple[ReadingNote, ...] = ()
    if left_out:
        sentence = (
            f"Columns that hold lists of objects are left out: {', '.join(map(short_repr, left_out[:5]))}."
        )
        notes = (ReadingNote("left_out", len(left_out), (), sentence),)
    return _ParsedFile(frame, {}, _class_names(file.schema_arrow.metadata), notes)


def _batches(name: str, file: pq.ParquetFile, columns: list[str], max_bytes: int) -> Iterator[list[list]]:
    """Yield the columns of a batch of rows at a time, so that a decompression bomb is stopped early."""
    unpacked = 0
    for batch in file.iter_batches(_BATCH_ROWS):
        unpacked += check_decoded(name, batch)
        check_unpacked(name, unpacked, max_bytes)
        yield batch_columns(name, batch, columns)


def _class_names(metadata: dict[bytes, bytes] | None) -> dict[str, tuple[str, ...]]:
    """Return the label names that the datasets library writes into a Parquet file, by column."""
    try:
        features = json.loads((metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        inner = {
            column: feature.get("feature", feature)
            for column, feature in features.items()
            if isinstance(feature, dict)
        }
        return {
            column: tuple(feature["names"])
            for column, feature in inner.items()
            if feature.get("_type") == "ClassLabel"
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _parse_workbook(name: str, data: bytes, options: ReadOptions) -> _ParsedFile:
    """Parse the chosen or guessed sheet; a formula is the value that was last computed."""
    with open_book(name, io.BytesIO(data), options.max_unpacked_bytes) as book:
        table = find_table(name, book, options)
        rows = list(table_rows(name, book, table))
    numbers = pd.Index([number for number, _ in rows], dtype=int)
    columns = [[cells[i] for _, cells in rows] for i in range(len(table.columns))]
    series = [stringify_mixed_column(pd.Series(cells, index=numbers, dtype=object)) for cells in columns]
    frame = pd.DataFrame(dict(enumerate(series)), index=numbers, dtype=object)
    frame.columns = list(table.columns)
    facts = {
        "sheet": table.sheet,
        "sheets": list(table.sheets),
        "header": table.header_row is not None,
        "header_row": table.header_row,
    }
    return _ParsedFile(frame, facts)


def _check_characters(name: str, frame: pd.DataFrame) -> None:
    """Raise DataError for a lone surrogate in a column name or a cell, or an overlong column name."""
    columns = list(frame.columns)
    check_names(name, columns)
    for number, cells in zip(frame.index, frame.itertuples(index=False, name=None), strict=True):
        check_cells(name, number, columns, cells)


_PARSERS: dict[str, Callable[[str, bytes, ReadOptions], _ParsedFile]] = {
    ".csv": _parse_delimited,
    ".tsv": _parse_delimited,
    ".jsonl": _parse_json_file,
    ".json": _parse_json_file,
    ".parquet": _parse_parquet,
    ".xlsx": _parse_workbook,
}
