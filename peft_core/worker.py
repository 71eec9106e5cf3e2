"""A worker process for the heavy work that a page asks for: a crash there never takes the page down.

Where strangers come a worker has limits. A task past its deadline is ended with its process, and the next
one starts another. The limit of memory is the kernel's (RLIMIT_AS, on Linux): a task that asks for more
gets a MemoryError, or ends its worker, and nothing else on the machine. It may also hang, where a library
meets the limit while it holds a lock, so a limit of memory comes with a deadline.
"""

import contextlib
import importlib
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from peft_core.data.uploads import hide_upload_folders
from peft_core.errors import PeftCoreError
from peft_core.garbage import paused_collection

_TASKS = "peft_core.tasks"  # imported in the worker alone: it imports torch
_MOST_TO_IMPORT = 120.0  # seconds; 5 to 10 on an idle machine
_MOST_TO_WAIT = 60.0  # seconds for the tasks of others, where there are deadlines
_NICE = 5  # a training comes first: the worker takes what it leaves idle, and a quarter of the rest
_is_nice = False  # in the worker: once it has started, for which it needs seconds of a processor
_reports: Any = None  # in the worker: the queue that `report` puts its lines into
_ticket = 0  # in the worker: the number of the task whose reports somebody hears, or 0
_cancelled: Any = None  # shared with the worker: the ticket of the task that is to end
_most_bytes: int | None = None  # in the worker: the memory that tasks may take beyond the imports


class WorkerError(PeftCoreError):
    """The worker process died, or a task met a limit; the next call finds or starts another."""


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

    def __init__(self, seconds: float | None = None, most_bytes: int | None = None) -> None:
        """`seconds` is the longest that a task may take; `most_bytes` is the memory beyond the imports.

        Raises ValueError for a limit of memory without a deadline.
        """
        if most_bytes is not None and seconds is None:
            raise ValueError("most_bytes needs seconds: a task that meets the limit of memory may hang.")
        self._seconds, self._most_bytes = seconds, most_bytes
        self._context = multiprocessing.get_context("spawn")
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None
        self._queue: Any = None
        self._tickets = itertools.count(1)
        self._named: dict[str, int] = {}
        # without locks, which a process that is killed may hold for ever; an aligned number needs none
        self._cancelled = self._context.Value("Q", 0, lock=False)
        self._pid = self._context.Value("Q", 0, lock=False)

    def warm(self) -> None:
        """Start the process and its imports now, without waiting for them."""
        self._submit("warm", ())

    def run(self, task: str, *arguments: Any) -> Any:
        """What the task returns; raises what it raises, or WorkerError for a limit or a process that died."""
        if self._seconds is None:
            return self._result(task, arguments)
        with self._own_turn():
            return self._result(task, arguments)

    def stream(self, task: str, *arguments: Any, name: str | None = None) -> Iterator[Report]:
        """Reports while the task runs; the last has the share 1.0 and the result. Raises as `run` does, and
        Cancelled after `cancel(name)`."""
        ticket = next(self._tickets)
        if name is not None:
            self._named[name] = ticket
        try:
            yield from self._streamed(task, arguments, ticket)
        except GeneratorExit:  # whoever asked has gone
            if self._named.get(name) == ticket:
                self.cancel(name)
            raise
        finally:
            self._named.pop(name, None)

    def cancel(self, name: str) -> None:
        """End the task that was started under this name at its next report; nothing if there is none."""
        ticket = self._named.pop(name, None)
        if ticket is not None:
            self._cancelled.value = ticket

    def _streamed(self, task: str, arguments: tuple, ticket: int) -> Iterator[Report]:
        with self._own_turn():
            try:
                self._await_imports()
                future = self._submit(task, arguments, ticket)
                end = time.monotonic() + self._seconds if self._seconds else None
                while not future.done():
                    yield from self._drain(ticket)
                    wait([future], 0.2)
                    if end is not None and time.monotonic() > end:
                        raise self._overdue()
                yield from self._drain(ticket)
                yield Report(1.0, "Done", future.result())
            except BrokenProcessPool as error:
                raise self._broken(task) from error

    @contextlib.contextmanager
    def _own_turn(self) -> Iterator[None]:
        """Wait until no other task runs; WorkerError if that takes too long."""
        if not self._turn.acquire(timeout=_MOST_TO_WAIT if self._seconds else -1):
            raise WorkerError("This demo is busy with other visitors' work; try again in a minute.")
        try:
            yield
        finally:
            self._turn.release()

    def close(self) -> None:
        """End the process once its present task is done."""
        with self._lock:
            if self._pool is not None:
                self._pool.shutdown(wait=False, cancel_futures=True)
                self._pool = None

    def _result(self, task: str, arguments: tuple) -> Any:
        try:
            self._await_imports()
            future = self._submit(task, arguments)
            wait([future], self._seconds)
            if not future.done():
                raise self._overdue()
            return future.result()
        except BrokenProcessPool as error:
            raise self._broken(task) from error

    def _await_imports(self) -> None:
        """Let the time of a task with a deadline begin once the process can work on it.

        A process that does not get there is ended: a task that nobody listened to the end may keep it.
        """
        if self._seconds is None:
            return
        ready = self._submit("warm", ())
        wait([ready], _MOST_TO_IMPORT + self._seconds)
        if not ready.done():
            raise self._overdue()

    def _submit(self, task: str, arguments: tuple, ticket: int = 0) -> Any:
        with self._lock:
            try:
                return self._started().submit(_call, task, arguments, ticket)
            except BrokenProcessPool:  # it died idle, so nothing of this task is lost
                self._pool = None
                return self._started().submit(_call, task, arguments, ticket)

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._queue, self._pid.value = self._context.Queue(), 0
            start = (self._queue, self._cancelled, self._pid, self._most_bytes)
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

    def _overdue(self) -> WorkerError:
        """End the process in the midst of its task."""
        with self._lock:
            if self._pid.value:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._pid.value, signal.SIGKILL)
            self._pool = None
        return WorkerError(
            f"This took over {self._seconds:,.0f} s, the most that this public demo gives it, and was ended. "
            "Give less: a smaller file, fewer rows or columns, or a shorter text."
        )

    def _broken(self, task: str) -> WorkerError:
        self.close()
        return WorkerError(
            f"The worker process died while it did {task!r}, most likely for want of memory; it starts again "
            "with the next try. Close other programs or choose a smaller model."
        )


