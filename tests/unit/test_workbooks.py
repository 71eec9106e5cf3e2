"""Workbooks: sheet and header row, inferred or given by options."""

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from peft_core.config import TrainConfig
from peft_core.data.files import read_table
from peft_core.data.formats import ReadOptions
from peft_core.data.inspection import inspect
from peft_core.data.labelled import load_labeled_splits
from peft_core.data.streams import open_rows
from peft_core.data.writers import writer_for
from peft_core.errors import ConfigError, DataError
from peft_core.views.data import data_facts

CASES = Path(__file__).parents[1] / "cases"
TABLE = [["text", "label"], ["good", "pos"], ["bad", "neg"]]
Sheet = Sequence[Sequence[Any]]


def book(path: Path, hidden: Sequence[str] = (), **sheets: Sheet) -> Path:
    workbook = openpyxl.Workbook()
    workbook.remove(workbook.active)
    for title, rows in sheets.items():
        sheet = workbook.create_sheet(title)
        for row in rows:
            sheet.append(list(row))
        sheet.sheet_state = "hidden" if title in hidden else "visible"
    workbook.save(path)
    return path


def test_read_table_finds_the_sheet_and_data_card_names_it() -> None:
    path = CASES / "second_sheet.xlsx"
    table = read_table(path)
    assert (table.facts["sheet"], table.facts["header_row"]) == ("Reviews", 3)
    assert table.facts["sheets"] == ["About", "Reviews"]
    assert (list(table.frame.columns), len(table.frame)) == (["id", "text", "label"], 40)
    card = data_facts(inspect(TrainConfig(dataset_name=str(path))))
    assert "sheet Reviews" in card and "header in row 3" in card


@pytest.mark.parametrize(
    ("sheets", "sheet", "header_row", "first"),
    [
        ({"A": TABLE, "B": TABLE}, "A", 1, "good"),
        ({"A": [["About us"], ["Write to Ann"]], "B": TABLE}, "B", 1, "good"),
        ({"A": [], "B": [["Title"], [], ["Subtitle"], *TABLE]}, "B", 4, "good"),
        ({"A": [["Made on", "Monday"], [], *TABLE]}, "A", 3, "good"),
        ({"A": [["film one", "pos"], ["film two", "neg"], ["film three", "pos"]]}, "A", None, "film one"),
        ({"A": [["text"], ["good"], ["bad"]]}, "A", 1, "good"),
        ({"A": [["text", "label", "note"], ["good", "pos"], ["bad", "neg"]]}, "A", 1, "good"),
    ],
)
def test_read_table_finds_sheet_and_header(
    sheets: dict[str, Sheet], sheet: str, header_row: int | None, first: str, tmp_path: Path
) -> None:
    table = read_table(book(tmp_path / "a.xlsx", **sheets))
    assert (table.facts["sheet"], table.facts["header_row"]) == (sheet, header_row)
    assert table.frame.iloc[0, 0] == first
    assert len(table.frame) == (3 if header_row is None else 2)


def test_read_table_keeps_unnamed_index_and_skips_hidden_sheets(tmp_path: Path) -> None:
    indexed = [["Title"], [None, "text", "label"], [0, "good", "pos"], [1, "bad", "neg"]]
    table = read_table(book(tmp_path / "a.xlsx", hidden=["H"], H=TABLE, A=indexed))
    assert table.facts["sheet"] == "A"
    assert list(table.frame.columns) == ["column 1", "text", "label"]


def test_read_options_select_sheet_and_header_row(tmp_path: Path) -> None:
    wide = [["Old", "name"], ["text", "label"], *TABLE[1:]]
    path = book(tmp_path / "a.xlsx", A=TABLE, B=wide)
    options = ReadOptions("B", 2)
    table = read_table(path, options)
    assert (table.facts["sheet"], table.facts["header_row"]) == ("B", 2)
    assert table.frame.values.tolist() == [["good", "pos"], ["bad", "neg"]]
    stream = open_rows(path, options)
    assert (stream.columns, next(stream.chunks())) == (["text", "label"], table.frame.values.tolist())
    assert len(read_table(path, ReadOptions("B", 1)).frame) == 3


def test_load_labeled_splits_uses_sheet_and_header_row_of_config(tmp_path: Path) -> None:
    rows = [[f"{word} {i}", label] for i in range(20) for word, label in (("good", "yes"), ("bad", "no"))]
    path = book(tmp_path / "a.xlsx", A=[*TABLE, *rows], B=[["x", "y"], ["text", "answer"], *rows])
    config = TrainConfig(dataset_name=str(path), sheet_name="B", header_row=2)
    assert TrainConfig.from_dict(config.to_dict()) == config
    labelled = load_labeled_splits(config)
    assert labelled.label_names == ("no", "yes")
    assert labelled.record["files"][0]["sheet"] == "B"
    other = load_labeled_splits(TrainConfig(dataset_name=str(path), remedies=("small_classes",)))
    assert other.record["files"][0]["sheet"] == "A"
    with pytest.raises(ConfigError, match="header_row is 0"):
        TrainConfig(header_row=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (ReadOptions("Z"), "has no sheet 'Z'; it has 'A', 'B'"),
        (ReadOptions("B"), "no rows"),
        (ReadOptions("A", 9), "Row 9 of the sheet 'A'.* is empty"),
        (ReadOptions("A", 3), "no rows"),
    ],
)
def test_read_options_without_a_table_raise_data_error(
    options: ReadOptions, words: str, tmp_path: Path
) -> None:
    path = book(tmp_path / "a.xlsx", A=TABLE, B=[])
    with pytest.raises(DataError, match=words):
        read_table(path, options)


def test_header_row_in_csv_skips_lines_above(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("Report of May\nmade, by, Ann\ntext;label\ngood;pos\nbad;neg\n", encoding="utf-8")
    table = read_table(path, ReadOptions(header_row=3))
    assert (list(table.frame.columns), list(table.frame.index)) == (["text", "label"], [4, 5])
    stream = open_rows(path, ReadOptions(header_row=3))
    assert next(stream.chunks()) == [["good", "pos"], ["bad", "neg"]]
    with pytest.raises(DataError, match="nothing in line 9"):
        read_table(path, ReadOptions(header_row=9))


def test_writer_for_workbook_keeps_rows_values_and_formats(tmp_path: Path) -> None:
    when = datetime.datetime(2024, 5, 1, 12)
    rows = [["Title"], [], ["text", "when", "price"], ["good", when, 1.5], [], ["bad", None, 2]]
    path = book(tmp_path / "a.xlsx", A=rows)
    workbook = openpyxl.load_workbook(path)
    workbook["A"]["C4"].number_format = "0.00 €"
    workbook.save(path)
    stream = open_rows(path)
    writer = writer_for(stream)(tmp_path / "out.xlsx", stream, {"predicted_label": str})
    for chunk in stream.chunks():
        writer.write(chunk, [["pos"]] * len(chunk))
    writer.close()
    sheet = openpyxl.load_workbook(tmp_path / "out.xlsx").active
    assert [list(row) for row in sheet.iter_rows(values_only=True)] == [
        ["text", "when", "price", "predicted_label"],
        ["good", when, 1.5, "pos"],
        [None, None, None, "pos"],
        ["bad", None, 2, "pos"],
    ]
    assert sheet["C2"].number_format == "0.00 €"
