"""JSON objects as rows of cells: exports of annotation tools are known, objects in objects become columns.

A nested object `{"review": {"text": …}}` is the column `review.text`, as pandas' `json_normalize` names it. A
list of objects is neither text nor label: it is left out of the table and named, never written as a text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from peft_core.data.annotation_exports import Annotated, ExportFormat, export_format
from peft_core.data.cells import cell, is_nested, kind_of
from peft_core.data.columns import as_text
from peft_core.errors import DataError

_DEPTH = 5  # objects in objects that become columns


@dataclass(frozen=True)
class RecordReader:
    """How a file's records become rows; `single` are label columns whose lists never hold two labels."""

    file_name: str
    export: ExportFormat | None = None
    single: frozenset[str] = frozenset()

    def cells(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """A record's cells by column."""
        return self.flat(self.annotated(record).cells)[0]

    def annotated(self, record: Mapping[str, Any]) -> Annotated:
        """A record as its tool's format reads it; DataError for one that is not of the format."""
        if self.export is None:
            return Annotated(dict(record))
        try:
            return self.export.read(dict(record))
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise DataError(
                f"{self.file_name!r} is an export of {self.export.name}, but {kind_of(record)} is no record "
                "of one; export it again, or leave the record out."
            ) from error

    def flat(self, record: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Columns of scalars and lists of scalars, and the keys whose values are lists of objects."""
        if not any(isinstance(value, dict | list) for value in record.values()):
            return {key: cell(value) for key, value in record.items()}, []
        cells: dict[str, Any] = {}
        left_out: list[str] = []
        _flatten(record, "", cells, left_out)
        for key in self.single & cells.keys():
            if isinstance(cells[key], list) and len(cells[key]) < 2:
                cells[key] = cells[key][0] if cells[key] else None
        return cells, left_out


@dataclass(frozen=True)
class RecordTable:
    """Rows of cells, and what was seen of the file: its tool, keys left out, rows whose annotators differ."""

    rows: list[dict[str, Any]]
    export: str | None = None
    left_out: tuple[str, ...] = ()
    differ: list[int] = field(default_factory=list)


def reader_of(name: str, records: Sequence[Mapping[str, Any]]) -> RecordReader:
    """The reader for a file that begins with these records."""
    reader = RecordReader(name, export_format(records))
    if reader.export is None:
        return reader
    lists: dict[str, int] = {}
    for record in records:
        annotated = reader.annotated(record)
        for key in annotated.labels:
            value = annotated.cells.get(key)
            lists[key] = max(lists.get(key, 0), len(value) if isinstance(value, list) else 0)
    single = frozenset(key for key, longest in lists.items() if longest < 2)
    return RecordReader(name, reader.export, single)


def read_records(name: str, numbers: Sequence[int], records: Sequence[Any]) -> RecordTable:
    """The rows of some records, numbered for messages.

    Raises DataError for a row that is no object, and for an export that labels passages instead of texts.
    """
    for number, record in zip(numbers, records, strict=True):
        if not isinstance(record, dict):
            raise DataError(not_an_object(name, number, record))
    reader = reader_of(name, records)
    rows, differ, spans, labeled = [], [], set(), False
    left_out: dict[str, None] = {}
    for number, record in zip(numbers, records, strict=True):
        annotated = reader.annotated(record)
        cells, left = reader.flat(annotated.cells)
        rows.append(cells)
        left_out |= dict.fromkeys(left)
        differ += [number] * annotated.differ
        spans |= annotated.spans
        labeled = labeled or bool(annotated.labels)
    if spans and not labeled and reader.export is not None:
        kinds = ", ".join(sorted(spans))
        raise DataError(
            f"{name!r} is an export of {reader.export.name} that marks passages ({kinds}); a classifier "
            "needs a label for each text, so export a project of text classification."
        )
    if left_out:
        rows = [{key: value for key, value in row.items() if key not in left_out} for row in rows]
    export = reader.export.name if reader.export else None
    return RecordTable(rows, export, tuple(left_out), differ)


def not_an_object(name: str, number: int, record: Any) -> str:
    """The sentence for a row of JSON that is no object."""
    found = kind_of(record)
    return f'{name!r}, row {number}: {found} is no object; write each row as {{"text": …, "label": …}}.'


def texts_where_mixed(column: pd.Series) -> pd.Series:
    """A column of texts and numbers as texts: 4000 among texts is "4000"; any other column as it is."""
    kinds = {type(value) for value in column}
    if str not in kinds or not kinds & {int, float, bool}:
        return column
    texts = [as_text(v) if isinstance(v, int | float) else v for v in column]
    return pd.Series(texts, index=column.index, name=column.name, dtype=object)


def _flatten(record: Mapping[str, Any], prefix: str, cells: dict[str, Any], left_out: list[str]) -> None:
    for key, value in record.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and set(value) == {"choices"} and isinstance(value["choices"], list):
            value = value["choices"]
        if isinstance(value, dict) and prefix.count(".") < _DEPTH:
            _flatten(value, f"{name}.", cells, left_out)
        elif isinstance(value, dict) or is_nested(value):
            left_out.append(name)
        elif not prefix or name not in cells:
            cells[name] = cell(value)
