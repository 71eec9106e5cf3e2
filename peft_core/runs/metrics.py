"""`metrics.jsonl`: what a training logged, one row a line, each line bound to those before it.

A line holds a row and `check`, the first 16 hex digits of the SHA-256 of the previous line's `check` and the
row. A line that was changed, or that follows a lost one, does not fit, and reading ends before it. A cut at
the very end between two lines is noticed by the run's state, which names the `check` of a line that was
there, and by the result, which names that of the last one.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from peft_core.files import Stamp, fsync, open_regular, stamp_of, translate_disk_errors, write_text

METRICS_FILE = "metrics.jsonl"
_CHECK = "check"
_MOST_READ = 1024  # logs that are kept as they were read


class MetricsLog(NamedTuple):
    """The rows that can be read, the last one's check, what is damaged (or empty), and all their checks."""

    rows: list[dict[str, Any]]
    check: str
    damage: str
    checks: frozenset[str] = frozenset()


_read: dict[str, tuple[Stamp | None, MetricsLog]] = {}


def read_metrics(folder: Path) -> MetricsLog:
    """The rows so far; a last line that is half-written is left for later.

    The file is read again only if its time, size or inode changed since; the rows are not to be changed.
    """
    stamp, key = stamp_of(f"{folder}/{METRICS_FILE}"), str(folder)
    known = _read.get(key)
    if known is None or stamp is None or known[0] != stamp:
        known = (stamp, _read_log(folder))
        if len(_read) >= _MOST_READ:
            _read.clear()
        _read[key] = known
    return known[1]


def _read_log(folder: Path) -> MetricsLog:
    try:
        with open_regular(folder / METRICS_FILE) as file:
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return MetricsLog([], "", "")
    except OSError as error:
        return MetricsLog([], "", f"{METRICS_FILE} cannot be read: {error.strerror}.")
    rows: list[dict[str, Any]] = []
    checks: list[str] = []
    check, checked = "", any(b'"check"' in line for line in lines)  # rows of schema version 0 have none
    for number, line in enumerate(lines, start=1):
        row = _row(line)
        if row is None or (checked and row.pop(_CHECK, None) != _check(check, row)):
            return MetricsLog(
                rows,
                check,
                f"{METRICS_FILE} is damaged from line {number} of {len(lines)}; the curve ends there.",
            )
        rows.append(row)
        check = _check(check, row)
        checks.append(check)
    return MetricsLog(rows, check, "", frozenset(checks))


def append_metrics(folder: Path, row: dict[str, Any], check: str) -> str:
    """Append a row after the line that has this check; returns the new line's."""
    path, new = folder / METRICS_FILE, _check(check, row)
    with translate_disk_errors(), path.open("a", encoding="utf-8") as file:
        file.write(_line(row, new))
    return new


def sync_metrics(folder: Path) -> None:
    """Wait until the rows so far are on disk; nothing if there are none."""
    if (folder / METRICS_FILE).exists():
        with translate_disk_errors():
            fsync(folder / METRICS_FILE)


def keep_metrics(folder: Path, rows: list[dict[str, Any]]) -> str:
    """Write these rows anew and no others; returns the last one's check."""
    check, lines = "", []
    for row in rows:
        check = _check(check, row)
        lines.append(_line(row, check))
    write_text(folder / METRICS_FILE, "".join(lines))
    return check


def _line(row: dict[str, Any], check: str) -> str:
    return json.dumps({**row, _CHECK: check}, allow_nan=False) + "\n"


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _check(before: str, row: dict[str, Any]) -> str:
    return hashlib.sha256(f"{before}{json.dumps(row, sort_keys=True)}".encode()).hexdigest()[:16]
