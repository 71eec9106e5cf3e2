"""Start, stop, queue and re-attach training processes; runs are known by their folders alone."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.errors import DamagedError, RunError, reason_of, without_folders
from peft_core.files import open_regular
from peft_core.limits import Limits
from peft_core.run_signals import kill_tree, send_signal
from peft_core.runs import ENDED, FAILED, KILLED, RUNNING, SCHEDULED, Run
from peft_core.runs.checkpoints import choose_checkpoint, list_checkpoints, note_of_early_stop, step_of
from peft_core.runs.ownership import read_ownership
from peft_core.waiting import (
    Queue,
    QueuePlace,
    QueueView,
    about_duration,
    first_in_queue,
    in_queue_order,
    is_starting,
)

_ROOT = Path(__file__).resolve().parent.parent
_POLL = 0.3  # seconds between polls of the processes while any runs or waits
_AFTER_ERROR = 5.0  # seconds until the queue is tried again after an error that no run explains
GRACE = 10.0  # seconds that a training process has to end after Stop before a second Stop kills it
_OVERDUE_GRACE = 60.0  # seconds that a run has to keep its adapter after its time is over
_STOP_SECONDS = 2.0  # that Stop waits for a process that starts
_KEEPS_ADAPTER = ("training", "evaluating", "saving")  # stages that end by themselves; others get a signal
_log = logging.getLogger(__name__)


class Launcher:
    """One training at a time; others wait in the order they came. A training process outlives the app."""

    def __init__(self, runs_dir: Path, limits: Limits | None = None) -> None:
        self.runs_dir = runs_dir.resolve()
        self.limits = limits
        self._queue = QueueView(self.runs_dir)
        self._children: dict[str, subprocess.Popen] = {}
        self._to_kill: set[str] = set()  # ids of runs that were asked to stop twice
        self._not_startable: dict[str, str] = {}  # run ids to the error, until their state could be written
        self._lock = threading.RLock()
        self._watcher: threading.Thread | None = None

    def submit(
        self, config: TrainConfig, *, owner: str | None = None, forecast_seconds: float | None = None
    ) -> Run:
        """A new run, started now or when those before it have ended; returns at once.

        Args:
            config: Its settings.
            owner: SHA-256 of the visitor's token; None for the host.
            forecast_seconds: About how long the training takes, for those that wait behind it.

        Raises RunError if a public demo's queue is full, or a run of this owner waits in it already.
        """
        if forecast_seconds is not None and self._max_seconds is not None:
            forecast_seconds = min(forecast_seconds, self._max_seconds)
        with self._lock:
            self.check_queue(owner)
            run = runs.create(self.runs_dir, config, owner=owner, forecast_seconds=forecast_seconds)
        self._start_queue()
        return run

    def check_queue(self, owner: str | None) -> None:
        """Raise RunError if a public demo's queue takes no run of a visitor now."""
        if self.limits is None:
            return
        queue = Queue.read(self.runs_dir)
        for run, _ in queue.waiting:
            if read_ownership(run.folder).owner == owner:
                raise RunError(f"Your run {run.run_id} waits already; stop it, or wait until it has started.")
        if len(queue.waiting) >= self.limits.max_waiting:
            seconds = queue.seconds_until_start(self.limits.max_seconds)
            when = "when some have ended" if seconds is None else f"in {about_duration(seconds)}"
            raise RunError(f"{len(queue.waiting)} runs are waiting already; try again {when}.")

    @property
    def _max_seconds(self) -> float | None:
        return self.limits.max_seconds if self.limits is not None else None

    def queue_place(self, run: Run) -> QueuePlace:
        """Where a run waits, and about how long; of a run that does not wait nothing.

        It is at most a second old.
        """
        state = run.state()
        if state.status != SCHEDULED or is_starting(state):
            return QueuePlace()
        return self._queue.place_of(run.run_id, self._max_seconds)

    def resume(self, run_id: str, *, evaluate_only: bool = False) -> Run:
        """Put a stopped, failed or killed run back into the queue, from its newest whole checkpoint on.

        With `evaluate_only` it takes no further step: its test rows are evaluated with the weights that the
        checkpoint holds, and it can still be continued afterwards.

        Raises RunError if it has not ended, has no checkpoint, or as `submit`; DamagedError if none of the
        checkpoints is whole.
        """
        run = runs.find(self.runs_dir, run_id)
        with self._lock:
            state = run.state()
            self._await_exit(run_id, state.status)
            if state.status not in (FAILED, KILLED) or choose_checkpoint(run) is None:
                raise RunError(f"The run {run_id!r} has nothing to continue from; train again.")
            self.check_queue(read_ownership(run.folder).owner)
            (run.folder / "stop").unlink(missing_ok=True)
            again = {"stage": None, "error": None, "evaluate_only": evaluate_only, "queued": time.time()}
            run.update(status=SCHEDULED, **again)
        self._start_queue()
        return run

    def stop(self, run_id: str) -> Run:
        """Ask a run to stop; one that trains keeps its adapter so far.

        Asked again, it is killed as soon as GRACE seconds have passed since the first time. Raises RunError
        if it has ended already.
        """
        run = runs.find(self.runs_dir, run_id)
        with self._lock:
            state = run.state()
            if state.status in ENDED:
                raise RunError(f"The run {run_id!r} has ended already ({state.status}).")
            asked_before = run.stop_requested()
            if not asked_before:
                run.request_stop()
            if state.status == SCHEDULED and not (asked_before and run_id in self._children):
                self._stop_before_training(run)
            elif asked_before:
                self._to_kill.add(run_id)
            elif state.status == RUNNING and state.stage not in _KEEPS_ADAPTER:
                send_signal(run, signal.SIGTERM)
        if asked_before:
            self._start_queue()
        return run

    def _stop_before_training(self, run: Run) -> None:
        """Stop a run that waits, or whose process has not taken it over yet: it still imports torch."""
        child = self._children.get(run.run_id)
        if child is None:
            run.update(status=KILLED)
            return
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_STOP_SECONDS)
            if run.state().status == SCHEDULED:
                run.update(status=KILLED, notes=[*run.state().notes, note_of_early_stop(run, "starting")])

    def delete(self, run_id: str) -> None:
        """Move a run into the trash, from where `restore` brings it back. RunError if it has not ended."""
        run = runs.find(self.runs_dir, run_id)
        with self._lock:
            status = run.state().status
            self._await_exit(run_id, status)
            if status not in ENDED or run_id in self._children:
                raise RunError(f"The run {run_id!r} is {status.lower()}; stop it before you delete it.")
            runs.delete(self.runs_dir, run_id)

    def restore(self, run_id: str) -> Run:
        """Bring a deleted run back. RunError if it was removed for good, or there is a run of this id."""
        with self._lock:
            return runs.restore(self.runs_dir, run_id)

    @property
    def lock(self) -> AbstractContextManager[Any]:
        """Held while runs are started, stopped, deleted or restored; whoever holds it may call them too."""
        return self._lock

    def current(self) -> Run | None:
        """The run that trains now, or that comes next; a new one would wait for it."""
        return first_in_queue(runs.list_runs(self.runs_dir))

    def training_process(self) -> int | None:
        """The pid of the process that trains now; None if none does."""
        pids = (run.training_process() for run, _ in Queue.read(self.runs_dir).training)
        return next((pid for pid in pids if pid is not None), None)

    def advance(self) -> bool:
        """Note ended processes and start the oldest waiting run if none trains; True while any is left."""
        with self._lock:
            self._reap()
            self._kill_overdue()
            self._mark_not_startable()
            states = in_queue_order([(run, run.state()) for run in runs.list_runs(self.runs_dir)])
            running = [run for run, state in states if state.status == RUNNING]
            self._stop_overdue(running)
            waiting = [
                run
                for run, state in states
                if state.status == SCHEDULED and run.run_id not in {*self._children, *self._not_startable}
            ]
            if waiting and not self._children and not running:
                self._start(waiting[0])
            has_deadline = self.limits is not None and bool(running)
            return bool(waiting or self._children or self._to_kill or self._not_startable or has_deadline)

    def resume_queue(self) -> None:
        """Take up what an earlier app left waiting."""
        self._start_queue()

    def _start_queue(self) -> None:
        if self.advance():
            self._watch()

    def _start(self, run: Run) -> None:
        """Start a run's process; whatever prevents it ends that run alone."""
        try:
            self._spawn(run)
        except Exception as error:
            _log.exception("The run %s could not be started.", run.run_id)
            reason = reason_of(error).rstrip(".")
            self._not_startable[run.run_id] = f"The training process could not be started: {reason}."
            self._mark_not_startable()

    def _spawn(self, run: Run) -> None:
        environment = {
            **os.environ,
            "OMP_WAIT_POLICY": "PASSIVE",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "PYTHONUNBUFFERED": "1",
        }
        if run.log.exists() and not run.log.is_file():  # opening a FIFO would wait for a reader
            raise RunError(f"{run.log.name} is not a regular file; remove it")
        run.update(stage="starting")
        with run.log.open("ab") as log:
            self._children[run.run_id] = subprocess.Popen(
                train_command(run),
                cwd=_ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _await_exit(self, run_id: str, status: str) -> None:
        """Wait for the process of a run that has written its end, and is about to exit."""
        child = self._children.get(run_id)
        if status in ENDED and child is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(GRACE)
            self._reap()

    def _reap(self) -> None:
        """Forget processes that have ended; a run whose process did not get to take it over has failed."""
        for run_id, child in list(self._children.items()):
            if child.poll() is None:
                continue
            run = Run(self.runs_dir / run_id)
            if run.folder.is_dir() and run.state().status == SCHEDULED:
                self._not_startable[run_id] = _early_death(run, child.returncode)
            del self._children[run_id]

    def _mark_not_startable(self) -> None:
        """Write FAILED into runs that could not be started; what cannot be written now is tried again."""
        for run_id, error in list(self._not_startable.items()):
            run = Run(self.runs_dir / run_id)
            try:
                if run.folder.is_dir() and run.state().status == SCHEDULED:
                    run.update(status=FAILED, error=error)
                del self._not_startable[run_id]
            except (OSError, RunError):
                _log.exception("The state of the run %s could not be written.", run_id)

    def _kill_overdue(self) -> None:
        """Kill runs that were asked to stop twice, and the first time longer than GRACE ago."""
        for run_id in list(self._to_kill):
            run = Run(self.runs_dir / run_id)
            try:
                if not run.folder.is_dir():
                    is_over = True
                elif seconds_since_stop(run) >= GRACE:
                    is_over = self._kill(run)
                else:
                    is_over = run.state().status in ENDED
                if is_over:
                    self._to_kill.discard(run_id)
            except DamagedError:  # whose process is unknown: the queue must not wait for it
                _log.exception("The run %s could not be killed.", run_id)
                self._to_kill.discard(run_id)

    def _stop_overdue(self, running: Sequence[Run]) -> None:
        """Ask runs to stop that have had the time of a public demo, and kill those that do not stop."""
        for run in running if self.limits is not None else ():
            state = run.state()
            if state.started is None or time.time() - state.started < self.limits.max_seconds:
                continue
            if not run.stop_requested():
                run.request_stop(self.limits.describe_deadline())
                if state.stage not in _KEEPS_ADAPTER:
                    send_signal(run, signal.SIGTERM)
            elif seconds_since_stop(run) > _OVERDUE_GRACE:
                self._to_kill.add(run.run_id)

    def _kill(self, run: Run) -> bool:
        """Kill a run's process and write that it was killed; False while the process has not ended."""
        child = self._children.pop(run.run_id, None)
        if child is not None:
            kill_tree(child)
        elif send_signal(run, signal.SIGKILL):
            return False  # the next call finds it gone
        if run.is_unfinished:
            run.update(status=KILLED, ended=time.time(), error=_killed(run))
        return True

    def _watch(self) -> None:
        """Make sure that a thread looks after the queue for as long as there is one."""
        with self._lock:
            if self._watcher is not None and self._watcher.is_alive():
                return
            self._watcher = threading.Thread(target=self._look_after_queue, name="launcher", daemon=True)
            self._watcher.start()

    def _look_after_queue(self) -> None:
        while True:
            try:
                if not self.advance():
                    return
                time.sleep(_POLL)
            except Exception:  # of the disk, say: runs that wait must not wait for ever
                _log.exception("The queue of runs met an error; it is tried again.")
                time.sleep(_AFTER_ERROR)


def train_command(run: Run) -> list[str]:
    """The command of a run's training process."""
    return [sys.executable, "-m", "peft_core.train", str(run.folder), "--only-if-scheduled"]


def seconds_since_stop(run: Run) -> float:
    """How long ago a run was first asked to stop; 0 if it was not."""
    try:
        return max(0.0, time.time() - (run.folder / "stop").stat().st_mtime)
    except OSError:
        return 0.0


def _killed(run: Run) -> str:
    checkpoints = list_checkpoints(run.checkpoints)
    left = (
        f"the checkpoint of step {step_of(checkpoints[0])} is kept, and Continue goes on from it"
        if checkpoints
        else "nothing of it is kept"
    )
    return f"Killed: it did not stop within {GRACE:.0f} s of being asked; {left}."


def _early_death(run: Run, code: int) -> str:
    if run.stop_requested():
        return "Stopped before it began."
    lines = []
    with contextlib.suppress(OSError), open_regular(run.log) as log:
        lines = log.read().decode(errors="replace").strip().splitlines()
    last = (lines or ["it wrote no reason into its log"])[-1]
    return f"The training process could not start (exit {code}): {without_folders(last)}"
