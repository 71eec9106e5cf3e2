"""Constructors for curated data files: contents and expected rows or error."""

import json
from typing import Any

from batteries.odd_file import OddFile

TWO = (("good", "pos"), ("bad", "neg"))  # rows of most files, which differ in format
CSV = "text,label\ngood,pos\nbad,neg\n"
RECORDS = [{"text": text, "label": label} for text, label in TWO]
_NAMES = ("text", "label")


def read(title: str, data: str | bytes, rows: Any = TWO, name: str = "a.csv", **answer: Any) -> OddFile:
    """Return a file that contains these rows."""
    content = data.encode() if isinstance(data, str) else data
    columns = answer.pop("columns", _NAMES if rows and len(rows[0]) == 2 else None)
    return OddFile(title, name, content, columns, rows, **answer)


def refused(title: str, data: str | bytes, words: str, name: str = "a.csv") -> OddFile:
    """Return a file that must be refused with an error that contains these words."""
    return OddFile(title, name, data.encode() if isinstance(data, str) else data, refusal=words)


def json_file(title: str, content: Any, rows: Any = TWO, name: str = "a.json", **answer: Any) -> OddFile:
    """Return a JSON file that contains these rows."""
    return read(title, json.dumps(content, ensure_ascii=False), rows, name, **answer)
