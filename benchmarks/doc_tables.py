"""Tables in the documentation that a benchmark writes: the text between two comments of a Markdown file."""

from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"
BENCHMARKS, METHODS, DEFAULTS = DOCS / "benchmarks.md", DOCS / "methods.md", DOCS / "defaults.md"


def markers(name: str) -> tuple[str, str]:
    """Return the comments before and after the table of this name."""
    return f"<!-- {name} -->", f"<!-- end of {name} -->"


def read_table(path: Path, name: str) -> str:
    """Return the Markdown between the markers of a table.

    Raises:
        ValueError: The file does not have each marker once, in order.
    """
    return _split(path, name)[1].strip("\n")


def write_table(path: Path, name: str, markdown: str) -> None:
    """Replace the Markdown between the markers of a table; the rest of the file stays.

    Raises:
        ValueError: The file does not have each marker once, in order.
    """
    before, _, after = _split(path, name)
    start, end = markers(name)
    path.write_text(f"{before}{start}\n{markdown}\n{end}{after}", encoding="utf-8")


def _split(path: Path, name: str) -> tuple[str, str, str]:
    start, end = markers(name)
    text = path.read_text(encoding="utf-8")
    if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
        raise ValueError(f"{path.name} must have {start} and {end} once each, in this order.")
    before, rest = text.split(start)
    table, after = rest.split(end)
    return before, table, after
