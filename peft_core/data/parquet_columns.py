"""Reading of Parquet files within size limits, with pyarrow's errors translated to DataError.

A small file can decode to a huge table: a value that is stored once and repeated a million times, or a run of
empty cells that takes no bytes. So the counts in the metadata are compared with the limits first, and strings
are decoded as Arrow dictionaries, which store a repeated value once. Their size as plain values is then known
before they are expanded.

Arrow supports times that Python does not: years beyond 9999, durations beyond a billion days, time zones that
this machine does not know. The exception depends on the type: OverflowError, ValueError or KeyError. So the
exceptions are listed here once, for training and for prediction.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from peft_core.data.cells import first_error_line, short_repr
from peft_core.data.formats import MAX_CELLS, MAX_ROW_GROUP_VALUES, MAX_UNPACKED_BYTES, check_width
from peft_core.data.unpacking import read_error
from peft_core.errors import DataError

_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
_ERRORS = (pa.ArrowException, OSError, ValueError, KeyError, OverflowError, MemoryError)


@contextlib.contextmanager
def describe_parquet_errors(name: str) -> Iterator[None]:
    """Translate pyarrow's exceptions for damaged or unreadable files to DataError."""
    try:
        yield
    except DataError:
        raise
    except _ERRORS as error:
        damage = f"{name!r} is a damaged Parquet file ({first_error_line(error)}); write it again."
        raise read_error(name, error) or DataError(damage) from error


def open_parquet(
    name: str, source: "BinaryIO | Path", *, whole: bool, max_bytes: int | None = None
) -> pq.ParquetFile:
    """Open a Parquet file whose repeated texts are read as dictionaries.

    Args:
        name: File name for error messages.
        source: Path or stream of the file.
        whole: Whether the file is read at once rather than in batches.
        max_bytes: Limit of the unpacked size of a file that is read at once; None for MAX_UNPACKED_BYTES.

    Raises:
        DataError: If the file exceeds a limit.
    """
    with pq.ParquetFile(source) as file:
        metadata = file.metadata
    groups = [
        [metadata.row_group(group).column(column) for column in range(metadata.num_columns)]
        for group in range(metadata.num_row_groups)
    ]
    check_width(name, metadata.num_columns)
    _check_values(name, max((_count_values(group) for group in groups), default=0), MAX_ROW_GROUP_VALUES)
    chunks = [chunk for group in groups for chunk in group]
    if whole:
        _check_values(name, max(metadata.num_rows * metadata.num_columns, _count_values(chunks)), MAX_CELLS)
        size = sum(chunk.total_uncompressed_size for chunk in chunks)
        check_unpacked(name, size, max_bytes or MAX_UNPACKED_BYTES)
    if not isinstance(source, Path):
        source.seek(0)
    dictionary_columns = {chunk.path_in_schema for chunk in chunks if _is_dictionary_text(chunk)}
    return pq.ParquetFile(source, read_dictionary=sorted(dictionary_columns))


def check_decoded(name: str, batch: pa.RecordBatch) -> int:
    """Return the bytes of a batch with repeated values expanded; raise DataError if there are too many."""
    decoded = sum(_decoded_bytes(column) for column in batch.columns)
    check_unpacked(name, decoded, MAX_UNPACKED_BYTES)
    return decoded


def check_unpacked(name: str, size: int, max_bytes: int) -> None:
    """Raise DataError if a file unpacks to more than `max_bytes`."""
    if size > max_bytes:
        raise DataError(f"{name!r} unpacks to over {max_bytes / 1e6:,.0f} MB; leave out rows or columns.")


def flat_columns(schema: pa.Schema) -> tuple[list[str], list[str]]:
    """Return the columns of a schema with its structs flattened, and those left out: lists of objects."""
    flat = flat_table(schema.empty_table())
    left_out = [field.name for field in flat.schema if _is_nested(field.type)]
    return [name for name in flat.column_names if name not in left_out], left_out


def flat_table(table: pa.Table) -> pa.Table:
    """Flatten Arrow structs to columns named `struct.field`."""
    while any(pa.types.is_struct(field.type) for field in table.schema):
        table = table.flatten()
    return table


def batch_columns(name: str, batch: pa.RecordBatch, columns: Sequence[str]) -> list[list[Any]]:
    """Return the values of a batch by flat column; raise DataError for a time that Python cannot hold."""
    table, selected = flat_table(pa.Table.from_batches([batch])), set(columns)
    positions = [i for i, column in enumerate(table.column_names) if column in selected]
    return [_to_pylist(name, table.column_names[i], table.column(i)) for i in positions]


def _is_dictionary_text(chunk: pq.ColumnChunkMetaData) -> bool:
    return chunk.physical_type == "BYTE_ARRAY" and any("DICTIONARY" in code for code in chunk.encodings)


def _decoded_bytes(array: pa.Array) -> int:
    """Return the size of an array in bytes with its dictionaries expanded."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        # pyarrow.compute creates these functions when it is imported
        lengths = pc.binary_length(  # pyright: ignore[reportAttributeAccessIssue]
            array.dictionary.cast(pa.large_binary())
        )
        total = pc.sum(lengths.take(array.indices))  # pyright: ignore[reportAttributeAccessIssue]
        return array.nbytes + (total.as_py() or 0)
    if pa.types.is_struct(kind):
        return array.nbytes + sum(_decoded_bytes(array.field(i)) for i in range(kind.num_fields))
    if any(check(kind) for check in _LISTS):
        return array.nbytes + _decoded_bytes(array.flatten())
    return array.nbytes


def _count_values(chunks: Sequence[pq.ColumnChunkMetaData]) -> int:
    return sum(chunk.num_values for chunk in chunks)


def _check_values(name: str, values: int, max_values: int) -> None:
    if values > max_values:
        raise DataError(
            f"{name!r} has {values:,} values; at most {max_values:,} are read, so leave out columns, "
            "such as lists."
        )


def _to_pylist(name: str, column: str, values: pa.ChunkedArray) -> list[Any]:
    try:
        return values.to_pylist()
    except _ERRORS as error:
        if not _holds_times(values.type):
            raise
        raise DataError(
            f"{name!r}, column {short_repr(column)} holds a time that cannot be read "
            f"({first_error_line(error)}); write the column as text, or leave it out."
        ) from error


def _holds_times(kind: pa.DataType) -> bool:
    """Return whether a type is a date, time or duration, or a list or dictionary of these."""
    inner = getattr(kind, "value_type", None)
    return pa.types.is_temporal(kind) or (inner is not None and _holds_times(inner))


def _is_nested(kind: pa.DataType) -> bool:
    """Return whether a type is a struct, map or union, or a list of nested values."""
    if any(check(kind) for check in _LISTS):
        return pa.types.is_nested(kind.value_type)
    return pa.types.is_nested(kind)
