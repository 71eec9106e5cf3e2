"""Tests of small files that unpack to huge tables: refused in one sentence, fast and with little memory."""

import json
import random
import time
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from processes import answer

from peft_core.config import TrainConfig
from peft_core.data import workbooks
from peft_core.data.annotation_exports import detect_export_format
from peft_core.data.files import read_table
from peft_core.data.formats import MAX_COLUMNS, ReadOptions
from peft_core.data.preparing import prepare_rows
from peft_core.data.streams import open_rows
from peft_core.data.uploads import PREFIX, UPLOADS, hide_upload_folders
from peft_core.errors import DataError
from peft_core.inference.tables import Request
from peft_core.service import tasks

MEMORY = 700_000_000  # bytes in addition to the imports
# Read a file at once and by rows under a memory limit; print the error messages and the seconds.
READ = """
import json, resource, sys, time
from pathlib import Path
from peft_core.data.files import read_table
from peft_core.data.streams import open_rows
from peft_core.errors import DataError
mapped = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped + int(sys.argv[2]),) * 2)
said, start = [], time.monotonic()
for read in (read_table, lambda path: list(open_rows(path).chunks())):
    try:
        read(Path(sys.argv[1]))
        said.append("")
    except DataError as error:
        said.append(str(error))
print(json.dumps([said, time.monotonic() - start]))
"""


def repeated(values: int, length: int) -> pa.DictionaryArray:
    """Return an array that repeats a text of `length` characters `values` times."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * values, pa.int32()), pa.array(["a" * length]))


def parquet(path: Path, columns: dict[str, Any]) -> Path:
    pq.write_table(pa.table(columns), path, compression="zstd", store_schema=False)
    return path


def repeated_text(folder: Path) -> Path:
    """Write 100 GB of text in 871 bytes."""
    return parquet(folder / "a.parquet", {"text": repeated(100_000, 1_000_000), "label": ["x"] * 100_000})


def repeated_text_in_lists(folder: Path) -> Path:
    lists = pa.ListArray.from_arrays(pa.array([0, 1000, 2000], pa.int32()), repeated(2000, 1_000_000))
    return parquet(folder / "a.parquet", {"text": ["a", "b"], "lists": lists})


def repeated_text_in_objects(folder: Path) -> Path:
    objects = pa.StructArray.from_arrays([repeated(3000, 1_000_000)], ["inner"])
    return parquet(folder / "a.parquet", {"text": ["a"] * 3000, "object": objects})


def empty_cells(folder: Path) -> Path:
    """Write 200 million null cells, which take almost no bytes."""
    nulls = {f"column {i}": pa.nulls(1_000_000, pa.int32()) for i in range(200)}
    return parquet(folder / "a.parquet", {"text": pa.nulls(1_000_000, pa.string()), **nulls})


def header_of_commas(folder: Path) -> Path:
    return write(folder / "a.csv", "," * 1_000_000 + "\na,b\n")


def rows_of_commas(folder: Path) -> Path:
    return write(folder / "a.csv", ("a" + "," * 300_000 + "\n") * 3)


def different_keys(folder: Path) -> Path:
    rows = ({f"{row} {key}": 1 for key in range(100)} for row in range(2000))
    return write(folder / "a.jsonl", "\n".join(map(json.dumps, rows)))


def nested_lists(folder: Path) -> Path:
    return write(folder / "a.json", "[" * 900_000 + "]" * 900_000)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (repeated_text, "unpacks to over 500 MB"),
        (repeated_text_in_lists, "unpacks to over 500 MB"),
        (repeated_text_in_objects, "unpacks to over 500 MB"),
        (empty_cells, "values; at most"),
        (header_of_commas, "1,000,001 columns; at most 1,000"),
        (rows_of_commas, "300,001 columns; at most 1,000"),
        (different_keys, "columns; at most 1,000"),
        (nested_lists, "is not valid JSON"),
    ],
)
def test_bomb_is_refused_in_seconds_and_little_memory(make: Any, words: str, tmp_path: Path) -> None:
    errors, seconds = answer(READ, str(make(tmp_path)), str(MEMORY))
    assert all(words in sentence and "\n" not in sentence for sentence in errors), errors
    assert seconds < 20


def test_ordinary_parquet_with_repeated_texts_is_read_as_written(tmp_path: Path) -> None:
    numbers = random.Random(0)
    texts = [numbers.choice(["Good food.", "Bad food.", None, ""]) for _ in range(5000)]
    columns = {
        "text": pa.array(texts).dictionary_encode(),
        "object": pa.StructArray.from_arrays([pa.array(texts), pa.array(range(5000))], ["text", "number"]),
        "list": pa.array([[text] for text in texts], pa.list_(pa.string())),
        "bytes": pa.array([b"\x00"] * 5000),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    frame = read_table(tmp_path / "a.parquet").frame
    rows = [row for chunk in open_rows(tmp_path / "a.parquet").chunks() for row in chunk]
    assert list(frame["text"]) == list(frame["object.text"]) == texts
    assert list(frame["list"]) == [[text] for text in texts]
    assert rows == frame.to_numpy().tolist()


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".xlsx"])
@pytest.mark.parametrize("columns", [MAX_COLUMNS, MAX_COLUMNS + 1])
def test_files_with_more_than_max_columns_are_refused(suffix: str, columns: int, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    names = [f"column {i}" for i in range(columns)]
    if suffix == ".csv":
        write(path, "\n".join([",".join(names), *[",".join(["x"] * columns)] * 3]))
    elif suffix == ".jsonl":
        write(path, "\n".join(json.dumps(dict.fromkeys(names, "x")) for _ in range(3)))
    elif suffix == ".parquet":
        parquet(path, {name: ["x"] * 3 for name in names})
    else:
        book = openpyxl.Workbook()
        for row in (names, *[["x"] * columns] * 3):
            book.active.append(row)
        book.save(path)
    if columns <= MAX_COLUMNS:
        assert len(read_table(path).frame.columns) == len(open_rows(path).columns) == columns
        return
    for read in (read_table, open_rows):
        with pytest.raises(DataError, match=f"'a{suffix}' has 1,001 columns; at most 1,000 are read"):
            read(path)


def test_count_rows_of_parquet_above_unpacked_limit_raises(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", {"text": repeated(300, 100_000), "label": ["x"] * 300})
    assert tasks.count_rows([str(path)], 40_000_000) == 300
    with pytest.raises(DataError, match="'a.parquet' unpacks to over 20 MB"):
        tasks.count_rows([str(path)], 20_000_000)


def test_predict_request_with_max_rows_limits_unpacked_size(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", {"text": repeated(6000, 10_000), "label": ["x"] * 6000})
    assert sum(map(len, open_rows(path, Request(path, "text").options).chunks())) == 6000
    with pytest.raises(DataError, match="'a.parquet' unpacks to over 50 MB"):
        list(open_rows(path, Request(path, "text", max_rows=10_000).options).chunks())


def test_workbook_above_unpacked_limit_is_refused(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    for _ in range(3000):
        book.active.append(["a", "b"])
    book.save(tmp_path / "a.xlsx")
    for read in (read_table, open_rows):
        with pytest.raises(DataError, match="unpacks to over 0 MB"):
            read(tmp_path / "a.xlsx", ReadOptions(max_unpacked_bytes=10_000))


def test_open_book_without_memory_raises_memory_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **__: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(workbooks.openpyxl, "load_workbook", load)
    openpyxl.Workbook().save(tmp_path / "a.xlsx")
    with pytest.raises(MemoryError), workbooks.open_book("a.xlsx", tmp_path / "a.xlsx"):
        pass


def test_hide_upload_folders_of_a_million_slashes_is_fast() -> None:
    """The app's own process calls it with text from untrusted files."""
    start = time.process_time()
    assert hide_upload_folders("/" * 1_000_000 + UPLOADS) == "/" * 1_000_000 + UPLOADS
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    ("root", "text"),
    [
        ("/home/me/runs", "'{}a/b.csv' cannot be read"),
        ("/home/me/runs", "the runs in {}a and {}b"),
        ("/home/me/runs", 'it\'s in {}a\nor "{}b"'),
        ("/my own/runs", "it's '{}a b.csv' or '{}c'"),
    ],
)
def test_hide_upload_folders_keeps_text_around_path(root: str, text: str) -> None:
    folder = f"{root}/{UPLOADS}/{'0f' * 32}/"
    assert hide_upload_folders(text.replace("{}", folder)) == text.replace("{}", PREFIX)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".xlsx"])
