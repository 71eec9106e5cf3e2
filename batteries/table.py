"""The results of the batteries as one table: for a terminal, `docs/batteries.md` and `.json`."""

import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from batteries.result import BatteryResult
from peft_core.files import write_json, write_text

_HEADER = ("Battery", "Count", "Passes when", "Result", "At 95 %", "Time")
_FAILURES_SHOWN = 20


def write_results(folder: Path, results: Sequence[BatteryResult], command: str) -> None:
    """Write `batteries.md` and `batteries.json` into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"date": time.strftime("%Y-%m-%d"), "command": command, "machine": machine()}
    write_json(folder / "batteries.json", {**facts, "batteries": [result.to_dict() for result in results]})
    lines = [
        "# Batteries",
        "",
        f"Written by `{command}` on {facts['date']}; {describe(facts['machine'])}.",
        "",
        "0 failures in N cases say, at 95 % confidence, that fewer than 3/N of such cases fail.",
        "",
        table(results),
        "",
        *_details(results),
    ]
    write_text(folder / "batteries.md", "\n".join(lines))


def table(results: Sequence[BatteryResult]) -> str:
    """A table in Markdown, one row for each battery."""
    rows = [_HEADER, tuple("---" for _ in _HEADER), *map(_row, results)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def machine() -> dict[str, Any]:
    """The processor, its cores, and what computed."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def describe(facts: dict[str, Any]) -> str:
    """The machine in words."""
    return (
        f"{facts['processor']}, {facts['cores']} cores, {facts['system']}, Python {facts['python']}, "
        f"torch {facts['torch']}"
    )


def _row(result: BatteryResult) -> tuple[str, ...]:
    failed = len(result.failures)
    verdict = "0 failures" if result.passed else f"**{failed:,} failures**" if failed else "**no case ran**"
    bound = f"below {result.upper_bound_95:.2%}" if result.passed else ""
    return result.name, f"{result.count:,}", result.passes_when, verdict, bound, _duration(result.seconds)


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _details(results: Sequence[BatteryResult]) -> list[str]:
    """What the cases of each battery were, and its failures."""
    lines = []
    for result in results:
        parts = ", ".join(f"{name}: {number:,}" for name, number in result.outcomes)
        lines += [f"- {result.name}. {parts}."] if parts else []
        lines += [f"  - failed: {failure}" for failure in result.failures[:_FAILURES_SHOWN]]
        if len(result.failures) > _FAILURES_SHOWN:
            lines.append(f"  - and {len(result.failures) - _FAILURES_SHOWN:,} more, in batteries.json")
    return [*lines, ""]


def _processor() -> str:
    """The processor's name as Linux tells it, or what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
