"""Quotation marks in CSV and TSV: training and prediction read the same rows or raise an error."""

import csv
import io
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from peft_core.data import streams
from peft_core.data.files import read_table
from peft_core.data.quoting import BackslashReader, choose_quoting
from peft_core.data.streams import open_rows
from peft_core.data.writers import writer_for
from peft_core.errors import DataError

ESCAPED = 'text,label\n"he said \\"no\\", twice",x\n'
MEGABYTE = "".join(f'"good food number {i} and words to fill the line","x"\n' for i in range(20_000))


def write(folder: Path, text: str, name: str = "a.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8", newline="")
    return path


def rows_in_both(path: Path) -> list[list[Any]]:
    """Return the rows that training reads, and assert that prediction reads the same."""
    trained = read_table(path).frame.to_numpy().tolist()
    assert [row for chunk in open_rows(path).chunks() for row in chunk] == trained
    return trained


def error_messages(path: Path) -> tuple[str, str]:
    """Return the error messages of training and of prediction."""
    with pytest.raises(DataError) as trained:
        read_table(path)
    with pytest.raises(DataError) as predicted:
        list(open_rows(path).chunks())
    return str(trained.value), str(predicted.value)


def test_backslash_quoting_text_ending_in_backslash_error_names_row(tmp_path: Path) -> None:
    path = write(tmp_path, f'{ESCAPED}"saved in C:\\",y\n"it was \\"fine\\"",y\nlast,x\n')
    for message in error_messages(path):
        assert message.startswith("'a.csv', row 3")
        assert 'write \\" for a mark inside a text and \\\\ for a backslash' in message


@pytest.mark.parametrize(
    "rows",
    [
        '"saved in C:\\",y\n"",x\n',
        '"saved in C:\\",y\n", and so on",x\n',
        'x,"C:\\"\n"next","y"\n',
        '"C:\\","D:\\"\n',
        '"C:\\",y\n',
    ],
)
def test_backslash_quoting_closing_quote_after_backslash_never_merges_rows(rows: str, tmp_path: Path) -> None:
    trained, predicted = error_messages(write(tmp_path, ESCAPED + rows))
    assert "'a.csv', row 3" in trained and "'a.csv', row 3" in predicted


def test_backslash_quoting_keeps_backslash_before_other_characters(tmp_path: Path) -> None:
    path = write(tmp_path, f'{ESCAPED}"C:\\new\\table",C:\\x\n"ends in \\\\","two\\\nlines"\n')
    assert rows_in_both(path) == [
        ['he said "no", twice', "x"],
        ["C:\\new\\table", "C:\\x"],
        ["ends in \\", "two\\\nlines"],
    ]


def test_backslash_quoting_predicted_file_keeps_other_columns(tmp_path: Path) -> None:
    path = write(tmp_path, f'{ESCAPED}"a \\"b\\"","C:\\new\\table"\n')
    stream, out = open_rows(path), tmp_path / "out.csv"
    writer = writer_for(stream)(out, stream, {"predicted_label": str})
    for chunk in stream.chunks():
        writer.write(chunk, [["y"]] * len(chunk))
    writer.close()
    assert pd.read_csv(out)["label"].tolist() == ["x", "C:\\new\\table"]


@given(
    rows=st.lists(
        st.tuples(*[st.text(st.sampled_from('ab "\\,\n'), max_size=8)] * 2), min_size=1, max_size=6
    ),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
)
@example(rows=[("\\", '"'), ('\\"', "C:\\")], quoting=csv.QUOTE_ALL)
def test_backslash_reader_round_trips_escaped_rows(rows: list[tuple[str, str]], quoting: int) -> None:
    out = io.StringIO(newline="")
    csv.writer(out, quoting=quoting, doublequote=False, escapechar="\\").writerows(rows)
    lines = io.StringIO(out.getvalue(), newline="")
    assert list(BackslashReader(lines, ",")) == [list(row) for row in rows]


@pytest.mark.parametrize("row", ['"bad "film" here","y"', '"bad "film","y"', '"open,"y"'])
def test_fully_quoted_file_with_stray_quote_error_names_row(row: str, tmp_path: Path) -> None:
    path = write(tmp_path, f'"text","label"\n"good","x"\n{row}\n"fine","y"\n')
    trained, predicted = error_messages(path)
    assert trained.startswith("'a.csv', row 3, column 1: a quotation mark")
    assert predicted.startswith("'a.csv', row 3: a quotation mark")


