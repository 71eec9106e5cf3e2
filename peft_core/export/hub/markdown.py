"""Markdown that a stranger's words cannot break: names, tables and fenced code."""

import re
from collections.abc import Iterable, Sequence

LONGEST = 80  # characters of a name
# what would start markup, HTML, a cell, a formula, a link, a mention or an emoji inside a line
_MARKS = re.compile(r"[\\`*\[\]<>&|~$@]|:(?=\S)|(?<![^\W_])_|_(?![^\W_])|(?<=www)\.", re.IGNORECASE)
_SAFE = re.compile(r"[\w./-]+", re.ASCII)


def plain(words: object, most: int = LONGEST) -> str:
    """Any words as one short line of characters that can be seen."""
    visible = "".join(c if c.isprintable() else " " for c in str(words))
    line = " ".join(visible.split()) or "(blank)"
    return line if len(line) <= most else f"{line[: most - 1]}…"


def escaped(words: object) -> str:
    """The same, to be read as it is anywhere inside a line or a cell."""
    return _MARKS.sub(lambda found: f"&#{ord(found[0])};", plain(words))


def name(words: object) -> str:
    """A name as code where it is made of harmless characters, else escaped."""
    return f"`{words}`" if _SAFE.fullmatch(str(words)) else escaped(words)


def listed(names: Sequence[object], most: int = 10) -> str:
    """Names in a row, the first ones where there are many."""
    left = len(names) - most
    return ", ".join(map(escaped, names[:most])) + (f" and {left:,} more" if left > 0 else "")


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: bool = True) -> str:
    """A table of cells that are escaped already; with `numbers` all columns but the first align right."""
    side = "--:" if numbers else "---"
    lines = [head, ["---", *[side] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def fenced(code: str, language: str = "python") -> str:
    """Code in a fence that is longer than any run of backticks in it."""
    longest = max(map(len, re.findall("`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{code.rstrip()}\n{fence}"


def folded(summary: str, text: str) -> str:
    """A text that opens at a click."""
    return f"<details><summary>{summary}</summary>\n\n{text}\n\n</details>"
