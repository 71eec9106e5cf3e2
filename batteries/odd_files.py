"""A seeded generator of odd data files: random tables in every format, encoding and packing, some damaged.

The expected rows are those of the table that the file was made from, never those of a reader.
"""

import csv
import gzip
import io
import json
import random
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq

from batteries.odd_file import OddFile, Rows

_WORDS = {
    "ascii": [
        "good",
        "bad film",
        "it's",
        'a 5" screen',
        "x;y",
        "a|b",
        "a, b",
        "C:\\new",
        "=1+1",
        "NA",
        "null",
        "007",
    ],
    "western": [
        "café",
        "Größe",
        "señor",
        "naïve idea",
        "déjà vu",
        "fine",
        "not bad at all",
        "£5 – ok",
        "the “best”",
    ],
    "any": [
        "日本語",
        "хорошо",
        "😀",
        "café",
        "a\u2028b",
        "x\u00a0y",
        "naïve",
        "plain",
        "\u200bhidden",
        "مرحبا",
        "e\u0301",
    ],
}
_LABELS = (["pos", "neg"], ["1", "0"], ["sehr gut", "schlecht"], ["01", "02", "03"], ["Yes", "No ", "n/a"])
_HEADERS = (("text", "label"), ("Text", "Label"), ("sentence", "sentiment"), ("review", "stars"))
_EXTRA = ("id", "note", "Übersicht", "", "note", "date", "a.b")
_DELIMITERS = (",", ";", "\t", "|")
_ENDINGS = ("\n", "\r\n", "\r")
_PADDING = "and the rest of this line is plain English so that accents stay rare "


def odd_file(seed: int, number: int) -> OddFile:
    """Return the file with this number in the sequence of this seed."""
    rng = random.Random(f"{seed}/{number}")
    kind = rng.choices(list(_KINDS), weights=[weight for _, weight in _KINDS.values()])[0]
    make, _ = _KINDS[kind]
    return make(rng, f"{kind} {seed}/{number}")


def _table(
    rng: random.Random, profile: str, columns: int | None = None
) -> tuple[tuple[str, ...], list[list[str]]]:
    """Return column names and rows; the first two columns are text and label."""
    header = list(rng.choice(_HEADERS))
    labels = rng.choice(_LABELS)
    extra = rng.sample(_EXTRA, rng.choice((0, 0, 1, 2, 4))) if columns is None else []
    rows = []
    for i in range(rng.choice((1, 2, 3, 5, 12, 40))):
        padding = _PADDING if profile == "western" else ""
        text = f"{i} {rng.choice(_WORDS[profile])} {padding}{rng.choice(_WORDS['ascii'])}"
        if rng.random() < 0.15:
            text = rng.choice(["", "  ", "two\nlines", '"quoted"', "tab\there", " spaced ", "'", "a" * 3000])
        more = [rng.choice([*_WORDS[profile], "", "1,5", "12"]) for _ in extra]
        rows.append([text, labels[i % len(labels)], *more])
    if columns == 1:
        header, rows = header[:1], [row[:1] for row in rows]
    return (*header, *extra), rows


def _csv_text(
    rng: random.Random, columns: Sequence[str], rows: Sequence[Sequence[str]], delimiter: str, ending: str
) -> list[str]:
    """Return each record as CSV, the header first."""
    quoting = rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    records = []
    for row in (columns, *rows):
        out = io.StringIO(newline="")
        csv.writer(out, delimiter=delimiter, quoting=quoting).writerow(row)
        records.append(out.getvalue().removesuffix("\r\n") + ending)
    return records


def _encoded(rng: random.Random, text: str, profile: str) -> bytes:
    encodings = ["utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32"]
    encodings += ["cp1252", "utf-16-le", "utf-16-be"] if profile == "western" else []
    return text.encode(rng.choice(encodings))


def _packed(rng: random.Random, name: str, data: bytes, *, gz: bool = True) -> tuple[str, bytes]:
    """Return the file unchanged, as .gz, or in a .zip with files that are not data."""
    choice = rng.choice(("plain", "plain", "plain", "gz", "zip"))
    if choice == "gz" and gz:
        return f"{name}.gz", gzip.compress(data, 1)
    if choice == "zip":
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("README.md", "about")
            archive.writestr(f"folder/{name}", data)
            archive.writestr(f"__MACOSX/folder/._{name}", b"\0\5\26\7")
        return "packed.zip", out.getvalue()
    return name, data