def test_stray_quote_after_first_megabyte_is_rejected_by_both_readers(tmp_path: Path) -> None:
    path = write(tmp_path, f'text,label\n{MEGABYTE}"bad "film" here","y"\n')
    assert path.stat().st_size > 1_000_000
    assert all("'a.csv', row 20002" in message for message in error_messages(path))


@pytest.mark.parametrize(
    ("row", "cells"),
    [('"he said \\"no\\"","y"', ['he said "no"', "y"]), ('"he ""said""","y"', ['he "said"', "y"])],
)
def test_quoting_first_used_after_first_megabyte_is_read_identically(
    row: str, cells: list[str], tmp_path: Path
) -> None:
    rows = rows_in_both(write(tmp_path, f"text,label\n{MEGABYTE}{row}\n"))
    assert rows[-1] == cells and rows[0][1] == "x"


def test_literal_quote_after_first_megabyte_is_read_identically(tmp_path: Path) -> None:
    plain = MEGABYTE.replace('"', "")
    rows = rows_in_both(write(tmp_path, f'text,label\n{plain}"Great film,y\n'))
    assert rows[-1] == ['"Great film', "y"]


def test_header_detection_of_long_rows_is_identical(tmp_path: Path) -> None:
    rows = "".join(f"good {i},{'word ' * 500}\n" for i in range(600))
    path = write(tmp_path, f"good 0,comment\n{rows}good 0,comment\n" + "comment,comment\n" * 300)
    assert path.stat().st_size > 1_000_000
    rows_in_both(path)


def test_literal_quotes_note_names_rows(tmp_path: Path) -> None:
    path = write(tmp_path, 'text\tlabel\n"Great movie\tpos\nA 5" screen\tneg\n', "a.tsv")
    assert rows_in_both(path) == [['"Great movie', "pos"], ['A 5" screen', "neg"]]
    (note,) = read_table(path).facts["notes"]
    assert (note["kind"], note["count"], note["rows"]) == ("literal_marks", 1, [2])
    assert "read as text" in note["sentence"]


def test_tsv_stray_quotes_do_not_swallow_rows(tmp_path: Path) -> None:
    """Regression: the first quote opened a cell that the second closed three rows later."""
    rows = ['"Great movie\tpos', "dull\tneg", "fine\tpos", 'you say wow"\tneg', "well\tpos"]
    path = write(tmp_path, "\n".join(["text\tlabel", *rows, ""]), "a.tsv")
    assert rows_in_both(path) == [row.split("\t") for row in rows]


@pytest.mark.parametrize("cell", ['"two\nlines"', '"three\nlines and\ta tab\nin one"'])
def test_tsv_quoted_multiline_cell_stays_one_cell(cell: str, tmp_path: Path) -> None:
    path = write(tmp_path, f"text\tlabel\n{cell}\tneg\nwell\tpos\n", "a.tsv")
    assert rows_in_both(path) == [[cell[1:-1], "neg"], ["well", "pos"]]


def test_file_above_training_limit_infers_quoting_from_first_megabyte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "MAX_FILE_BYTES", 1000)
    path = write(tmp_path, f'text,label\n{MEGABYTE}"open,"y"\n')
    with pytest.raises(DataError, match="row 20002: a quotation mark"):
        list(open_rows(path).chunks())


def test_choose_quoting_of_unreadable_rows_picks_best_match() -> None:
    def quoting_of(text: str) -> str:
        return choose_quoting(lambda: io.StringIO(text, newline=""), ",")

    assert quoting_of(f'{ESCAPED}"a "b" c",x\n') == "backslash"
    assert quoting_of('text,label\n"a",x\n"a "b" c, d",x\n') == "doubled"
    assert quoting_of("text,label\na,b,c\n") == "doubled"


@pytest.mark.parametrize("delimiter", [b"\0", b"\0 "])
def test_sep_line_without_delimiter_raises_data_error(delimiter: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"sep=" + delimiter + b"\ntext,label\ngood,x\nbad,y\n")
    with pytest.raises(DataError, match="row 1: sep= names a delimiter that is not a character; write sep=,"):
        read_table(path)
    with pytest.raises(DataError, match="row 1: sep= names a delimiter that is not a character; write sep=,"):
        open_rows(path)
