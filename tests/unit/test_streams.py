"""Streams of rows: their chunks equal the whole table, and writers append columns to them."""

import csv
import errno
import gzip
import io
import zipfile
from pathlib import Path
from typing import Any

import openpyxl
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from peft_core.data import streams, unpacking, workbooks, writers
from peft_core.data.files import read_table
from peft_core.data.streams import open_rows
from peft_core.data.unpacking import unpacked_bytes
from peft_core.data.writers import escape_formula, writer_for
from peft_core.errors import DataError

CASES = Path(__file__).parents[1] / "cases"
ROWS = [("Grüße, „Welt“", "gut"), ('sie sagte "nein"', "schlecht"), ("", "gut"), ("zwei\nZeilen", "gut")] * 30


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Split files of about 100 rows into many chunks."""
    for module in (streams, writers):
        monkeypatch.setattr(module, "CHUNK_ROWS", 7)


def write_rows(path: Path, encoding: str = "utf-8") -> Path:
    """Write ROWS in the format of the path's suffix."""
    frame = pd.DataFrame(ROWS, columns=["Meinung", "Urteil"])
    if path.suffix in (".csv", ".tsv"):
        separator = "\t" if path.suffix == ".tsv" else ";"
        frame.to_csv(path, index=False, sep=separator, encoding=encoding, errors="replace")
    elif path.suffix == ".parquet":
        frame.assign(stars=range(len(frame))).to_parquet(path)
    elif path.suffix == ".xlsx":
        frame.to_excel(path, index=False)
    elif path.suffix == ".json":
        frame.to_json(path, orient="records", force_ascii=False)
    else:
        frame.to_json(path, orient="records", lines=True, force_ascii=False)
    return path


@pytest.mark.parametrize(
    "name",
    ["a.csv", "a.tsv", "a.jsonl", "a.json", "a.parquet", "a.xlsx"],
)
def test_stream_chunks_equal_whole_table(name: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path / name)
    frame, stream = read_table(path).frame, open_rows(path)
    chunks = list(stream.chunks())
    assert stream.columns == list(frame.columns)
    assert [row for chunk in chunks for row in chunk] == [list(row) for row in frame.itertuples(index=False)]
    assert len(chunks) > 10 and max(map(len, chunks)) <= 7
    assert list(stream.chunks()) == chunks, "a stream can be read again"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252", "utf-16-le"])
