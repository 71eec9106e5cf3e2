"""SIGKILL at random moments of a training, a merge and an export, and while each of them saves.

A child reports through a pipe what it is about to write, what it has committed (after the rename returned)
and what it is about to remove; the parent kills it after a random part of the measured length of that stage.
Reported commits must exist and load, partial files may not be accepted, the run must record the death of its
process, and the sweep at the start of the app must leave no staging folder.

A kill cannot test fsync: the system keeps the writes of a dead process. The battery of disk faults checks the
order of fsync and rename instead.
"""

import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batteries import run_checks
from batteries.children import Child, Message, Report, fork_child, outcome, run_child
from batteries.result import BatteryResult
from batteries.workplace import Workplace
from peft_core import runs
from peft_core.export.archives import zip_of
from peft_core.export.embeddings import export_embeddings
from peft_core.export.onnx.model import export_onnx
from peft_core.files import atomic
from peft_core.merging.merge import merge
from peft_core.runs import Run, RunInTraining
from peft_core.runs.checkpoints import step_of
from peft_core.training import trainer
from peft_core.training.entry import train

NAME = "SIGKILL at random moments of train, save, rotate, merge, export"
PASSES_WHEN = "0 lost commits, 0 torn ones accepted, status right"
COUNT, WHILE_SAVING = 1_000, 300
BEGIN, STAGING, SYNCING, COMMITTED, REMOVING, ROTATING, STATE = (
    "begin", "staging", "syncing", "committed", "removing", "rotating", "state",
)  # fmt: skip
# targets of kills while saving: the job, the message that begins the stage, and the name of the written file
SAVES: tuple[tuple[str, str, str], ...] = (
    ("train", STAGING, "checkpoint"), ("train", SYNCING, "checkpoint"), ("train", ROTATING, ""),
    ("train", STAGING, "evaluation"), ("train", STAGING, "adapter"), ("train", SYNCING, "adapter"),
    ("train", SYNCING, "evaluation"), ("train", STAGING, "status.json"), ("merge", STAGING, "merged"),
    ("merge", SYNCING, "merged"), ("embeddings", SYNCING, "embeddings"), ("zip", STAGING, "adapter"),
)  # fmt: skip
ANY_TIME_JOBS = ("train",) * 10 + ("merge",) * 5 + ("embeddings",) * 3 + ("zip",) * 1
ONNX_EVERY = 50  # kills at any time; an ONNX export takes as long as ten trainings
TOO_LATE = 0.8  # factor of a stage's length after a kill that came too late

Target = tuple[str, str, str]  # job, kind of the message that begins the stage, and prefix of its text


