"""The queue of training processes: one at a time, stop, resume, and the limits of a public demo."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from processes import start_python, wait_for
from run_files import change_json

from batteries.children import run_child
from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.errors import RunError
from peft_core.files.process_identity import process_identity
from peft_core.runs import ENDED, RUNNING, Run
from peft_core.runs.signals import kill_tree, send_signal
from peft_core.service import launcher as launching
from peft_core.service.launcher import Launcher
from peft_core.service.limits import Limits
from peft_core.training.entry import main

# Stands in for a training process and takes one second instead of ten.
TRAINS_AT_ONCE = """
import sys
from pathlib import Path
from peft_core.runs import FINISHED, RunInTraining
run = RunInTraining(Path(sys.argv[1]))
with run.lock():
    run.begin()
    run.update(status=FINISHED)
"""


@pytest.fixture
def trains_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the launcher start processes that end at once and train nothing."""
    command = [sys.executable, "-c", TRAINS_AT_ONCE]
    monkeypatch.setattr(launching, "train_command", lambda run: [*command, str(run.folder)])


@pytest.fixture
def launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Launcher]:
    """A launcher over an empty folder; its runs are stopped after the test."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    launcher = Launcher(tmp_path / "runs")
    yield launcher
    for run in runs.list_runs(launcher.runs_dir):
        while not has_ended(run):
            try:
                launcher.stop(run.run_id)
            except RunError:
                break
            wait_for(lambda run=run: has_ended(run))
    wait_for(lambda: not launcher.advance())


def has_ended(run: Run) -> bool:
    return run.state().status in ENDED


def status(run: Run) -> str:
    return run.state().status


def short_config(settings: dict[str, Any]) -> TrainConfig:
    return TrainConfig.from_dict({**settings, "num_train_epochs": 1})


def long_config(settings: dict[str, Any]) -> TrainConfig:
    return TrainConfig.from_dict({**settings, "num_train_epochs": 100, "per_device_train_batch_size": 1})


def is_training(run: Run) -> bool:
    return (run.state().step or 0) > 5


def test_queue_of_three_runs_trains_one_at_a_time(launcher: Launcher, settings: dict[str, Any]) -> None:
    first = launcher.submit(long_config(settings))
    second, third = launcher.submit(short_config(settings)), launcher.submit(short_config(settings))
    wait_for(lambda: is_training(first))
    assert [status(run) for run in (first, second, third)] == ["RUNNING", "SCHEDULED", "SCHEDULED"]
    assert launcher.current() == first

    restarted = Launcher(launcher.runs_dir)  # as after a restart of the app
    restarted.resume_queue()
    assert restarted.current() == first
    assert status(second) == "SCHEDULED"

    launcher.stop(third.run_id)
    assert status(third) == "KILLED"
    assert not third.log.exists()
    launcher.stop(first.run_id)
    wait_for(lambda: has_ended(first))
    assert status(first) == "KILLED"
    assert first.has_adapter
    wait_for(lambda: has_ended(second))
    assert status(second) == "FINISHED"
    assert second.result()["steps"] == 10
    with pytest.raises(RunError, match="has ended already"):
        launcher.stop(second.run_id)


def test_killed_process_fails_its_run_and_the_next_starts(
    launcher: Launcher, settings: dict[str, Any]
) -> None:
    first = launcher.submit(long_config(settings))
    second = launcher.submit(short_config(settings))
    wait_for(lambda: is_training(first))
    os.kill(first.state().pid, signal.SIGKILL)
    wait_for(lambda: has_ended(first))
    assert status(first) == "FAILED"
    assert "ended unexpectedly at step" in first.state().error
    assert not first.has_adapter
    wait_for(lambda: has_ended(second))
    assert status(second) == "FINISHED"


@pytest.mark.usefixtures("trains_at_once")
def test_resume_queue_starts_a_waiting_run(launcher: Launcher, settings: dict[str, Any]) -> None:
    run = runs.create(launcher.runs_dir, short_config(settings))
    launcher.resume_queue()
    wait_for(lambda: has_ended(run))
    assert status(run) == "FINISHED"


def test_stop_of_a_starting_run_kills_it(launcher: Launcher, settings: dict[str, Any]) -> None:
    run = launcher.submit(long_config(settings))
    start = time.monotonic()
    launcher.stop(run.run_id)
    assert time.monotonic() - start < 2.5, "its imports alone take longer"
    assert status(run) == "KILLED"
    assert run.state().notes == ["Stopped while starting; nothing was saved."]
    assert not run.has_adapter


def test_train_command_refuses_a_run_that_was_started_before(own_run: Run) -> None:
    """Two apps over one runs folder may both start its next run; it must not be trained twice."""
    state, arguments = (own_run.folder / "status.json").read_bytes(), launching.train_command(own_run)[3:]
    child = run_child(lambda report: report("exit", main(arguments)))
    assert child.first("exit") == "2"
    assert (own_run.folder / "status.json").read_bytes() == state


def test_process_that_cannot_start_records_its_error(launcher: Launcher, settings: dict[str, Any]) -> None:
    run = runs.create(launcher.runs_dir, short_config(settings))
    change_json(run, "config.json", r=0)
    launcher.resume_queue()
    wait_for(lambda: has_ended(run))
    state = run.state()
    assert state.status == "FAILED"
    assert "r is 0" in state.error


def test_run_whose_log_is_a_pipe_fails(launcher: Launcher, settings: dict[str, Any]) -> None:
    run = runs.create(launcher.runs_dir, short_config(settings))
    os.mkfifo(run.log)
    launcher.resume_queue()
    wait_for(lambda: has_ended(run), seconds=10)
    assert run.state().status == "FAILED"
    assert "train.log is not a regular file" in run.state().error


def test_submit_to_a_full_public_queue_is_refused(launcher: Launcher, settings: dict[str, Any]) -> None:
    config = short_config(settings)
    public = Launcher(launcher.runs_dir, Limits(max_waiting=2))
    for _ in range(2):
        runs.create(launcher.runs_dir, config)
    with pytest.raises(RunError, match="2 runs are waiting"):
        public.submit(config, owner="a" * 64)
    waiting = runs.list_runs(launcher.runs_dir)
    assert len(waiting) == 2
    for run in waiting:
        launcher.stop(run.run_id)


@pytest.mark.parametrize("run_id", ["nothing", "../runs", "", None])
def test_stop_of_an_unknown_run_raises_run_error(run_id: str, launcher: Launcher) -> None:
    with pytest.raises(RunError, match="There is no run"):
        launcher.stop(run_id)


def test_current_and_advance_of_an_empty_queue_start_nothing(launcher: Launcher) -> None:
    assert launcher.current() is None
    assert not launcher.advance()
    assert not launcher.runs_dir.exists()


IGNORES_STOP = """
import signal, sys, time
from pathlib import Path
from peft_core.runs import RunInTraining
signal.signal(signal.SIGTERM, signal.SIG_IGN)
run = RunInTraining(Path(sys.argv[1]))
with run.lock():
    run.begin()
    run.update(stage="training", step=3, max_steps=9)
    time.sleep(60)
