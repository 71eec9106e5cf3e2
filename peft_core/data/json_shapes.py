"""Location of the rows in a JSON text: one per line, in an array, under a key, or by column as in pandas.

The shape is detected once in the parsed text. It then also locates the source text of each row, so that a
file can be rewritten without changing the bytes of its numbers, strings and nested values.
"""

import io
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from peft_core.data.annotation_exports import detect_export_format
from peft_core.data.cells import describe_json_value, first_error_line, short_repr
from peft_core.errors import DataError

_SPACE = re.compile(r"[ \t\r\n]*")
_TEXT_KEYS = ("text", "sentence", "review", "content", "body")  # an object with a text under one is a row
_MAX_DEPTH = 4  # levels of nested objects that are searched for a list of rows
_DECODER = json.JSONDecoder()

Layout = Literal["array", "object", "index", "lists", "columns", "split"]


@dataclass(frozen=True)
class JsonShape:
    """How a JSON text holds its rows.

    Attributes:
        layout: `array` (a list of objects), `object` (one row), `index` (an object of rows by key), `lists`
            (one list per column), `columns` (one object per column) or `split` (column names beside lists of
            values).
        path: Keys that lead to the rows.
    """

    layout: Layout
    path: tuple[str, ...] = ()


def parse_json(name: str, text: str, row: int | None = None) -> Any:
    """Parse a JSON value.

    Args:
        name: File name for error messages.
        row: Row number for error messages; by default the line of the error is given.

    Raises:
        DataError: If the text is not valid JSON.
    """
    try:
        return json.loads(text, parse_float=_finite_or_text)
    except (ValueError, RecursionError) as error:
        line, reason = 1, first_error_line(error)
        if isinstance(error, json.JSONDecodeError):
            line, reason = error.lineno, f"character {error.colno}: {error.msg}"
        raise DataError(
            f"{name!r}, row {row or line} is not valid JSON ({reason}); correct the row, or write one "
            "object per line."
        ) from error


def is_json_lines(text: str) -> bool:
    """Return whether a text is JSON Lines rather than a single JSON value; its first line may be damaged."""
    lines = (line.strip() for line in io.StringIO(text, newline=None))
    first, second = [*itertools.islice(filter(None, lines), 2), "", ""][:2]
    if not second or first.startswith("["):
        return False
    return _is_object(first) or (first.startswith("{") and first != "{" and _is_object(second))


def detect_shape(name: str, document: Any) -> JsonShape:
    """Detect where a parsed text holds its rows.

    Raises:
        DataError: If it holds no rows, or it is ambiguous which they are.
    """
    if isinstance(document, list):
        return JsonShape("array")
    if not isinstance(document, dict):
        raise DataError(
            f"{name!r} holds {describe_json_value(document)} and no rows; "
            'write each row as {"text": …, "label": …}.'
        )
    if _is_one_row(document):
        return JsonShape("object")
    return _tabular_shape(name, document) or _nested_shape(name, document) or JsonShape("object")


