"""Rows in pieces: the cells that reading the whole gives, and written back with columns beside them."""

import zipfile
from pathlib import Path
from typing import Any

import openpyxl
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from peft_core.data import streams, workbooks, writers
from peft_core.data.files import read_table
from peft_core.data.streams import open_rows
from peft_core.data.writers import neutral, writer_for
from peft_core.errors import DataError

ROWS = [("Grüße, „Welt“", "gut"), ('sie sagte "nein"', "schlecht"), ("", "gut"), ("zwei\nZeilen", "gut")] * 30


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a hundred rows come in many chunks."""
    for module in (streams, writers):
        monkeypatch.setattr(module, "ROWS", 7)


def written(path: Path, encoding: str = "utf-8") -> Path:
    """The rows in the format of the suffix."""
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
def test_pieces_hold_what_the_whole_file_holds(name: str, tmp_path: Path) -> None:
    path = written(tmp_path / name)
    whole, stream = read_table(path).frame, open_rows(path)
    chunks = list(stream.chunks())
    assert stream.columns == list(whole.columns)
    assert [row for chunk in chunks for row in chunk] == [list(row) for row in whole.itertuples(index=False)]
    assert len(chunks) > 10 and max(map(len, chunks)) <= 7
    assert list(stream.chunks()) == chunks, "a stream can be read again"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252", "utf-16-le"])
def test_encodings(encoding: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", encoding)
    whole, stream = read_table(path).frame, open_rows(path)
    assert [row for chunk in stream.chunks() for row in chunk] == [
        list(r) for r in whole.itertuples(index=False)
    ]


def test_one_odd_byte_far_down_makes_a_plain_head_no_utf_8(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(streams, "_HEAD", 200)
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,label\n" + b"good,yes\n" * 100 + "schön,yes\n".encode("cp1252"))
    *_, last = open_rows(path).chunks()
    assert last[-1] == ["schön", "yes"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"text,label\n" + b"good,yes\n" * 50 + b"one,two,three\n", "row 52.*3 cells where 2"),
        ("a.csv", b"text,label\n" + b'"so, good",yes\n' * 50 + b'"open,yes\n', "never closed"),
        ("a.jsonl", b'{"text": "a"}\n' * 20 + b'{"text": \n', "row 21 is no JSON"),
        ("a.jsonl", b'{"text": "a"}\n' * 20 + b"[1]\n", "row 21.*no object"),
        ("a.parquet", b"PAR1 nothing", "damaged Parquet"),
        ("a.xlsx", b"PK no zip", "damaged or locked Excel"),
        ("a.csv", b"", "holds no rows"),
        ("a.pkl", b"\x80\x04", "is no .csv"),
    ],
)
def test_damage_is_one_sentence(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=words):
        list(open_rows(path).chunks())


def test_a_sheet_that_unpacks_without_end_is_stopped(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(workbooks, "MOST_UNPACKED", 1_000_000)
    pd.DataFrame({"text": ["good"] * 5}).to_excel(tmp_path / "bomb.xlsx", index=False)
    with zipfile.ZipFile(tmp_path / "bomb.xlsx", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/padding.xml", b" " * 2_000_000)
    with pytest.raises(DataError, match="unpacks to over 1 MB"):
        list(open_rows(tmp_path / "bomb.xlsx").chunks())


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be opened"):
        open_rows(tmp_path / "none.csv")


def rewritten(path: Path) -> tuple[Path, Any]:
    """The file with three columns more, one of which has the name of a column that is there."""
    stream = open_rows(path)
    kind = writer_for(stream)
    out = path.with_name("out" + (kind.suffix or path.suffix))
    writer = kind(out, stream, {stream.columns[0]: str, "sure": float, "silent": bool})
    for rows in stream.chunks():
        writer.write(rows, [[None, 0.25, False]] * len(rows))
    writer.close()
    return out, writer


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json", "a.parquet", "a.xlsx"])
def test_what_is_written_has_the_rows_in_order_and_the_columns_beside_them(name: str, tmp_path: Path) -> None:
    path = written(tmp_path / name)
    before = read_table(path).frame
    out, _ = rewritten(path)
    after = read_table(out).frame
    assert list(after.columns) == [*before.columns, "Meinung (2)", "sure", "silent"]
    pd.testing.assert_frame_equal(
        after[before.columns].reset_index(drop=True), before.reset_index(drop=True), check_dtype=False
    )
    assert {str(value) for value in after["sure"]} == {"0.25"}


def test_parquet_keeps_its_own_types(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"text": ["a", "b"], "when": pa.array([1, 2], pa.timestamp("s")), "n": [[1], None]})
    pq.write_table(table, path)
    out, _ = rewritten(path)
    assert pq.read_table(out).select(table.column_names).equals(pq.read_table(path))


@pytest.mark.parametrize("text", ["=1+1", "@SUM(A1)", "+cmd|' /C calc'!A0", "-2+3", "\t=1", "＝1+1"])
def test_what_a_spreadsheet_would_run_is_text(text: str, tmp_path: Path) -> None:
    assert neutral(text) == f"'{text}"
    pd.DataFrame({"text": [text, "x"], "label": ["a", "b"]}).to_csv(tmp_path / "b.csv", index=False)
    out, writer = rewritten(tmp_path / "b.csv")
    assert writer.neutralised == 1
    assert read_table(out).frame["text"].tolist() == [f"'{text}", "x"]
    book = openpyxl.Workbook()
    book.active.append(["text", "label"])
    book.active.append(["plain", "a"])
    book.active["A2"].value, book.active["A2"].data_type = text, "s"
    book.save(tmp_path / "c.xlsx")
    out, _ = rewritten(tmp_path / "c.xlsx")
    cell = openpyxl.load_workbook(out).active["A2"]
    assert (cell.data_type, cell.value) == ("s", text)


@pytest.mark.parametrize("text", ["-5", "+3.25", "-1,000.5", "-3 %", "good", "a=b", ""])
def test_numbers_and_plain_words_stay(text: str) -> None:
    assert neutral(text) == text
