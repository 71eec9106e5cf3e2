"""ENOSPC and EIO at every k-th write, fsync, rename and creation of every file that a run writes.

A process with the fault layer preloaded stops just before something is written and forks there once for each
k: the k-th operation fails in that fork, which runs to its end. Then the last good version must load, partial
files may be neither accepted nor left, and the error must be one sentence about the disk. A full disk is
tried twice: failing once, and staying full. The log of the undisturbed operations is checked for the order of
fsync and rename, which a kill cannot test: the system keeps the writes of a dead process.
"""

import argparse
import errno
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn

from batteries import run_checks
from batteries.children import BUG, ERROR, KILLED, Report, end_child, fork_child, fork_here, outcome
from batteries.durability import unsynced_renames
from batteries.fault_layer import Fault, FaultLayer, LayerError, compile_layer
from batteries.result import BatteryResult
from batteries.scenarios import SCENARIOS, Scenario
from batteries.workplace import Workplace, workplace
from peft_core.runs import RUNNING, Run

NAME = "ENOSPC and EIO at every k-th write, fsync, rename"
PASSES_WHEN = "the last good one loads, the message is clear, all is synced before its rename"
SENTENCES = {errno.ENOSPC: "The disk is full", errno.EIO: "reports an error"}
KINDS = ((errno.ENOSPC, False), (errno.EIO, False), (errno.ENOSPC, True))
TRIAL, FAILURE, RENAMES = "trial", "failure", "renames"
_ROOT = Path(__file__).resolve().parent.parent
_MAX_SECONDS = 4 * 3600.0  # time limit of a scenario


class Trial(NamedTuple):
    """Outcome of a fork with a fault: the number of operations, and its error, if any."""

    operations: int
    error: str | None
    is_bug: bool


def run(share: float = 1.0, seed: int = 0, prelude: str = "", only: tuple[str, ...] = ()) -> BatteryResult:
    """Run the scenarios, or those in `only`, in a process with the layer, with `share` of all k.

    `prelude` is Python that this process runs first, with which a test breaks the product.
    """
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        try:
            library, report = compile_layer(Path(name)), Path(name) / "report.json"
        except LayerError as error:
            return BatteryResult(NAME, 0, (str(error),), passes_when=PASSES_WHEN)
        arguments = [str(library), str(report), str(share), str(seed), *only]
        code = f"{prelude}\nimport sys\nfrom batteries.faults import main\nmain(sys.argv[1:])"
        process = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code, *arguments],
            cwd=_ROOT,
            env={**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": f"{_ROOT}:{_ROOT}/tests/support"},
            capture_output=True,
            text=True,
            check=False,
        )
        if process.returncode:
            return BatteryResult(
                NAME, 0, (f"It could not run: {process.stderr[-1500:]}",), passes_when=PASSES_WHEN
            )
        values = json.loads(report.read_text())
    return BatteryResult(
        NAME,
        values["count"],
        tuple(values["failures"]),
        tuple(sorted(values["outcomes"].items())),
        PASSES_WHEN,
        time.monotonic() - start,
    )


def main(arguments: list[str]) -> None:
    """Entry point of the process with the layer: LIBRARY REPORT SHARE SEED [SCENARIO...]."""
    parser = argparse.ArgumentParser()
    parser.add_argument("library", type=Path)
    parser.add_argument("report", type=Path)
    parser.add_argument("share", type=float)
    parser.add_argument("seed", type=int)
    parser.add_argument("only", nargs="*")
    chosen = parser.parse_args(arguments)
    layer, rng = FaultLayer(chosen.library), random.Random(chosen.seed)
    outcomes, failures = Counter[str](), []
    with workplace() as place:
        for scenario in SCENARIOS:
            if chosen.only and scenario.name not in chosen.only:
                continue
            trials, problems = _run_scenario(scenario, place, layer, chosen.share, rng)
            outcomes += trials
            failures += problems
    count = outcomes.total() - outcomes["renames checked"]
    values = {"count": count, "outcomes": outcomes, "failures": failures}
    chosen.report.write_text(json.dumps(values))


def _run_scenario(
    scenario: Scenario, place: Workplace, layer: FaultLayer, share: float, rng: random.Random
) -> tuple[Counter[str], list[str]]:
    """Run a scenario in a child and try all faults at its callback."""
    run = scenario.prepare(place)

    def task(report: Report) -> None:
        explorer = Explorer(scenario, run, layer, report, share, random.Random(rng.random()))
        try:
            scenario.act(run, explorer.try_faults)
        except BaseException as error:
            explorer.end(error)
        explorer.end(None)

    child = fork_child(task).finish(_MAX_SECONDS)
    shutil.rmtree(place.runs_dir, ignore_errors=True)
    shutil.copytree(place.folder / "finished", place.finished.folder)
    counts: Counter[str] = Counter()
    failures = [f"{scenario.name}: {m.text}" for m in child.messages if m.kind == FAILURE]
    for message in child.messages:
        if message.kind == TRIAL:
            counts[message.text] += 1
        elif message.kind == RENAMES:
            counts["renames checked"] += int(message.text)
    if outcome(child):
        failures.append(f"{scenario.name}: {outcome(child)}")
    return counts, failures