def _delimited(rng: random.Random, title: str) -> OddFile:
    profile = rng.choice(list(_WORDS))
    columns, rows = _table(rng, profile)
    delimiter, ending = rng.choice(_DELIMITERS), rng.choice(_ENDINGS)
    records = _csv_text(rng, columns, rows, delimiter, ending)
    expected_rows = [list(row) for row in rows]
    if rng.random() < 0.2:  # some programs write empty cells at the end of a row
        index = rng.randrange(1, len(records))
        records[index] = records[index].removesuffix(ending) + delimiter * rng.randint(1, 3) + ending
    predicted = expected_rows
    if rng.random() < 0.3:
        index = rng.randrange(1, len(records))
        records.insert(index, rng.choice(("", "  ")) + ending)
        predicted = [*expected_rows[: index - 1], [""] * len(columns), *expected_rows[index - 1 :]]
    text = "".join(records)
    text = text.removesuffix(ending) if rng.random() < 0.3 else text + ending * rng.choice((0, 0, 1, 3))
    if rng.random() < 0.05:
        text = f"sep={delimiter}{ending}{text}"
    name, data = _packed(rng, f"a.{'tsv' if delimiter == chr(9) else 'csv'}", _encoded(rng, text, profile))
    return OddFile(title, name, data, columns, _rows(expected_rows), _rows(predicted))


def _one_column(rng: random.Random, title: str) -> OddFile:
    """A column of texts with blank lines at random places."""
    columns, rows = _table(rng, "any", 1)
    ending = rng.choice(_ENDINGS)
    records = _csv_text(rng, columns, rows, ",", ending)
    cells = [row[0] for row in rows]
    for _ in range(rng.randint(0, 4)):
        index = rng.randint(1, len(records))
        records.insert(index, ending)
        cells.insert(index - 1, "")
    if not any(cell.strip() for cell in cells):
        return OddFile(title, "a.csv", "".join(records).encode(), refusal="no rows")
    return OddFile(title, "a.csv", "".join(records).encode(), columns, tuple((cell,) for cell in cells))


def _damaged_bytes(rng: random.Random, title: str) -> OddFile:
    """One invalid or zero byte in one row of a UTF-8 file with accents in the other rows."""
    rows = [
        [f"{i} café {rng.choice(_WORDS['any'])}", "pos" if i % 2 else "neg"]
        for i in range(rng.randint(3, 30))
    ]
    damaged_row = rng.randrange(len(rows))
    damage = rng.choice((b"\xff", b"\xc3", b"\x80", b"\0", b"\xe2\x82", b"\xf0\x9f\x98"))
    marked = [
        [text.replace("café", "caf\x01") if i == damaged_row else text, label]
        for i, (text, label) in enumerate(rows)
    ]
    if rng.random() < 0.5:
        name, text = "a.csv", "".join(_csv_text(rng, ("text", "label"), marked, ",", "\n"))
        data = text.encode().replace(b"\x01", damage)
    else:
        lines = [json.dumps({"text": t, "label": y}, ensure_ascii=rng.random() < 0.2) for t, y in marked]
        name, data = "a.jsonl", "\n".join(lines).encode().replace(b"\x01", damage).replace(b"\\u0001", damage)
    if (
        damage != b"\0" and data.replace(damage, b"").isascii()
    ):  # without other accents it may be Windows-1252
        return OddFile(title, name, data)
    data = "﻿".encode() + data if rng.random() < 0.2 else data
    name, data = _packed(rng, name, data)
    return OddFile(title, name, data, ("text", "label"), _rows(rows), loose=frozenset({damaged_row}))


def _ragged(rng: random.Random, title: str) -> OddFile:
    columns, rows = _table(rng, "ascii")
    delimiter = rng.choice(_DELIMITERS)
    records = _csv_text(rng, columns, rows, delimiter, "\n")
    index = rng.randrange(1, len(records))
    records[index] = rng.choice(("only one cell\n", "a" + f"{delimiter}x" * (len(columns) + 1) + "\n"))
    return OddFile(title, "a.csv", "".join(records).encode(), may_refuse=True)


