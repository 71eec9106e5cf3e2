"""Hostile Parquet files and workbooks: small on disk, and large, deep or inconsistent when read."""

import io
import random
import zipfile
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batteries.bomb_archives import MAX_BYTES, NamedFile, zipped

_SHEET = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_RELATIONS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_TYPES = "application/vnd.openxmlformats-officedocument.spreadsheetml."
_CELL = "<c t='inlineStr'><is><t>%s</t></is></c>"
_TABLE = f"<row r='1'>{_CELL % 'text'}{_CELL % 'label'}</row>"


def _parquet(columns: dict[str, Any], **options: Any) -> bytes:
    out = io.BytesIO()
    table = pa.table(columns)
    pq.write_table(table, out, **{"compression": "zstd", "store_schema": False, **options})
    return out.getvalue()


def _reviews(rows: int) -> dict[str, list[str]]:
    return {"text": [f"good {i}" for i in range(rows)], "label": [("pos", "neg")[i % 2] for i in range(rows)]}


def repeated_text(rng: random.Random) -> NamedFile:
    """One dictionary entry that is the text of every row."""
    rows, length = rng.choice((1000, 15_000, 100_000)), rng.choice((10_000, 1_000_000, 8_000_000))
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["a" * length]))
    return "a.parquet", _parquet({"text": texts, "label": ["x", "y"] * (rows // 2)})


def empty_cells(rng: random.Random) -> NamedFile:
    """Null cells, which take no bytes."""
    rows, columns = rng.choice((1_000_000, 3_000_000)), rng.choice((2, 19, 90))
    nulls = {f"column {i}": pa.nulls(rows, pa.int32()) for i in range(columns)}
    return "a.parquet", _parquet({"text": pa.nulls(rows, pa.string()), **nulls})


def false_row_count(rng: random.Random) -> NamedFile:
    """A footer with a false number of rows."""
    data, rows = _parquet(_reviews(123_457)), 2 * 123_457
    varint = bytes([rows & 127 | 128, rows >> 7 & 127 | 128, rows >> 14])
    other = rng.choice((b"\xfe\xff\x7f", b"\x81\x80\x00", b"\xff\xff\x7f", b"\x80\x81\x01"))
    footer = data.rindex(b"PAR1") - int.from_bytes(data[-8:-4], "little") - 4
    return "a.parquet", data[:footer] + data[footer:].replace(varint, other)


def thousands_of_columns(rng: random.Random) -> NamedFile:
    return "a.parquet", _parquet({f"column {i}": ["x"] for i in range(rng.choice((1001, 4000, 8000)))})


def deep_types(rng: random.Random) -> NamedFile:
    kind: Any = pa.string()
    for _ in range(rng.choice((20, 90, 250))):
        kind = pa.list_(kind) if rng.random() < 0.5 else pa.struct([("a", kind)])
    return "a.parquet", _parquet({"text": ["good"], "deep": pa.nulls(1, kind)})


def damaged_footer(rng: random.Random) -> NamedFile:
    data = bytearray(_parquet(_reviews(2000)))
    for _ in range(rng.randint(1, 20)):
        data[rng.randrange(len(data) - 600, len(data) - 4)] = rng.randrange(256)
    return "a.parquet", bytes(data)


def false_footer_length(rng: random.Random) -> NamedFile:
    data = bytearray(_parquet(_reviews(2000)))
    length = rng.choice((0, 1, 2**31 - 1, 2**32 - 1, len(data), len(data) - 12, 100_000_000))
    data[-8:-4] = length.to_bytes(4, "little")
    return "a.parquet", bytes(data)


def false_page_sizes(rng: random.Random) -> NamedFile:
    """Page headers with sizes up to 2 GB, which the footer does not repeat."""
    compression = rng.choice(("zstd", "snappy", "gzip", "none"))
    data = bytearray(_parquet(_reviews(5000), compression=compression, use_dictionary=rng.random() < 0.5))
    offset = 7  # after magic and type of the first page: uncompressed, then compressed size
    if rng.random() < 0.5:
        while data[offset] & 128:
            offset += 1
        offset += 2
    end = offset
    while data[end] & 128:
        end += 1
    data[offset : end + 1] = b"\xfe" + b"\xff" * (end - offset - 1) + b"\x7f" if end > offset else b"\x7e"
    if rng.random() < 0.3:
        data[offset : end + 1] = b"\xfe\xff\xff\xff\x0f"  # 2 GB; the following fields shift by two bytes
    return "a.parquet", bytes(data)


def plain_pages(rng: random.Random) -> NamedFile:
    """Pages without a dictionary, of one repeated character."""
    text = "a" * 1_000_000
    rows = rng.randint(100, 300)
    return "a.parquet", _parquet({"text": [text] * rows, "label": ["x"] * rows}, use_dictionary=False)


def _book(sheet: str, shared: str = "", sheets: Sequence[tuple[str, str]] = (("a", "rId1"),)) -> bytes:
    """Return a workbook with this XML in its sheet and its shared strings."""
    head = "<?xml version='1.0'?>"
    sheet_elements = "".join(
        f"<sheet name='{name}' sheetId='{i}' r:id='{part}'/>" for i, (name, part) in enumerate(sheets, 1)
    )
    relation = f"<Relationship Id='%s' Type='{_RELATIONS}/%s' Target='%s'/>"
    inside = "http://schemas.openxmlformats.org/package/2006/"
    parts = {
        "[Content_Types].xml": f"<Types xmlns='{inside}content-types'>"
        f"<Override PartName='/xl/workbook.xml' ContentType='{_TYPES}sheet.main+xml'/>"
        f"<Override PartName='/xl/sharedStrings.xml' ContentType='{_TYPES}sharedStrings+xml'/></Types>",
        "_rels/.rels": f"<Relationships xmlns='{inside}relationships'>"
        f"{relation % ('rId1', 'officeDocument', 'xl/workbook.xml')}</Relationships>",
        "xl/_rels/workbook.xml.rels": f"<Relationships xmlns='{inside}relationships'>"
        f"{relation % ('rId1', 'worksheet', 'worksheets/sheet1.xml')}"
        f"{relation % ('rId2', 'sharedStrings', 'sharedStrings.xml')}</Relationships>",
        "xl/workbook.xml": f"<workbook xmlns='{_SHEET}' xmlns:r='{_RELATIONS}'>"
        f"<sheets>{sheet_elements}</sheets></workbook>",
        "xl/worksheets/sheet1.xml": sheet
        if sheet.startswith("<?xml")
        else f"<worksheet xmlns='{_SHEET}'>{sheet}</worksheet>",
        "xl/sharedStrings.xml": f"<sst xmlns='{_SHEET}'>{shared}</sst>",
    }  # fmt: skip
    return zipped(
        {name: (text if text.startswith("<?") else head + text).encode() for name, text in parts.items()}
    )


def shared_strings(rng: random.Random) -> NamedFile:
    """50 MB of shared strings, few or millions."""
    text = rng.choice(("a" * 50_000_000, "a" * 1000, "a", ""))
    element = f"<si><t>{text}</t></si>" if text else "<si/>"
    rows = f"<sheetData>{_TABLE}<row><c t='s'><v>0</v></c><c t='s'><v>0</v></c></row></sheetData>"
    return "a.xlsx", _book(rows, element * max(1, 50_000_000 // len(element)))


def claimed_cells(rng: random.Random) -> NamedFile:
    """A sheet that declares 1,048,576 rows and 16,384 columns and has few cells."""
    far = "".join(f"<row r='{n}'><c r='XFD{n}'><v>1</v></c></row>" for n in (2, 1000, 1_048_576))
    if rng.random() < 0.5:
        far = "".join(f"<row r='{n}'><c r='XFD{n}'><v>1</v></c></row>" for n in range(2, 50_000))
    claim = "<dimension ref='A1:XFD1048576'/>"
    return "a.xlsx", _book(f"{claim}<sheetData>{_TABLE}{far}</sheetData>")


def many_rows(rng: random.Random) -> NamedFile:
    row = rng.choice(("<row/>", "<row><c/></row>", "<row><c><v>1</v></c><c><v>2</v></c></row>"))
    return "a.xlsx", _book(
        f"<sheetData>{_TABLE}{row * (rng.choice((20, 90)) * 1_000_000 // len(row))}</sheetData>"
    )


def entities(rng: random.Random) -> NamedFile:
    """Nested XML entities (billion laughs), or one long entity with many references."""
    if rng.random() < 0.5:
        names = [f"<!ENTITY e{i} '{f'&e{i - 1};' * 10 if i else 'lol'}'>" for i in range(12)]
        declarations, references = "".join(names), "&e11;"
    else:
        declarations, references = f"<!ENTITY e '{'a' * 1_000_000}'>", "&e;" * 10_000
    cell = f"<row r='2'><c r='A2' t='inlineStr'><is><t>{references}</t></is></c></row>"
    sheet = f"<worksheet xmlns='{_SHEET}'><sheetData>{_TABLE}{cell}</sheetData></worksheet>"
    return "a.xlsx", _book(f"<?xml version='1.0'?><!DOCTYPE worksheet [{declarations}]>{sheet}")


def deep_elements(rng: random.Random) -> NamedFile:
    depth = rng.choice((10_000, 1_000_000, 5_000_000))
    return "a.xlsx", _book(f"<sheetData>{_TABLE}{'<row>' * depth}{'</row>' * depth}</sheetData>")


def many_sheets(rng: random.Random) -> NamedFile:
    """Thousands of sheet names for one sheet of a million blank rows."""
    sheets = [(f"sheet {i}", "rId1") for i in range(rng.choice((300, 5000, 200_000)))]
    return "a.xlsx", _book(f"<sheetData>{'<row/>' * 1_000_000}</sheetData>", sheets=sheets)


def long_token(rng: random.Random) -> NamedFile:
    """One attribute, comment or text that a parser must buffer completely."""
    long = "a" * rng.choice((9_000_000, 60_000_000))
    inside = rng.choice((f"<!--{long}-->", f"<row spans='{long}'/>", f"<row>{_CELL % long}</row>"))
    return "a.xlsx", _book(f"<sheetData>{_TABLE}{inside}</sheetData>")


def xml_beyond_limits(rng: random.Random) -> NamedFile:
    return "a.xlsx", zipped({"xl/workbook.xml": b" " * rng.choice((101_000_000, 300_000_000))})


def book_in_book(rng: random.Random) -> NamedFile:
    inner = _book(f"<sheetData>{_TABLE}</sheetData>")
    for _ in range(rng.randint(1, 20)):
        inner = zipped({"xl/worksheets/sheet1.xml": inner, "xl/workbook.xml": inner}, zipfile.ZIP_STORED)
        if len(inner) > MAX_BYTES // 3:
            break
    return rng.choice((("a.xlsx", inner), ("a.zip", zipped({"a.xlsx": inner}))))


PARQUET = (
    repeated_text, false_page_sizes, empty_cells, damaged_footer, thousands_of_columns, false_row_count,
    deep_types, plain_pages, false_footer_length,
)  # fmt: skip
WORKBOOKS = (
    entities, shared_strings, claimed_cells, deep_elements, many_rows, many_sheets, long_token,
    xml_beyond_limits, book_in_book,
)  # fmt: skip
