"""The results of the batteries as one table: for a terminal, `docs/batteries.md` and `.json`."""

import json
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from batteries.result import BatteryResult
from peft_core.files.atomic import write_json, write_text

_HEADER = ("Battery", "Count", "Passes when", "Result", "At 95 %", "Time", "Commit")
_FAILURES_SHOWN = 20


def write_results(folder: Path, results: Sequence[BatteryResult], command: str) -> None:
    """Write `batteries.md` and `batteries.json`; batteries that did not run keep their rows."""
    folder.mkdir(parents=True, exist_ok=True)
    all_results = merged(read_results(folder / "batteries.json"), [_dated(result) for result in results])
    write_json(folder / "batteries.json", {"batteries": [result.to_dict() for result in all_results]})
    lines = [
        "# Batteries",
        "",
        f"Written by `{command}`, which keeps the rows of batteries that it does not run. Each row names the "
        "commit that it tested.",
        "",
        "0 failures in N cases say, at 95 % confidence, that fewer than 3/N of such cases fail.",
        "",
        table(all_results),
        "",
        *_details(all_results),
    ]
    write_text(folder / "batteries.md", "\n".join(lines))


def read_results(path: Path) -> list[BatteryResult]:
    """Return the results in a `batteries.json`; none if the file is missing."""
    if not path.is_file():
        return []
    return [BatteryResult.from_dict(values) for values in json.loads(path.read_text("utf-8"))["batteries"]]


def merged(before: Sequence[BatteryResult], now: Sequence[BatteryResult]) -> list[BatteryResult]:
    """Return the earlier results in their order, replaced by new ones of the same name."""
    newest = {result.name: result for result in [*before, *now]}
    return list(newest.values())


def _dated(battery: BatteryResult) -> BatteryResult:
    return replace(battery, date=time.strftime("%Y-%m-%d"), commit=_commit(), machine=describe(machine()))


def _commit() -> str:
    """Return the commit of this code, with a `+` if files differ from it; empty without git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def table(results: Sequence[BatteryResult]) -> str:
    """Return a Markdown table with one row per battery."""
    rows = [_HEADER, tuple("---" for _ in _HEADER), *map(_row, results)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def machine() -> dict[str, Any]:
    """Return processor, cores, system and versions."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def describe(facts: dict[str, Any]) -> str:
    """Return the machine in words."""
    return (
        f"{facts['processor']}, {facts['cores']} cores, {facts['system']}, Python {facts['python']}, "
        f"torch {facts['torch']}"
    )


def _row(battery: BatteryResult) -> tuple[str, ...]:
    failure_count = len(battery.failures)
    verdict = (
        "0 failures"
        if battery.passed
        else f"**{failure_count:,} failures**"
        if failure_count
        else "**no case ran**"
    )
    bound = f"below {battery.upper_bound_95:.2%}" if battery.passed else ""
    time_taken = _duration(battery.seconds)
    return (
        battery.name, f"{battery.count:,}", battery.passes_when, verdict, bound, time_taken, battery.commit,
    )  # fmt: skip


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _details(results: Sequence[BatteryResult]) -> list[str]:
    """Return a list with outcomes and failures of each battery."""
    lines = []
    for battery in results:
        parts = ", ".join(f"{name}: {number:,}" for name, number in battery.outcomes)
        lines.append(
            f"- {'. '.join(filter(None, (battery.name, parts)))}. {battery.date}, {battery.machine}."
        )
        lines += [f"  - failed: {failure}" for failure in battery.failures[:_FAILURES_SHOWN]]
        if len(battery.failures) > _FAILURES_SHOWN:
            lines.append(f"  - and {len(battery.failures) - _FAILURES_SHOWN:,} more, in batteries.json")
    return [*lines, ""]


def _processor() -> str:
    """Return the processor's name from Linux, or else from Python."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