def _header_only(rng: random.Random, title: str) -> OddFile:
    columns, _ = _table(rng, "ascii")
    text = rng.choice(_DELIMITERS).join(name or "text" for name in columns) + rng.choice(
        ("", "\n", "\r\n\r\n")
    )
    name, data = _packed(rng, "a.csv", text.encode(rng.choice(("utf-8", "utf-8-sig", "utf-16"))))
    return OddFile(title, name, data, refusal="no rows")


def _json_value(rng: random.Random, cell: str) -> Any:
    return int(cell) if cell.isdigit() and not cell.startswith("0") and rng.random() < 0.5 else cell


def _json(rng: random.Random, title: str) -> OddFile:
    """Rows in one of the shapes of JSON; numbers among texts are read as text."""
    columns, rows = _table(rng, rng.choice(list(_WORDS)))
    columns = tuple(
        name or f"c{i}" if columns.index(name) == i else f"{name}{i}" for i, name in enumerate(columns)
    )
    columns = tuple(name.replace(".", "_") for name in columns)
    records = [dict(zip(columns, [_json_value(rng, c) for c in row], strict=True)) for row in rows]
    ascii_only, indent = rng.random() < 0.5, rng.choice((None, None, 1))
    shape = rng.choice(("lines", "lines", "array", "under", "lists", "columns", "index", "split"))
    if shape in ("columns", "index") and len(records) < 2:
        shape = "array"
    values: dict[str, Any] = {
        "array": records,
        "under": {"version": "1.0", "count": len(records), rng.choice(("data", "rows", "items")): records},
        "lists": {name: [record[name] for record in records] for name in columns},
        "columns": {name: {str(i): r[name] for i, r in enumerate(records)} for name in columns},
        "index": {f"row{i}": record for i, record in enumerate(records)},
        "split": {
            "columns": columns,
            "index": [*range(len(records))],
            "data": [[*r.values()] for r in records],
        },
    }
    if shape == "lines":
        text = rng.choice(_ENDINGS).join(json.dumps(record, ensure_ascii=ascii_only) for record in records)
    else:
        text = json.dumps(values[shape], ensure_ascii=ascii_only, indent=indent)
    encoding = rng.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16"))
    name, data = _packed(rng, rng.choice(("a.jsonl", "a.json")), text.encode(encoding))
    return OddFile(f"{title} ({shape})", name, data, columns, _rows(rows))


def _export(rng: random.Random, title: str) -> OddFile:
    """An export of Label Studio, Doccano or Argilla with one label per text."""
    texts = [f"{i} {rng.choice(_WORDS['any'])}" for i in range(rng.randint(2, 12))]
    labels = [rng.choice(("pos", "neg")) for _ in texts]
    pairs, tool = list(zip(texts, labels, strict=True)), rng.choice(list(_EXPORTS))
    records = [_EXPORTS[tool](i, text, label) for i, (text, label) in enumerate(pairs)]
    lines = tool == "Doccano" or rng.random() < 0.3
    text = "\n".join(map(json.dumps, records)) if lines else json.dumps(records, indent=rng.choice((None, 2)))
    return OddFile(f"{title} ({tool})", "a.jsonl" if lines else "a.json", text.encode(), None, _rows(pairs))


_EXPORTS: dict[str, Callable[[int, str, str], dict[str, Any]]] = {
    "Label Studio": lambda i, text, label: {
        "id": i,
        "data": {"text": text},
        "annotations": [
            {"was_cancelled": True, "result": []},
            {
                "result": [
                    {"from_name": "s", "to_name": "text", "type": "choices", "value": {"choices": [label]}}
                ]
            },
        ],
    },
    "Doccano": lambda i, text, label: {"id": i, "text": text, "label": [label], "Comments": []},
    "Argilla": lambda i, text, label: {
        "id": str(i),
        "fields": {"text": text},
        "metadata": {},
        "suggestions": {},
        "responses": {"label": [{"value": label, "user_id": "u"}]},
    },
}


