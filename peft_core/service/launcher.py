"""Start, stop and queue training processes. All state of the runs is in their folders."""

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
from peft_core.files.atomic import open_regular
from peft_core.runs import ENDED, FAILED, KILLED, RUNNING, SCHEDULED, Run
from peft_core.runs.checkpoints import choose_checkpoint, describe_early_stop, list_checkpoints, step_of
from peft_core.runs.ownership import read_ownership
from peft_core.runs.queue import (
    Queue,
    QueuePlace,
    QueueView,
    describe_duration,
    first_in_queue,
    in_queue_order,
    is_starting,
)
from peft_core.runs.signals import kill_tree, send_signal
from peft_core.service.limits import Limits

_ROOT = Path(__file__).resolve().parents[2]
_POLL_SECONDS = 0.3  # between polls of the processes while any run trains or waits
_RETRY_SECONDS = 5.0  # until the queue is tried again after an error that belongs to no run
GRACE = 10.0  # seconds that a training process has to end after Stop before a second Stop kills it
_OVERDUE_GRACE = 60.0  # seconds that a run has to save its adapter after its time limit
_STOP_SECONDS = 2.0  # that Stop waits for a process that is starting
_STAGES_THAT_SAVE = ("training", "evaluating", "saving")  # these check for Stop; in others a signal is sent
_log = logging.getLogger(__name__)


