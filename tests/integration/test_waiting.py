"""The queue: place and wait of a run, and how many runs an owner may queue."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.errors import RunError
from peft_core.files.process_identity import own_identity
from peft_core.runs import RUNNING, Run
from peft_core.runs.queue import Queue, QueuePlace, describe_duration, remaining_seconds
from peft_core.service import launcher as launching
from peft_core.service.launcher import Launcher
from peft_core.service.limits import Limits
from peft_core.service.workbench import Workbench

ANNA, BERND = "a" * 64, "b" * 64


@pytest.fixture
def launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launcher:
    """A launcher that starts no process."""
    monkeypatch.setattr(Launcher, "_start_queue", lambda self: None)
    return Launcher(tmp_path / "runs", Limits(max_waiting=3))


def training_run(launcher: Launcher, **state: Any) -> Run:
    """Create a run whose record says that this process trains it."""
    run = runs.create(launcher.runs_dir, TrainConfig(), owner=ANNA)
    process_state = {"pid": os.getpid(), "process": own_identity(), "started": time.time()}
    run.update(status=RUNNING, **{**process_state, **state})
    return run


def waiting_run(launcher: Launcher, seconds: float | None = None, owner: str | None = None) -> Run:
    run = runs.create(launcher.runs_dir, TrainConfig(), owner=owner, forecast_seconds=seconds)
    time.sleep(0.01)  # keeps the order of creation
    return run


def test_queue_place_adds_remaining_training_and_earlier_runs(launcher: Launcher) -> None:
    training_run(launcher, stage="training", eta=60.0)
    first, second = waiting_run(launcher, 100.0), waiting_run(launcher, 50.0)
    third = waiting_run(launcher, 20.0)
    places = [launcher.queue_place(run) for run in (first, second, third)]
    assert places == [QueuePlace(1, 60.0), QueuePlace(2, 160.0), QueuePlace(3, 210.0)]


def test_queue_place_without_forecast_has_no_seconds(launcher: Launcher) -> None:
    training_run(launcher, stage="training")
    first = waiting_run(launcher, 100.0)
    assert launcher.queue_place(first) == QueuePlace(1, None)


def test_queue_place_of_active_run_is_empty(launcher: Launcher) -> None:
    run = training_run(launcher, stage="training", eta=60.0)
    assert launcher.queue_place(run) == QueuePlace()
    starting = waiting_run(launcher, 100.0)
    starting.update(stage="starting")
    assert launcher.queue_place(starting) == QueuePlace()


def test_queue_place_behind_starting_run_adds_its_forecast(launcher: Launcher) -> None:
    waiting_run(launcher, 100.0).update(stage="starting")
    assert launcher.queue_place(waiting_run(launcher)) == QueuePlace(1, 100.0)


def test_queue_place_on_public_demo_caps_run_at_time_limit(launcher: Launcher) -> None:
    training_run(launcher, stage="training", eta=10_000.0, started=time.time() - 100)
    place = launcher.queue_place(waiting_run(launcher))
    assert place.seconds == pytest.approx(Limits().max_seconds - 100, abs=5)


def test_queue_place_lists_runs_at_most_once_a_second(
    launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = [waiting_run(launcher, 10.0) for _ in range(3)]
    list_runs, reads = runs.list_runs, []

    def counted(runs_dir: Path) -> list[Run]:
        reads.append(runs_dir)
        return list_runs(runs_dir)

    monkeypatch.setattr(runs, "list_runs", counted)
    for _ in range(20):
        assert [launcher.queue_place(run).place for run in waiting] == [1, 2, 3]
    assert len(reads) <= 3
    late = waiting_run(launcher)
    assert launcher.queue_place(late).place == 4


@pytest.mark.parametrize(
    ("state", "seconds"),
    [
        ({"stage": "training", "eta": 42.0, "forecast_seconds": 500.0}, 42.0),
        ({"stage": "evaluating", "eta": 3.0, "forecast_seconds": 500.0}, 0.0),
        ({"stage": "loading the base model", "forecast_seconds": 500.0}, 500.0),
        ({"stage": "loading the base model"}, None),
    ],
)
def test_remaining_seconds_prefers_eta_to_forecast(
    launcher: Launcher, state: dict[str, Any], seconds: float | None
) -> None:
    remaining = remaining_seconds(training_run(launcher, **state).state())
    assert remaining == (None if seconds is None else pytest.approx(seconds, abs=5))


def test_remaining_seconds_of_resumed_run_excludes_finished_steps(launcher: Launcher) -> None:
    run = waiting_run(launcher, 100.0)
    run.update(step=30, max_steps=40)
    assert remaining_seconds(run.state()) == 25.0


def test_submit_records_forecast_capped_by_time_limit(launcher: Launcher) -> None:
    run = launcher.submit(TrainConfig(), owner=ANNA, forecast_seconds=1e6)
    assert run.state().forecast_seconds == Limits().max_seconds
    local_launcher = Launcher(launcher.runs_dir)
    assert local_launcher.submit(TrainConfig(), forecast_seconds=1e6).state().forecast_seconds == 1e6
    assert local_launcher.submit(TrainConfig()).state().forecast_seconds is None


@pytest.mark.parametrize("owner", [ANNA, None])
def test_submit_with_waiting_run_of_same_owner_raises_run_error(
    launcher: Launcher, owner: str | None
) -> None:
    first = launcher.submit(TrainConfig(), owner=owner)
    with pytest.raises(
        RunError, match=f"^Your run {first.run_id} is already waiting; stop it, or wait until it"
    ):
        launcher.submit(TrainConfig(), owner=owner)
    launcher.submit(TrainConfig(), owner=BERND)
    first.update(stage="starting")
    assert launcher.submit(TrainConfig(), owner=owner) != first


def test_submit_without_limits_queues_many_runs(launcher: Launcher) -> None:
    local_launcher = Launcher(launcher.runs_dir)
    assert len({local_launcher.submit(TrainConfig()).run_id for _ in range(5)}) == 5


def test_submit_to_full_queue_raises_run_error_with_wait(launcher: Launcher) -> None:
    for owner in ("1", "2", "3"):
        waiting_run(launcher, 10.0, owner * 64)
    training = training_run(launcher, stage="training", eta=240.0)
    with pytest.raises(RunError, match="^3 runs are waiting already; try again in about 4 minutes.$"):
        launcher.submit(TrainConfig(), owner=BERND)
    training.update(eta=None)
    with pytest.raises(RunError, match="try again when some have ended"):
        launcher.submit(TrainConfig(), owner=BERND)


def test_describe_includes_queue_place_of_waiting_run(launcher: Launcher) -> None:
    workbench = Workbench.open(launcher.runs_dir)
    training = training_run(launcher, stage="training", eta=60.0)
    waiting = workbench.describe(waiting_run(launcher))
    assert (waiting["queue_place"], waiting["queue_seconds"]) == (1, 60.0)
    described = workbench.describe(training)
    assert (described["queue_place"], described["queue_seconds"]) == (None, None)


def test_training_process_returns_pid_of_training_run(
    launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert launcher.training_process() is None
    waiting_run(launcher)
    assert launcher.training_process() is None
    training_run(launcher, stage="training")
    monkeypatch.setattr(Run, "training_process", lambda run: 4321)
    assert launcher.training_process() == 4321


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "a few seconds"),
        (42, "about 40 seconds"),
        (58, "about a minute"),
        (240, "about 4 minutes"),
        (9000, "about 2.5 hours"),
    ],
)
def test_describe_duration_rounds_to_readable_units(seconds: float, words: str) -> None:
    assert describe_duration(seconds) == words


def test_resume_appends_run_to_queue_and_obeys_its_limits(
    launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "choose_checkpoint", lambda run: run.folder)
    first = launcher.submit(TrainConfig(), owner="a" * 64)
    first.update(status="KILLED")
    second = launcher.submit(TrainConfig(), owner="b" * 64)
    assert launcher.resume(first.run_id, evaluate_only=True) == first
    assert [run for run, _ in Queue.read(launcher.runs_dir).waiting] == [second, first]
    assert launcher.current() == second
    other = launcher.submit(TrainConfig(), owner="c" * 64)
    other.update(status="KILLED")
    launcher.submit(TrainConfig(), owner="c" * 64)
    with pytest.raises(RunError, match="is already waiting"):
        launcher.resume(other.run_id)
    stranger = runs.create(launcher.runs_dir, TrainConfig(), owner="d" * 64)
    stranger.update(status="KILLED")
    with pytest.raises(RunError, match="3 runs are waiting already"):
        launcher.resume(stranger.run_id)