def in_thread(task: Callable[[Callable[[float, str], None]], Any]) -> Iterator[Report]:
    """Reports of a task that waits rather than computes, in a thread of this process; as `Worker.stream`."""
    reports: SimpleQueue[Report] = SimpleQueue()
    is_wanted = True

    def progress(share: float, what: str) -> None:
        if not is_wanted:
            raise Cancelled("Whoever asked has gone.")
        reports.put(Report(share, what))

    pool = ThreadPoolExecutor(1)
    try:
        future = pool.submit(task, progress)
        while not future.done():
            with contextlib.suppress(Empty):
                yield reports.get(timeout=0.2)
        yield Report(1.0, "Done", future.result())
    finally:
        is_wanted = False
        pool.shutdown(wait=False)  # a generator may be closed by the thread that answers everyone


def report(share: float, what: str) -> None:
    """Called by a task in the worker process: how far it is and what it does.

    Raises Cancelled if somebody wants the task to end.
    """
    if _ticket and _cancelled.value == _ticket:
        raise Cancelled("Cancelled; nothing of it is kept.")
    if _ticket:
        _reports.put((_ticket, share, what))


def _start(queue: Any, cancelled: Any, pid: Any, most_bytes: int | None) -> None:
    """Runs first in the worker process, before torch is imported."""
    global _reports, _cancelled, _most_bytes
    _reports, _cancelled, _most_bytes = queue, cancelled, most_bytes
    pid.value = os.getpid()
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
        if _most_bytes is not None:
            _limit_memory(_most_bytes)
    if hasattr(os, "nice") and not _is_nice:
        os.nice(_NICE)
        _is_nice = True
    try:
        return getattr(sys.modules[_TASKS], task)(*arguments)
    except PeftCoreError as error:
        error.args = (hide_upload_folders(str(error)), *error.args[1:])
        raise
    except MemoryError as error:
        if _most_bytes is None:
            raise
        raise WorkerError(
            f"This needs over {_most_bytes / 1e9:.1f} GB of memory, the most that this public demo gives it. "
            "Give less: a smaller file, or fewer rows or columns."
        ) from error


def _limit_memory(most_bytes: int) -> None:
    """Let this process map so many bytes more than it has; not on systems that do not count them."""
    if sys.platform != "linux":
        return
    import resource  # noqa: PLC0415 - there is none on Windows

    with open("/proc/self/statm", encoding="ascii") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + most_bytes, hard))
