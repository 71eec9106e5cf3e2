"""Run batteries, print one table and write it into docs/: python -m batteries [NAME...] [--scale 0.1]."""

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import offline  # noqa: F401  (blocks the network and empties the cache of Hub files)
import transformers

from batteries import (
    bombs,
    damage,
    data_files,
    faults,
    filler,
    foreign,
    forged,
    guesses,
    inputs,
    kills,
    load,
    resume,
    soak,
    visitors,
)
from batteries.result import BatteryResult
from batteries.table import table, write_results
from batteries.workplace import workplace

DATA_FILES = 10_000
_DOCS = Path(__file__).resolve().parent.parent / "docs"
Run = Callable[[argparse.Namespace], BatteryResult]


def _in_workplace(battery: Any) -> Run:
    def run(arguments: argparse.Namespace) -> BatteryResult:
        with workplace() as place:
            return battery.run(place, arguments.scale, arguments.seed)

    return run


def _visitors(arguments: argparse.Namespace) -> BatteryResult:
    with workplace() as place:
        return visitors.run(place.finished, arguments.scale, arguments.seed)


def _data_files(arguments: argparse.Namespace) -> BatteryResult:
    """Run the battery of data files; add its seconds and its criterion."""
    start = time.monotonic()
    battery_result = data_files.run(max(1, round(DATA_FILES * arguments.scale)), arguments.seed)
    passes_when = "0 tracebacks; rows right or a named error"
    return replace(battery_result, passes_when=passes_when, seconds=time.monotonic() - start)


def _minutes(arguments: argparse.Namespace, minutes: float) -> float:
    """Return the minutes of a battery that runs for a time: `--minutes`, or else a share of the default."""
    return arguments.scale * minutes if arguments.minutes is None else arguments.minutes


BATTERIES: dict[str, Run] = {
    "kills": _in_workplace(kills),
    "resume": _in_workplace(resume),
    "faults": lambda arguments: faults.run(arguments.scale, arguments.seed),
    "damage": _in_workplace(damage),
    "inputs": _in_workplace(inputs),
    "data_files": _data_files,
    "foreign": lambda arguments: foreign.run(arguments.scale, arguments.seed),
    "guesses": lambda arguments: guesses.run(arguments.scale),
    "bombs": lambda arguments: bombs.run(arguments.scale, arguments.seed),
    "forged": lambda arguments: forged.run(arguments.scale, arguments.seed),
    "visitors": _visitors,
    "filler": lambda arguments: filler.run(arguments.scale, arguments.seed),
    "load": lambda arguments: load.run(_minutes(arguments, load.MINUTES), arguments.seed),
    "soak": lambda arguments: soak.run(_minutes(arguments, soak.MINUTES)),
}


def main(argv: list[str]) -> int:
    """Run batteries; return 0 if all passed, else 1."""
    parser = argparse.ArgumentParser(prog="python -m batteries", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BATTERIES)}; all by default")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full count of cases, up to 1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--minutes",
        type=float,
        default=None,
        help=f"of the soak and the load; {soak.MINUTES:g} and {load.MINUTES:g} by default",
    )
    parser.add_argument("--docs", type=Path, default=_DOCS, help="where batteries.md and .json are written")
    arguments = parser.parse_args(argv)
    unknown = sorted(set(arguments.names) - set(BATTERIES))
    if unknown or not 0 < arguments.scale <= 1:
        problem = (
            f"there is no battery {unknown[0]!r}"
            if unknown
            else f"--scale is {arguments.scale}; give up to 1"
        )
        parser.error(problem)
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    results = []
    for name in arguments.names or BATTERIES:
        results.append(BATTERIES[name](arguments))
        sys.stdout.write(table(results[-1:]).splitlines()[-1] + "\n")
        sys.stdout.flush()
    write_results(arguments.docs, results, " ".join(["make batteries", *_as_make(argv)]))
    sys.stdout.write(f"\n{table(results)}\n")
    for battery_result in results:
        sys.stdout.writelines(f"{battery_result.name}: {failure}\n" for failure in battery_result.failures)
    return 0 if all(result.passed for result in results) else 1


def _as_make(argv: list[str]) -> list[str]:
    return [f'ARGS="{" ".join(argv)}"'] if argv else []


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="batteries-") as scratch:
        tempfile.tempdir = scratch  # leaves nothing in the system's folder
        sys.exit(main(sys.argv[1:]))