def test_stream_of_each_encoding_equals_table(encoding: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.csv", encoding)
    frame, stream = read_table(path).frame, open_rows(path)
    assert [row for chunk in stream.chunks() for row in chunk] == [
        list(r) for r in frame.itertuples(index=False)
    ]


def test_stream_with_late_non_utf8_byte_is_decoded(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(streams, "_HEAD", 200)
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,label\n" + b"good,yes\n" * 100 + "schön,yes\n".encode("cp1252"))
    *_, last = open_rows(path).chunks()
    assert last[-1] == ["schön", "yes"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"text,label\n" + b"good,yes\n" * 50 + b"one,two,three\n", "row 52.*3 cells where 2"),
        ("a.csv", b"text,label\n" + b'"so, good",yes\n' * 50 + b'"open,yes\n', "never closed"),
        ("a.jsonl", b'{"text": "a"}\n' * 20 + b'{"text": \n', "row 21 is not valid JSON"),
        ("a.jsonl", b'{"text": "a"}\n' * 20 + b"[1]\n", "row 21.*not an object"),
        ("a.parquet", b"PAR1 nothing", "damaged Parquet"),
        ("a.xlsx", b"PK no zip", "damaged or locked Excel"),
        ("a.csv", b"", "has no rows"),
        ("a.pkl", b"\x80\x04", "is not a .csv"),
    ],
)
def test_stream_of_damaged_file_raises_data_error(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(open_rows(path).chunks())


def test_stream_of_zip_bomb_workbook_raises_data_error(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(workbooks, "MAX_UNPACKED_BYTES", 1_000_000)
    pd.DataFrame({"text": ["good"] * 5}).to_excel(tmp_path / "bomb.xlsx", index=False)
    with zipfile.ZipFile(tmp_path / "bomb.xlsx", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/padding.xml", b" " * 2_000_000)
    with pytest.raises(DataError, match="unpacks to over 1 MB"):
        list(open_rows(tmp_path / "bomb.xlsx").chunks())


def test_open_rows_of_missing_file_raises_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file or directory"):
        open_rows(tmp_path / "none.csv")


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json", "a.parquet", "a.xlsx", "a.csv.gz", "a.zip"])
def test_readers_of_removed_file_raise_data_error_without_folder(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    plain = write_rows(tmp_path / "plain.csv") if name in ("a.csv.gz", "a.zip") else write_rows(path)
    if name == "a.csv.gz":
        path.write_bytes(gzip.compress(plain.read_bytes()))
    if name == "a.zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(plain, "plain.csv")
    stream = open_rows(path)
    path.unlink()
    readers = [read_table, open_rows, lambda path: unpacked_bytes(path, 1_000_000)]
    if name != "a.json":  # it is read as a whole
        readers.append(lambda path: list(stream.chunks()))
    for read in readers:
        with pytest.raises(DataError, match=f"'{name}' cannot be read: No such file") as error:
            read(path)
        assert str(tmp_path) not in str(error.value)


class FailingFile(io.BytesIO):
    """A file that can be opened but not read."""

    def read(self, *size: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error", "/data/a.csv")

    read1 = readinto = read  # type: ignore[assignment]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_stream_with_disk_error_between_rows_raises_data_error(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = open_rows(write_rows(tmp_path / name))
    monkeypatch.setattr(unpacking.DataFile, "open", lambda file, max_bytes: FailingFile())
    with pytest.raises(DataError, match=f"^'{name}' cannot be read: Input/output error.$"):
        list(stream.chunks())


def rewrite(path: Path) -> tuple[Path, Any]:
    """Copy a file with three more columns, one of which has the name of an existing column."""
    stream = open_rows(path)
    writer_class = writer_for(stream)
    out = path.with_name("out" + (writer_class.suffix or path.suffix))
    writer = writer_class(out, stream, {stream.columns[0]: str, "sure": float, "silent": bool})
    for rows in stream.chunks():
        writer.write(rows, [[None, 0.25, False]] * len(rows))
    writer.close()
    return out, writer


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json", "a.parquet", "a.xlsx"])
def test_writer_keeps_row_order_and_appends_columns(name: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path / name)
    before = read_table(path).frame
    out, _ = rewrite(path)
    after = read_table(out).frame
    assert list(after.columns) == [*before.columns, "Meinung (2)", "sure", "silent"]
    pd.testing.assert_frame_equal(
        after[before.columns].reset_index(drop=True), before.reset_index(drop=True), check_dtype=False
    )
    assert {str(value) for value in after["sure"]} == {"0.25"}


def test_parquet_writer_keeps_column_types(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"text": ["a", "b"], "when": pa.array([1, 2], pa.timestamp("s")), "n": [[1], None]})
    pq.write_table(table, path)
    out, _ = rewrite(path)
    assert pq.read_table(out).select(table.column_names).equals(pq.read_table(path))


def write_predictions(path: Path, **added: object) -> Path:
    """Copy a file as prediction writes it, with the same prediction for each row."""
    stream = open_rows(path)
    writer_class = writer_for(stream)
    out = path.with_name("out" + (writer_class.suffix or stream.file.format))
    writer = writer_class(out, stream, {name: type(value) for name, value in added.items()})
    try:
        for rows in stream.chunks():
            writer.write(rows, [list(added.values())] * len(rows))
    finally:
        writer.close()
    return out


def test_stream_of_one_column_keeps_blank_lines_as_rows() -> None:
    stream = open_rows(CASES / "blank_rows_to_predict.csv")
    texts = [text for chunk in stream.chunks() for (text,) in chunk]
    assert texts == ["the battery lasts all week", "", "screen flickers all the time", "", "works"]


@pytest.mark.parametrize(
    ("data", "rows"),
    [
        ("text\n\na\n\n\nb\n\n", ["", "a", "", "", "b", ""]),
        ("\n\ntext\na\n", ["a"]),
        ("text\r\n\r\na", ["", "a"]),
        ("text\r\ra\r", ["", "a"]),
        ('text\n""\n" "\n', ["", " "]),
    ],
)
def test_stream_of_one_column_equals_lines(data: str, rows: list[str], tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(data.encode())
    assert [text for chunk in open_rows(path).chunks() for (text,) in chunk] == rows
    out = write_predictions(path, predicted_label="pos")
    with out.open(encoding="utf-8", newline="") as file:
        written_rows = list(csv.reader(file))
    assert written_rows == [["text", "predicted_label"], *([text, "pos"] for text in rows)]


def test_stream_of_several_columns_keeps_blank_lines_in_place(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,text\n1,good\n\n  \n2,bad\n\n\n", encoding="utf-8")
    rows = [row for chunk in open_rows(path).chunks() for row in chunk]
    assert rows == [["1", "good"], ["", ""], ["", ""], ["2", "bad"]]
    assert len(read_table(path).frame) == 2, "no blank line is learned from"


def test_json_lines_writer_keeps_text_of_input_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes((CASES / "other_columns_to_predict.jsonl").read_bytes())
    before = path.read_text("utf-8").splitlines()
    after = write_predictions(path, predicted_label="pos", confidence=0.5).read_text("utf-8").splitlines()
    assert [
        line.removesuffix(', "predicted_label": "pos", "confidence": 0.5}') + "}" for line in after
    ] == before


@pytest.mark.parametrize(
    "text",
    [
        '{"id": 9223372036854775809, "text": "a", "x": 1e400, "y": 2.50, "z": NaN}',
        '{"text": "\\u00e9 \\ud83d\\ude00", "nested": {"b": [1, {"c": null}], "a": -0}}',
        '{"text":"a","text":"b"}   ',
        '  { "text" : "a" , "big" : 12345678901234567890123456789.0 }',
        '{"label": "x"}',
        "{}",
    ],
)
@pytest.mark.parametrize("shape", ["lines", "array", "under"])
def test_json_writer_keeps_text_of_object(text: str, shape: str, tmp_path: Path) -> None:
    rows = ['{"text": "first"}', text]
    content_of_shape = {
        "lines": "\n".join(rows),
        "array": f"[{','.join(rows)}]",
        "under": f'{{"n": 2, "rows": [{",".join(rows)}]}}',
    }
    path = tmp_path / ("a.jsonl" if shape == "lines" else "a.json")
    path.write_text(content_of_shape[shape], encoding="utf-8")
    after = write_predictions(path, predicted_label=None).read_text("utf-8").splitlines()
    assert len(after) == 2
    comma = "" if text == "{}" else ", "
    assert after[1] == f'{text.strip().removesuffix("}").rstrip()}{comma}"predicted_label": null}}'


def test_json_writer_of_columns_keeps_text_of_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"text": ["a", "b"],\n "n": [9223372036854775809, 1e400]}', encoding="utf-8")
    after = write_predictions(path, predicted_label="pos").read_text("utf-8").splitlines()
    assert after[0] == '{"text": "a", "n": 9223372036854775809, "predicted_label": "pos"}'
    assert after[1] == '{"text": "b", "n": 1e400, "predicted_label": "pos"}'


def test_json_writer_keeps_late_key_and_rejects_clashing_key(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n' * 20 + '{"text": "b", "late": 1}\n', encoding="utf-8")
    assert write_predictions(path, predicted_label="pos").read_text("utf-8").splitlines()[-1] == (
        '{"text": "b", "late": 1, "predicted_label": "pos"}'
    )
    path.write_text('{"text": "a"}\n' * 20 + '{"text": "b", "predicted_label": 1}\n', encoding="utf-8")
    with pytest.raises(DataError, match="object 21 has a key 'predicted_label'"):
        write_predictions(path, predicted_label="pos")


def test_parquet_writer_keeps_nested_objects(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"review": [{"text": "a", "n": 1}, {"text": "b", "n": 2}], "tags": [[{"x": 1}], []]})
    pq.write_table(table, path)
    assert set(open_rows(path).columns) == {"review.text", "review.n"}
    out = write_predictions(path, predicted_label="pos")
    assert pq.read_table(out).select(["review", "tags"]).equals(pq.read_table(path))


@pytest.mark.parametrize("text", ["=1+1", "@SUM(A1)", "+cmd|' /C calc'!A0", "-2+3", "\t=1", "＝1+1"])
def test_writer_neutralizes_spreadsheet_formulas(text: str, tmp_path: Path) -> None:
    assert escape_formula(text) == f"'{text}"
    pd.DataFrame({"text": [text, "x"], "label": ["a", "b"]}).to_csv(tmp_path / "b.csv", index=False)
    out, writer = rewrite(tmp_path / "b.csv")
    assert writer.neutralized == 1
    assert read_table(out).frame["text"].tolist() == [f"'{text}", "x"]
    book = openpyxl.Workbook()
    book.active.append(["text", "label"])
    book.active.append(["plain", "a"])
    book.active["A2"].value, book.active["A2"].data_type = text, "s"
    book.save(tmp_path / "c.xlsx")
    out, _ = rewrite(tmp_path / "c.xlsx")
    cell = openpyxl.load_workbook(out).active["A2"]
    assert (cell.data_type, cell.value) == ("s", text)


@pytest.mark.parametrize("text", ["-5", "+3.25", "-1,000.5", "-3 %", "good", "a=b", ""])
def test_escape_formula_of_numbers_and_plain_words_changes_nothing(text: str) -> None:
    assert escape_formula(text) == text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            '{"text": "a"}\n\n{"text": "b\\ud800"}\n',
            "row 3, column 'text' contains a lone surrogate",
        ),
        ("a.json", '{"text": ["a", "\\udfff"]}', "row 2, column 'text' contains a lone surrogate"),
        (
            "a.jsonl",
            '{"text": "a", "tags": ["b", "\\ud800"]}\n',
            "row 1, column 'tags' contains a lone surrogate",
        ),
        ("a.jsonl", '{"text": "a", "\\ud800": 1}\n', "the column name '.ud800' contains a lone surrogate"),
    ],
)
def test_stream_with_lone_surrogate_is_rejected_as_in_training(
    name: str, content: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_table(path)
    with pytest.raises(DataError, match=message):
        list(open_rows(path).chunks())


@pytest.mark.parametrize(
    "times",
    [
        pa.array([2**62, 1], pa.timestamp("ms")),
        pa.array([2**31 - 1, 1], pa.date32()),
        pa.array([2**62, 1], pa.date64()),
        pa.array([2**62, 1], pa.duration("s")),
        pa.array([1, 2], pa.timestamp("ns", "Mars/Phobos")),
        pa.array([[2**62], []], pa.list_(pa.timestamp("ms"))),
        pa.array([2**62, 1], pa.timestamp("ms")).dictionary_encode(),
    ],
    ids=lambda times: str(times.type).split(",")[0],
)
def test_parquet_with_unreadable_time_error_names_column(times: pa.Array, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["good", "bad"], "at": times}), path)
    message = "'a.parquet', column 'at' holds a time that cannot be read"
    with pytest.raises(DataError, match=message):
        read_table(path)
    with pytest.raises(DataError, match=message):
        list(open_rows(path).chunks())