class Launcher:
    """Runs one training at a time; others wait in order of submission. Training processes outlive the app."""

    def __init__(self, runs_dir: Path, limits: Limits | None = None) -> None:
        self.runs_dir = runs_dir.resolve()
        self.limits = limits
        self._queue = QueueView(self.runs_dir)
        self._children: dict[str, subprocess.Popen] = {}
        self._to_kill: set[str] = set()  # ids of runs with two stop requests
        self._not_startable: dict[str, str] = {}  # error by run id, until it is written into the run's state
        self._lock = threading.RLock()
        self._watcher: threading.Thread | None = None

    def submit(
        self, config: TrainConfig, *, owner: str | None = None, forecast_seconds: float | None = None
    ) -> Run:
        """Create a run that starts now or after those before it, and return at once.

        Args:
            config: Its settings.
            owner: SHA-256 of the visitor's token; None for the host.
            forecast_seconds: Forecast for the training, from which waiting times are estimated.

        Raises:
            RunError: A public demo's queue is full, or a run of this owner waits in it already.
        """
        if forecast_seconds is not None and self._max_seconds is not None:
            forecast_seconds = min(forecast_seconds, self._max_seconds)
        with self._lock:
            self.check_queue(owner)
            run = runs.create(self.runs_dir, config, owner=owner, forecast_seconds=forecast_seconds)
        self._start_queue()
        return run

    def check_queue(self, owner: str | None) -> None:
        """Raise RunError if a public demo's queue accepts no run of a visitor now."""
        if self.limits is None:
            return
        queue = Queue.read(self.runs_dir)
        for run, _ in queue.waiting:
            if read_ownership(run.folder).owner == owner:
                raise RunError(
                    f"Your run {run.run_id} is already waiting; stop it, or wait until it has started."
                )
        if len(queue.waiting) >= self.limits.max_waiting:
            seconds = queue.seconds_until_start(self.limits.max_seconds)
            when = "when some have ended" if seconds is None else f"in {describe_duration(seconds)}"
            raise RunError(f"{len(queue.waiting)} runs are waiting already; try again {when}.")

    @property
    def _max_seconds(self) -> float | None:
        return self.limits.max_seconds if self.limits is not None else None

    def queue_place(self, run: Run) -> QueuePlace:
        """Return a run's place in the queue, at most a second old; an empty place if it does not wait."""
        state = run.state()
        if state.status != SCHEDULED or is_starting(state):
            return QueuePlace()
        return self._queue.place_of(run.run_id, self._max_seconds)

    def resume(self, run_id: str, *, evaluate_only: bool = False) -> Run:
        """Put a stopped, failed or killed run back into the queue, to continue from its newest checkpoint.

        Args:
            run_id: The run.
            evaluate_only: Take no further step, and evaluate the test rows with the checkpoint's weights. The
                run can still be continued afterwards.

        Raises:
            RunError: The run has not ended or has no checkpoint, or as for `submit`.
            DamagedError: All of its checkpoints are damaged.
        """
        run = runs.find(self.runs_dir, run_id)
        with self._lock:
            state = run.state()
            self._await_exit(run_id, state.status)
            if state.status not in (FAILED, KILLED) or choose_checkpoint(run) is None:
                raise RunError(f"The run {run_id!r} has nothing to continue from; train again.")
            self.check_queue(read_ownership(run.folder).owner)
            (run.folder / "stop").unlink(missing_ok=True)
            run.update(
                status=SCHEDULED, stage=None, error=None, evaluate_only=evaluate_only, queued=time.time()
            )
        self._start_queue()
        return run

    def stop(self, run_id: str) -> Run:
        """Ask a run to stop. A training run saves its adapter first.

        After a second request the run is killed once GRACE seconds have passed since the first.

        Raises:
            RunError: The run has already ended.
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
            elif state.status == RUNNING and state.stage not in _STAGES_THAT_SAVE:
                send_signal(run, signal.SIGTERM)
        if asked_before:
            self._start_queue()
        return run

    def _stop_before_training(self, run: Run) -> None:
        """Stop a run that waits, or whose process still imports torch and has not taken it over yet."""
        child = self._children.get(run.run_id)
        if child is None:
            run.update(status=KILLED)
            return
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_STOP_SECONDS)
            if run.state().status == SCHEDULED:
                run.update(status=KILLED, notes=[*run.state().notes, describe_early_stop(run, "starting")])

    def delete(self, run_id: str) -> None:
        """Move a run into the trash, from where `restore` brings it back.

        Raises:
            RunError: The run has not ended.
        """
        run = runs.find(self.runs_dir, run_id)
        with self._lock:
            status = run.state().status
            self._await_exit(run_id, status)
            if status not in ENDED or run_id in self._children:
                raise RunError(f"The run {run_id!r} is {status.lower()}; stop it before you delete it.")
            runs.delete(self.runs_dir, run_id)

    def restore(self, run_id: str) -> Run:
        """Restore a deleted run.

        Raises:
            RunError: The run was removed permanently, or there is a run with this id.
        """
        with self._lock:
            return runs.restore(self.runs_dir, run_id)

    @property
    def lock(self) -> AbstractContextManager[Any]:
        """Lock that is held while runs are started, stopped, deleted or restored; it is reentrant."""
        return self._lock

    def current(self) -> Run | None:
        """Return the run that trains now or comes next, for which a new run would wait."""
        return first_in_queue(runs.list_runs(self.runs_dir))

    def training_process(self) -> int | None:
        """Return the pid of the process that trains now, or None."""
        pids = (run.training_process() for run, _ in Queue.read(self.runs_dir).training)
        return next((pid for pid in pids if pid is not None), None)

    def advance(self) -> bool:
        """Handle ended processes, and start the next run if none trains.

        Returns:
            Whether there is more to do: a run waits, trains under a deadline, or is to be killed.
        """
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
        """Start the queue with the runs that an earlier app left waiting."""
        self._start_queue()

    def _start_queue(self) -> None:
        if self.advance():
            self._watch()

    def _start(self, run: Run) -> None:
        """Start a run's process; an error ends only that run."""
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
        if run.log.exists() and not run.log.is_file():  # opening a FIFO would block until it has a reader
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
        """Wait for the process of a run whose final state is written, and which is about to exit."""
        child = self._children.get(run_id)
        if status in ENDED and child is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(GRACE)
            self._reap()

    def _reap(self) -> None:
        """Drop processes that have ended; a run that its process never took over has failed."""
        for run_id, child in list(self._children.items()):
            if child.poll() is None:
                continue
            run = Run(self.runs_dir / run_id)
            if run.folder.is_dir() and run.state().status == SCHEDULED:
                self._not_startable[run_id] = _describe_failed_start(run, child.returncode)
            del self._children[run_id]

    def _mark_not_startable(self) -> None:
        """Write FAILED into the state of runs that could not be started; failed writes are tried again."""
        for run_id, error in list(self._not_startable.items()):
            run = Run(self.runs_dir / run_id)
            try:
                if run.folder.is_dir() and run.state().status == SCHEDULED:
                    run.update(status=FAILED, error=error)
                del self._not_startable[run_id]
            except (OSError, RunError):
                _log.exception("The state of the run %s could not be written.", run_id)

    def _kill_overdue(self) -> None:
        """Kill runs with two stop requests, the first of them more than GRACE seconds ago."""
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
            except DamagedError:  # its process is unknown: the queue must not wait for it
                _log.exception("The run %s could not be killed.", run_id)
                self._to_kill.discard(run_id)

    def _stop_overdue(self, running: Sequence[Run]) -> None:
        """Ask runs to stop that exceed the time limit of a public demo, and kill those that do not stop."""
        limits = self.limits
        if limits is None:
            return
        for run in running:
            state = run.state()
            if state.started is None or time.time() - state.started < limits.max_seconds:
                continue
            if not run.stop_requested():
                run.request_stop(limits.describe_deadline())
                if state.stage not in _STAGES_THAT_SAVE:
                    send_signal(run, signal.SIGTERM)
            elif seconds_since_stop(run) > _OVERDUE_GRACE:
                self._to_kill.add(run.run_id)

    def _kill(self, run: Run) -> bool:
        """Kill a run's process and record it in the state. Returns False until the process has ended."""
        child = self._children.pop(run.run_id, None)
        if child is not None:
            kill_tree(child)
        elif send_signal(run, signal.SIGKILL):
            return False  # the next call handles the ended process
        if run.is_unfinished:
            run.update(status=KILLED, ended=time.time(), error=_describe_kill(run))
        return True

    def _watch(self) -> None:
        """Start the thread that advances the queue, unless it is running."""
        with self._lock:
            if self._watcher is not None and self._watcher.is_alive():
                return
            self._watcher = threading.Thread(target=self._advance_until_done, name="launcher", daemon=True)
            self._watcher.start()

    def _advance_until_done(self) -> None:
        while True:
            try:
                if not self.advance():
                    return
                time.sleep(_POLL_SECONDS)
            except Exception:  # such as a disk error, after which waiting runs must not wait for ever
                _log.exception("Advancing the queue of runs failed; it is tried again.")
                time.sleep(_RETRY_SECONDS)


def train_command(run: Run) -> list[str]:
    """Return the command of a run's training process."""
    return [sys.executable, "-m", "peft_core.train", str(run.folder), "--only-if-scheduled"]


def seconds_since_stop(run: Run) -> float:
    """Return the seconds since the first stop request of a run; 0 without one."""
    try:
        return max(0.0, time.time() - (run.folder / "stop").stat().st_mtime)
    except OSError:
        return 0.0


def _describe_kill(run: Run) -> str:
    checkpoints = list_checkpoints(run.checkpoints)
    checkpoint = (
        f"the checkpoint of step {step_of(checkpoints[0])} is kept, and Continue resumes from it"
        if checkpoints
        else "nothing was saved"
    )
    return f"Killed: it did not stop within {GRACE:.0f} s of the stop request; {checkpoint}."


def _describe_failed_start(run: Run, code: int) -> str:
    if run.stop_requested():
        return "Stopped before it started."
    lines = []
    with contextlib.suppress(OSError), open_regular(run.log) as log:
        lines = log.read().decode(errors="replace").strip().splitlines()
    last_line = (lines or ["its log has no error message"])[-1]
    return f"The training process could not start (exit {code}): {without_folders(last_line)}"
