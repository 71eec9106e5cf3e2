"""A short run of the battery of odd data files, and its detection of deliberately broken readers."""

import json
from pathlib import Path
from typing import Any

import pytest

from batteries import data_files
from batteries.curated_files import CURATED
from batteries.odd_file import OddFile
from batteries.odd_files import odd_file
from peft_core.data import decoding, delimited, files, streams


@pytest.mark.parametrize("file", CURATED, ids=lambda file: file.title)
def test_curated_file_is_read_or_refused_as_expected(file: OddFile, tmp_path: Path) -> None:
    assert data_files.check(file, tmp_path / "one") == ("refused" if file.refusal else "read")


def test_short_battery_has_no_failures() -> None:
    report = data_files.run(len(CURATED) + 100, seed=7)
    assert report.failures == ()
    assert report.count == len(CURATED) + 100
    assert dict(report.outcomes)["read"] + dict(report.outcomes)["refused"] == report.count
    assert len(CURATED) >= 80


def test_odd_file_of_equal_seed_and_number_is_equal() -> None:
    first, second = ([odd_file(3, i) for i in range(40)] for _ in range(2))
    plain = [i for i, file in enumerate(first) if file.name.endswith((".csv", ".tsv", ".jsonl", ".json"))]
    assert plain and all(first[i] == second[i] for i in plain)  # archives and workbooks contain timestamps


def _replace(name: str, data: bytes) -> decoding.Decoded:
    return decoding.Decoded(data.decode("utf-8", "replace"), "utf-8", damaged=False)


def _western(name: str, data: bytes) -> decoding.Decoded:
    try:
        return decoding.Decoded(data.decode("utf-8"), "utf-8", damaged=False)
    except UnicodeDecodeError:
        return decoding.Decoded(data.decode("cp1252", "replace"), "cp1252", damaged=False)


def _no_blank_rows(cells: list[str], width: int) -> list[str] | None:
    return cells if any(cells) else None


def fails(file: OddFile, folder: Path) -> bool:
    try:
        data_files.check(file, folder)
    except Exception:  # any error of a broken reader counts
        return True
    return False


@pytest.mark.parametrize(
    ("module", "name", "broken"),
    [
        (files, "decode", _replace),
        (files, "decode", _western),
        (streams, "fit_to_width", _no_blank_rows),
        (delimited, "fit_to_width", _no_blank_rows),
        (files, "stringify_mixed_column", lambda column: column.map(lambda value: str(value) + " ")),
        (files, "repair_text", lambda text: text),
        (streams, "raw_rows", lambda text, shape: [json.dumps(row) for row in json.loads(text)]),
    ],
    ids=["errors=replace", "mojibake", "blank rows lost", "blank rows lost in training", "texts changed",
         "damage not mended", "JSON written anew"],
)  # fmt: skip
def test_battery_detects_a_broken_reader(
    module: Any, name: str, broken: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, name, broken)
    assert any(fails(file, tmp_path / str(i)) for i, file in enumerate(CURATED))


def test_battery_reports_a_traceback_as_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> Any:
        raise IndexError("list index out of range")

    monkeypatch.setattr(files, "read_delimited", broken)
    failures = data_files.run(3, seed=1).failures
    assert len(failures) == 3 and all("IndexError" in failure for failure in failures)


def test_command_line_prints_counts_and_writes_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "result.json"
    monkeypatch.setattr("sys.argv", ["data_files", "--count", "40", "--json", str(out)])
    assert data_files.main() == 0
    assert "40 files" in capsys.readouterr().out
    assert json.loads(out.read_text("utf-8"))["count"] == 40
