"""A worker process for the heavy tasks of the page: a crash in it never ends the app.

On a public demo a worker has limits. A task past its deadline is killed with its process, and the next task
starts another. The memory limit is the kernel's (RLIMIT_AS, on Linux): a task that allocates more gets a
MemoryError, or ends its worker, and nothing else on the machine. It may also hang, if a library reaches the
limit while it holds a lock, so a memory limit requires a deadline.
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
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, ParamSpec, TypeVar

from peft_core.data.uploads import hide_upload_folders
from peft_core.errors import PeftCoreError
from peft_core.service.references import FunctionReference
from peft_core.training.garbage import paused_collection

_TASKS = "peft_core.service.tasks"  # imported in the worker alone: it imports torch
Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")
_MAX_IMPORT_SECONDS = 120.0  # 5 to 10 on an idle machine
_MAX_WAIT_SECONDS = 60.0  # for the tasks of other visitors, on a worker with a deadline
_CANCELLED = "Cancelled; nothing was saved."
_NICENESS = 5  # below a training: the worker gets the idle time, and a quarter of the rest
_has_niceness = False  # in the worker: set after the imports, which take seconds of a core
_reports: Any = None  # in the worker: the queue of `report`
_ticket = 0  # in the worker: the number of the streamed task that runs, or 0
_cancelled: Any = None  # shared with the worker: the ticket of the task to cancel
_max_bytes: int | None = None  # in the worker: the memory that tasks may use beyond the imports


class WorkerError(PeftCoreError):
    """The worker process died, or a task reached a limit; the next call finds or starts another."""


class Cancelled(PeftCoreError):
    """The task was cancelled."""


@dataclass(frozen=True)
class Report:
    """The progress of a task.

    Attributes:
        share: of the work that is done, from 0 to 1.
        description: of the current step.
        result: the return value of the task, in the last report.
    """

    share: float
    description: str
    result: Any = None


@dataclass(frozen=True)
class _Call:
    """A function, or a reference to one, with its arguments."""

    function: Callable[..., Any] | FunctionReference
    arguments: tuple[Any, ...] = ()
    keywords: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self) -> Any:
        function = self.function
        if isinstance(function, FunctionReference):
            function = function.resolve()
        return function(*self.arguments, **self.keywords)

    @property
    def name(self) -> str:
        """The name of the function."""
        return self.function.name if isinstance(self.function, FunctionReference) else self.function.__name__


class Worker:
    """Runs functions one at a time in a process of its own, which starts when it is first needed."""

    def __init__(self, seconds: float | None = None, max_bytes: int | None = None) -> None:
        """Set the limits.

        Args:
            seconds: the deadline of a task.
            max_bytes: the memory of a task beyond the imports.

        Raises:
            ValueError: for a memory limit without a deadline.
        """
        if max_bytes is not None and seconds is None:
            raise ValueError("max_bytes needs seconds: a task that reaches its memory limit may hang.")
        self._seconds, self._max_bytes = seconds, max_bytes
        self._context = multiprocessing.get_context("spawn")
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None
        self._queue: Any = None
        self._tickets = itertools.count(1)
        self._tickets_by_name: dict[str, int] = {}
        self._current_ticket = 0
        self._cancelled_before_start: set[int] = set()
        # without locks, which a killed process may hold forever; an aligned number needs none
        self._cancelled = self._context.Value("Q", 0, lock=False)
        self._pid = self._context.Value("Q", 0, lock=False)

    def warm(self) -> None:
        """Start the process and its imports, without waiting for them."""
        self._submit(_Call(_do_nothing))

    def run(
        self, task: Callable[Arguments, Answer], *arguments: Arguments.args, **keywords: Arguments.kwargs
    ) -> Answer:
        """Return what the task returns.

        Args:
            task: a function that can be pickled, or a reference to one (see `references.py`).
            arguments: its positional arguments.
            keywords: its keyword arguments.

        Raises:
            WorkerError: if the task reached a limit or the process died.
            Exception: any exception that the task raises.
        """
        call = _Call(task, arguments, keywords)
        if self._seconds is None:
            return self._run(call)
        with self._own_turn():
            return self._run(call)

    def stream(
        self, task: Callable[Arguments, Answer], *arguments: Arguments.args, **keywords: Arguments.kwargs
    ) -> Iterator[Report]:
        """Yield reports while the task runs; the last has the share 1.0 and the result.

        Raises as `run` does.
        """
        yield from self._stream(_Call(task, arguments, keywords), next(self._tickets))

    def stream_cancellable(
        self,
        name: str,
        task: Callable[Arguments, Answer],
        *arguments: Arguments.args,
        **keywords: Arguments.kwargs,
    ) -> Iterator[Report]:
        """Yield reports as `stream` does, of a task that `cancel(name)` ends: it then raises Cancelled."""
        ticket = next(self._tickets)
        self._tickets_by_name[name] = ticket
        try:
            yield from self._stream(_Call(task, arguments, keywords), ticket)
        except GeneratorExit:  # the caller no longer listens
            if self._tickets_by_name.get(name) == ticket:
                self.cancel(name)
            raise
        finally:
            self._tickets_by_name.pop(name, None)

    def cancel(self, name: str) -> None:
        """End the task of this name at its next report, or before it starts; do nothing if there is none."""
        with self._lock:
            ticket = self._tickets_by_name.pop(name, None)
            if ticket is None:
                return
            if ticket == self._current_ticket:
                self._cancelled.value = ticket
            else:  # it waits for its turn
                self._cancelled_before_start.add(ticket)

    def _begin(self, ticket: int) -> None:
        """Mark a streamed task as the one that runs; raise Cancelled if it was cancelled while it waited."""
        with self._lock:
            self._current_ticket = ticket
            if ticket in self._cancelled_before_start:
                self._cancelled_before_start.discard(ticket)
                raise Cancelled(_CANCELLED)

    def _stream(self, call: _Call, ticket: int) -> Iterator[Report]:
        with self._own_turn():
            self._begin(ticket)
            try:
                self._await_imports()
                future = self._submit(call, ticket)
                end = time.monotonic() + self._seconds if self._seconds else None
                while not future.done():
                    yield from self._drain(ticket)
                    wait([future], 0.2)
                    if end is not None and time.monotonic() > end:
                        raise self._kill_overdue()
                yield from self._drain(ticket)
                yield Report(1.0, "Done", future.result())
            except BrokenProcessPool as error:
                raise self._died(call) from error

    @contextlib.contextmanager
    def _own_turn(self) -> Iterator[None]:
        """Wait until no other task runs; WorkerError if that takes too long."""
        if not self._turn.acquire(timeout=_MAX_WAIT_SECONDS if self._seconds else -1):
            raise WorkerError("This demo is busy with other visitors' work; try again in a minute.")
        try:
            yield
        finally:
            self._turn.release()

    def close(self) -> None:
        """End the process once its current task is done."""
        with self._lock:
            if self._pool is not None:
                self._pool.shutdown(wait=False, cancel_futures=True)
                self._pool = None

    def _run(self, call: _Call) -> Any:
        try:
            self._await_imports()
            future = self._submit(call)
            wait([future], self._seconds)
            if not future.done():
                raise self._kill_overdue()
            return future.result()
        except BrokenProcessPool as error:
            raise self._died(call) from error

    def _await_imports(self) -> None:
        """Wait for the imports, so that a deadline counts from the start of the task.

        A process that is still busy then is killed: an earlier task whose caller left may occupy it.
        """
        if self._seconds is None:
            return
        ready = self._submit(_Call(_do_nothing))
        wait([ready], _MAX_IMPORT_SECONDS + self._seconds)
        if not ready.done():
            raise self._kill_overdue()

    def _submit(self, call: _Call, ticket: int = 0) -> Future[Any]:
        with self._lock:
            try:
                return self._ensure_pool().submit(_run_call, call, ticket)
            except BrokenProcessPool:  # it died while idle, so nothing of this task is lost
                self._pool = None
                return self._ensure_pool().submit(_run_call, call, ticket)

    def _ensure_pool(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._queue, self._pid.value = self._context.Queue(), 0
            arguments = (self._queue, self._cancelled, self._pid, self._max_bytes)
            self._pool = ProcessPoolExecutor(1, self._context, _initialize, arguments)
        return self._pool

    def _drain(self, ticket: int) -> Iterator[Report]:
        """Yield the newest report of a task, if there is one; a page cannot show hundreds a second.

        The reports of earlier tasks whose callers left are dropped.
        """
        newest = None
        with contextlib.suppress(Empty):
            while True:
                sender, share, description = self._queue.get_nowait()
                if sender == ticket:
                    newest = Report(share, description)
        if newest is not None:
            yield newest

    def _kill_overdue(self) -> WorkerError:
        """Kill the process during its task and return the error to raise."""
        with self._lock:
            if self._pid.value:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._pid.value, signal.SIGKILL)
            self._pool = None
        return WorkerError(
            f"This task was stopped: it took over {self._seconds:,.0f} s, the limit of this public demo. "
            "Use a smaller file, fewer rows or columns, or a shorter text."
        )

    def _died(self, call: _Call) -> WorkerError:
        self.close()
        return WorkerError(
            f"The worker process died during {call.name!r}, most likely because memory ran out; it restarts "
            "with the next request. Close other programs or choose a smaller model."
        )


def in_thread(task: Callable[[Callable[[float, str], None]], Any]) -> Iterator[Report]:
    """Yield reports as `Worker.stream` does, of a task that waits for I/O, in a thread of this process."""
    reports: SimpleQueue[Report] = SimpleQueue()
    has_caller = True

    def on_progress(share: float, description: str) -> None:
        if not has_caller:
            raise Cancelled("The caller has disconnected.")
        reports.put(Report(share, description))

    pool = ThreadPoolExecutor(1)
    try:
        future = pool.submit(task, on_progress)
        while not future.done():
            with contextlib.suppress(Empty):
                yield reports.get(timeout=0.2)
        yield Report(1.0, "Done", future.result())
    finally:
        has_caller = False
        pool.shutdown(wait=False)  # the thread that closes the generator may be the event loop's


def report(share: float, description: str) -> None:
    """Report the progress of the current task in the worker process; raise Cancelled if it was cancelled."""
    if _ticket and _cancelled.value == _ticket:
        raise Cancelled(_CANCELLED)
    if _ticket:
        _reports.put((_ticket, share, description))


def _initialize(queue: Any, cancelled: Any, pid: Any, max_bytes: int | None) -> None:
    """Initialize the worker process, before torch is imported."""
    global _reports, _cancelled, _max_bytes
    _reports, _cancelled, _max_bytes = queue, cancelled, max_bytes
    pid.value = os.getpid()
    threading.Thread(target=_exit_with_app, daemon=True).start()
    # idle threads must not spin beside the training process
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _exit_with_app() -> None:
    """Exit once the app has ended, also if it was killed."""
    app = multiprocessing.parent_process()
    assert app is not None  # this is a child process
    app.join()
    os._exit(1)


def _do_nothing() -> None:
    """Do nothing: the imports before the first task are what `warm` is for."""


def _run_call(call: _Call, ticket: int) -> Any:
    global _ticket, _has_niceness
    _ticket = ticket
    if _TASKS not in sys.modules:
        with paused_collection():
            importlib.import_module(_TASKS)
        if _max_bytes is not None:
            _limit_memory(_max_bytes)
    if hasattr(os, "nice") and not _has_niceness:
        os.nice(_NICENESS)
        _has_niceness = True
    try:
        return call()
    except PeftCoreError as error:
        error.args = (hide_upload_folders(str(error)), *error.args[1:])
        raise
    except MemoryError as error:
        if _max_bytes is None:
            raise
        raise WorkerError(
            f"This task needs over {_max_bytes / 1e9:.1f} GB of memory, the limit of this public demo. "
            "Use a smaller file, or fewer rows or columns."
        ) from error


def _limit_memory(max_bytes: int) -> None:
    """Limit the address space to so many bytes more than are mapped now; Linux only."""
    if sys.platform != "linux":
        return
    import resource  # noqa: PLC0415 - there is none on Windows

    with open("/proc/self/statm", encoding="ascii") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + max_bytes, hard))
