"""Packed data files: the one table inside is read, and decompression bombs are stopped early."""

import gzip
import io
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.data import files, streams, uploads
from peft_core.data.files import read_table
from peft_core.data.formats import FILE_TYPES, SUFFIXES, suffix_of
from peft_core.data.labelled import load_labeled_splits
from peft_core.data.streams import open_rows
from peft_core.data.unpacking import locate, unpacked_bytes
from peft_core.data.uploads import store_upload
from peft_core.data.writers import writer_for
from peft_core.errors import DataError
from peft_core.service.workbench import Workbench

CASES = Path(__file__).parents[1] / "cases"
CSV = "text,label\n" + "good,pos\nbad,neg\n" * 20


def zipped(path: Path, **members: str | bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def bomb(path: Path, megabytes: int) -> Path:
    """Write a small file that unpacks to so many megabytes of rows."""
    rows = b"good,pos\n" * 111_112
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.csv", "w") as file:
            for _ in range(megabytes):
                file.write(rows)
    else:
        with gzip.open(path, "wb", 9) as file:
            for _ in range(megabytes):
                file.write(rows)
    return path


def test_read_table_of_gz_reads_all_rows() -> None:
    table = read_table(CASES / "reviews.csv.gz")
    assert (len(table.frame), table.facts["format"]) == (40, "csv")
    assert [row for chunk in open_rows(CASES / "reviews.csv.gz").chunks() for row in chunk] == (
        table.frame.values.tolist()
    )


def test_load_labeled_splits_reads_gz_file_and_folder(tmp_path: Path) -> None:
    (tmp_path / "reviews.csv.gz").write_bytes((CASES / "reviews.csv.gz").read_bytes())
    for name in (tmp_path / "reviews.csv.gz", tmp_path):
        assert load_labeled_splits(TrainConfig(dataset_name=str(name))).label_names == ("neg", "pos")


def test_read_table_of_zip_ignores_other_members(tmp_path: Path) -> None:
    members = {
        "README.md": "about",
        "in/a.csv": CSV,
        "__MACOSX/in/._a.csv": b"\0",
        "readme.csv": "a,b\n1,2\n",
    }
    path = zipped(tmp_path / "a.zip", **members)
    assert locate(path).member == "in/a.csv"
    assert len(read_table(path).frame) == 40
    assert read_table(path).facts["member"] == "in/a.csv"


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"a.csv": CSV, "b.csv": CSV}, "holds 2 tables, 'a.csv', 'b.csv'"),
        ({"a.pdf": "x"}, "has no .csv .* file, only 'a.pdf'"),
        ({}, "only nothing"),
    ],
)
def test_locate_in_zip_without_exactly_one_table_raises_data_error(
    members: dict[str, str], words: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=words):
        locate(zipped(tmp_path / "a.zip", **members))


@pytest.mark.parametrize("name", ["a.csv.gz", "a.zip"])
def test_read_table_of_decompression_bomb_stops_at_limit(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bomb(tmp_path / name, 30)
    assert path.stat().st_size < 200_000
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 2_000_000)
    monkeypatch.setattr(streams, "MAX_STREAM_BYTES", 2_000_000)
    for read in (read_table, open_rows):
        with pytest.raises(DataError, match="over 2 MB once unpacked"):
            read(path)


def test_locate_read_of_zip_with_false_size_counts_actual_bytes(tmp_path: Path) -> None:
    path = bomb(tmp_path / "a.zip", 5)
    data = bytearray(path.read_bytes())
    place = data.rindex(b"PK\x01\x02") + 24  # the unpacked size in the central directory
    data[place : place + 4] = (100).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(DataError, match="damaged archive|once unpacked"):
        locate(path).read(2_000_000)


