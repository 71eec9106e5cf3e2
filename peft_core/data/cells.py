"""One cell of a table: what JSON, Parquet and Excel hold, as the types that the rest of the code knows."""

import json
import math
from typing import Any

from peft_core.errors import reason_of


def cell(value: Any) -> Any:
    """A value of JSON, Parquet or Excel as a cell: what is neither text nor number is written out."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, float):
        return None if math.isnan(value) else value if math.isfinite(value) else str(value)
    if isinstance(value, int):
        return value if abs(value) < 2**63 else str(value)
    if isinstance(value, list | tuple):
        return [cell(part) for part in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def shown(value: Any, most: int = 40) -> str:
    """A cell or name as an error message quotes it: on one line, and short."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def kind_of(value: Any) -> str:
    """What a JSON value is, for messages about a file that holds no rows: its content is not quoted."""
    if isinstance(value, dict):
        return f"an object with the keys {shown(list(value))}"
    if isinstance(value, bool) or value is None:
        return "null" if value is None else "true or false"
    return {str: "a text", list: "a list"}.get(type(value), "a number")


def first_line(error: BaseException) -> str:
    """Return what an error of a library says, cut to one short line and without folders."""
    return (reason_of(error).strip().splitlines() or [type(error).__name__])[0][:200]


def is_nested(value: Any) -> bool:
    """Whether a value is a list that holds objects or lists, which is neither a text nor labels."""
    return isinstance(value, list | tuple) and any(isinstance(part, dict | list | tuple) for part in value)
