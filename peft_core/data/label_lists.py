"""Parsing of label lists in text cells: JSON (`["a", "b"]`), Python (`['a']`), numpy (`['a' 'b']`)."""

import ast
import json
import math
import re
from collections.abc import Sequence
from typing import Any

_MAX_CHARACTERS = 20_000  # of a cell that is parsed as a list
_STRING = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
_TOKEN = re.compile(rf"\s*(?:(?P<string>{_STRING})|(?P<comma>,)|(?P<word>[^\s,'\"\[\]]+))", re.DOTALL)
_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?", re.ASCII)
_ESCAPED = re.compile(  # the escapes that repr() writes; Python warns about any other
    r"(?:[^\\]|\\(?:[\\'\"abfnrtv0]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U00(?:0[0-9a-fA-F]|10)[0-9a-fA-F]{4}))*"
)
_MAX_DIGITS = 300
_CONSTANTS = {"True": True, "true": True, "False": False, "false": False, "None": None, "null": None}

Token = tuple[str, str]  # kind (the name of a group of _TOKEN) and text


def as_list(cell: Any) -> list[Any] | None:
    """Return the entries of a cell that is a list or a text in the form of one; None for any other cell."""
    if isinstance(cell, list):
        return cell
    text = cell.strip() if isinstance(cell, str) else ""
    if not (2 <= len(text) <= _MAX_CHARACTERS and text[0] == "[" and text[-1] == "]"):
        return None
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        return _parse_entries(text[1:-1])
    if any(isinstance(entry, list | dict) for entry in entries):
        return None
    return [_finite_or_none(entry) for entry in entries]


def are_lists(cells: Sequence[Any]) -> bool:
    """Return whether at least half of the cells are lists, and not only single words such as `[NEG]`."""
    lists = [(cell, entries) for cell in cells if (entries := as_list(cell)) is not None]
    if 2 * len(lists) < len(cells):
        return False
    return any(
        isinstance(cell, list) or len(entries) > 1 or re.match(r"\[\s*(['\"\]]|[-+]?\d)", cell.strip())
        for cell, entries in lists
    )


def indicator_width(cells: Sequence[Any]) -> int | None:
    """Return the common length of multi-hot lists such as `[1, 0, 1]`; None for any other lists.

    Lists of labels that are named 0 and 1 hold no label twice, so at least one list must repeat a number.
    """
    lists: list[list[Any]] = []
    for cell in cells:
        entries = as_list(cell)
        if entries is None:
            return None
        lists.append(entries)
    if not lists:
        return None
    widths = {len(entries) for entries in lists}
    flags = [[as_flag(entry) for entry in entries] for entries in lists]
    if len(widths) != 1 or any(None in row for row in flags):
        return None
    repeats = any(len(set(row)) < len(row) for row in flags)
    return widths.pop() if repeats else None


def as_flag(value: Any) -> bool | None:
    """Return a cell that holds 0, 1, true or false as a bool; None for anything else."""
    if isinstance(value, bool | int | float):
        return bool(value) if value in (0, 1) else None
    return {"0": False, "1": True, "false": False, "true": True, "0.0": False, "1.0": True}.get(
        value.strip().casefold() if isinstance(value, str) else ""
    )


def _parse_entries(body: str) -> list[Any] | None:
    """Parse the text between a list's brackets; None for invalid syntax such as nesting or an open quote."""
    tokens: list[Token] = []
    position = 0
    body = body.rstrip()
    while position < len(body):
        match = _TOKEN.match(body, position)
        if match is None:
            return None
        tokens.append((match.lastgroup or "", match[match.lastgroup or 0]))
        position = match.end()
    kinds = {kind for kind, _ in tokens}
    if "comma" not in kinds and (kinds == {"string"} or all(_NUMBER.fullmatch(word) for _, word in tokens)):
        return [_parse_scalar(kind, text) for kind, text in tokens]  # numpy writes no commas
    return _split_at_commas(tokens)


def _split_at_commas(tokens: list[Token]) -> list[Any] | None:
    """Return one entry per pair of commas: a quoted text, or words as typed."""
    parts: list[list[Token]] = [[]]
    for kind, text in tokens:
        if kind == "comma":
            parts.append([])
        else:
            parts[-1].append((kind, text))
    if not parts[-1]:
        parts.pop()  # a comma at the end
    entries = []
    for part in parts:
        kinds = {kind for kind, _ in part}
        if not part or (len(part) > 1 and "string" in kinds):
            return None
        entries.append(_parse_scalar(*part[0]) if len(part) == 1 else " ".join(word for _, word in part))
    return entries


def _parse_scalar(kind: str, text: str) -> Any:
    if kind == "string":
        escaped = "\\" in text and "\n" not in text and _ESCAPED.fullmatch(text)
        return ast.literal_eval(text) if escaped else text[1:-1]
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _NUMBER.fullmatch(text) and len(text) <= _MAX_DIGITS:
        return int(text) if re.fullmatch(r"[-+]?\d+", text) else _finite_or_none(float(text))
    return None if text == "nan" else text


def _finite_or_none(entry: Any) -> Any:
    """Return an entry, or None for NaN and infinity."""
    return None if isinstance(entry, float) and not math.isfinite(entry) else entry
