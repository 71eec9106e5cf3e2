"""Train, predict, merge, export and delete in a loop, as the app does: memory and open files may not grow.

One process with a workbench and its two workers runs the whole loop; each training has a process of its own.
After each turn, memory and open files of these three processes and files left in the runs folder are
recorded. Memory is compared after a warm-up, in which caches fill: the median of the last quarter must be
within 5 % of that of the first quarter.
"""

import collections
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from small_data import write_small_data
from tiny import make_tiny_bert

from batteries.result import BatteryResult
from peft_core import runs
from peft_core.export.archives import zip_of
from peft_core.runs import ENDED, FINISHED
from peft_core.service.workbench import Workbench
from peft_core.service.worker import Worker

NAME = "soak: train, predict, merge, export, delete in a loop"
PASSES_WHEN = "memory within 5 %, no handle or file left"
MINUTES = 30.0
WARM_UP = 0.25  # share of the turns in which caches fill
GROWTH = 0.05
ONNX_EVERY = 5  # turns; an ONNX export takes as long as the rest of a turn
MAX_TRAINING_SECONDS = 600.0  # seconds
TEXT = "The food was awful and the staff rude."
_SHARED = (".tokens", ".trash", ".uploads")


@dataclass(frozen=True)
class Sample:
    """Resources after a turn: bytes of memory, open files of each process, and leftover files."""

    memory: int
    handles: tuple[int, ...]
    files: tuple[str, ...]


class Turns:
    """The turns of the loop on one workbench, numbered from 0."""

    def __init__(self, bench: Workbench, settings: dict[str, Any]) -> None:
        self.bench, self.settings = bench, settings

    def take(self, number: int) -> None:
        """Train a run, use it in every way, and delete it. Raises RuntimeError if the training fails."""
        run_id = self.train()
        self.use(run_id, onnx=number % ONNX_EVERY == 0)
        self.delete(run_id)

    def train(self) -> str:
        """Train a run in a process of its own and return its id."""
        run_id = self.bench.train(self.settings)["run_id"]
        end = time.monotonic() + MAX_TRAINING_SECONDS
        while self.bench.find(run_id).state().status not in ENDED or self.bench.launcher.advance():
            if time.monotonic() > end:
                raise RuntimeError(f"{run_id} was not trained in {MAX_TRAINING_SECONDS:.0f} s")
            time.sleep(0.1)
        state = self.bench.find(run_id).state()
        if state.status != FINISHED:
            raise RuntimeError(f"{run_id} is {state.status}: {state.error}")
        return run_id

    def use(self, run_id: str, *, onnx: bool) -> None:
        """Predict with, merge and export a run."""
        bench, run = self.bench, self.bench.find(run_id)
        bench.predict(TEXT, run_id, "base")
        bench.predict(TEXT, run_id, "adapter")
        consume(bench.merge(run_id))
        bench.compare(TEXT, run_id)
        bench.neighbors(TEXT, run_id)
        bench.describe(run)
        for kind in ("embeddings", *["onnx", "page"] * onnx):
            consume(bench.make(kind, run_id))
        for kind in ("adapter", "merged", "embeddings"):
            zip_of(run, kind)

    def delete(self, run_id: str) -> None:
        """Remove a run and all its files."""
        runs.delete(self.bench.runs_dir, run_id)
        runs.purge_trash(self.bench.runs_dir)


def run(minutes: float = MINUTES, turns: int | None = None) -> BatteryResult:
    """Run for so many minutes, or for so many turns."""
    start, samples, failures = time.monotonic(), [], []
    with tempfile.TemporaryDirectory(prefix="soak-") as name, opened(Path(name)) as turn_runner:
        while not samples or (len(samples) < turns if turns else time.monotonic() - start < 60 * minutes):
            try:
                turn_runner.take(len(samples))
            except Exception as error:
                failures.append(f"turn {len(samples) + 1}: {type(error).__name__}: {str(error)[:300]}")
                break
            samples.append(take_sample(turn_runner.bench))
    failures += problems_of(samples)
    seconds = time.monotonic() - start
    return BatteryResult(NAME, len(samples), tuple(failures), _outcomes(samples), PASSES_WHEN, seconds)


@contextmanager
def opened(folder: Path, turns: Callable[..., Turns] = Turns) -> Iterator[Turns]:
    """Open a workbench in a folder, yield its turns, and close it."""
    model, data = make_tiny_bert(folder / "model", with_head=False), write_small_data(folder / "data")
    settings = {"model_name_or_path": str(model), "dataset_name": str(data), "max_length": 64}
    bench = Workbench.open(folder / "runs")
    bench.start()
    try:
        yield turns(bench, {**settings, "num_train_epochs": 1, "learning_rate": 0.03})
    finally:
        for worker in (bench.worker, bench.jobs):
            worker.close()


def consume(reports: Iterable[Any]) -> None:
    """Wait for the end of a task."""
    collections.deque(reports, maxlen=0)


def take_sample(bench: Workbench) -> Sample:
    """Return memory and open files of this process and its workers, and the files in the runs folder."""
    processes = [psutil.Process(), *_workers(bench.worker), *_workers(bench.jobs)]
    files = (path.name for path in bench.runs_dir.iterdir() if path.name not in _SHARED)
    memory = sum(process.memory_full_info().uss for process in processes)
    return Sample(memory, tuple(process.num_fds() for process in processes), tuple(sorted(files)))


def problems_of(samples: list[Sample]) -> list[str]:
    """Return problems: leftover files at any time, growth of open files and memory after the warm-up."""
    problems = [
        f"after turn {number + 1} {', '.join(sample.files[:3])} is left in the folder of runs"
        for number, sample in enumerate(samples)
        if sample.files
    ]
    warm = samples[round(WARM_UP * len(samples)) :]
    if len(warm) < 2:
        return problems
    quarter = max(1, len(warm) // 4)
    first, last = warm[:quarter], warm[-quarter:]
    before, after = (statistics.median(sample.memory for sample in part) for part in (first, last))
    if after > before * (1 + GROWTH):
        problems.append(f"memory grew from {before / 1e6:,.0f} MB to {after / 1e6:,.0f} MB")
    most, now = (max(sum(sample.handles) for sample in first), min(sum(sample.handles) for sample in last))
    if now > most:
        problems.append(f"open files grew from {most} to {now}")
    return problems


def _workers(worker: Worker) -> list[psutil.Process]:
    """Return the processes of a worker, if it was started."""
    pool = worker._pool
    return [psutil.Process(pid) for pid in sorted(pool._processes)] if pool is not None else []


def _outcomes(samples: list[Sample]) -> tuple[tuple[str, int], ...]:
    if not samples:
        return ()
    first, last = samples[round(WARM_UP * len(samples)) % len(samples)], samples[-1]
    return (
        ("turns", len(samples)),
        ("MB after warm-up", round(first.memory / 1e6)),
        ("MB at the end", round(last.memory / 1e6)),
        ("open files after warm-up", sum(first.handles)),
        ("open files at the end", sum(last.handles)),
    )
