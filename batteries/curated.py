"""How a named odd file is written down: its contents and its right answer."""

import json
from typing import Any

from batteries.odd_file import OddFile

TWO = (("good", "pos"), ("bad", "neg"))  # the rows of most files, which differ in how they are written
CSV = "text,label\ngood,pos\nbad,neg\n"
RECORDS = [{"text": text, "label": label} for text, label in TWO]
_NAMES = ("text", "label")


def read(title: str, data: str | bytes, rows: Any = TWO, name: str = "a.csv", **answer: Any) -> OddFile:
    """A file that holds these rows."""
    content = data.encode() if isinstance(data, str) else data
    columns = answer.pop("columns", _NAMES if rows and len(rows[0]) == 2 else None)
    return OddFile(title, name, content, columns, rows, **answer)


def refused(title: str, data: str | bytes, words: str, name: str = "a.csv") -> OddFile:
    """A file that a named error with these words refuses."""
    return OddFile(title, name, data.encode() if isinstance(data, str) else data, refusal=words)


def json_file(title: str, value: Any, rows: Any = TWO, name: str = "a.json", **answer: Any) -> OddFile:
    """A JSON value that holds these rows."""
    return read(title, json.dumps(value, ensure_ascii=False), rows, name, **answer)
