"""Malformed and odd data files, read as for training, the data card and prediction.

A file passes if its rows are right, or if it is refused as expected. Any exception that is not a
`PeftCoreError` is a failure. `python -m batteries.data_files --count 10000 --seed 1 --json OUT`
"""

import argparse
import csv
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from batteries.curated_files import CURATED
from batteries.odd_file import OddFile, Rows
from batteries.odd_files import odd_file
from batteries.result import BatteryResult
from peft_core.config import TrainConfig
from peft_core.data.audit import audit
from peft_core.data.cells import as_text
from peft_core.data.columns import infer_columns
from peft_core.data.files import read_table
from peft_core.data.labelled import load_labeled_splits
from peft_core.data.preparing import normalize
from peft_core.data.reading import read_rows
from peft_core.data.reading_findings import reading_findings
from peft_core.data.streams import RowStream, open_rows
from peft_core.data.writers import escape_formula, writer_for
from peft_core.errors import PeftCoreError

NAME = "malformed and odd data files"
CARD_EVERY = 5  # one generated file in so many also goes through audit and splits, the slowest part
_ADDED = {"predicted_label": str, "confidence": float}
_REPLACED = ("\ufffd", " ")


class Mismatch(Exception):
    """A file was read wrongly; the message describes the difference."""


def run(count: int, seed: int) -> BatteryResult:
    """Read the curated files and generated ones, `count` files in total."""
    failures: list[str] = []
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for number, file in enumerate(_files(count, seed)):
            card = number < len(CURATED) or number % CARD_EVERY == 0
            try:
                outcomes[check(file, Path(folder) / str(number), card=card)] += 1
                outcomes["through the data card too"] += card
            except Mismatch as error:
                failures.append(f"{file.title}: {error}")
            except Exception as error:  # any other exception of a reader is a failure
                failures.append(f"{file.title}: {type(error).__name__}: {str(error)[:200]}")
    total = len(failures) + outcomes["read"] + outcomes["refused"]
    return BatteryResult(NAME, total, tuple(failures), tuple(sorted(outcomes.items())))


def check(file: OddFile, folder: Path, *, card: bool = True) -> str:
    """Read one file in every way, with `card` also as the data card does; return `read` or `refused`.

    Raises Mismatch, or any other exception of a reader.
    """
    folder.mkdir()
    path = folder / file.name
    path.write_bytes(file.data)
    try:
        is_refused = _check_table(file, path)
        _check_stream(file, path, is_refused)
        if card:
            _check_data_card(path)
    finally:
        for leftover in folder.iterdir():
            leftover.unlink()
        folder.rmdir()
    return "refused" if is_refused else "read"


def _files(count: int, seed: int) -> Iterator[OddFile]:
    yield from CURATED[:count]
    for number in range(max(0, count - len(CURATED))):
        yield odd_file(seed, number)


def _check_table(file: OddFile, path: Path) -> bool:
    """Return whether the file is refused for training."""
    try:
        table = read_table(path)
    except PeftCoreError as error:
        return _is_expected_refusal(file, error)
    if file.refusal is not None:
        raise Mismatch(f"read as {table.frame.values.tolist()[:2]} where {file.refusal!r} is the right error")
    if file.columns is not None and all(file.columns) and len(set(file.columns)) == len(file.columns):
        _require_columns(file.columns, list(table.frame.columns))
    rows = tuple(tuple(map(as_text, row)) for row in table.frame.itertuples(index=False, name=None))
    _require_rows(file.rows, rows, file.loose)
    if file.loose and file.rows is not None and rows != file.rows and not table.facts["notes"]:
        raise Mismatch("damage is read without a note")
    return False


def _is_expected_refusal(file: OddFile, error: PeftCoreError) -> bool:
    sentence = str(error)
    if not sentence or "\n" in sentence:
        raise Mismatch(f"the error {sentence!r} is not one line")
    if file.refusal is not None and file.refusal not in sentence:
        raise Mismatch(f"refused with {sentence!r} where {file.refusal!r} is the right error")
    if file.refusal is None and not file.may_refuse:
        raise Mismatch(f"refused with {sentence!r}")
    return True


