"""Where the rows of a JSON text are: one a line, in an array, under a key, or by column as pandas has it.

A shape is found once in the parsed text. The same shape then gives each row's own characters, so that a
file can be written again with the very bytes of its numbers, texts and nested values.
"""

import io
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from peft_core.data.annotation_exports import export_format
from peft_core.data.cells import first_line, kind_of, shown
from peft_core.errors import DataError

_SPACE = re.compile(r"[ \t\r\n]*")
_TEXTS = ("text", "sentence", "review", "content", "body")  # a text under one of these makes an object a row
_DEPTH = 4  # objects in objects that are searched for a list of rows
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Shape:
    """How a JSON text holds its rows.

    `layout` is `array` (a list of objects), `object` (one row), `index` (an object of rows by key), `lists`
    (a list a column), `columns` (an object a column) or `split` (column names beside lists of values). `path`
    are the keys that lead to it.
    """

    layout: str
    path: tuple[str, ...] = ()


def parse(name: str, text: str, row: int | None = None) -> Any:
    """A JSON value; DataError that names the file and the row, or the line, for what is none."""
    try:
        return json.loads(text, parse_float=_finite_or_text)
    except (ValueError, RecursionError) as error:
        where = f"character {error.colno}: {error.msg}" if hasattr(error, "colno") else first_line(error)
        raise DataError(
            f"{name!r}, row {row or getattr(error, 'lineno', 1)} is no JSON ({where}); correct the row, or "
            "write one object a line."
        ) from error


def is_lines(text: str) -> bool:
    """Whether a text has an object a line, the first of which may be damaged, rather than one in all."""
    lines = (line.strip() for line in io.StringIO(text, newline=None))
    first, second = [*itertools.islice(filter(None, lines), 2), "", ""][:2]
    if not second or first.startswith("["):
        return False
    return _is_whole(first) or (first.startswith("{") and first != "{" and _is_whole(second))


def shape_of(name: str, whole: Any) -> Shape:
    """Where the rows of a parsed text are. Raises DataError that says what was seen for one without rows."""
    if isinstance(whole, list):
        return Shape("array")
    if not isinstance(whole, dict):
        raise DataError(
            f'{name!r} holds {kind_of(whole)} and no rows; write each row as {{"text": …, "label": …}}.'
        )
    if _is_one_row(whole):
        return Shape("object")
    return _tabular(name, whole) or _under_a_key(name, whole) or Shape("object")


