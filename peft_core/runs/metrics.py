"""The training log `metrics.jsonl`: one row per line, each line chained to the lines before it.

A line holds a row and `check`: the first 16 hex digits of the SHA-256 of the previous line's `check` and the
row. A line that was changed, or whose predecessor is lost, does not match its `check`, and reading stops
before it. A file that was cut exactly between two lines is detected by the run's state, which stores the
`check` of a line that was written, and by the result, which stores that of the last line.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from peft_core.files.atomic import Stamp, fsync, open_regular, stamp_of, translate_disk_errors, write_text

METRICS_FILE = "metrics.jsonl"
_CHECK = "check"
_MAX_CACHED = 1024  # logs


class MetricsLog(NamedTuple):
    """The readable rows of `metrics.jsonl`.

    Attributes:
        rows: The rows, up to the first damaged line.
        check: The check of the last of them; empty without rows.
        damage: A message if a line is damaged, else empty.
        checks: The checks of all rows.
    """

    rows: list[dict[str, Any]]
    check: str
    damage: str
    checks: frozenset[str] = frozenset()


_cache: dict[str, tuple[Stamp | None, MetricsLog]] = {}


def read_metrics(folder: Path) -> MetricsLog:
    """Return the rows so far, without a last line that is only half written.

    The log is cached until the file's time, size or inode changes; callers must not modify its rows.
    """
    stamp, key = stamp_of(f"{folder}/{METRICS_FILE}"), str(folder)
    cached = _cache.get(key)
    if cached is None or stamp is None or cached[0] != stamp:
        cached = (stamp, _read_log(folder))
        if len(_cache) >= _MAX_CACHED:
            _cache.clear()
        _cache[key] = cached
    return cached[1]


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
    check, has_checks = "", any(b'"check"' in line for line in lines)  # rows of schema version 0 have none
    for number, line in enumerate(lines, start=1):
        row = _parse_row(line)
        if row is None or (has_checks and row.pop(_CHECK, None) != _check(check, row)):
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
    """Append a row after the line with this check, and return the check of the new line."""
    path, new_check = folder / METRICS_FILE, _check(check, row)
    with translate_disk_errors(), path.open("a", encoding="utf-8") as file:
        file.write(_format_line(row, new_check))
    return new_check


def sync_metrics(folder: Path) -> None:
    """Wait until the rows so far are on disk. Does nothing without a log."""
    if (folder / METRICS_FILE).exists():
        with translate_disk_errors():
            fsync(folder / METRICS_FILE)


def rewrite_metrics(folder: Path, rows: list[dict[str, Any]]) -> str:
    """Replace the log by these rows, and return the check of the last one."""
    check, lines = "", []
    for row in rows:
        check = _check(check, row)
        lines.append(_format_line(row, check))
    write_text(folder / METRICS_FILE, "".join(lines))
    return check


def _format_line(row: dict[str, Any], check: str) -> str:
    return json.dumps({**row, _CHECK: check}, allow_nan=False) + "\n"


def _parse_row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _check(previous_check: str, row: dict[str, Any]) -> str:
    return hashlib.sha256(f"{previous_check}{json.dumps(row, sort_keys=True)}".encode()).hexdigest()[:16]