def _check_stream(file: OddFile, path: Path, refused: bool) -> None:
    """Check the rows of a file to predict, and the file written with two more columns."""
    try:
        stream = open_rows(path)
        rows = tuple(tuple(map(as_text, row)) for chunk in stream.chunks() for row in chunk)
        if not refused:
            _require_rows(file.predicted or file.rows, rows, file.loose)
        _check_written(stream, rows)
    except PeftCoreError as error:
        if not refused:
            _is_expected_refusal(file, error)


def _check_written(stream: RowStream, rows: Rows) -> None:
    kind = writer_for(stream)
    path = stream.path.with_name("out" + (kind.suffix or stream.file.format))
    writer = kind(path, stream, _ADDED)
    try:
        for chunk in stream.chunks():
            writer.write(chunk, [["pos", 0.5]] * len(chunk))
    finally:
        writer.close()
    if stream.file.format in (".csv", ".tsv"):
        _check_csv(path, stream, rows)
    elif hasattr(stream, "raw"):
        _check_json(path, stream)


def _check_csv(path: Path, stream: Any, rows: Rows) -> None:
    with path.open(encoding="utf-8-sig", newline="") as file:
        header, *written = csv.reader(file, delimiter=stream.delimiter)
    _require_columns(
        [*map(escape_formula, stream.columns), *_ADDED], header[: len(stream.columns)] + list(_ADDED)
    )
    expected = tuple(tuple(map(escape_formula, row)) for row in rows)
    _require_rows(expected, tuple(tuple(row[: len(stream.columns)]) for row in written), frozenset())


def _check_json(path: Path, stream: Any) -> None:
    """Check that every input key keeps its text; numbers are compared as text."""

    def parsed(text: str) -> dict[str, Any]:
        return json.loads(text, parse_float=str, parse_int=str, parse_constant=str)

    with path.open(encoding="utf-8", newline="\n") as file:
        written = list(file)
    own = list(stream.raw())
    if len(own) != len(written):
        raise Mismatch(f"{len(own)} objects came in, {len(written)} out")
    for before, after in zip(own, written, strict=True):
        if not after.startswith(before.rstrip().removesuffix("}").rstrip()):
            raise Mismatch(f"the object {before[:60]!r} came out as {after[:60]!r}")
        if {key: value for key, value in parsed(after).items() if key in parsed(before)} != parsed(before):
            raise Mismatch(f"the keys of {before[:60]!r} came out as {after[:60]!r}")


def _check_data_card(path: Path) -> None:
    """Read a file as the data card does, without tokens; only a `PeftCoreError` may be raised."""
    config = TrainConfig(dataset_name=str(path))
    try:
        raw = read_rows(config)
        columns = infer_columns(config, raw.frames["train"], raw.class_names)
        findings = [*reading_findings(raw.record), *audit(normalize(raw, columns), columns.problem_type)]
        json.dumps([finding.to_dict() for finding in findings])
        json.dumps(load_labeled_splits(config).record, allow_nan=False)
    except PeftCoreError as error:
        if "\n" in str(error) or not str(error):
            raise Mismatch(f"the error {str(error)!r} is not one line") from error


def _require_columns(expected: Any, columns: list[str]) -> None:
    if [name.strip() for name in expected] != [name.strip() for name in columns]:
        raise Mismatch(f"columns {columns} where {list(expected)} are right")


def _require_rows(expected: Rows | None, rows: Rows, loose: frozenset[int]) -> None:
    if expected is None:
        return
    if len(rows) != len(expected):
        raise Mismatch(f"{len(rows)} rows where {len(expected)} are right")
    for index, (expected_row, row) in enumerate(zip(expected, rows, strict=True)):
        is_damaged = index in loose and any(mark in cell for cell in row for mark in _REPLACED)
        if expected_row != row and not is_damaged:
            raise Mismatch(f"row {index + 1} is {row!r:.200} where {expected_row!r:.200} is right")


def main() -> int:
    """Run the battery from the command line; return 1 if a file failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="files in all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where the result is written")
    arguments = parser.parse_args()
    report = run(arguments.count, arguments.seed)
    for failure in report.failures[:50]:
        print(failure, file=sys.stderr)
    counts = ", ".join(f"{number:,} {outcome}" for outcome, number in report.outcomes)
    print(f"{report.name}: {report.count:,} files, {counts}, {len(report.failures):,} failed")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")
    return int(not report.passed)


if __name__ == "__main__":
    sys.exit(main())