def rows_of(whole: Any, shape: Shape) -> list[Any]:
    """The rows of a parsed text, objects except where an array holds something else."""
    value = whole
    for key in shape.path:
        value = value[key]
    if shape.layout == "object":
        return [value]
    if shape.layout == "array":
        return value
    if shape.layout == "index":
        return list(value.values())
    if shape.layout == "split":
        return [dict(zip(split_names(value["columns"]), row, strict=True)) for row in value["data"]]
    columns = {
        key: cells if isinstance(cells, list) else list(cells.values()) for key, cells in value.items()
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def raw_rows(text: str, shape: Shape) -> list[str]:
    """Each row's own characters; a row that is put together from columns has those of its cells."""
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
    return [_object(columns, cells) for cells in zip(*columns.values(), strict=True)]


def _is_whole(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _is_one_row(whole: dict[str, Any]) -> bool:
    return any(isinstance(whole.get(key), str) for key in _TEXTS) or export_format([whole]) is not None


def _tabular(name: str, whole: dict[str, Any]) -> Shape | None:
    """The shapes that pandas' `to_json` writes: a list or an object a column, an object a row, or `split`."""
    values = list(whole.values())
    rows = whole.get("data")
    if isinstance(whole.get("columns"), list) and _all(rows, list):
        _check_split(name, whole["columns"], whole["data"])
        return Shape("split")
    if values and all(isinstance(value, list) and not _all(value, dict) for value in values):
        lengths = {len(value) for value in values}
        if len(lengths) == 1:
            return Shape("lists")
        sizes = ", ".join(f"{shown(key)} has {len(value):,}" for key, value in list(whole.items())[:5])
        raise DataError(
            f"{name!r} holds lists of different lengths: {sizes}; give each column as many cells."
        )
    if len(values) > 1 and all(isinstance(value, dict) and value for value in values):
        keys = [list(value) for value in values]
        flat = not any(isinstance(cell, dict) for value in values for cell in value.values())
        if all(own == keys[0] for own in keys) and flat and all(key.isdigit() for key in keys[0]):
            return Shape("columns")
        holds_cells = all(any(not isinstance(c, dict | list) for c in value.values()) for value in values)
        if holds_cells and set.intersection(*map(set, keys)):
            return Shape("index")
    return None


def _check_split(name: str, columns: list[Any], rows: list[list[Any]]) -> None:
    """Raise DataError for a column name that is no text or number, a repeated one, or an uneven row."""
    compound = next((column for column in columns if isinstance(column, list | dict)), None)
    if compound is not None:
        raise DataError(f"{name!r}: the column name {shown(compound)} is no text; write each name as a text.")
    names = split_names(columns)
    repeated = next((own for own, count in Counter(names).items() if count > 1), None)
    if repeated is not None:
        raise DataError(f"{name!r} has several columns named {shown(repeated)}; give each its own name.")
    for number, row in enumerate(rows, 1):
        if len(row) != len(names):
            raise DataError(
                f"{name!r}, row {number} of its data has {len(row):,} cells where {len(names):,} columns are "
                "named; write one cell for each column."
            )


def split_names(columns: list[Any]) -> list[str]:
    """The `columns` of `split` as keys: pandas writes a number for a column without a name, or null."""
    texts = (column if isinstance(column, str) else json.dumps(column) for column in columns)
    return ["" if column is None else text for column, text in zip(columns, texts, strict=True)]


def _under_a_key(name: str, whole: dict[str, Any]) -> Shape | None:
    """The one list of objects at the least depth; DataError where there are several."""
    level: list[tuple[tuple[str, ...], Any]] = [((), whole)]
    for _ in range(_DEPTH):
        inside = [((*path, key), value) for path, holder in level for key, value in holder.items()]
        lists = [path for path, value in inside if _all(value, dict)]
        if len(lists) == 1:
            return Shape("array", lists[0])
        if lists:
            under = ", ".join(shown(".".join(path)) for path in lists[:5])
            raise DataError(
                f"{name!r} holds rows under {under}; save each as a file of its own, such as train.json and "
                "test.json."
            )
        empty = next((path for path, value in inside if value == []), None)
        if empty is not None and len(inside) == 1:
            return Shape("array", empty)
        level = [(path, value) for path, value in inside if isinstance(value, dict)]
    return None


def _all(value: Any, kind: type) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(part, kind) for part in value)


def _finite_or_text(literal: str) -> float | str:
    """A number, or its digits where no float holds it, such as 1e400."""
    number = float(literal)
    return literal if number in (float("inf"), float("-inf")) else number


def _after_space(text: str, index: int) -> int:
    match = _SPACE.match(text, index)
    return match.end() if match else index


def _elements(text: str, start: int) -> Iterator[tuple[int, int]]:
    """Where each element of the array at `start` begins and ends."""
    index = _after_space(text, start + 1)
    while text[index] != "]":
        _, end = _DECODER.raw_decode(text, index)
        yield index, end
        index = _after_space(text, end)
        if text[index] == ",":
            index = _after_space(text, index + 1)


def _members(text: str, start: int) -> Iterator[tuple[str, int, int]]:
    """The key of each member of the object at `start`, and where its value begins and ends."""
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
    """The members as a parser keeps them: the last value of a key, in the place of the first."""
    return list({key: (key, begin, end) for key, begin, end in _members(text, start)}.values())


def _raw_cells(text: str, start: int) -> list[str]:
    if text[start] == "[":
        return [text[begin:end] for begin, end in _elements(text, start)]
    return [text[begin:end] for _, begin, end in _last_members(text, start)]


def _raw_split(text: str, start: int) -> list[str]:
    parts = {key: begin for key, begin, _ in _last_members(text, start)}
    columns = split_names(_DECODER.raw_decode(text, parts["columns"])[0])
    rows = [_raw_cells(text, begin) for begin, _ in _elements(text, parts["data"])]
    return [_object(columns, cells) for cells in rows]


def _object(keys: Any, cells: Any) -> str:
    pairs = zip(keys, cells, strict=True)
    return "{" + ", ".join(f"{json.dumps(key, ensure_ascii=False)}: {raw}" for key, raw in pairs) + "}"