@dataclass
class Battery:
    """The state of the battery: workplace, random numbers, measured stages, failures and counts."""

    place: Workplace
    random: random.Random
    lengths: dict[Target, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    resumable: Run | None = None  # a killed run with a checkpoint

    @property
    def count(self) -> int:
        return sum(self.outcomes.values())


@dataclass(frozen=True)
class Before:
    """A run before a kill: status, step of its checkpoint, and parts damaged on purpose."""

    status: str
    step: int
    torn_parts: tuple[str, ...]


def run(place: Workplace, share: float = 1.0, seed: int = 0) -> BatteryResult:
    """Kill `share` of the full count of children."""
    start, battery = time.monotonic(), Battery(place, random.Random(seed))
    count = max(1, round(COUNT * share))
    while_saving = min(count, max(1, round(WHILE_SAVING * share)))
    for job in ("train", "merge", "embeddings", "zip"):
        battery.lengths |= measure_stages(battery, job)
    for number in range(while_saving):
        _kill_at(battery, SAVES[number % len(SAVES)], "while saving")
    if share == 1:
        battery.lengths |= measure_stages(battery, "onnx")
    for number in range(count - while_saving):
        job = "onnx" if share == 1 and number % ONNX_EVERY == 0 else battery.random.choice(ANY_TIME_JOBS)
        _kill_at(battery, (job, BEGIN, ""), "at any time")
    return BatteryResult(
        NAME,
        battery.count,
        tuple(battery.failures),
        tuple(sorted(battery.outcomes.items())),
        PASSES_WHEN,
        time.monotonic() - start,
    )


def kill_once(battery: Battery, target: Target) -> list[str] | None:
    """Kill one child in a stage and return the problems; None if it ended before the kill."""
    job = target[0]
    run, last_status = _run_for(battery, job)
    before = Before(last_status, run_checks.chosen_step(run), tuple(run_checks.torn_parts(run)))
    child = fork_child(lambda report: _work(job, run, report))
    begin_message = child.wait_for(lambda message: _begins(target, message))
    if begin_message is not None:
        time.sleep(battery.random.uniform(0, battery.lengths[target]))
    if not child.kill():
        battery.lengths[target] *= TOO_LATE
        runs.remove(battery.place.runs_dir, run.run_id)
        return [f"the child failed: {outcome(child)}"] * bool(outcome(child)) or None
    problems = _problems(run, child, before)
    runs.sweep(battery.place.runs_dir)
    problems += run_checks.staging_left(battery.place.runs_dir)
    _keep_resumable_or_delete(battery, job, run)
    return problems


def measure_stages(battery: Battery, job: str) -> dict[Target, float]:
    """Return the seconds of each stage of an undisturbed job."""
    run, _ = _run_for(battery, job, fresh=True)
    child = run_child(lambda report: _work(job, run, report))
    if outcome(child):
        raise RuntimeError(f"The {job} that is measured failed: {outcome(child)}")
    runs.remove(battery.place.runs_dir, run.run_id)
    messages = child.messages
    lengths = {(job, BEGIN, ""): messages[-1].time - messages[0].time}
    for target in (target for target in SAVES if target[0] == job):
        start, end = next(_stage_times(messages, target))
        lengths[target] = end - start
    return lengths


def _kill_at(battery: Battery, target: Target, when: str) -> None:
    """Kill a child in a stage; repeat until a kill came before the end."""
    problems = None
    while problems is None:
        problems = kill_once(battery, target)
    where = " ".join(part for part in target if part)
    battery.outcomes[when] += 1
    battery.failures.extend(f"killed {when}, {where}: {problem}" for problem in problems)


def _stage_times(messages: list[Message], target: Target) -> Iterator[tuple[float, float]]:
    """Yield start and end of each stage of a kind; it ends with the next commit or removal."""
    for number, message in enumerate(messages):
        if _begins(target, message):
            later = messages[number + 1 :]
            yield (
                message.time,
                next(m.time for m in [*later, messages[-1]] if m.kind in (COMMITTED, REMOVING, "done")),
            )


def _begins(target: Target, message: Message) -> bool:
    return message.kind == target[1] and message.text.startswith(target[2])


def _run_for(battery: Battery, job: str, *, fresh: bool = False) -> tuple[Run, str]:
    """Return a run to train or resume, or a finished run to merge and export, and its status."""
    if job != "train":
        run = battery.place.copy(battery.place.finished, "copy")
        if job == "merge" and not fresh and battery.random.random() < 0.5:
            _merge_and_damage(run)
        return run, runs.FINISHED
    if battery.resumable is not None and not fresh and battery.random.random() < 0.5:
        run, battery.resumable = battery.resumable, None
        return run, run.state().status
    if battery.random.random() < 0.2:
        shutil.rmtree(
            battery.place.runs_dir / ".tokens", ignore_errors=True
        )  # forces the cache to be written again
    return battery.place.create(seed=battery.random.randrange(1000)), runs.SCHEDULED


def _merge_and_damage(run: Run) -> None:
    """Merge a run and damage the merged model, so that the next merge replaces it."""
    merge(run.folder)
    weights = run.merged / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


def _work(job: str, run: Run, report: Report) -> None:
    report_writes(report)
    report(BEGIN, job)
    {
        "train": lambda: train(run.folder),
        "merge": lambda: merge(run.folder),
        "embeddings": lambda: export_embeddings(run.folder),
        "onnx": lambda: export_onnx(run.folder),
        "zip": lambda: zip_of(run, "adapter"),
    }[job]()


def report_writes(report: Report) -> None:
    """Patch this process to report stages, commits and removals; for a child, which ends afterwards."""
    _before(atomic, "staging_path", lambda path: report(STAGING, path.name))
    _before(atomic, "fsync_tree", lambda path: report(SYNCING, path.name))
    _after(os, "replace", lambda source, target: report(COMMITTED, target))
    _after(atomic, "_exchange", lambda source, target: report(COMMITTED, target))
    _before(shutil, "rmtree", lambda path, *_: report(REMOVING, path))
    _before(trainer, "remove_older", lambda *_: report(ROTATING))
    _after(RunInTraining, "update", lambda run: report(STATE, run.current.status))


def _before(owner: Any, name: str, report: Callable[..., None]) -> None:
    original = getattr(owner, name)

    def reporting(*values: Any, **options: Any) -> Any:
        report(*values)
        return original(*values, **options)

    setattr(owner, name, reporting)


def _after(owner: Any, name: str, report: Callable[..., None]) -> None:
    original = getattr(owner, name)

    def reporting(*values: Any, **options: Any) -> Any:
        answer = original(*values, **options)
        report(*values)
        return answer

    setattr(owner, name, reporting)


def _problems(run: Run, child: Child, before: Before) -> list[str]:
    """Return the problems of a run whose process was killed, given the messages of the child."""
    states = [message.text for message in child.messages if message.kind == STATE]
    return [
        *_lost_commits(run, child, before.step),
        *(problem for problem in run_checks.torn_parts(run) if problem not in before.torn_parts),
        *run_checks.unusable_parts(run),
        *run_checks.state_problems(run, states[-1] if states else before.status),
        *run_checks.lock_problems(run),
    ]


def _lost_commits(run: Run, child: Child, step_before: int) -> Iterator[str]:
    """Yield commits that the child reported, did not report as removed, and that are missing."""
    present: dict[Path, None] = {}
    for message in child.messages:
        if message.kind == COMMITTED:
            present[Path(message.text)] = None
        elif message.kind == REMOVING:
            removed = Path(message.text)
            present = {path: None for path in present if path != removed and removed not in path.parents}
    paths = [path for path in present if run.folder in path.parents and not _is_hidden(path, run.folder)]
    yield from (
        f"{path.relative_to(run.folder)} was committed and is lost" for path in paths if not path.exists()
    )
    steps = [step_of(path) for path in paths if path.name.startswith("checkpoint-")]
    removed = any(m.kind == REMOVING and Path(m.text) == run.checkpoints for m in child.messages)
    expected = 0 if removed else max([*steps, step_before])
    if run_checks.chosen_step(run) < expected:
        yield f"step {expected} was committed, and it would continue from {run_checks.chosen_step(run)}"


def _is_hidden(path: Path, folder: Path) -> bool:
    """Whether a path is a staging folder or in one."""
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _keep_resumable_or_delete(battery: Battery, job: str, run: Run) -> None:
    if job == "train" and battery.resumable is None and run_checks.chosen_step(run):
        battery.resumable = run
        return
    if run.state().status == runs.SCHEDULED:  # killed before it began
        run.update(status=runs.KILLED)
    runs.remove(battery.place.runs_dir, run.run_id)
