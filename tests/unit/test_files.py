"""Reading files: detection of encoding, delimiter and header, round trips of labels, messages for damage."""

import csv
import functools
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from peft_core.data import files, workbooks
from peft_core.data.files import Table, read_table
from peft_core.data.formats import SUFFIXES
from peft_core.errors import DataError, PeftCoreError

quick = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
ROWS = [("Schöner Tag, wirklich", "gut"), ("Übel; sehr", "schlecht"), ("Na ja | so", "gut")]


def write(path: Path, data: bytes) -> Table:
    path.write_bytes(data)
    return read_table(path)


def delimited(rows: list[tuple], delimiter: str = ",", header: tuple = ("text", "label")) -> str:
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter).writerows([header, *rows] if header else rows)
    return out.getvalue()


def cells(table: Table, column: str) -> list:
    return table.frame[column].tolist()


@pytest.mark.parametrize("delimiter, name", [(",", "comma"), (";", "semicolon"), ("\t", "tab"), ("|", "bar")])
@pytest.mark.parametrize(
    "encoding, name_of_encoding",
    [
        ("utf-8", "utf-8"),
        ("utf-8-sig", "utf-8-sig"),
        ("utf-16", "utf-16"),
        ("utf-16-le", "utf-16-le"),
        ("utf-16-be", "utf-16-be"),
        ("latin-1", "cp1252"),
    ],
)
def test_read_table_detects_delimiter_and_encoding(
    tmp_path: Path, delimiter: str, name: str, encoding: str, name_of_encoding: str
) -> None:
    table = write(tmp_path / "reviews.csv", delimited(ROWS, delimiter).encode(encoding))
    assert list(zip(cells(table, "text"), cells(table, "label"), strict=True)) == ROWS
    facts = table.facts
    assert (facts["delimiter"], facts["encoding"], facts["header"]) == (name, name_of_encoding, True)
    assert (facts["name"], facts["rows"]) == ("reviews.csv", 3)
    assert list(table.frame.index) == [2, 3, 4], "rows are numbered as a spreadsheet does"


@pytest.mark.parametrize(
    "lines, header, columns",
    [
        (["Nr;Kommentar;Kategorie", "1;Sehr nett hier;gut", "2;Nie wieder;schlecht"], True, "Nr"),
        (["Kommentar;Kategorie", "Sehr nett;gut", "Nie wieder;übel", "Ganz nett;gut"], True, "Kommentar"),
        (["good film;pos", "bad film;neg", "nice;pos", "dull;neg"], False, "column 1"),
        (["1;good film", "0;bad film"], False, "column 1"),
        ([";text;label", "0;good film;pos", "1;bad film;neg"], True, "column 1"),
        (["text;text;label", "a b;c d;pos"], True, "text"),
    ],
)
def test_read_table_detects_header_row(tmp_path: Path, lines: list[str], header: bool, columns: str) -> None:
    table = write(tmp_path / "some.csv", "\n".join(lines).encode())
    assert table.facts["header"] is header
    assert table.frame.columns[0] == columns
    assert len(table.frame) == len(lines) - header
    assert len(set(table.frame.columns)) == len(table.frame.columns)


def test_read_table_keeps_cells_verbatim(tmp_path: Path) -> None:
    rows = [("null", "01"), ("NA", " a b "), ("nan", "1.0"), ('He said "no"\nand left', "Ünï ☂")]
    table = write(tmp_path / "typed.csv", delimited(rows).encode())
    assert cells(table, "label") == ["01", " a b ", "1.0", "Ünï ☂"]
    assert cells(table, "text") == [text for text, _ in rows]


def test_read_table_reads_literal_quotes_and_backslash_escapes(tmp_path: Path) -> None:
    literal = write(tmp_path / "loose.tsv", b'text\tlabel\n"Great movie\tpos\nA 5" screen\tneg\n')
    assert cells(literal, "text") == ['"Great movie', 'A 5" screen']
    assert literal.facts["quoting"] == "none"
    unclosed = write(tmp_path / "s.tsv", b'text\tlabel\n"Great\tpos\nFine\tpos\nA "great" one"\tneg\n')
    assert cells(unclosed, "label") == ["pos", "pos", "neg"]
    escaped = write(tmp_path / "slashed.csv", b'text,label\n"He said \\"hi\\", she",pos\n"No",neg\n')
    assert cells(escaped, "text") == ['He said "hi", she', "No"]
    assert escaped.facts["quoting"] == "backslash"


def test_read_table_skips_blank_lines_and_trailing_empty_cells(tmp_path: Path) -> None:
    table = write(tmp_path / "loose.csv", b"text,label\n\ngood,pos,,\nbad,neg\n\n")
    assert cells(table, "label") == ["pos", "neg"]
    assert list(table.frame.index) == [3, 4]


