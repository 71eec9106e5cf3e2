"""One worker process for the heavy work that a page asks for: a crash there never takes the page down."""

import importlib
import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, TimeoutError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from queue import Empty
from typing import Any

from peft_core.errors import PeftCoreError

_TASKS = "peft_core.tasks"  # imported in the worker alone: it imports torch
_reports: Any = None  # in the worker: the queue that `report` puts its lines into


class WorkerError(PeftCoreError):
    """The worker process died; the next call starts another."""


@dataclass(frozen=True)
class Report:
    """How far a task is, from 0 to 1, and what it does; the last one holds its result."""

    share: float
    what: str
    result: Any = None


class Worker:
    """Runs functions of `peft_core.tasks` by name, one by one, in a process started when first needed."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None
        self._queue: Any = None

    def warm(self) -> None:
        """Start the process and its imports now, without waiting for them."""
        self._submit("warm", ())

    def run(self, task: str, *arguments: Any) -> Any:
        """What the task returns; raises what it raises, or WorkerError if the process died."""
        try:
            return self._submit(task, arguments).result()
        except BrokenProcessPool as error:
            raise self._broken(task) from error

    def stream(self, task: str, *arguments: Any) -> Iterator[Report]:
        """Reports while the task runs; the last has the share 1.0 and the result. Raises as `run` does."""
        with self._turn:  # the reports in the queue are those of one task
            future = self._submit(task, arguments)
            while not future.done():
                yield from self._drain()
                try:
                    future.result(timeout=0.2)
                except TimeoutError:
                    continue
                except BrokenProcessPool as error:
                    raise self._broken(task) from error
            yield from self._drain()
            yield Report(1.0, "Done", future.result())

    def close(self) -> None:
        """End the process once its present task is done."""
        with self._lock:
            if self._pool is not None:
                self._pool.shutdown(wait=False, cancel_futures=True)
                self._pool = None

    def _submit(self, task: str, arguments: tuple) -> Any:
        with self._lock:
            if self._pool is None:
                self._queue = self._context.Queue()
                self._pool = ProcessPoolExecutor(1, self._context, _start, (self._queue,))
            return self._pool.submit(_call, task, arguments)

    def _drain(self) -> Iterator[Report]:
        try:
            while True:
                yield Report(*self._queue.get_nowait())
        except Empty:
            return

    def _broken(self, task: str) -> WorkerError:
        self.close()
        return WorkerError(
            f"The worker process died while it did {task!r}, most likely for want of memory; it starts again "
            "with the next try. Close other programs or choose a smaller model."
        )


def report(share: float, what: str) -> None:
    """Called by a task in the worker process: how far it is and what it does."""
    if _reports is not None:
        _reports.put((share, what))


def _start(queue: Any) -> None:
    """Runs first in the worker process, before torch is imported."""
    global _reports
    _reports = queue
    threading.Thread(target=_end_with_the_app, daemon=True).start()
    os.environ.setdefault(
        "OMP_WAIT_POLICY", "PASSIVE"
    )  # idle threads must not spin beside the training process
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _end_with_the_app() -> None:
    """An app that was killed leaves no worker behind."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _call(task: str, arguments: tuple) -> Any:
    return getattr(importlib.import_module(_TASKS), task)(*arguments)
