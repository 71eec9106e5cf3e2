"""One worker process for the heavy work that a page asks for: a crash there never takes the page down."""

import contextlib
import importlib
import itertools
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, TimeoutError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from peft_core.errors import PeftCoreError
from peft_core.garbage import paused_collection

_TASKS = "peft_core.tasks"  # imported in the worker alone: it imports torch
_NICE = 5  # a training comes first: the worker takes what it leaves idle, and a quarter of the rest
_is_nice = False  # in the worker: once it has started, for which it needs seconds of a processor
_reports: Any = None  # in the worker: the queue that `report` puts its lines into
_ticket = 0  # in the worker: the number of the task whose reports somebody hears, or 0
_cancelled: Any = None  # shared with the worker: the ticket of the task that is to end


class WorkerError(PeftCoreError):
    """The worker process died; the next call starts another."""


class Cancelled(PeftCoreError):
    """Somebody pressed Cancel; the task ended where it stood."""


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
        self._tickets = itertools.count(1)
        self._named: dict[str, int] = {}
        self._cancelled = self._context.Value("Q", 0)

    def warm(self) -> None:
        """Start the process and its imports now, without waiting for them."""
        self._submit("warm", ())

    def run(self, task: str, *arguments: Any) -> Any:
        """What the task returns; raises what it raises, or WorkerError if the process died."""
        try:
            return self._submit(task, arguments).result()
        except BrokenProcessPool as error:
            raise self._broken(task) from error

    def stream(self, task: str, *arguments: Any, name: str | None = None) -> Iterator[Report]:
        """Reports while the task runs; the last has the share 1.0 and the result. Raises as `run` does, and
        Cancelled after `cancel(name)`."""
        ticket = next(self._tickets)
        if name is not None:
            self._named[name] = ticket
        try:
            yield from self._streamed(task, arguments, ticket)
        finally:
            self._named.pop(name, None)

    def cancel(self, name: str) -> None:
        """End the task that was started under this name at its next report; nothing if there is none."""
        ticket = self._named.pop(name, None)
        if ticket is not None:
            self._cancelled.value = ticket

    def _streamed(self, task: str, arguments: tuple, ticket: int) -> Iterator[Report]:
        with self._turn:
            try:
                future = self._submit(task, arguments, ticket)
                while not future.done():
                    yield from self._drain(ticket)
                    with contextlib.suppress(TimeoutError):
                        future.result(timeout=0.2)
                yield from self._drain(ticket)
                yield Report(1.0, "Done", future.result())
            except BrokenProcessPool as error:
                raise self._broken(task) from error

    def close(self) -> None:
        """End the process once its present task is done."""
        with self._lock:
            if self._pool is not None:
                self._pool.shutdown(wait=False, cancel_futures=True)
                self._pool = None

    def _submit(self, task: str, arguments: tuple, ticket: int = 0) -> Any:
        with self._lock:
            try:
                return self._started().submit(_call, task, arguments, ticket)
            except BrokenProcessPool:  # it died idle, so nothing of this task is lost
                self._pool = None
                return self._started().submit(_call, task, arguments, ticket)

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._queue = self._context.Queue()
            start = (self._queue, self._cancelled)
            self._pool = ProcessPoolExecutor(1, self._context, _start, start)
        return self._pool

    def _drain(self, ticket: int) -> Iterator[Report]:
        """The newest report of one task, if there is one; a page cannot show hundreds a second.

        Those of a task that nobody listened to the end are dropped.
        """
        newest = None
        with contextlib.suppress(Empty):
            while True:
                sender, share, what = self._queue.get_nowait()
                if sender == ticket:
                    newest = Report(share, what)
        if newest is not None:
            yield newest

    def _broken(self, task: str) -> WorkerError:
        self.close()
        return WorkerError(
            f"The worker process died while it did {task!r}, most likely for want of memory; it starts again "
            "with the next try. Close other programs or choose a smaller model."
        )


def in_thread(task: Callable[[Callable[[float, str], None]], Any]) -> Iterator[Report]:
    """Reports of a task that waits rather than computes, in a thread of this process; as `Worker.stream`."""
    heard: SimpleQueue[Report] = SimpleQueue()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(task, lambda share, what: heard.put(Report(share, what)))
        while not future.done():
            with contextlib.suppress(Empty):
                yield heard.get(timeout=0.2)
        yield Report(1.0, "Done", future.result())


def report(share: float, what: str) -> None:
    """Called by a task in the worker process: how far it is and what it does.

    Raises Cancelled if somebody wants the task to end.
    """
    if _ticket and _cancelled.value == _ticket:
        raise Cancelled("Cancelled; nothing of it is kept.")
    if _ticket:
        _reports.put((_ticket, share, what))


def _start(queue: Any, cancelled: Any) -> None:
    """Runs first in the worker process, before torch is imported."""
    global _reports, _cancelled
    _reports, _cancelled = queue, cancelled
    threading.Thread(target=_end_with_the_app, daemon=True).start()
    os.environ.setdefault(
        "OMP_WAIT_POLICY", "PASSIVE"
    )  # idle threads must not spin beside the training process
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _end_with_the_app() -> None:
    """An app that was killed leaves no worker behind."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _call(task: str, arguments: tuple, ticket: int) -> Any:
    global _ticket, _is_nice
    _ticket = ticket
    if _TASKS not in sys.modules:
        with paused_collection():
            importlib.import_module(_TASKS)
    if hasattr(os, "nice") and not _is_nice:
        os.nice(_NICE)
        _is_nice = True
    return getattr(sys.modules[_TASKS], task)(*arguments)