"""


@pytest.fixture
def unresponsive_run(tmp_path: Path) -> Iterator[Run]:
    """A run of another app whose process ignores SIGTERM."""
    run = runs.create(tmp_path / "runs", TrainConfig())
    process = start_python("-c", IGNORES_STOP, str(run.folder))
    try:
        wait_for(lambda: run.state().step == 3)
        yield run
    finally:
        process.kill()
        process.wait()


def test_second_stop_kills_after_the_grace_period(
    launcher: Launcher, unresponsive_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = launching.seconds_since_stop
    monkeypatch.setattr(launching, "seconds_since_stop", lambda run: now(run) + launching.GRACE - 0.5)
    launcher.stop(unresponsive_run.run_id)
    assert not launcher.advance() and status(unresponsive_run) == "RUNNING", "the first Stop only asks"
    launcher.stop(unresponsive_run.run_id)
    assert status(unresponsive_run) == "RUNNING", "the grace is not over"
    wait_for(lambda: status(unresponsive_run) == "KILLED")
    error = unresponsive_run.state().error or ""
    assert "did not stop within 10 s" in error and "nothing was saved" in error


def test_run_past_its_time_limit_is_stopped_with_an_adapter(
    launcher: Launcher, settings: dict[str, Any]
) -> None:
    public = Launcher(launcher.runs_dir, Limits(max_seconds=2.0))
    run = public.submit(long_config(settings))
    wait_for(lambda: has_ended(run), seconds=180)
    state = run.state()
    assert (state.status, run.has_adapter) == ("KILLED", True)
    (note,) = [note for note in state.notes if "Stopped at step" in note]
    assert note.startswith("This public demo stops a run after 2 seconds. Stopped at step")
    resumed = public.resume(run.run_id)
    assert not resumed.stop_requested() and resumed.stop_reason() == ""
    wait_for(lambda: has_ended(run), seconds=180)
    assert run.state().status == "KILLED"


def test_overdue_run_of_an_earlier_app_is_killed(
    unresponsive_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "_OVERDUE_GRACE", 0.5)
    monkeypatch.setattr(launching, "GRACE", 0.5)
    public = Launcher(unresponsive_run.folder.parent, Limits(max_seconds=0.1))
    time.sleep(0.1)
    public.resume_queue()
    wait_for(lambda: status(unresponsive_run) == "KILLED")
    assert not public.advance()


def test_run_without_limits_is_not_stopped(unresponsive_run: Run) -> None:
    unlimited = Launcher(unresponsive_run.folder.parent)
    assert not unlimited.advance()
    assert not unresponsive_run.stop_requested()


def test_stop_does_not_signal_another_process_with_the_same_pid(launcher: Launcher) -> None:
    """The process of a stale RUNNING state may have ended and its pid may be in use again."""
    run = runs.create(launcher.runs_dir, TrainConfig())
    stranger = start_python("-c", "import time; time.sleep(60)")
    try:
        run.update(status=RUNNING, pid=stranger.pid, process=process_identity(stranger.pid), stage="starting")
        assert status(run) == "RUNNING", "its process identity is right, its command line is not"
        launcher.stop(run.run_id)
        assert not send_signal(run, signal.SIGTERM)
        assert stranger.poll() is None
        run.update(process="another-boot-1")
        with pytest.raises(RunError, match="has ended already"):
            launcher.stop(run.run_id)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()
        run.update(status="FAILED")


@pytest.mark.usefixtures("trains_at_once")
def test_queue_continues_after_a_run_that_cannot_be_started(
    launcher: Launcher, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    spawn, refused = Launcher._spawn, []

    def spawn_second(self: Launcher, run: Run) -> None:
        if not refused:
            refused.append(run.run_id)
            raise OSError(28, "No space left on device", str(run.log))
        spawn(self, run)

    monkeypatch.setattr(Launcher, "_spawn", spawn_second)
    first = runs.create(launcher.runs_dir, short_config(settings))
    second = runs.create(launcher.runs_dir, short_config(settings))
    launcher.resume_queue()
    wait_for(lambda: has_ended(second))
    assert refused == [first.run_id]
    assert status(first) == "FAILED"
    assert first.state().error == "The training process could not be started: No space left on device."
    assert status(second) == "FINISHED"


@pytest.mark.usefixtures("trains_at_once")
def test_queue_continues_after_an_unexpected_error(
    launcher: Launcher, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception used to end the queue thread, and waiting runs never started."""
    monkeypatch.setattr(launching, "_RETRY_SECONDS", 0.1)
    first, second = launcher.submit(short_config(settings)), launcher.submit(short_config(settings))
    list_runs, failures = runs.list_runs, []

    def fail_three_times(runs_dir: Path) -> list[Run]:
        if len(failures) < 3:
            failures.append(runs_dir)
            raise PermissionError(13, "Permission denied")
        return list_runs(runs_dir)

    monkeypatch.setattr(runs, "list_runs", fail_three_times)
    wait_for(lambda: has_ended(first) and has_ended(second), 120)
    assert len(failures) == 3
    assert (status(first), status(second)) == ("FINISHED", "FINISHED")


