"""Columns and values of Parquet files, with every error of pyarrow as one sentence.

A small file can decode to a huge table: a value that is stored once and repeated a million times, or a run of
empty cells that takes no bytes. So the counts of the metadata are compared with the limits first, and strings
are decoded as Arrow's dictionaries, which hold a repeated value once: how large they will be as a table is
known before they are.

Arrow holds times that Python does not: years beyond 9999, durations beyond a billion days, time zones that
this machine does not know. What it raises for them depends on the type: OverflowError, ValueError or
KeyError. So the errors are listed here once, for training and for prediction.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from peft_core.data.cells import first_line, shown
from peft_core.data.formats import MOST_CELLS, MOST_UNPACKED, MOST_VALUES, check_width
from peft_core.data.unpacking import read_error
from peft_core.errors import DataError

_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
_ERRORS = (pa.ArrowException, OSError, ValueError, KeyError, OverflowError, MemoryError)


@contextlib.contextmanager
def describe_parquet_errors(name: str) -> Iterator[None]:
    """Raise DataError for what pyarrow raises for a damaged file, or for one that cannot be read."""
    try:
        yield
    except DataError:
        raise
    except _ERRORS as error:
        damage = f"{name!r} is a damaged Parquet file ({first_line(error)}); write it again."
        raise read_error(name, error) or DataError(damage) from error


def open_parquet(
    name: str, source: "BinaryIO | Path", *, whole: bool, most_bytes: int | None = None
) -> pq.ParquetFile:
    """A Parquet file to be read at once (`whole`) or by batches, repeated texts as dictionaries.

    Raises DataError for a file that is beyond the limits. What is read at once may unpack to `most_bytes`, by
    default MOST_UNPACKED.
    """
    with pq.ParquetFile(source) as file:
        metadata = file.metadata
    groups = [
        [metadata.row_group(group).column(column) for column in range(metadata.num_columns)]
        for group in range(metadata.num_row_groups)
    ]
    check_width(name, metadata.num_columns)
    _check_values(name, max((_values_of(group) for group in groups), default=0), MOST_VALUES)
    chunks = [chunk for group in groups for chunk in group]
    if whole:
        _check_values(name, max(metadata.num_rows * metadata.num_columns, _values_of(chunks)), MOST_CELLS)
        size = sum(chunk.total_uncompressed_size for chunk in chunks)
        check_unpacked(name, size, most_bytes or MOST_UNPACKED)
    if not isinstance(source, Path):
        source.seek(0)
    repeated = {chunk.path_in_schema for chunk in chunks if _is_repeated_text(chunk)}
    return pq.ParquetFile(source, read_dictionary=sorted(repeated))


def check_decoded(name: str, batch: pa.RecordBatch) -> int:
    """The bytes of a batch once every value stands where it is repeated; DataError for too many."""
    decoded = sum(_decoded_bytes(column) for column in batch.columns)
    check_unpacked(name, decoded, MOST_UNPACKED)
    return decoded


def check_unpacked(name: str, size: int, most_bytes: int) -> None:
    """Raise DataError, which names the file, for one that unpacks to over `most_bytes`."""
    if size > most_bytes:
        raise DataError(f"{name!r} unpacks to over {most_bytes / 1e6:,.0f} MB; leave out rows or columns.")


def flat_columns(schema: pa.Schema) -> tuple[list[str], list[str]]:
    """A schema's columns once objects are columns of their own, and those that hold lists of objects."""
    flat = flat_table(schema.empty_table())
    left_out = [field.name for field in flat.schema if _is_nested(field.type)]
    return [name for name in flat.column_names if name not in left_out], left_out


def flat_table(table: pa.Table) -> pa.Table:
    """A table whose objects (Arrow's structs) are columns named `object.key`."""
    while any(pa.types.is_struct(field.type) for field in table.schema):
        table = table.flatten()
    return table


def batch_columns(name: str, batch: pa.RecordBatch, columns: Sequence[str]) -> list[list[Any]]:
    """The values of a batch by flat column; DataError for a time that Python cannot hold."""
    table, wanted = flat_table(pa.Table.from_batches([batch])), set(columns)
    kept = [i for i, column in enumerate(table.column_names) if column in wanted]
    return [_values(name, table.column_names[i], table.column(i)) for i in kept]


def _is_repeated_text(chunk: pq.ColumnChunkMetaData) -> bool:
    return chunk.physical_type == "BYTE_ARRAY" and any("DICTIONARY" in code for code in chunk.encodings)


def _decoded_bytes(array: pa.Array) -> int:
    kind = array.type
    if pa.types.is_dictionary(kind):
        lengths = pc.binary_length(array.dictionary.cast(pa.large_binary()))
        return array.nbytes + (pc.sum(lengths.take(array.indices)).as_py() or 0)
    if pa.types.is_struct(kind):
        return array.nbytes + sum(_decoded_bytes(array.field(i)) for i in range(kind.num_fields))
    if any(check(kind) for check in _LISTS):
        return array.nbytes + _decoded_bytes(array.flatten())
    return array.nbytes


def _values_of(chunks: Sequence[pq.ColumnChunkMetaData]) -> int:
    return sum(chunk.num_values for chunk in chunks)


def _check_values(name: str, values: int, most: int) -> None:
    if values > most:
        raise DataError(
            f"{name!r} has {values:,} values; at most {most:,} are read, so leave out columns, such as lists."
        )


def _values(name: str, column: str, values: pa.ChunkedArray) -> list[Any]:
    try:
        return values.to_pylist()
    except _ERRORS as error:
        if not _holds_times(values.type):
            raise
        raise DataError(
            f"{name!r}, column {shown(column)} holds a time that cannot be read ({first_line(error)}); write "
            "the column as text, or leave it out."
        ) from error


def _holds_times(kind: pa.DataType) -> bool:
    """Whether values are dates, times or durations, or lists or a dictionary of these."""
    inner = getattr(kind, "value_type", None)
    return pa.types.is_temporal(kind) or (inner is not None and _holds_times(inner))


def _is_nested(kind: pa.DataType) -> bool:
    if any(check(kind) for check in _LISTS):
        return pa.types.is_nested(kind.value_type)
    return pa.types.is_nested(kind)
