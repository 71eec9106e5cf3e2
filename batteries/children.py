"""Forked children that report through a pipe: a process that has imported torch starts one in 20 ms.

A message is one line of JSON, written completely before the child continues, so that messages sent before a
kill can be read after it.
"""

import contextlib
import json
import os
import select
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn

from tqdm import tqdm

from peft_core.errors import PeftCoreError

Report = Callable[..., None]  # kind of a message, and its text
HANGS_AFTER = 300.0  # seconds after which a child counts as hung
ERROR, BUG, DONE = "error", "bug", "done"
KILLED = "it died without a word"


class Message(NamedTuple):
    """A report of a child: kind, text, and time by the monotonic clock, which processes share."""

    kind: str
    text: str
    time: float


@dataclass
class Child:
    """A forked process; `messages` are those read so far."""

    pid: int
    reader: int
    messages: list[Message] = field(default_factory=list)
    _rest: bytes = b""
    _ended: bool = False

    def wait_for(self, condition: Callable[[Message], bool]) -> Message | None:
        """Wait for a message that meets a condition; return None if the child ends without one."""
        for message in self.read():
            if condition(message):
                return message
        return None

    def read(self, seconds: float = HANGS_AFTER) -> Iterator[Message]:
        """Yield messages until the child closes its end. Raises TimeoutError after so many seconds."""
        end = time.monotonic() + seconds
        while not self._ended:
            if not select.select([self.reader], [], [], max(0.0, end - time.monotonic()))[0]:
                self.kill()
                raise TimeoutError(f"the child {self.pid} was still running after {seconds:.0f} s")
            yield from self._read_some()

    def kill(self) -> bool:
        """Kill the child and read its messages; return False if it had already ended."""
        os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        while not self._ended:
            list(self._read_some())
        os.close(self.reader)
        return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL

    def finish(self, seconds: float = HANGS_AFTER) -> "Child":
        """Read all messages and wait for the end. Raises TimeoutError after so many seconds."""
        list(self.read(seconds))
        os.waitpid(self.pid, 0)
        os.close(self.reader)
        return self

    def first(self, kind: str) -> str | None:
        """Return the text of the first message of a kind, or None."""
        return next((message.text for message in self.messages if message.kind == kind), None)

    def _read_some(self) -> Iterator[Message]:
        chunk = os.read(self.reader, 1 << 16)
        self._ended = not chunk
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            message = Message(*json.loads(line))
            self.messages.append(message)
            yield message


def fork_child(task: Callable[[Report], None]) -> Child:
    """Run a task in a forked child; its output is discarded.

    It reports `done` at the end, `error` with the message of a PeftCoreError, or `bug` with any other error.
    """
    child, report = fork_here()
    if child is None:
        _run(task, report)
    return child


def fork_here() -> tuple[Child | None, Report]:
    """Fork here, as `os.fork` does.

    Returns:
        The child in the parent, None in the child; and the function by which the child reports.
    """
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about threads, none of which has a lock here
        pid = os.fork()
    if pid:
        os.close(writer)
        return Child(pid, reader), lambda kind, text="": None
    os.close(reader)
    # forks share tqdm's lock: a child killed while it has the lock would block all others
    tqdm.set_lock(threading.RLock())

    def report(kind: str, text: object = "") -> None:
        line = json.dumps([kind, str(text), time.monotonic()]).encode() + b"\n"
        while line:
            line = line[os.write(writer, line) :]

    return None, report


def run_child(task: Callable[[Report], None]) -> Child:
    """Run a task in a forked child and wait for its end."""
    return fork_child(task).finish()


def outcome(child: Child) -> str:
    """Return the error of a child; empty if it finished its task."""
    error, bug = child.first(ERROR), child.first(BUG)
    if error is not None or bug is not None:
        return error if error is not None else f"{bug} (a bug)"
    return "" if child.first(DONE) is not None else KILLED


def end_child(report: Report, error: BaseException | None) -> NoReturn:
    """Report the outcome of a forked child and end it."""
    with contextlib.suppress(BaseException):
        if error is None:
            report(DONE)
        elif isinstance(error, PeftCoreError):
            report(ERROR, error)
        else:
            report(BUG, f"{type(error).__name__}: {error} at {_place(error)}")
    os._exit(0)


def _run(task: Callable[[Report], None], report: Report) -> NoReturn:
    """Run the task of a child and end it."""
    try:
        silence = os.open(os.devnull, os.O_RDWR)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        task(report)
    except BaseException as error:
        end_child(report, error)
    end_child(report, None)


def _place(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{os.path.basename(frame.filename)}:{frame.lineno}"
