"""The queue of training processes: one at a time, stopped, taken up again, limited for strangers."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import wait_for
from run_files import change_json

from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.errors import RunError
from peft_core.launcher import Launcher
from peft_core.limits import Limits
from peft_core.runs import ENDED, Run


@pytest.fixture
def launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Launcher]:
    """Over an empty folder; whatever it started is ended."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    launcher = Launcher(tmp_path / "runs")
    yield launcher
    for run in runs.list_runs(launcher.runs_dir):
        while not ended(run):
            try:
                launcher.stop(run.run_id)
            except RunError:
                break
            wait_for(lambda run=run: ended(run))
    wait_for(lambda: not launcher.advance())


def ended(run: Run) -> bool:
    return run.state().status in ENDED


def status(run: Run) -> str:
    return run.state().status


def quick(settings: dict[str, Any]) -> TrainConfig:
    return TrainConfig.from_dict({**settings, "num_train_epochs": 1})


def slow(settings: dict[str, Any]) -> TrainConfig:
    return TrainConfig.from_dict({**settings, "num_train_epochs": 100, "per_device_train_batch_size": 1})


def trains(run: Run) -> bool:
    return (run.state().step or 0) > 5


def test_runs_wait_for_each_other_and_each_ends(launcher: Launcher, settings: dict[str, Any]) -> None:
    first = launcher.submit(slow(settings))
    second, third = launcher.submit(quick(settings)), launcher.submit(quick(settings))
    wait_for(lambda: trains(first))
    assert [status(run) for run in (first, second, third)] == ["RUNNING", "SCHEDULED", "SCHEDULED"]
    assert launcher.current() == first

    again = Launcher(launcher.runs_dir)  # a page that is opened anew, or an app that was started again
    again.resume_queue()
    assert again.current() == first
    assert status(second) == "SCHEDULED"

    launcher.stop(third.run_id)
    assert status(third) == "KILLED"
    assert not third.log.exists()
    launcher.stop(first.run_id)
    wait_for(lambda: ended(first))
    assert status(first) == "KILLED"
    assert first.has_adapter
    wait_for(lambda: ended(second))
    assert status(second) == "FINISHED"
    assert second.result()["steps"] == 10
    with pytest.raises(RunError, match="has ended already"):
        launcher.stop(second.run_id)


def test_a_killed_run_reads_failed_and_the_next_one_starts(
    launcher: Launcher, settings: dict[str, Any]
) -> None:
    first = launcher.submit(slow(settings))
    second = launcher.submit(quick(settings))
    wait_for(lambda: trains(first))
    os.kill(first.state().pid, signal.SIGKILL)
    wait_for(lambda: ended(first))
    assert status(first) == "FAILED"
    assert "ended without a word at step" in first.state().error
    assert not first.has_adapter
    wait_for(lambda: ended(second))
    assert status(second) == "FINISHED"


def test_a_run_that_was_left_waiting_is_taken_up(launcher: Launcher, settings: dict[str, Any]) -> None:
    run = runs.create(launcher.runs_dir, quick(settings))
    launcher.resume_queue()
    wait_for(lambda: ended(run))
    assert status(run) == "FINISHED"


def test_a_run_that_stops_while_it_starts_is_killed(launcher: Launcher, settings: dict[str, Any]) -> None:
    run = launcher.submit(slow(settings))
    launcher.stop(run.run_id)
    wait_for(lambda: ended(run))
    assert status(run) == "KILLED"
    assert not run.has_adapter


def test_a_process_that_cannot_start_says_why(launcher: Launcher, settings: dict[str, Any]) -> None:
    run = runs.create(launcher.runs_dir, quick(settings))
    change_json(run, "config.json", r=0)
    launcher.resume_queue()
    wait_for(lambda: ended(run))
    state = run.state()
    assert state.status == "FAILED"
    assert "r is 0" in state.error


def test_a_public_queue_is_limited(launcher: Launcher, settings: dict[str, Any]) -> None:
    config = quick(settings)
    public = Launcher(launcher.runs_dir, Limits(max_waiting=2))
    for _ in range(2):
        runs.create(launcher.runs_dir, config)
    with pytest.raises(RunError, match="2 runs are waiting"):
        public.submit(config)
    waiting = runs.list_runs(launcher.runs_dir)
    assert len(waiting) == 2
    for run in waiting:
        launcher.stop(run.run_id)


@pytest.mark.parametrize("run_id", ["nothing", "../runs", "", None])
def test_an_unknown_run_gets_one_sentence(run_id: str, launcher: Launcher) -> None:
    with pytest.raises(RunError, match="There is no run"):
        launcher.stop(run_id)


def test_looking_starts_nothing(launcher: Launcher) -> None:
    assert launcher.current() is None
    assert not launcher.advance()
    assert not launcher.runs_dir.exists()
