"""Conversion of JSON objects to rows of cells, with support for exports of annotation tools.

A nested object `{"review": {"text": …}}` becomes the column `review.text`, as in `pandas.json_normalize`. A
list of objects is neither text nor label: it is left out of the table, and its key is reported.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from peft_core.data.annotation_exports import AnnotatedRecord, ExportFormat, detect_export_format
from peft_core.data.cells import as_text, describe_json_value, is_nested, to_cell
from peft_core.errors import DataError

_MAX_DEPTH = 5  # levels of nested objects that become columns


@dataclass(frozen=True)
class RecordReader:
    """Converts the records of one file to rows.

    Attributes:
        export: Format of the annotation tool that wrote the file, or None.
        single_label_columns: Label columns whose lists hold at most one label in every record.
    """

    file_name: str
    export: ExportFormat | None = None
    single_label_columns: frozenset[str] = frozenset()

    def cells(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Return a record's cells by column."""
        return self.flatten(self.parse_annotations(record).cells)[0]

    def parse_annotations(self, record: Mapping[str, Any]) -> AnnotatedRecord:
        """Parse a record in the format of its annotation tool.

        Raises:
            DataError: If the record does not follow the format.
        """
        if self.export is None:
            return AnnotatedRecord(dict(record))
        try:
            return self.export.read(dict(record))
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise DataError(
                f"{self.file_name!r} is an export of {self.export.name}, but {describe_json_value(record)} "
                "is not one of its records; export it again, or leave the record out."
            ) from error

    def flatten(self, record: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Return the cells by column, and the keys left out because they hold lists of objects."""
        if not any(isinstance(value, dict | list) for value in record.values()):
            return {key: to_cell(value) for key, value in record.items()}, []
        cells: dict[str, Any] = {}
        left_out: list[str] = []
        _flatten(record, "", cells, left_out)
        for key in self.single_label_columns & cells.keys():
            if isinstance(cells[key], list) and len(cells[key]) < 2:
                cells[key] = cells[key][0] if cells[key] else None
        return cells, left_out


@dataclass(frozen=True)
class RecordTable:
    """Rows of cells of one file.

    Attributes:
        export: Name of the annotation tool that wrote the file, or None.
        left_out: Keys that hold lists of objects.
        disagreeing_rows: Numbers of the rows whose annotators gave different labels.
    """

    rows: list[dict[str, Any]]
    export: str | None = None
    left_out: tuple[str, ...] = ()
    disagreeing_rows: list[int] = field(default_factory=list)


def make_record_reader(name: str, records: Sequence[Mapping[str, Any]]) -> RecordReader:
    """Return the reader for a file, inferred from its first records."""
    reader = RecordReader(name, detect_export_format(records))
    if reader.export is None:
        return reader
    max_labels: dict[str, int] = {}
    for record in records:
        annotated = reader.parse_annotations(record)
        for key in annotated.labels:
            labels = annotated.cells.get(key)
            max_labels[key] = max(max_labels.get(key, 0), len(labels) if isinstance(labels, list) else 0)
    single = frozenset(key for key, longest in max_labels.items() if longest < 2)
    return RecordReader(name, reader.export, single)


def read_records(name: str, numbers: Sequence[int], records: Sequence[Any]) -> RecordTable:
    """Convert records to a table.

    Args:
        name: File name for error messages.
        numbers: Row number of each record, for error messages.
        records: Parsed JSON values.

    Raises:
        DataError: If a record is not an object, or the file is an export that labels spans instead of texts.
    """
    for number, record in zip(numbers, records, strict=True):
        if not isinstance(record, dict):
            raise DataError(describe_non_object(name, number, record))
    reader = make_record_reader(name, records)
    rows, disagreeing_rows, spans, has_labels = [], [], set(), False
    left_out: dict[str, None] = {}
    for number, record in zip(numbers, records, strict=True):
        annotated = reader.parse_annotations(record)
        cells, nested_keys = reader.flatten(annotated.cells)
        rows.append(cells)
        left_out |= dict.fromkeys(nested_keys)
        disagreeing_rows += [number] * annotated.annotators_disagree
        spans |= annotated.spans
        has_labels = has_labels or bool(annotated.labels)
    if spans and not has_labels and reader.export is not None:
        kinds = ", ".join(sorted(spans))
        raise DataError(
            f"{name!r} is an export of {reader.export.name} that marks passages ({kinds}); a classifier "
            "needs a label for each text, so export a project of text classification."
        )
    if left_out:
        rows = [{key: value for key, value in row.items() if key not in left_out} for row in rows]
    export = reader.export.name if reader.export else None
    return RecordTable(rows, export, tuple(left_out), disagreeing_rows)


def describe_non_object(name: str, number: int, record: Any) -> str:
    """Return the error message for a row of JSON that is not an object."""
    kind = describe_json_value(record)
    return f'{name!r}, row {number}: {kind} is not an object; write each row as {{"text": …, "label": …}}.'


def stringify_mixed_column(column: pd.Series) -> pd.Series:
    """Return a column that mixes texts and numbers as texts only; any other column unchanged.

    A number keeps its usual form: 4000 becomes "4000".
    """
    kinds = {type(value) for value in column}
    if str not in kinds or not kinds & {int, float, bool}:
        return column
    texts = [as_text(v) if isinstance(v, int | float) else v for v in column]
    return pd.Series(texts, index=column.index, name=column.name, dtype=object)


def _flatten(record: Mapping[str, Any], prefix: str, cells: dict[str, Any], left_out: list[str]) -> None:
    """Add the cells of a record to `cells`, and the keys of nested lists to `left_out`."""
    for key, value in record.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and set(value) == {"choices"} and isinstance(value["choices"], list):
            value = value["choices"]
        if isinstance(value, dict) and prefix.count(".") < _MAX_DEPTH:
            _flatten(value, f"{name}.", cells, left_out)
        elif isinstance(value, dict) or is_nested(value):
            left_out.append(name)
        elif not prefix or name not in cells:
            cells[name] = to_cell(value)