@pytest.mark.parametrize(
    "name, data, words",
    [
        (
            "a.csv",
            b"text,label\ngood,pos\nbad, but long,neg\n",
            ["'a.csv', row 3, column 3", "comma", "3 cells"],
        ),
        ("a.csv", b"text,label\ngood,pos\nbad\n", ["'a.csv', row 3, column 'label'", "1 cells"]),
        (
            "a.csv",
            b'text,label\nyes,pos\n"bad, so,neg\nfine,pos\n',
            ["'a.csv', row 3, column 1", "quotation"],
        ),
        ("a.csv", b"", ["no rows"]),
        ("a.csv", b" \n ", ["no rows"]),
        ("a.csv", b"text,label\n\x00\x01,pos\n", ["not a text file"]),
        ("a.csv", bytes(range(128, 256)) * 20, ["unknown encoding", "UTF-8"]),
        ("a.csv", "текст,метка\nхороший фильм,да\n".encode("cp1251") * 9, ["unknown encoding", "UTF-8"]),
        ("a.csv", "text,label\nà,b\n".encode("utf-16")[:-1], ["utf-16"]),
        ("a.jsonl", b'{"text": "a", "label": "b"}\n{"text": \n', ["'a.jsonl', row 2", "JSON"]),
        ("a.jsonl", b'{"text": "a"}\n[1, 2]\n', ["'a.jsonl', row 2", "not an object"]),
        ("a.json", b"[" * 100_000, ["'a.json', row 1", "JSON"]),
        (
            "a.jsonl",
            b'{"text": "a\\ud800", "label": "b"}',
            ["row 1, column 'text'", "lone surrogate"],
        ),
        ("a.parquet", b"PAR1 this is none", ["damaged Parquet"]),
        ("a.xlsx", b"PK no workbook", ["damaged or locked Excel"]),
        ("a.txt", b"text", ["save it as one of these"]),
        ("a.xls", b"text", ["save it as one of these"]),
    ],
)
def test_read_table_damaged_file_raises_with_position(
    tmp_path: Path, name: str, data: bytes, words: list[str]
) -> None:
    with pytest.raises(DataError) as error:
        write(tmp_path / name, data)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_read_table_reads_common_json_shapes(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": "01"}, {"text": "c"}]
    columns = {"text": ["a", "b", "c"], "label": [1, "01", None]}
    shapes = {
        "lines.jsonl": "\n".join(map(json.dumps, rows)),
        "lines.json": "\n".join(map(json.dumps, rows)) + "\n\n",
        "array.json": json.dumps(rows, indent=1),
        "columns.json": json.dumps(columns, indent=1),
        "named.json": json.dumps({"data": rows}),
    }
    for name, text in shapes.items():
        table = write(tmp_path / name, text.encode())
        assert cells(table, "label") == ["1", "01", None], name
        assert cells(table, "text") == ["a", "b", "c"], name


def test_read_table_parquet_keeps_types_and_label_names(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features).to_parquet(str(tmp_path / "a.parquet"))
    table = read_table(tmp_path / "a.parquet")
    assert cells(table, "label") == [1, 0]
    assert table.class_names == {"label": ("bad", "good")}
    lists = pa.table({"text": ["a"], "tags": [["x", "y"]], "score": [float("nan")]})
    pq.write_table(lists, tmp_path / "b.parquet")
    assert read_table(tmp_path / "b.parquet").frame.iloc[0].tolist() == ["a", ["x", "y"], None]


def excel(path: Path, rows: list[tuple], sheet: str = "Reviews") -> Path:
    book = openpyxl.Workbook()
    book.active.title = sheet
    for r, row in enumerate(rows, 1):
        for c, value in enumerate(row, 1):
            cell = book.active.cell(r, c, value)
            if isinstance(value, str) and value.startswith("="):
                cell.data_type = "s"
    book.create_sheet("Second").append(["not", "read"])
    book.save(path)
    return path


def test_read_table_excel_reads_first_sheet(tmp_path: Path) -> None:
    rows = [("text", "stars"), ("Good", 5), ("Bad", "01"), (None, None), ("Fine", 2.5)]
    table = read_table(excel(tmp_path / "a.xlsx", rows))
    assert cells(table, "stars") == ["5", "01", "2.5"]
    assert list(table.frame.index) == [2, 3, 5]
    assert table.facts["sheet"] == "Reviews"


def test_read_table_excel_formulas_give_cached_values(tmp_path: Path) -> None:
    excel(tmp_path / "plain.xlsx", [("text", "label"), ("Good", 3)])
    with zipfile.ZipFile(tmp_path / "plain.xlsx") as plain, zipfile.ZipFile(tmp_path / "f.xlsx", "w") as out:
        for name in plain.namelist():
            data = plain.read(name)
            out.writestr(name, data.replace(b"<v>3</v>", b"<f>1+2</f><v>3</v>"))
    assert cells(read_table(tmp_path / "f.xlsx"), "label") == [3]


def test_read_table_decompression_bomb_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (files, workbooks):
        monkeypatch.setattr(module, "MAX_UNPACKED_BYTES", 1_000_000)
    pq.write_table(pa.table({"text": ["word " * 1000] * 5000}), tmp_path / "bomb.parquet")
    excel(tmp_path / "bomb.xlsx", [("text", "label"), *[("word " * 1000, "a")] * 500])
    with zipfile.ZipFile(tmp_path / "bomb.xlsx", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/padding.xml", b" " * 2_000_000)
    for name in ("bomb.parquet", "bomb.xlsx"):
        assert (tmp_path / name).stat().st_size < 200_000
        with pytest.raises(DataError, match="unpacks to over 1 MB"):
            read_table(tmp_path / name)


def test_read_table_above_size_or_row_limit_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.csv").write_text("text,label\n" + "good,pos\n" * 50, encoding="utf-8")
    monkeypatch.setattr(files, "MAX_ROWS", 49)
    with pytest.raises(DataError, match="50 rows; at most 49"):
        read_table(tmp_path / "a.csv")
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 100)
    with pytest.raises(DataError, match="at most 0 MB"):
        read_table(tmp_path / "a.csv")


def test_read_table_accepts_giant_cell(tmp_path: Path) -> None:
    table = write(tmp_path / "a.csv", delimited([("word " * 2_000_000, "yes"), ("Short.", "no")]).encode())
    assert len(cells(table, "text")[0]) == 10_000_000


any_bytes = st.binary(max_size=300) | st.text(alphabet='abü,;|\t"\\\n\r {}[]:\0\ufeff', max_size=120).flatmap(
    lambda text: st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le"]).map(text.encode)
)


@quick
@given(data=any_bytes, suffix=st.sampled_from(SUFFIXES))
def test_read_table_random_bytes_give_rows_or_one_line_error(
    tmp_path_factory: Any, data: bytes, suffix: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    path.write_bytes(data)
    try:
        table = read_table(path)
    except PeftCoreError as error:
        assert "\n" not in str(error) and str(error)
    else:
        assert table.facts["rows"] == len(table.frame)
        assert all(isinstance(name, str) and name for name in table.frame.columns)


@functools.cache
def valid_file(suffix: str, path: Path) -> bytes:
    if suffix == ".parquet":
        pq.write_table(pa.table({"text": ["good", "bad"], "label": ["a", "b"]}), path)
    else:
        excel(path, [("text", "label"), ("good", "a"), ("bad", "b")])
    return path.read_bytes()


@quick
@given(data=st.data(), suffix=st.sampled_from((".parquet", ".xlsx")))
def test_read_table_corrupted_file_gives_rows_or_one_line_error(
    tmp_path_factory: Any, data: st.DataObject, suffix: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"damaged{suffix}"
    content = bytearray(valid_file(suffix, path.with_name(f"whole{suffix}")))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(
        content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    )
    try:
        read_table(path)
    except PeftCoreError as error:
        assert "\n" not in str(error)


letters = st.characters(exclude_categories=("Cs",), exclude_characters="\0")
labels = st.lists(
    st.text(letters, min_size=1, max_size=12).filter(str.strip), min_size=2, max_size=6, unique=True
)


@quick
@example(names=["0", "label"], suffix=".csv")
@given(names=labels, suffix=st.sampled_from((".csv", ".tsv", ".jsonl", ".json", ".parquet")))
def test_read_table_labels_round_trip(tmp_path_factory: Any, names: list[str], suffix: str) -> None:
    path = tmp_path_factory.getbasetemp() / f"round{suffix}"
    rows = [(f"Some text, number {i}", name) for i, name in enumerate(names * 3)]
    records = [{"text": text, "label": label} for text, label in rows]
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    elif suffix in (".csv", ".tsv"):
        path.write_bytes(delimited(rows, "\t" if suffix == ".tsv" else ",").encode())
    else:
        text = json.dumps(records) if suffix == ".json" else "\n".join(map(json.dumps, records))
        path.write_text(text, encoding="utf-8")
    assert cells(read_table(path), "label") == names * 3


printable_labels = st.text(letters.filter(lambda c: c.isprintable()), min_size=1, max_size=12).filter(
    str.strip
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(names=st.lists(printable_labels, min_size=2, max_size=6, unique=True))
def test_read_table_labels_round_trip_through_excel(tmp_path_factory: Any, names: list[str]) -> None:
    rows = [("text", "label"), *[(f"Some text, number {i}", name) for i, name in enumerate(names * 3)]]
    path = excel(tmp_path_factory.getbasetemp() / "round.xlsx", rows)
    assert cells(read_table(path), "label") == names * 3
