"""Supported file formats and size limits; the page reads them without importing the readers."""

from dataclasses import dataclass
from pathlib import PurePath

from peft_core.errors import DataError

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".xlsx")
COMPRESSED_SUFFIXES = (".csv.gz", ".tsv.gz", ".jsonl.gz", ".json.gz", ".zip")
SUFFIXES = (*TABLE_SUFFIXES, *COMPRESSED_SUFFIXES)
FILE_TYPES = (*TABLE_SUFFIXES, ".gz", ".zip")  # a browser's file dialog compares the last suffix alone
MAX_FILE_BYTES = 200_000_000  # of a file on disk, and of a compressed text file once unpacked
MAX_UNPACKED_BYTES = 500_000_000  # that a Parquet or Excel file may unpack to
MAX_EXPANSION = 10  # bytes of a workbook's XML, or of Parquet columns, per allowed byte of a table
MAX_ROWS = 1_000_000
MAX_CELLS = 20_000_000  # of a table; a spreadsheet may claim 16,384 columns in each row
MAX_COLUMNS = 1000
MAX_ROW_GROUP_VALUES = 100_000_000  # of a row group of a Parquet file, where one cell may hold many
MAX_NAME_LENGTH = 1000  # characters of a column's name, or of a label


@dataclass(frozen=True)
class ReadOptions:
    """Which table of a file to read, and how large it may be.

    Attributes:
        sheet_name: Sheet of a workbook; None lets the reader choose.
        header_row: Row of a sheet, or line of a CSV or TSV file, that names the columns, counted from 1.
            Everything above it is skipped. None lets the reader detect it.
        max_unpacked_bytes: Maximum bytes of a workbook's XML, or of a Parquet file's values; None means
            MAX_UNPACKED_BYTES.
    """

    sheet_name: str | None = None
    header_row: int | None = None
    max_unpacked_bytes: int | None = None


def max_unpacked_bytes(max_bytes: int) -> int:
    """Return the bytes a workbook or Parquet file may unpack to if a table may have `max_bytes`."""
    return min(MAX_UNPACKED_BYTES, MAX_EXPANSION * max_bytes)


def suffix_of(path: str | PurePath) -> str | None:
    """Return the suffix that selects the reader, such as `.csv` or `.csv.gz`; None if unsupported."""
    name = PurePath(path).name.lower()
    return next((suffix for suffix in reversed(SUFFIXES) if name.endswith(suffix) and name != suffix), None)


def check_width(name: str, columns: int) -> None:
    """Raise DataError if a file has more than MAX_COLUMNS columns."""
    if columns > MAX_COLUMNS:
        raise DataError(
            f"{name!r} has {columns:,} columns; at most {MAX_COLUMNS:,} are read, so keep the texts and "
            "the labels."
        )