@pytest.mark.usefixtures("trains_at_once")
def test_queue_skips_a_run_with_a_damaged_state(launcher: Launcher, settings: dict[str, Any]) -> None:
    lost = runs.create(launcher.runs_dir, short_config(settings))
    (lost.folder / "status.json").write_text('{"status": "SCHEDULED", "created": "x"}')
    run = launcher.submit(short_config(settings))
    wait_for(lambda: has_ended(run))
    assert status(run) == "FINISHED" and lost.state().damage


def test_resume_waits_for_a_stopped_process_that_is_about_to_exit(
    launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exit of the stopped process must not count as a failure of the resumed run."""
    run = runs.create(launcher.runs_dir, TrainConfig())
    run.update(status="KILLED")
    monkeypatch.setattr(launching, "choose_checkpoint", lambda run: run.checkpoints)
    monkeypatch.setattr(Launcher, "_spawn", lambda self, run: None)
    launcher._children[run.run_id] = start_python("-c", "import time; time.sleep(1)")
    launcher.resume(run.run_id)
    assert launcher.advance()
    assert status(run) == "SCHEDULED" and not run.state().error
    run.update(status="FAILED")


def test_kill_tree_ends_grandchild_processes() -> None:
    """On several GPUs the child is a launcher, and the processes that train are its own children."""
    script = (
        "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    grandchild = int(child.stdout.readline())
    assert psutil.pid_exists(grandchild)
    kill_tree(child)
    child.stdout.close()
    wait_for(lambda: process_identity(grandchild) is None)


def test_queue_continues_after_a_killed_run_with_a_damaged_state(
    launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "seconds_since_stop", lambda run: launching.GRACE + 1)
    lost = runs.create(launcher.runs_dir, TrainConfig())
    (lost.folder / "status.json").write_text("{")
    launcher._to_kill.add(lost.run_id)
    assert not launcher.advance()
