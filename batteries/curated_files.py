"""Curated data files with their expected rows or errors: workbooks, archives, and the CSV and JSON files."""

import gzip
import io
import json
import zipfile
from collections.abc import Sequence
from typing import Any

import openpyxl

from batteries.curated import CSV, RECORDS, TWO, read, refused
from batteries.curated_json import JSON_FILES
from batteries.curated_text import TEXT_FILES
from batteries.odd_file import OddFile


def _zip(*files: tuple[str, str | bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files:
            archive.writestr(name, data)
    return out.getvalue()


def _book(*sheets: Sequence[Sequence[Any]], hide_first: bool = False) -> bytes:
    book, out = openpyxl.Workbook(), io.BytesIO()
    book.remove(book.active)
    for number, rows in enumerate(sheets, 1):
        sheet = book.create_sheet(f"Sheet{number}")
        for row in rows:
            sheet.append(list(row))
    if hide_first:
        book.worksheets[0].sheet_state = "hidden"
    book.save(out)
    return out.getvalue()


_SHEET = [["text", "label"], *map(list, TWO)]
_BOOKS = (
    read("a sheet", _book(_SHEET), name="a.xlsx"),
    read("the second sheet", _book([["See the next sheet"]], _SHEET), name="a.xlsx"),
    read("titles above the header", _book([["Reviews"], [], *_SHEET]), name="a.xlsx"),
    read("a hidden sheet before", _book(_SHEET[:1] + [["x", "y"]], _SHEET, hide_first=True), name="a.xlsx"),
    read(
        "an index without a name in a sheet",
        _book([[None, "text", "label"], [0, "good", "pos"], [1, "bad", "neg"]]),
        (("0", "good", "pos"), ("1", "bad", "neg")),
        "a.xlsx",
    ),
    read(
        "numbers among texts in a sheet",
        _book([["text", "label"], [4000, 1], ["bad", "0"]]),
        (("4000", "1"), ("bad", "0")),
        "a.xlsx",
    ),
    refused("a sheet with a header alone", _book(_SHEET[:1]), "no rows", "a.xlsx"),
    refused("an empty workbook", _book([]), "no rows", "a.xlsx"),
    refused("no workbook", b"PK no workbook", "damaged or locked Excel", "a.xlsx"),
    refused("no Parquet", b"PAR1 this is none", "damaged Parquet", "a.parquet"),
)
_PACKED = (
    read("a .csv.gz", gzip.compress(CSV.encode()), name="a.csv.gz"),
    read("a .tsv.gz", gzip.compress(CSV.replace(",", "\t").encode()), name="a.tsv.gz"),
    read("a .jsonl.gz", gzip.compress("\n".join(map(json.dumps, RECORDS)).encode()), name="a.jsonl.gz"),
    read("a .json.gz", gzip.compress(json.dumps(RECORDS).encode()), name="a.json.gz"),
    read("a .zip", _zip(("a.csv", CSV)), name="a.zip"),
    read(
        "a .zip of a Mac",
        _zip(("a.csv", CSV), ("__MACOSX/._a.csv", b"\0\1"), (".DS_Store", b"x")),
        name="a.zip",
    ),
    read(
        "a .zip with a readme",
        _zip(("README.md", "# about"), ("data/a.csv", CSV), ("license.csv", "x")),
        name="a.zip",
    ),
    read("a workbook in a .zip", _zip(("a.xlsx", _book(_SHEET))), name="a.zip"),
    refused("two tables in a .zip", _zip(("a.csv", CSV), ("b.csv", CSV)), "holds 2 tables", "a.zip"),
    refused("no table in a .zip", _zip(("a.txt", "x")), "has no .csv", "a.zip"),
    refused("an empty .zip", _zip(), "has no .csv", "a.zip"),
    refused("a .zip cut short", _zip(("a.csv", CSV))[:40], "damaged archive", "a.zip"),
    refused("a .gz cut short", gzip.compress(CSV.encode() * 50)[:-9], "damaged archive", "a.csv.gz"),
    refused("plain text named .gz", CSV, "damaged archive", "a.csv.gz"),
    refused("a .gz of unknown contents", gzip.compress(CSV.encode()), "save it as one of these", "a.gz"),
)


CURATED: tuple[OddFile, ...] = (*TEXT_FILES, *JSON_FILES, *_BOOKS, *_PACKED)
