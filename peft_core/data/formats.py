"""Which files are taken, and how large ones: what a page knows without the code that reads them."""

from dataclasses import dataclass
from pathlib import PurePath

from peft_core.errors import DataError

TABLES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".xlsx")
COMPRESSED = (".csv.gz", ".tsv.gz", ".jsonl.gz", ".json.gz", ".zip")
SUFFIXES = (*TABLES, *COMPRESSED)
FILE_TYPES = (*TABLES, ".gz", ".zip")  # as a browser's file dialog compares them: the last suffix alone
MOST_BYTES = 200_000_000  # of a file as it lies on the disk, and of a compressed text file once unpacked
MOST_UNPACKED = 500_000_000  # of what a Parquet or Excel file unpacks to
EXPANSION = 10  # times the bytes of a table that the XML of a workbook, or the columns of Parquet, may have
MOST_ROWS = 1_000_000
MOST_CELLS = 20_000_000  # of a table; a spreadsheet may claim 16,384 columns in each row
MOST_COLUMNS = 1000
MOST_VALUES = 100_000_000  # of a row group of a Parquet file, where a cell may hold many
MOST_NAME = 1000  # characters of a column's name, or of a label


@dataclass(frozen=True)
class ReadOptions:
    """Settings that choose the table inside a file, where None leaves a choice to the reader, and its bound.

    `sheet_name` is a sheet of a workbook. `header_row`, counted from 1, is the row of the sheet, or the line
    of a CSV or TSV file, that names the columns; what stands above it is not read. `most_unpacked` are the
    bytes of a workbook's XML, or of the values of a Parquet file; None for MOST_UNPACKED.
    """

    sheet_name: str | None = None
    header_row: int | None = None
    most_unpacked: int | None = None


def most_unpacked(most_bytes: int) -> int:
    """The bytes that a workbook or a Parquet file may unpack to where a table may have `most_bytes`."""
    return min(MOST_UNPACKED, EXPANSION * most_bytes)


def suffix_of(path: str | PurePath) -> str | None:
    """The suffix by which a file is read, such as `.csv` or `.csv.gz`; None if it is not read."""
    name = PurePath(path).name.lower()
    return next((suffix for suffix in reversed(SUFFIXES) if name.endswith(suffix) and name != suffix), None)


def check_width(name: str, columns: int) -> None:
    """Raise DataError, which names the file, for more columns than are read."""
    if columns > MOST_COLUMNS:
        raise DataError(
            f"{name!r} has {columns:,} columns; at most {MOST_COLUMNS:,} are read, so keep the texts and "
            "the labels."
        )