@dataclass
class Explorer:
    """Tries every fault at the callback of a scenario, from a snapshot of the runs folder."""

    scenario: Scenario
    run: Run
    layer: FaultLayer
    report: Report
    share: float
    random: random.Random
    in_fork: bool = False

    def try_faults(self) -> None:
        """Callback of the scenario: returns only in the forks, which continue with their faults."""
        if self.in_fork:
            return
        folder = self.run.folder.parent
        snapshot = folder.with_name("snapshot")
        shutil.rmtree(snapshot, ignore_errors=True)
        shutil.copytree(folder, snapshot)
        before = _Before.of(self.run)
        undisturbed = self._fork(None)
        if undisturbed is None:
            return
        self._check(undisturbed, None, before)
        for fault in self._faults(undisturbed.operations):
            _restore(folder, snapshot)
            trial = self._fork(fault)
            if trial is None:
                return
            self._check(trial, fault, before)
        os._exit(self.report("done") or 0)

    def end(self, error: BaseException | None) -> NoReturn:
        """Report the end of the scenario in a fork, or that the callback was never called."""
        if not self.in_fork:
            end_child(self.report, error or RuntimeError("its moment never came"))
        count, operations = self.layer.disarm(), self.layer.operations()
        renames, problems = unsynced_renames(operations)
        self.report("operations", count)
        self.report(RENAMES, renames)
        for problem in problems:
            self.report("unsynced", problem)
        end_child(self.report, error)

    def _fork(self, fault: Fault | None) -> Trial | None:
        """Fork with a fault; return its outcome, or None in the fork itself."""
        child, report = fork_here()
        if child is None:
            self.report, self.in_fork = report, True
            self.layer.arm(self.run.folder.parent, fault)
            return None
        child.finish()
        if fault is None:
            self.report(RENAMES, child.first(RENAMES) or 0)
            for message in child.messages:
                if message.kind == "unsynced":
                    self.report(FAILURE, message.text)
        error = child.first(ERROR)
        bug = child.first(BUG) or (KILLED if outcome(child) and error is None else None)
        return Trial(
            int(child.first("operations") or 0), error if error is not None else bug, bug is not None
        )

    def _faults(self, operations: int) -> list[Fault]:
        faults = [Fault(k, error, stays) for error, stays in KINDS for k in range(1, operations + 1)]
        if self.share >= 1:
            return faults
        return self.random.sample(faults, max(1, round(self.share * len(faults))))

    def _check(self, trial: Trial, fault: Fault | None, before: "_Before") -> None:
        """Report every problem after a trial."""
        failed, stays = trial.error is not None, fault is not None and fault.stays
        problems = _error_problems(trial, fault)
        if self.run.folder.is_dir() or not self.scenario.deletes:
            problems += before.problems(self.run, failed=failed, stays=stays)
        if trial.error is None:
            problems += self.scenario.problems(self.run)
        for run in self.run.folder.parent.iterdir():
            if run.is_dir() and not run.name.startswith("."):
                problems += run_checks.torn_parts(Run(run)) + run_checks.unusable_parts(Run(run))
        problems += run_checks.staging_left(self.run.folder.parent)
        where = "undisturbed"
        if fault is not None:
            name = errno.errorcode[fault.error]
            self.report(TRIAL, f"{name} that stays" if fault.stays else name)
            where = f"{name}{' from' if fault.stays else ' at'} operation {fault.first}"
        for problem in problems:
            self.report(FAILURE, f"{where}: {problem}")


@dataclass(frozen=True)
class _Before:
    """Folders and checkpoint before the fault, which must exist after it."""

    folders: tuple[Path, ...]
    step: int

    @classmethod
    def of(cls, run: Run) -> "_Before":
        folders = [run.folder / name for name in run_checks.MADE if (run.folder / name).is_dir()]
        return cls(tuple(folders), run_checks.chosen_step(run))

    def problems(self, run: Run, *, failed: bool, stays: bool) -> list[str]:
        """Return what is lost. With `stays` the disk stays full, so the run cannot record its failure."""
        problems = [f"{folder.name}/ is lost" for folder in self.folders if not folder.is_dir()]
        if failed and run_checks.chosen_step(run) < self.step:
            problems.append(f"it would continue from {run_checks.chosen_step(run)}, not {self.step}")
        state = run.state()
        if failed and state.status == RUNNING and not stays:
            problems.append("its state is still RUNNING")
        if state.damage:
            problems.append(state.damage)
        return problems


def _error_problems(trial: Trial, fault: Fault | None) -> list[str]:
    """Return a problem if the error is not one clear sentence about the disk."""
    if trial.error is None:
        return []
    if fault is None:
        return [f"it fails without a fault: {trial.error}"]
    if trial.is_bug or SENTENCES[fault.error] not in trial.error or "\n" in trial.error:
        return [f"the error is {trial.error!r}"]
    return []


def _restore(folder: Path, snapshot: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(snapshot, folder)
