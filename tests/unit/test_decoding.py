"""Decoding: detection of a file's encoding, and damaged bytes that affect only their own row."""

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peft_core.data import streams
from peft_core.data.decoding import decode, detect_encoding, repair_text
from peft_core.data.files import read_table
from peft_core.data.streams import open_rows
from peft_core.errors import DataError

CASES = Path(__file__).parents[1] / "cases"
quick = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def streamed(path: Path) -> list[list[str]]:
    return [row for chunk in open_rows(path).chunks() for row in chunk]


@pytest.mark.parametrize(
    ("name", "row", "text"),
    [
        ("one_bad_byte.csv", 6, "clear caf\ufffd picture, easy to set up (2)"),
        ("zero_byte.csv", 5, "wrong size, and no refund (1)"),
    ],
)
def test_read_table_with_one_bad_byte_reports_its_row_and_keeps_the_others(
    name: str, row: int, text: str
) -> None:
    table = read_table(CASES / name)
    assert table.facts["encoding"] == "utf-8"
    assert table.frame.loc[row, "text"] == text
    (note,) = table.facts["notes"]
    assert (note["kind"], note["count"], note["rows"]) == ("damaged_text", 1, [row])
    assert f"row {row}" in note["sentence"]
    cafes = [cell for cell in table.frame["text"] if "caf" in cell]
    assert all("café" in cell for cell in cafes if cell != text)
    stream = open_rows(CASES / name)
    rows = [row_cells for chunk in stream.chunks() for row_cells in chunk]
    assert rows == table.frame.values.tolist()
    assert (stream.damaged, stream.damaged_rows) == (1, [row])


@pytest.mark.parametrize("bad", [b"\xff", b"\xc3", b"\x80", b"\xe2\x82", b"\0"])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_read_table_with_any_bad_byte_changes_only_that_cell(bad: bytes, suffix: str, tmp_path: Path) -> None:
    rows = [(f"café number {i}, quite long", "pos") for i in range(20)]
    if suffix == ".csv":
        lines = ["text,label", *(f'"{text}",{label}' for text, label in rows)]
    else:
        lines = [f'{{"text": "{text}", "label": "{label}"}}' for text, label in rows]
    data = "\n".join(lines).encode()
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data.replace("café number 7".encode(), b"caf" + bad + b" number 7"))
    table = read_table(path)
    texts = table.frame["text"].tolist()
    mark = "  " if bad == b"\0" else "\ufffd "
    assert texts[7] == f"caf{mark}number 7, quite long"
    assert [text for i, text in enumerate(texts) if i != 7] == [t for i, (t, _) in enumerate(rows) if i != 7]
    assert table.facts["notes"][0]["rows"] == [9 if suffix == ".csv" else 8]
    assert streamed(path) == table.frame.values.tolist()


def test_detect_encoding_truncated_character_is_utf_8() -> None:
    assert detect_encoding("a.csv", [b"text,label\ncaf\xc3 bar,pos\n"]) == "utf-8"
    assert detect_encoding("a.csv", ["text,label\ncafé bar,pos\n".encode("cp1252")]) == "cp1252"


# without pairs of characters whose cp1252 bytes are also valid UTF-8, such as "Ä–", which decodes to "Ė"
western = st.text("abcdefghij klm,.ÄÖÜäöüßéèñ“”–£", min_size=1, max_size=30).filter(
    lambda text: re.search(rb"[\xc2-\xf4][\x80-\xbf]", text.encode("cp1252")) is None
)


@quick
@given(texts=st.lists(western, min_size=1, max_size=10))
def test_decode_windows_1252_keeps_every_character(texts: list[str]) -> None:
    plain = "and a line of plain English text without any accent\n" * (1 + sum(map(len, texts)))
    text = plain + "\n".join(texts) + "schön gesagt, naïve and café"
    assert decode("a.csv", text.encode("cp1252")).text == text


@quick
@given(
    text=st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0")), cut=st.integers(1, 9)
)
def test_detect_encoding_in_blocks_equals_whole_file(text: str, cut: int) -> None:
    data = (text + " and café").encode()
    blocks = [data[i : i + cut] for i in range(0, len(data), cut)]
    if data[:3] != b"\xef\xbb\xbf":
        assert detect_encoding("a.csv", blocks) == detect_encoding("a.csv", [data])


def test_open_rows_late_bad_byte_keeps_utf_8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_HEAD", 200)
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,label\n" + "café,yes\n".encode() * 100 + b"caf\xff,yes\n")
    rows = streamed(path)
    assert rows[:100] == [["café", "yes"]] * 100
    assert rows[100] == ["caf\ufffd", "yes"]


def test_repair_text_joins_bad_bytes_and_keeps_valid_text() -> None:
    assert repair_text("a\udce2\udc82b\udc00c") == "a\ufffdb c"
    assert repair_text("日本 😀") == "日本 😀"


def test_decode_few_zero_bytes_are_replaced() -> None:
    decoded = decode("a.csv", b"text,label\nb\0d b\0d,pos\n")
    assert (decoded.damaged, repair_text(decoded.text)) == (True, "text,label\nb d b d,pos\n")


def test_decode_many_zero_bytes_raises() -> None:
    with pytest.raises(DataError, match="not a text file"):
        decode("a.csv", b"text,label\n\0\1\0\0,pos\n")
