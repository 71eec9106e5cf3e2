"""Trains every method on every encoder family and writes the table into docs/methods.md: `make matrix`."""

import json
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from matrix import FAMILIES, Cell, check_cells, train_family, variants
from processes import python
from small_data import write_small_data

from benchmarks.doc_tables import METHODS, read_table, write_table

TABLE = "matrix"


def main() -> None:
    """Train all cells and replace the table in docs/methods.md."""
    with tempfile.TemporaryDirectory() as folder:
        write_table(METHODS, TABLE, table(all_cells(Path(folder))))


def all_cells(folder: Path) -> list[Cell]:
    """Return every cell, family by family; two families at a time, each in a process of its own."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        columns = pool.map(lambda family: _in_subprocess(family, folder / family), FAMILIES)
        return [cell for column in columns for cell in column]


def family_cells(family: str, folder: Path) -> list[Cell]:
    """Return the column of a family: every variant, trained and checked."""
    data = write_small_data(folder / "data")
    return check_cells(train_family(family, folder, data, variants()), [folder])


def _in_subprocess(family: str, folder: Path) -> list[Cell]:
    arguments = ("-W", "ignore", "-m", "benchmarks.method_matrix", family, str(folder))
    process = python(*arguments, timeout=900)
    assert process.returncode == 0, process.stderr[-4000:]
    return [Cell(**cell) for cell in json.loads(process.stdout.splitlines()[-1])]


def table(cells: Iterable[Cell]) -> str:
    """Return the matrix in Markdown, and below it the reasons why a cell is empty."""
    cells = list(cells)
    lines = [f"| Method | {' | '.join(FAMILIES.values())} |", f"|---|{'---|' * len(FAMILIES)}"]
    for variant in variants():
        marks = [cell.mark for cell in cells if cell.variant == variant]
        lines.append(f"| {variant} | {' | '.join(marks)} |")
    reasons = dict.fromkeys(f"- {cell.reason}" for cell in cells if cell.reason)
    return "\n".join([*lines, "", *reasons])


def documented_marks(family: str) -> dict[str, str]:
    """Return a family's column of the table in docs/methods.md, by variant."""
    column = 2 + list(FAMILIES).index(family)
    rows = [line.split("|") for line in read_table(METHODS, TABLE).splitlines() if line.startswith("| ")]
    return {row[1].strip(): row[column].strip() for row in rows[1:]}


if __name__ == "__main__":
    if len(sys.argv) == 3:
        family, folder = sys.argv[1], Path(sys.argv[2])
        sys.stdout.write(json.dumps([asdict(cell) for cell in family_cells(family, folder)]) + "\n")
    else:
        main()