def test_unpacked_bytes_stops_counting_at_limit(tmp_path: Path) -> None:
    path = bomb(tmp_path / "a.csv.gz", 30)
    assert 2_000_000 < unpacked_bytes(path, 2_000_000) < 4_000_001
    assert unpacked_bytes(path, 100_000_000) == 30 * 111_112 * 9


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.csv.gz", CSV.encode(), "damaged archive"),
        ("a.csv.gz", gzip.compress(CSV.encode(), mtime=0)[:-9], "damaged archive"),
        ("a.zip", b"PK\x03\x04", "damaged archive"),
        ("a.gz", gzip.compress(CSV.encode(), mtime=0), "save it as one of these"),
        ("a.tar.gz", gzip.compress(b"x", mtime=0), "save it as one of these"),
    ],
    ids=["no gzip", "cut gzip", "cut zip", "no suffix inside", "tar"],
)
def test_read_table_of_damaged_archive_raises_one_line_error(
    name: str, data: bytes, words: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(data)
    for read in (read_table, open_rows):
        with pytest.raises(DataError, match=words) as error:
            read(tmp_path / name)
        assert "\n" not in str(error.value)


def test_store_upload_of_packed_file_counts_unpacked_bytes(tmp_path: Path) -> None:
    small = zipped(tmp_path / "small.zip", **{"a.csv": CSV})
    assert store_upload([small], tmp_path / uploads.UPLOADS, max_bytes=2_000_000).folder.is_dir()
    with pytest.raises(DataError, match="at most 2 MB are taken"):
        store_upload([bomb(tmp_path / "a.csv.gz", 5)], tmp_path / uploads.UPLOADS, max_bytes=2_000_000)


def test_preview_file_of_decompression_bomb_on_public_demo_raises_data_error(tmp_path: Path) -> None:
    public_workbench = Workbench.open(tmp_path / "runs", public=True)
    run = runs.create(public_workbench.runs_dir, TrainConfig())
    try:
        with pytest.raises(DataError, match="this public demo takes at most 10 MB"):
            public_workbench.preview_file(bomb(tmp_path / "a.zip", 15), run.run_id)
    finally:
        public_workbench.files.close()


def many_gzip_members(path: Path) -> Path:
    path.write_bytes(gzip.compress(CSV.encode(), mtime=0) + gzip.compress(b"", mtime=0) * 300_000)
    return path


def many_zip_entries(path: Path) -> Path:
    """Write a zip of 100,001 entries whose end record counts one."""
    whole = zipped(path, **{"a.csv": CSV}).read_bytes()
    start, end = whole.index(b"PK\x01\x02"), whole.index(b"PK\x05\x06")
    directory = whole[start:end] + whole[start:end].replace(b"a.csv", b"b.txt") * 100_000
    size = len(directory).to_bytes(4, "little")
    path.write_bytes(whole[:start] + directory + whole[end : end + 12] + size + whole[end + 16 :])
    return path


@pytest.mark.parametrize(
    ("make", "name"),
    [(many_gzip_members, "a.csv.gz"), (many_zip_entries, "a.zip"), (many_zip_entries, "a.xlsx")],
)
def test_unpacked_bytes_of_too_many_members_raises_before_listing(
    make: Callable[[Path], Path], name: str, tmp_path: Path
) -> None:
    path, start = make(tmp_path / name), time.process_time()
    with pytest.raises(DataError, match=r"is an archive of [13]00,001 members; at most 1,\d+ are read"):
        unpacked_bytes(path, 10_000_000)
    assert time.process_time() - start < 1


def test_unpacked_bytes_of_gz_with_many_members_counts_all(tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(CSV.encode(), mtime=0) * 1000)
    assert unpacked_bytes(tmp_path / "a.csv.gz", 10_000_000) == 1000 * len(CSV)


@pytest.mark.parametrize("packed", [False, True])
def test_unpacked_bytes_of_workbook_over_xml_limit_raises_data_error(packed: bool, tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.xlsx", **{"xl/sharedStrings.xml": b" " * 10_500_000, "a.xml": b" "})
    if packed:
        path = zipped(tmp_path / "a.zip", **{"a.xlsx": path.read_bytes()})
    with pytest.raises(DataError, match="unpacks to over 10 MB; leave out rows"):
        unpacked_bytes(path, 1_000_000)
    assert unpacked_bytes(path, 2_000_000) < 20_000


def test_store_upload_of_workbook_over_xml_limit_stores_nothing(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.xlsx", **{"xl/sharedStrings.xml": b" " * 10_500_000})
    with pytest.raises(DataError, match="unpacks to over 10 MB"):
        store_upload([path], tmp_path / uploads.UPLOADS, max_bytes=1_000_000)
    assert not (tmp_path / uploads.UPLOADS).exists()


def test_writer_for_packed_file_writes_unpacked_file(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv.gz"
    path.write_bytes(gzip.compress(CSV.replace(",", "\t").encode()))
    stream = open_rows(path)
    writer = writer_for(stream)(tmp_path / "out", stream, {"predicted_label": str})
    for rows in stream.chunks():
        writer.write(rows, [["pos"]] * len(rows))
    writer.close()
    assert writer.suffix == ".tsv"
    assert io.StringIO((tmp_path / "out").read_text("utf-8")).readline() == "text\tlabel\tpredicted_label\n"


def test_read_table_of_blank_column_raises_data_error(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text\n\n""\n  \n', encoding="utf-8")
    with pytest.raises(DataError, match="has no rows"):
        read_table(tmp_path / "a.csv")


def test_file_types_include_every_suffix() -> None:
    for suffix in SUFFIXES:
        assert f".{suffix.rsplit('.', 1)[1]}" in FILE_TYPES
        assert suffix_of(f"Reviews{suffix.upper()}") == suffix
    assert suffix_of("reviews.gz") is None and suffix_of(".csv") is None


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_read_table_of_zip_with_one_damaged_byte_reads_or_raises_one_line(
    compression: int, tmp_path: Path
) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a.csv", CSV)
    whole, refusals = path.read_bytes(), []
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            read_table(path)
        except DataError as error:
            refusals.append(str(error))
    assert any("is a damaged archive" in sentence for sentence in refusals)
    assert not any("\n" in sentence for sentence in refusals)
