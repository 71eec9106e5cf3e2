"""Inputs changed between a kill and Continue: each is refused by name, and nothing changes on disk."""

import hashlib
import random
import shutil
import time
from pathlib import Path

from batteries.children import DONE, ERROR, Report, outcome, run_child
from batteries.input_changes import CHANGES, InputChange, Inputs
from batteries.result import BatteryResult
from batteries.scenarios import train_until
from batteries.workplace import Workplace
from peft_core.runs import FAILED, FINISHED, Run
from peft_core.training.entry import train

NAME = "inputs changed between kill and Continue"
PASSES_WHEN = "0 accepted; one sentence names what changed; nothing on disk changes"
_OWN_FILES = ("status.json", "lock")  # written by each attempt to continue


def run(place: Workplace, share: float = 1.0, seed: int = 0) -> BatteryResult:
    """Try `share` of all changes, and finally Continue with the original inputs."""
    start, rng = time.monotonic(), random.Random(seed)
    changes = list(CHANGES)
    if share < 1:
        changes = rng.sample(changes, max(1, round(len(changes) * share)))
    inputs, snapshot = interrupt(place)
    failures = [
        f"{change.name}: {problem}" for change in changes for problem in check(inputs, snapshot, change)
    ]
    failures += [f"inputs as they were: {problem}" for problem in _continue_problems(inputs)]
    seconds = time.monotonic() - start
    return BatteryResult(NAME, len(changes), tuple(failures), (), PASSES_WHEN, seconds)


def interrupt(place: Workplace) -> tuple[Inputs, Path]:
    """Create an interrupted run with inputs of its own; return it and the folder of its copy."""
    folder, snapshot = place.folder / "inputs", place.folder / "inputs-before"
    for path in (folder, snapshot):
        shutil.rmtree(path, ignore_errors=True)
    for name in ("data", "model"):
        shutil.copytree(place.folder / name, folder / name)
    names = {"model_name_or_path": str(folder / "model"), "dataset_name": str(folder / "data")}
    run = place.create(**names)
    child = run_child(lambda report: train_until(run, "_save_checkpoint", calls=3))
    if outcome(child):
        raise RuntimeError(f"the run could not be trained: {outcome(child)}")
    shutil.copytree(run.folder, folder / "runs" / run.run_id)
    shutil.rmtree(run.folder)
    shutil.copytree(folder, snapshot)
    return Inputs(Run(folder / "runs" / run.run_id), folder / "data", folder / "model"), snapshot


def check(inputs: Inputs, snapshot: Path, change: InputChange) -> list[str]:
    """Change the inputs, continue, and restore them; return what was accepted, unclear or changed."""

    def task(report: Report) -> None:
        change.apply(inputs)
        report("changed")
        digests_before = _digests(inputs.run)
        try:
            train(inputs.run.folder)
        finally:
            for name in sorted(digests_before.items() ^ _digests(inputs.run).items()):
                report("differs", name[0])

    child = run_child(task)
    error, problems = child.first(ERROR), []
    if child.first("changed") is None:
        problems.append(f"the change itself failed: {outcome(child)}")
    elif child.first(DONE) is not None:
        problems.append("accepted")
    elif error is None:
        problems.append(f"refused by {outcome(child)}")
    elif change.word not in error or error.count("\n"):
        problems.append(f"refused with {error!r}, which does not name {change.word!r}")
    elif inputs.run.state().status != FAILED or error not in (inputs.run.state().error or ""):
        problems.append(f"the run says {inputs.run.state().status}: {inputs.run.state().error}")
    names = sorted({message.text for message in child.messages if message.kind == "differs"})
    problems += [f"{name} changed on disk" for name in names]
    shutil.rmtree(snapshot.with_name("inputs"))
    shutil.copytree(snapshot, snapshot.with_name("inputs"))
    return problems


def _continue_problems(inputs: Inputs) -> list[str]:
    """Return a problem if the run does not continue with its original inputs."""
    child = run_child(lambda report: train(inputs.run.folder))
    if outcome(child) or inputs.run.state().status != FINISHED:
        return [f"refused: {outcome(child)}"]
    return [] if inputs.run.result()["resumed_from"] else ["it started anew"]


def _digests(run: Run) -> dict[str, str]:
    """Return the hash of every file of a run except `_OWN_FILES`."""
    files = (path for path in run.folder.rglob("*") if path.is_file() and path.name not in _OWN_FILES)
    return {
        str(path.relative_to(run.folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }
