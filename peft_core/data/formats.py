"""Which files are taken, and how large ones: what a page knows without the code that reads them."""

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".xlsx")
MOST_BYTES = 200_000_000  # of a file as it lies on the disk
MOST_UNPACKED = 500_000_000  # of what a Parquet or Excel file unpacks to
MOST_ROWS = 1_000_000
MOST_CELLS = 20_000_000  # of a spreadsheet, which may claim 16,384 columns in each row
