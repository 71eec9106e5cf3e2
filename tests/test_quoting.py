"""Quotation marks in CSV and TSV: rows are read right or refused, in training as in prediction."""

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
    """The rows that training reads, which prediction must read too."""
    trained = read_table(path).frame.to_numpy().tolist()
    assert [row for chunk in open_rows(path).chunks() for row in chunk] == trained
    return trained


def refusals(path: Path) -> tuple[str, str]:
    """The sentence of training and that of prediction."""
    with pytest.raises(DataError) as trained:
        read_table(path)
    with pytest.raises(DataError) as predicted:
        list(open_rows(path).chunks())
    return str(trained.value), str(predicted.value)


def test_backslash_quoting_text_that_ends_in_a_backslash_is_refused_with_its_row(tmp_path: Path) -> None:
    path = write(tmp_path, f'{ESCAPED}"saved in C:\\",y\n"it was \\"fine\\"",y\nlast,x\n')
    for sentence in refusals(path):
        assert sentence.startswith("'a.csv', row 3")
        assert 'write \\" for a mark inside a text and \\\\ for a backslash' in sentence


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
def test_backslash_quoting_closing_mark_after_a_backslash_never_merges_rows(
    rows: str, tmp_path: Path
) -> None:
    trained, predicted = refusals(write(tmp_path, ESCAPED + rows))
    assert "'a.csv', row 3" in trained and "'a.csv', row 3" in predicted


def test_backslash_quoting_backslash_before_other_characters_stays(tmp_path: Path) -> None:
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
def test_backslash_reader_of_escaped_rows_gives_the_rows(rows: list[tuple[str, str]], quoting: int) -> None:
    out = io.StringIO(newline="")
    csv.writer(out, quoting=quoting, doublequote=False, escapechar="\\").writerows(rows)
    lines = io.StringIO(out.getvalue(), newline="")
    assert list(BackslashReader(lines, ",")) == [list(row) for row in rows]


@pytest.mark.parametrize("row", ['"bad "film" here","y"', '"bad "film","y"', '"open,"y"'])
def test_fully_quoted_file_with_a_stray_mark_is_refused_with_its_row(row: str, tmp_path: Path) -> None:
    path = write(tmp_path, f'"text","label"\n"good","x"\n{row}\n"fine","y"\n')
    trained, predicted = refusals(path)
    assert trained.startswith("'a.csv', row 3, column 1: a quotation mark")
    assert predicted.startswith("'a.csv', row 3: a quotation mark")


def test_stray_mark_after_the_first_megabyte_is_refused_in_both(tmp_path: Path) -> None:
    path = write(tmp_path, f'text,label\n{MEGABYTE}"bad "film" here","y"\n')
    assert path.stat().st_size > 1_000_000
    assert all("'a.csv', row 20002" in sentence for sentence in refusals(path))


@pytest.mark.parametrize(
    ("row", "cells"),
    [('"he said \\"no\\"","y"', ['he said "no"', "y"]), ('"he ""said""","y"', ['he "said"', "y"])],
)
def test_quoting_that_shows_after_the_first_megabyte_is_read_alike(
    row: str, cells: list[str], tmp_path: Path
) -> None:
    rows = rows_in_both(write(tmp_path, f"text,label\n{MEGABYTE}{row}\n"))
    assert rows[-1] == cells and rows[0][1] == "x"


def test_literal_mark_after_the_first_megabyte_is_read_alike(tmp_path: Path) -> None:
    plain = MEGABYTE.replace('"', "")
    rows = rows_in_both(write(tmp_path, f'text,label\n{plain}"Great film,y\n'))
    assert rows[-1] == ['"Great film', "y"]


def test_header_of_long_rows_is_found_alike(tmp_path: Path) -> None:
    rows = "".join(f"good {i},{'word ' * 500}\n" for i in range(600))
    path = write(tmp_path, f"good 0,comment\n{rows}good 0,comment\n" + "comment,comment\n" * 300)
    assert path.stat().st_size > 1_000_000
    rows_in_both(path)


def test_literal_marks_are_a_finding_that_names_the_rows(tmp_path: Path) -> None:
    path = write(tmp_path, 'text\tlabel\n"Great movie\tpos\nA 5" screen\tneg\n', "a.tsv")
    assert rows_in_both(path) == [['"Great movie', "pos"], ['A 5" screen', "neg"]]
    (note,) = read_table(path).facts["notes"]
    assert (note["kind"], note["count"], note["rows"]) == ("literal_marks", 1, [2])
    assert "read as text" in note["sentence"]


def test_stray_marks_of_a_tsv_swallow_no_rows(tmp_path: Path) -> None:
    """The first opened a cell and the second closed it, three rows later."""
    rows = ['"Great movie\tpos', "dull\tneg", "fine\tpos", 'you say wow"\tneg', "well\tpos"]
    path = write(tmp_path, "\n".join(["text\tlabel", *rows, ""]), "a.tsv")
    assert rows_in_both(path) == [row.split("\t") for row in rows]


@pytest.mark.parametrize("cell", ['"two\nlines"', '"three\nlines and\ta tab\nin one"'])
def test_quoted_cell_of_several_lines_in_a_tsv_stays_one(cell: str, tmp_path: Path) -> None:
    path = write(tmp_path, f"text\tlabel\n{cell}\tneg\nwell\tpos\n", "a.tsv")
    assert rows_in_both(path) == [[cell[1:-1], "neg"], ["well", "pos"]]


def test_file_larger_than_one_to_train_on_is_judged_by_its_first_megabyte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "MAX_FILE_BYTES", 1000)
    path = write(tmp_path, f'text,label\n{MEGABYTE}"open,"y"\n')
    with pytest.raises(DataError, match="row 20002: a quotation mark"):
        list(open_rows(path).chunks())


def test_choose_quoting_of_rows_that_no_way_reads_is_the_one_that_reads_most() -> None:
    def chosen(text: str) -> str:
        return choose_quoting(lambda: io.StringIO(text, newline=""), ",")

    assert chosen(f'{ESCAPED}"a "b" c",x\n') == "backslash"
    assert chosen('text,label\n"a",x\n"a "b" c, d",x\n') == "doubled"
    assert chosen("text,label\na,b,c\n") == "doubled"


@pytest.mark.parametrize("mark", [b"\0", b"\0 "])
def test_sep_line_without_a_character_is_refused(mark: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"sep=" + mark + b"\ntext,label\ngood,x\nbad,y\n")
    with pytest.raises(DataError, match="row 1: sep= names a delimiter that is no character; write sep=,"):
        read_table(path)
    with pytest.raises(DataError, match="row 1: sep= names a delimiter that is no character; write sep=,"):
        open_rows(path)
