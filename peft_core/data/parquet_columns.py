"""Columns and values of Parquet files, with every error of pyarrow as one sentence.

Arrow holds times that Python does not: years beyond 9999, durations beyond a billion days, time zones that
this machine does not know. What it raises for them depends on the type: OverflowError, ValueError or
KeyError. So the errors are listed here once, for training and for prediction.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from peft_core.data.cells import first_line, shown
from peft_core.data.unpacking import read_error
from peft_core.errors import DataError

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
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if any(check(kind) for check in lists):
        return pa.types.is_nested(kind.value_type)
    return pa.types.is_nested(kind)
