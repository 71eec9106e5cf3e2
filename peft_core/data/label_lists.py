"""Lists of labels that a table holds as text: JSON (`["a", "b"]`), Python (`['a']`), numpy (`['a' 'b']`)."""

import ast
import json
import math
import re
from collections.abc import Sequence
from typing import Any

_LONGEST = 20_000  # characters of a cell that may be a list
_STRING = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
_ITEM = re.compile(rf"\s*(?:(?P<string>{_STRING})|(?P<comma>,)|(?P<word>[^\s,'\"\[\]]+))", re.DOTALL)
_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?", re.ASCII)
_ESCAPED = re.compile(  # what repr() writes; Python warns of any other escape
    r"(?:[^\\]|\\(?:[\\'\"abfnrtv0]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U00(?:0[0-9a-fA-F]|10)[0-9a-fA-F]{4}))*"
)
_DIGITS = 300
_CONSTANTS = {"True": True, "true": True, "False": False, "false": False, "None": None, "null": None}


def as_list(cell: Any) -> list[Any] | None:
    """The items of a cell that is a list, or a text that writes one down; None for any other cell."""
    if isinstance(cell, list):
        return cell
    text = cell.strip() if isinstance(cell, str) else ""
    if not (2 <= len(text) <= _LONGEST and text[0] == "[" and text[-1] == "]"):
        return None
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        return _items(text[1:-1])
    return None if any(isinstance(item, list | dict) for item in items) else [_known(item) for item in items]


def are_lists(cells: Sequence[Any]) -> bool:
    """Whether most cells are lists, and not all of these a single word in brackets such as `[NEG]`."""
    lists = [(cell, items) for cell in cells if (items := as_list(cell)) is not None]
    if 2 * len(lists) < len(cells):
        return False
    return any(
        isinstance(cell, list) or len(items) > 1 or re.match(r"\[\s*(['\"\]]|[-+]?\d)", cell.strip())
        for cell, items in lists
    )


def indicator_width(cells: Sequence[Any]) -> int | None:
    """The common length of lists that hold 0 or 1 for each label, as `[1, 0, 1]` does; None for others.

    Lists of labels that happen to be called 0 and 1 hold none of them twice.
    """
    lists = [as_list(cell) for cell in cells]
    if not lists or any(items is None for items in lists):
        return None
    widths = {len(items) for items in lists}
    flags = [[as_flag(item) for item in items] for items in lists]
    if len(widths) != 1 or any(None in row for row in flags):
        return None
    repeats = any(len(set(row)) < len(row) for row in flags)
    return widths.pop() if repeats else None


def as_flag(value: Any) -> bool | None:
    """A cell's 0 or 1 (also as true or false) as a bool; None for anything else."""
    if isinstance(value, bool | int | float):
        return bool(value) if value in (0, 1) else None
    return {"0": False, "1": True, "false": False, "true": True, "0.0": False, "1.0": True}.get(
        value.strip().casefold() if isinstance(value, str) else ""
    )


def _items(inside: str) -> list[Any] | None:
    """The items between a list's brackets; None for what is no list, such as nested ones or an open quote."""
    found: list[tuple[str, str]] = []
    position = 0
    inside = inside.rstrip()
    while position < len(inside):
        match = _ITEM.match(inside, position)
        if match is None:
            return None
        found.append((match.lastgroup or "", match[match.lastgroup or 0]))
        position = match.end()
    kinds = {kind for kind, _ in found}
    if "comma" not in kinds and (kinds == {"string"} or all(_NUMBER.fullmatch(word) for _, word in found)):
        return [_value(kind, text) for kind, text in found]  # numpy writes no commas
    return _between_commas(found)


def _between_commas(found: list[tuple[str, str]]) -> list[Any] | None:
    """One item between two commas: a quoted text, or words as typed."""
    parts: list[list[tuple[str, str]]] = [[]]
    for kind, text in found:
        if kind == "comma":
            parts.append([])
        else:
            parts[-1].append((kind, text))
    if not parts[-1]:
        parts.pop()  # a comma at the end
    items = []
    for part in parts:
        kinds = {kind for kind, _ in part}
        if not part or (len(part) > 1 and "string" in kinds):
            return None
        items.append(_value(*part[0]) if len(part) == 1 else " ".join(word for _, word in part))
    return items


def _value(kind: str, text: str) -> Any:
    if kind == "string":
        escaped = "\\" in text and "\n" not in text and _ESCAPED.fullmatch(text)
        return ast.literal_eval(text) if escaped else text[1:-1]
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _NUMBER.fullmatch(text) and len(text) <= _DIGITS:
        return int(text) if re.fullmatch(r"[-+]?\d+", text) else _known(float(text))
    return None if text == "nan" else text


def _known(item: Any) -> Any:
    """An item, or None for NaN and infinity."""
    return None if isinstance(item, float) and not math.isfinite(item) else item