def extract_rows(document: Any, shape: JsonShape) -> list[Any]:
    """Return the rows of a parsed text: objects, except where an array holds other values."""
    value = document
    for key in shape.path:
        value = value[key]
    if shape.layout == "object":
        return [value]
    if shape.layout == "array":
        return value
    if shape.layout == "index":
        return list(value.values())
    if shape.layout == "split":
        return [dict(zip(split_column_names(value["columns"]), row, strict=True)) for row in value["data"]]
    columns = {
        key: cells if isinstance(cells, list) else list(cells.values()) for key, cells in value.items()
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def raw_rows(text: str, shape: JsonShape) -> list[str]:
    """Return the source text of each row; a row of a layout by column is joined from that of its cells."""
    start = _after_space(text, 0)
    for key in shape.path:
        start = next(begin for name, begin, _ in reversed(list(_members(text, start))) if name == key)
    if shape.layout == "object":
        return [text[start : _DECODER.raw_decode(text, start)[1]]]
    if shape.layout == "array":
        return [text[begin:end] for begin, end in _elements(text, start)]
    if shape.layout == "index":
        return [text[begin:end] for _, begin, end in _last_members(text, start)]
    if shape.layout == "split":
        return _raw_split(text, start)
    columns = {key: _raw_cells(text, begin) for key, begin, _ in _last_members(text, start)}
    return [_join_object(columns, cells) for cells in zip(*columns.values(), strict=True)]


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _is_one_row(document: dict[str, Any]) -> bool:
    return (
        any(isinstance(document.get(key), str) for key in _TEXT_KEYS)
        or detect_export_format([document]) is not None
    )


def _tabular_shape(name: str, document: dict[str, Any]) -> JsonShape | None:
    """Detect the layouts that `pandas.DataFrame.to_json` writes, and one list per column."""
    values = list(document.values())
    rows = document.get("data")
    if isinstance(document.get("columns"), list) and _is_list_of(rows, list):
        _check_split(name, document["columns"], document["data"])
        return JsonShape("split")
    if values and all(isinstance(value, list) and not _is_list_of(value, dict) for value in values):
        lengths = {len(value) for value in values}
        if len(lengths) == 1:
            return JsonShape("lists")
        sizes = ", ".join(
            f"{short_repr(key)} has {len(value):,}" for key, value in list(document.items())[:5]
        )
        raise DataError(
            f"{name!r} holds lists of different lengths: {sizes}; give all columns the same number of cells."
        )
    if len(values) > 1 and all(isinstance(value, dict) and value for value in values):
        keys = [list(value) for value in values]
        flat = not any(isinstance(cell, dict) for value in values for cell in value.values())
        if all(own == keys[0] for own in keys) and flat and all(key.isdigit() for key in keys[0]):
            return JsonShape("columns")
        holds_cells = all(any(not isinstance(c, dict | list) for c in value.values()) for value in values)
        if holds_cells and set.intersection(*map(set, keys)):
            return JsonShape("index")
    return None


def _check_split(name: str, columns: list[Any], rows: list[list[Any]]) -> None:
    """Raise DataError for a column name that is a list or an object, a repeated name, or an uneven row."""
    compound = next((column for column in columns if isinstance(column, list | dict)), None)
    if compound is not None:
        raise DataError(
            f"{name!r}: the column name {short_repr(compound)} is not text; write each name as text."
        )
    names = split_column_names(columns)
    repeated = next((own for own, count in Counter(names).items() if count > 1), None)
    if repeated is not None:
        raise DataError(f"{name!r} has several columns named {short_repr(repeated)}; give each its own name.")
    for number, row in enumerate(rows, 1):
        if len(row) != len(names):
            raise DataError(
                f"{name!r}, row {number} of its data has {len(row):,} cells where {len(names):,} columns are "
                "named; write one cell for each column."
            )


def split_column_names(columns: list[Any]) -> list[str]:
    """Return the `columns` of the layout `split` as keys; pandas writes no name as a number or null."""
    texts = (column if isinstance(column, str) else json.dumps(column) for column in columns)
    return ["" if column is None else text for column, text in zip(columns, texts, strict=True)]


def _nested_shape(name: str, document: dict[str, Any]) -> JsonShape | None:
    """Return the only list of objects at the smallest depth; raise DataError if there are several."""
    level: list[tuple[tuple[str, ...], Any]] = [((), document)]
    for _ in range(_MAX_DEPTH):
        children = [((*path, key), value) for path, parent in level for key, value in parent.items()]
        lists = [path for path, value in children if _is_list_of(value, dict)]
        if len(lists) == 1:
            return JsonShape("array", lists[0])
        if lists:
            under = ", ".join(short_repr(".".join(path)) for path in lists[:5])
            raise DataError(
                f"{name!r} holds rows under {under}; save each as a file of its own, such as train.json and "
                "test.json."
            )
        empty = next((path for path, value in children if value == []), None)
        if empty is not None and len(children) == 1:
            return JsonShape("array", empty)
        level = [(path, value) for path, value in children if isinstance(value, dict)]
    return None


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(part, kind) for part in value)


def _finite_or_text(literal: str) -> float | str:
    """Return a number, or its digits if it overflows a float, such as 1e400."""
    number = float(literal)
    return literal if number in (float("inf"), float("-inf")) else number


def _after_space(text: str, index: int) -> int:
    match = _SPACE.match(text, index)
    return match.end() if match else index


def _elements(text: str, start: int) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each element of the array at `start`."""
    index = _after_space(text, start + 1)
    while text[index] != "]":
        _, end = _DECODER.raw_decode(text, index)
        yield index, end
        index = _after_space(text, end)
        if text[index] == ",":
            index = _after_space(text, index + 1)


def _members(text: str, start: int) -> Iterator[tuple[str, int, int]]:
    """Yield the key of each member of the object at `start`, and the start and end of its value."""
    index = _after_space(text, start + 1)
    while text[index] != "}":
        key, end = _DECODER.raw_decode(text, index)
        index = _after_space(text, _after_space(text, end) + 1)
        _, end = _DECODER.raw_decode(text, index)
        yield key, index, end
        index = _after_space(text, end)
        if text[index] == ",":
            index = _after_space(text, index + 1)


def _last_members(text: str, start: int) -> list[tuple[str, int, int]]:
    """Return the members as a JSON parser keeps them: the last value of a key, at its first position."""
    return list({key: (key, begin, end) for key, begin, end in _members(text, start)}.values())


def _raw_cells(text: str, start: int) -> list[str]:
    if text[start] == "[":
        return [text[begin:end] for begin, end in _elements(text, start)]
    return [text[begin:end] for _, begin, end in _last_members(text, start)]


def _raw_split(text: str, start: int) -> list[str]:
    parts = {key: begin for key, begin, _ in _last_members(text, start)}
    columns = split_column_names(_DECODER.raw_decode(text, parts["columns"])[0])
    rows = [_raw_cells(text, begin) for begin, _ in _elements(text, parts["data"])]
    return [_join_object(columns, cells) for cells in rows]


def _join_object(keys: Iterable[str], cells: Iterable[str]) -> str:
    """Return an object with these keys and the source text of their values."""
    pairs = zip(keys, cells, strict=True)
    return "{" + ", ".join(f"{json.dumps(key, ensure_ascii=False)}: {raw}" for key, raw in pairs) + "}"