def test_long_column_name_is_refused(suffix: str, tmp_path: Path) -> None:
    name, path = "n" * 1001, tmp_path / f"a{suffix}"
    if suffix == ".csv":
        write(path, f"text,{name}\n" + "good,x\n" * 3)
    elif suffix == ".jsonl":
        write(path, json.dumps({"text": "good", name: "x"}) + "\n")
    elif suffix == ".parquet":
        parquet(path, {"text": ["good"], name: ["x"]})
    else:
        book = openpyxl.Workbook()
        book.active.append(["text", name])
        book.active.append(["good", "x"])
        book.save(path)
    for read in (read_table, open_rows):
        with pytest.raises(DataError, match="has 1,001 characters; at most 1,000 are read"):
            read(path, ReadOptions(header_row=1))


def test_long_label_is_refused(tmp_path: Path) -> None:
    rows = [{"text": f"good {i}", "label": ["x", "n" * 1001][i % 2]} for i in range(40)]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match="row 2, column 'label' .* of 1,001 characters; at most 1,000 can be"):
        prepare_rows(TrainConfig(dataset_name=str(path)))


def test_inspect_of_very_long_labels_returns_small_report(tmp_path: Path) -> None:
    rows = [{"text": f"good {i}", "label": str(i) * 500_000} for i in range(8)]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    report = tasks.inspect({"dataset_name": str(path)})
    assert "at most 1,000 can be a label" in report["error"]
    assert len(json.dumps(report)) < 10_000


def test_inspect_of_row_with_many_labels_shows_the_first(tmp_path: Path) -> None:
    rows = [{"text": f"good {i}", "labels": [f"label {n}" for n in range(20_000)]} for i in range(3)]
    path = write(tmp_path / "a.json", json.dumps(rows))
    report = tasks.inspect({"dataset_name": str(path)})
    assert report["rows"][0]["label"] == [f"label {n}" for n in range(30)]
    assert len(json.dumps(report)) < 10_000


def test_label_studio_with_many_choices_is_read_in_linear_time() -> None:
    choices = [
        {"type": "choices", "from_name": "s", "value": {"choices": [f"label {i % 50_000}", "a", True]}}
        for i in range(100_000)
    ]
    record = {"data": {"text": "good"}, "annotations": [{"result": choices}]}
    start = time.process_time()
    cells = detect_export_format([record]).read(record).cells
    assert time.process_time() - start < 5
    assert cells["s"] == ["label 0", "a", True, *(f"label {i}" for i in range(1, 50_000))]
