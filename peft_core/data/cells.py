"""Values of JSON, Parquet and Excel as table cells, and how messages quote them."""

import json
import math
from typing import Any

from peft_core.errors import reason_of


def to_cell(value: Any) -> Any:
    """Return a value of JSON, Parquet or Excel as a cell.

    A cell is a str, bool, finite float, 64-bit int, list of cells, or None (also for NaN). Everything else
    becomes a str: objects as JSON, bytes as UTF-8.
    """
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, float):
        return None if math.isnan(value) else value if math.isfinite(value) else str(value)
    if isinstance(value, int):
        return value if abs(value) < 2**63 else str(value)
    if isinstance(value, list | tuple):
        return [to_cell(entry) for entry in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def is_empty(cell: Any) -> bool:
    """Return whether a cell is empty; an empty list is not, since it means that no label applies."""
    return cell is None or (isinstance(cell, str) and not cell.strip())


def as_text(cell: Any) -> str:
    """Return a cell as text exactly as typed; 1.0 of a spreadsheet becomes `1`."""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 1e15:
        return str(int(cell))
    return "" if cell is None else str(cell)


def short_repr(value: Any, max_length: int = 40) -> str:
    """Return the `repr` of a cell or name for an error message, cut to `max_length` characters."""
    text = repr(value)
    return text if len(text) <= max_length else f"{text[: max_length - 1]}…"


def describe_json_value(value: Any) -> str:
    """Describe the type of a JSON value, for messages about a file without rows; no content is quoted."""
    if isinstance(value, dict):
        return f"an object with the keys {short_repr(list(value))}"
    if isinstance(value, bool) or value is None:
        return "null" if value is None else "true or false"
    return {str: "a text", list: "a list"}.get(type(value), "a number")


def first_error_line(error: BaseException) -> str:
    """Return the first line of an exception's message without folders, at most 200 characters."""
    return (reason_of(error).strip().splitlines() or [type(error).__name__])[0][:200]


def is_nested(value: Any) -> bool:
    """Return whether a value is a list of objects or lists, which can be neither a text nor labels."""
    return isinstance(value, list | tuple) and any(isinstance(entry, dict | list | tuple) for entry in value)
