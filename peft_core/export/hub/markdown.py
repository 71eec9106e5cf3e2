"""Markdown in which untrusted text stays text: names, tables and fenced code."""

import re
from collections.abc import Iterable, Sequence

MAX_LENGTH = 80  # characters of a name
# characters that start markup, HTML, a table cell, math, a link, a mention or an emoji inside a line
_MARKS = re.compile(r"[\\`*\[\]<>&|~$@]|:(?=\S)|(?<![^\W_])_|_(?![^\W_])|(?<=www)\.", re.IGNORECASE)
_SAFE = re.compile(r"[\w./-]+", re.ASCII)


def plain(text: object, max_length: int = MAX_LENGTH) -> str:
    """Return a text as one line of printable characters, truncated to `max_length`."""
    visible = "".join(c if c.isprintable() else " " for c in str(text))
    line = " ".join(visible.split()) or "(blank)"
    return line if len(line) <= max_length else f"{line[: max_length - 1]}…"


def escaped(text: object) -> str:
    """Return `plain(text)` with its markup characters escaped, for use inside a line or a table cell."""
    return _MARKS.sub(lambda match: f"&#{ord(match[0])};", plain(text))


def code_name(name: object) -> str:
    """Return a name as inline code if all its characters are safe, else escaped."""
    return f"`{name}`" if _SAFE.fullmatch(str(name)) else escaped(name)


def name_list(names: Sequence[object], max_names: int = 10) -> str:
    """Return escaped names separated by commas, and the number of those beyond `max_names`."""
    rest = len(names) - max_names
    return ", ".join(map(escaped, names[:max_names])) + (f" and {rest:,} more" if rest > 0 else "")


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: bool = True) -> str:
    """Return a table of escaped cells; with `numbers` all columns but the first are right-aligned."""
    alignment = "--:" if numbers else "---"
    lines = [head, ["---", *[alignment] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def fenced(code: str, language: str = "python") -> str:
    """Return code in a fence that is longer than any run of backticks in it."""
    longest = max(map(len, re.findall("`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{code.rstrip()}\n{fence}"


def collapsed(summary: str, text: str) -> str:
    """Return a text in a collapsed `<details>` element."""
    return f"<details><summary>{summary}</summary>\n\n{text}\n\n</details>"