def _workbook(rng: random.Random, title: str) -> OddFile:
    """A table in a workbook, possibly below titles or with a blank row."""
    columns, rows = _table(rng, "any")
    columns = tuple(name or f"c{i}" for i, name in enumerate(columns))
    book = openpyxl.Workbook(write_only=True)
    if rng.random() < 0.4:
        book.create_sheet("About").append(["See the next sheet"])
    sheet, titles = book.create_sheet("Reviews"), rng.random() < 0.4
    for row in [["Reviews of spring"], []] * titles:
        sheet.append(row)
    rows = [[_sheet_text(cell) for cell in row] for row in rows]
    rows = [row if any(row) else ["x", *row[1:]] for row in rows]
    predicted = list(rows)
    sheet.append([_text_cell(sheet, name) for name in columns])
    gap = rng.randrange(1, len(rows)) if len(rows) > 1 and rng.random() < 0.2 else None
    for i, row in enumerate(rows):
        if i == gap:
            sheet.append([])
            predicted = [*rows[:i], [""] * len(columns), *rows[i:]]
        sheet.append([_text_cell(sheet, cell) for cell in row])
    out = io.BytesIO()
    book.save(out)
    name, data = _packed(rng, "a.xlsx", out.getvalue(), gz=False)
    return OddFile(title, name, data, None, _rows(rows), _rows(predicted))


def _sheet_text(cell: str) -> str:
    return cell.replace("\r", "").strip()


def _text_cell(sheet: Any, text: str) -> Any:
    cell = openpyxl.cell.WriteOnlyCell(sheet, text or None)
    cell.data_type = "s" if text else cell.data_type
    return cell


def _parquet(rng: random.Random, title: str) -> OddFile:
    _, rows = _table(rng, "any", 2)
    nested = rng.random() < 0.3
    names = ("review.text", "label") if nested else ("text", "label")
    texts, labels = [row[0] for row in rows], [row[1] for row in rows]
    table = pa.table(
        {"review": [{"text": t} for t in texts], "label": labels}
        if nested
        else {"text": texts, "label": labels}
    )
    out = io.BytesIO()
    pq.write_table(table, out)
    name, data = _packed(rng, "a.parquet", out.getvalue(), gz=False)
    return OddFile(title, name, data, names, _rows([row[:2] for row in rows]))


def _broken(rng: random.Random, title: str) -> OddFile:
    """Another generated file, truncated or with changed bytes; any rows and any `PeftCoreError` are right."""
    make = rng.choice((_delimited, _json, _workbook, _parquet, _export, _one_column))
    source = make(rng, title)
    data = bytearray(source.data)
    if rng.random() < 0.5:
        data = data[: rng.randrange(len(data) + 1)]
    for _ in range(rng.randint(0, 4) if data else 0):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return OddFile(f"{title} of {source.title}", source.name, bytes(data), may_refuse=True)


def _noise(rng: random.Random, title: str) -> OddFile:
    """Random characters with a meaning for parsers."""
    alphabet = 'ab é,;|\t"\\\n\r {}[]:\0\ufeff123.e-' if rng.random() < 0.7 else "a\n,"
    text = "".join(rng.choices(alphabet, k=rng.randint(0, 120)))
    suffix = rng.choice(
        (".csv", ".tsv", ".jsonl", ".json", ".csv.gz", ".jsonl.gz", ".zip", ".xlsx", ".parquet")
    )
    return OddFile(
        title, f"a{suffix}", text.encode(rng.choice(("utf-8", "utf-16", "utf-16-le"))), may_refuse=True
    )


def _rows(rows: Sequence[Sequence[str]]) -> Rows:
    return tuple(tuple(row) for row in rows)


_KINDS: dict[str, tuple[Callable[[random.Random, str], OddFile], int]] = {
    "delimited": (_delimited, 30),
    "one column": (_one_column, 8),
    "damaged bytes": (_damaged_bytes, 12),
    "ragged": (_ragged, 6),
    "header only": (_header_only, 4),
    "JSON": (_json, 16),
    "export": (_export, 5),
    "workbook": (_workbook, 5),
    "Parquet": (_parquet, 4),
    "broken": (_broken, 8),
    "noise": (_noise, 8),
}
