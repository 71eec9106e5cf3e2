"""Start, stop, queue and re-attach training processes; runs are known by their folders alone."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from peft_core import runs
from peft_core.config import Limits, TrainConfig
from peft_core.errors import RunError
from peft_core.runs import ENDED, FAILED, KILLED, RUNNING, SCHEDULED, Run

_ROOT = Path(__file__).resolve().parent.parent
_POLL = 0.3  # seconds between looks at the processes while any runs or waits
_KEEPS_ADAPTER = ("training", "evaluating", "saving")  # stages in which Stop waits for the adapter


class Launcher:
    """One training at a time; others wait in the order they came. A training process outlives the app."""

    def __init__(self, runs_dir: Path, limits: Limits | None = None) -> None:
        self.runs_dir = runs_dir.resolve()
        self.limits = limits
        self._children: dict[str, subprocess.Popen] = {}
        self._lock = threading.Lock()
        self._watcher: threading.Thread | None = None

    def submit(self, config: TrainConfig) -> Run:
        """A new run, started now or when those before it have ended; returns at once.

        Raises RunError if a public demo's queue is full.
        """
        with self._lock:
            waiting = [run for run in runs.list_runs(self.runs_dir) if run.state()["status"] == SCHEDULED]
            if self.limits is not None and len(waiting) >= self.limits.max_waiting:
                raise RunError(f"{len(waiting)} runs are waiting already; try again when some have ended.")
            run = runs.create(self.runs_dir, config)
        self.advance()
        self._watch()
        return run

    def resume(self, run_id: str) -> Run:
        """Put a stopped, failed or killed run back into the queue; it goes on from its newest checkpoint.

        Raises RunError if it has not ended, or has no checkpoint.
        """
        run = runs.find(self.runs_dir, run_id)
        with self._lock:
            if run.state()["status"] not in (FAILED, KILLED) or not run.can_continue:
                raise RunError(f"The run {run_id!r} has nothing to continue from; train again.")
            (run.folder / "stop").unlink(missing_ok=True)
            run.update(status=SCHEDULED, stage=None, error=None)
        self.advance()
        self._watch()
        return run

    def stop(self, run_id: str) -> Run:
        """Ask a run to stop; one that trains keeps its adapter so far. RunError if it has ended already."""
        run = runs.find(self.runs_dir, run_id)
        with self._lock:
            state = run.state()
            if state["status"] in ENDED:
                raise RunError(f"The run {run_id!r} has ended already ({state['status']}).")
            run.request_stop()
            if state["status"] == SCHEDULED and run_id not in self._children:
                run.update(status=KILLED)
            elif state["status"] == RUNNING and state.get("stage") not in _KEEPS_ADAPTER:
                os.kill(
                    state["pid"], signal.SIGTERM
                )  # the lock that is held proves that the process is the run's
        return run

    def delete(self, run_id: str) -> None:
        """Remove a run and all its files. RunError if it has not ended."""
        run = runs.find(self.runs_dir, run_id)
        with self._lock:
            status = run.state()["status"]
            if status not in ENDED or run_id in self._children:
                raise RunError(f"The run {run_id!r} is {status.lower()}; stop it before you delete it.")
            runs.delete(self.runs_dir, run_id)

    def current(self) -> Run | None:
        """The run that trains now, or that comes next; a new one would wait for it."""
        left = [run for run in reversed(runs.list_runs(self.runs_dir)) if run.state()["status"] not in ENDED]
        training = [run for run in left if run.state()["status"] == RUNNING]
        return next(iter(training + left), None)

    def advance(self) -> bool:
        """Note ended processes and start the oldest waiting run if none trains; True while any is left."""
        with self._lock:
            self._reap()
            status = {run: run.state()["status"] for run in runs.list_runs(self.runs_dir)}
            waiting = [run for run in status if status[run] == SCHEDULED and run.run_id not in self._children]
            if waiting and not self._children and RUNNING not in status.values():
                self._spawn(waiting[-1])
            return bool(waiting or self._children)

    def resume_queue(self) -> None:
        """Take up what an earlier app left waiting."""
        if self.advance():
            self._watch()

    def _spawn(self, run: Run) -> None:
        environment = {
            **os.environ,
            "OMP_WAIT_POLICY": "PASSIVE",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "PYTHONUNBUFFERED": "1",
        }
        run.update(stage="starting")
        with run.log.open("ab") as log:
            self._children[run.run_id] = subprocess.Popen(
                [sys.executable, "-m", "peft_core.train", str(run.folder)],
                cwd=_ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _reap(self) -> None:
        for run_id, child in list(self._children.items()):
            if child.poll() is None:
                continue
            del self._children[run_id]
            run = Run(self.runs_dir / run_id)
            if run.folder.is_dir() and run.state()["status"] == SCHEDULED:
                run.update(status=FAILED, error=_early_death(run, child.returncode))

    def _watch(self) -> None:
        """See that a thread looks after the queue for as long as there is one."""
        with self._lock:
            if self._watcher is not None and self._watcher.is_alive():
                return
            self._watcher = threading.Thread(target=self._look_after, name="launcher", daemon=True)
            self._watcher.start()

    def _look_after(self) -> None:
        while self.advance():
            time.sleep(_POLL)


def _early_death(run: Run, code: int) -> str:
    if run.stop_requested():
        return "Stopped before it began."
    last = (run.log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no word"])[-1]
    return f"The training process could not start (exit {code}): {last}"
