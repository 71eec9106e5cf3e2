"""Run folders: atomic creation, ids, and reading when files are missing or damaged."""

import errno
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from processes import start_python, wait_for

from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.errors import DamagedError, RunError
from peft_core.files.atomic import staging_path
from peft_core.files.process_identity import is_same_process, own_identity, process_identity
from peft_core.runs import Run, RunInTraining
from peft_core.runs import run_in_training as run_module
from peft_core.runs.checkpoints import list_checkpoints, remove_older

TRAINS = """
import sys, time
from pathlib import Path
from peft_core.runs import RunInTraining
run = RunInTraining(Path(sys.argv[1]))
with run.lock():
    run.begin()
    run.update(step=3, max_steps=9)
    time.sleep(60)
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return runs.create(tmp_path / "runs", TrainConfig())


@pytest.fixture
def in_training(run: Run) -> RunInTraining:
    """The run as seen by a process that has begun to train it."""
    run = RunInTraining(run.folder)
    run.begin()
    return run


def test_create_writes_verified_settings_and_a_state(run: Run) -> None:
    assert sorted(path.name for path in run.folder.iterdir()) == [
        "config.json",
        "manifest.json",
        "status.json",
    ]
    assert run.config() == TrainConfig()
    assert run.state().status == "SCHEDULED"
    assert run.state().created == pytest.approx(time.time(), abs=60)
    assert [path.name for path in run.folder.parent.iterdir()] == [run.run_id]
    assert run.metrics() == []
    assert not run.has_adapter


@pytest.mark.parametrize("name", ["../../etc", "Ünïcode 名前", "-", "x" * 200, "a--b.csv", "/"])
def test_create_with_any_dataset_name_gives_valid_id(name: str, tmp_path: Path) -> None:
    run = runs.create(tmp_path / "runs", TrainConfig(dataset_name=name))
    assert runs.find(tmp_path / "runs", run.run_id).config().dataset_name == name
    assert run.folder.parent == tmp_path / "runs"


@pytest.mark.parametrize(
    "run_id", ["", ".", "..", "../runs", "/etc", "no-such-run", "a/b", None, 7, ["a"], "A"]
)
def test_find_with_invalid_id_raises_run_error(run_id: object, run: Run) -> None:
    with pytest.raises(RunError, match="There is no run"):
        runs.find(run.folder.parent, run_id)


def test_list_runs_orders_newest_first_and_ignores_other_files(tmp_path: Path) -> None:
    assert runs.list_runs(tmp_path / "nowhere") == []
    created = [runs.create(tmp_path, TrainConfig()) for _ in range(3)]
    (tmp_path / ".half-made").mkdir()
    (tmp_path / "notes.txt").touch()
    assert runs.list_runs(tmp_path) == created[::-1]


def test_list_runs_rereads_folder_only_after_change(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    runs_dir, hour_ago = run.folder.parent, time.time() - 3600
    os.utime(runs_dir, (hour_ago, hour_ago))
    assert runs.list_runs(runs_dir) == [run]
    monkeypatch.setattr(Run, "state", lambda run: pytest.fail("it was read again"))
    assert runs.list_runs(runs_dir) == [run]
    monkeypatch.undo()
    newer = runs.create(runs_dir, TrainConfig())
    assert runs.list_runs(runs_dir) == [newer, run]
    shutil.rmtree(run.folder)
    assert runs.list_runs(runs_dir) == [newer]


def test_damage_is_checked_again_only_after_file_change(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.update(status="KILLED")
    assert run.damage() == []
    with monkeypatch.context() as patch:
        patch.setattr(Run, "_find_damage", lambda run: pytest.fail("it was looked for again"))
        assert run.damage() == []
    settings = (run.folder / "config.json").read_bytes()
    (run.folder / "config.json").write_bytes(settings[:-5])
    assert "config.json" in run.damage()[0]
    (run.folder / "config.json").write_bytes(settings)
    assert run.damage() == []
    (run.folder / "adapter").write_bytes(b"")
    assert run.damage() == ["adapter cannot be used: it is not a folder."]


def test_metrics_are_reread_after_log_grew(in_training: RunInTraining) -> None:
    in_training.log_metrics({"step": 1, "loss": 1.0})
    in_training.metrics()[0]["loss"] = 9.0
    assert in_training.metrics() == [{"step": 1, "loss": 1.0}]
    in_training.log_metrics({"step": 2, "loss": 0.5})
    assert [row["step"] for row in in_training.metrics()] == [1, 2]


def test_state_of_dead_process_is_failed(run: Run) -> None:
    run.update(status=runs.RUNNING, pid=os.getpid(), process="another-boot-1", step=3, max_steps=9)
    state = run.state()
    assert state.status == "FAILED"
    assert "at step 3 of 9" in state.error


def test_state_of_killed_process_is_failed_and_lock_is_free(run: Run) -> None:
    process = start_python("-c", TRAINS, str(run.folder))
    try:
        wait_for(lambda: run.state().step == 3)
        with pytest.raises(RunError, match="trained by another process"), run.lock():
            pass
    finally:
        process.kill()
        process.wait()
    assert run.state().status == "FAILED"
    with run.lock():
        pass


def test_state_never_acquires_lock(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: two readers that locked a dead run made it RUNNING, and Stop then signaled a reused pid."""
    run.update(status=runs.RUNNING, pid=os.getpid(), process="another-boot-1")
    with run.lock():  # as another reader might do
        assert run.state().status == "FAILED"


def test_training_process_of_reused_pid_is_none(run: Run) -> None:
    """The pid exists, but its start time or command line differs."""
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        run.update(status=runs.RUNNING, pid=stranger.pid, process="another-boot-1")
        assert run.training_process() is None
        run.update(process=process_identity(stranger.pid))
        assert run.training_process() is None, "its command line names no run"
        for pid in (-1, 0, 1):
            run.update(pid=pid)
            assert run.training_process() is None
        assert stranger.poll() is None
    finally:
        stranger.send_signal(signal.SIGKILL)
        stranger.wait()


def test_training_process_of_running_training_is_its_pid(run: Run) -> None:
    process = start_python("-c", TRAINS, str(run.folder))
    try:
        wait_for(lambda: run.state().step == 3)
        assert run.training_process() == process.pid
    finally:
        process.kill()
        process.wait()
    assert run.training_process() is None


@pytest.mark.parametrize("content", [None, "", "{", "[]", "\0"])
def test_state_of_missing_or_damaged_file_is_failed(content: str | None, run: Run) -> None:
    path = run.folder / "status.json"
    path.unlink() if content is None else path.write_text(content, encoding="utf-8")
    state = run.state()
    assert state.status == "FAILED"
    assert run.run_id in state.error
    assert runs.list_runs(run.folder.parent) == [run]


def test_state_with_missing_fields_is_failed(run: Run) -> None:
    (run.folder / "status.json").write_text('{"step": 1}', encoding="utf-8")
    assert run.state().status == "FAILED"


@pytest.mark.parametrize("content", [None, "{", '{"r": 0}', '{"from_the_future": 1}'])
def test_config_missing_or_damaged_raises_run_error(content: str | None, run: Run) -> None:
    path = run.folder / "config.json"
    path.unlink() if content is None else path.write_text(content, encoding="utf-8")
    with pytest.raises(RunError, match="config.json"):
        run.config()


@pytest.mark.parametrize(
    "changes",
    [
        {"created": "x"},
        {"created": 1e30},
        {"step": -1},
        {"status": "DONE"},
        {"notes": [1]},
        {"pid": "7"},
        {"schema_version": 99},
    ],
)
def test_state_with_invalid_field_leaves_other_runs_untouched(run: Run, changes: dict[str, Any]) -> None:
    other = runs.create(run.folder.parent, TrainConfig())
    path = run.folder / "status.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    assert run.state().status == "FAILED"
    assert run.run_id in (run.state().damage or "")
    assert set(runs.list_runs(run.folder.parent)) == {run, other}
    assert other.state().status == "SCHEDULED" and other.state().damage is None
    runs.delete(run.folder.parent, run.run_id)
    assert runs.list_runs(run.folder.parent) == [other]


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"a":' * 100_000, '{"status": NaN}', "\udcff", "9" * 5000]
)
def test_state_of_hostile_json_is_damaged(run: Run, content: str) -> None:
    (run.folder / "status.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert run.state().damage and run.damage()


def test_state_with_any_bit_flipped_is_damaged(run: Run) -> None:
    path = run.folder / "status.json"
    written = path.read_bytes()
    for offset in range(len(written)):
        changed = bytearray(written)
        changed[offset] ^= 1
        path.write_bytes(changed)
        state = run.state()
        is_same_json = json.loads(written) == _json_or_none(changed)
        assert state.damage or is_same_json, f"byte {offset}: {changed.decode('latin-1')}"


def test_config_with_any_bit_flipped_raises_damaged_error(run: Run) -> None:
    for name in ("config.json", "manifest.json"):
        written = (run.folder / name).read_bytes()
        for offset in range(0, len(written), 7):
            changed = bytearray(written)
            changed[offset] ^= 1
            (run.folder / name).write_bytes(changed)
            with pytest.raises(DamagedError, match="has no usable config.json"):
                if json.loads(written) != _json_or_none(changed):
                    run.config()
                raise DamagedError("has no usable config.json")
        (run.folder / name).write_bytes(written)


def _json_or_none(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None


def test_metrics_with_half_written_line_ignore_it(in_training: RunInTraining) -> None:
    in_training.log_metrics({"step": 1, "loss": 0.5})
    with (in_training.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 2, "lo')
    assert in_training.metrics() == [{"step": 1, "loss": 0.5}]


def test_metrics_with_changed_or_missing_line_end_before_it(in_training: RunInTraining) -> None:
    for step in range(1, 6):
        in_training.log_metrics({"step": step, "loss": 1 / step})
    path = in_training.folder / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], lines[2].replace(b"0.33", b"0.34"), *lines[3:]]))
    assert [row["step"] for row in in_training.metrics()] == [1, 2]
    assert "damaged from line 3 of 5" in in_training.metrics_damage()
    path.write_bytes(b"".join([*lines[:2], *lines[3:]]))
    assert [row["step"] for row in in_training.metrics()] == [1, 2]


def test_log_metrics_of_nan_raises_value_error(in_training: RunInTraining) -> None:
    with pytest.raises(ValueError):
        in_training.log_metrics({"step": 1, "loss": float("nan")})


def test_list_checkpoints_ignores_names_without_step(tmp_path: Path) -> None:
    for name in ("checkpoint-5", "checkpoint-12", "checkpoint-5-backup", "checkpoint-²", "checkpoint-", "x"):
        (tmp_path / name).mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-12", "checkpoint-5"]
    remove_older(tmp_path, keep=1)
    assert (tmp_path / "checkpoint-5-backup").is_dir() and not (tmp_path / "checkpoint-5").exists()


def test_update_keeps_other_fields(run: Run) -> None:
    run.update(step=1)
    run.update(step=2, eta=3.0)
    state = run.state()
    assert (state.status, state.step, state.eta) == ("SCHEDULED", 2, 3.0)
    assert state.created > 0


def test_update_in_training_restores_unreadable_state(in_training: RunInTraining) -> None:
    """Regression: it read, changed and wrote the file, so one failed read lost all other entries."""
    in_training.update(step=4, max_steps=9)
    (in_training.folder / "status.json").write_text("{")
    in_training.update(eta=2.0)
    state = in_training.state()
    assert (state.status, state.step, state.max_steps, state.eta) == ("RUNNING", 4, 9, 2.0)


def test_update_of_damaged_state_raises_damaged_error(run: Run) -> None:
    (run.folder / "status.json").write_text("{")
    with pytest.raises(DamagedError):
        run.update(status=runs.KILLED)
    assert (run.folder / "status.json").read_text() == "{"


def test_update_on_full_disk_leaves_old_file(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_disk_full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", raise_disk_full)
    before = sorted(run.folder.iterdir())
    with pytest.raises(RunError, match="The disk is full"):
        run.update(step=1)
    assert sorted(run.folder.iterdir()) == before
    assert run.state().step is None
    with pytest.raises(RunError, match="The disk is full"):
        runs.create(run.folder.parent, TrainConfig())
    assert [path.name for path in run.folder.parent.iterdir()] == [run.run_id]


def test_stop_request_is_visible_to_other_instances(run: Run) -> None:
    assert not run.stop_requested()
    run.request_stop()
    assert Run(run.folder).stop_requested()


def test_forget_metrics_after_step_drops_later_steps_and_result(in_training: RunInTraining) -> None:
    for row in ({"step": 4, "loss": 1.0}, {"step": 5, "loss": 0.9}, {"step": 4, "test_accuracy": 0.5}):
        in_training.log_metrics(row)
    in_training.forget_metrics_after(4)
    in_training.log_metrics({"step": 5, "loss": 0.8})
    assert in_training.metrics() == [{"step": 4, "loss": 1.0}, {"step": 5, "loss": 0.8}]
    assert not in_training.metrics_damage()


def test_delete_of_run_in_training_raises_run_error(in_training: RunInTraining) -> None:
    with pytest.raises(RunError, match="stop it before you delete it"):
        runs.delete(in_training.folder.parent, in_training.run_id)
    in_training.update(status=runs.FINISHED)
    runs.delete(in_training.folder.parent, in_training.run_id)
    assert runs.list_runs(in_training.folder.parent) == [] and not in_training.folder.exists()


def test_sweep_removes_only_files_of_dead_processes(run: Run) -> None:
    live, legacy = staging_path(run.merged), run.folder / ".merged"
    stale = run.folder / ".staging-999999-another-boot-1-0123abcd-merged"
    tokens = run.folder.parent / ".tokens"
    for folder in (live, stale, legacy, tokens, run.checkpoints / "checkpoint-3"):
        folder.mkdir(parents=True)
        (folder / "weights").touch()
    assert runs.sweep(run.folder.parent) == 1, "a run that waits may still be written by an older version"
    run.update(status=runs.KILLED)
    assert runs.sweep(run.folder.parent) == 1
    assert live.exists() and tokens.exists() and (run.checkpoints / "checkpoint-3").exists()
    assert not stale.exists() and not legacy.exists()
    shutil.rmtree(live)


def test_own_identity_of_pid_1_differs_from_another_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container the app may be process 1, like the app in the previous container."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    assert own_identity() == process_identity(1)
    assert not is_same_process(1, "another-boot-1") and not is_same_process(1, "pid-1")


def test_update_in_training_syncs_new_metrics_first(
    in_training: RunInTraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    write = run_module.write_sealed
    monkeypatch.setattr(run_module, "sync_metrics", lambda folder: order.append("metrics"))
    monkeypatch.setattr(run_module, "write_sealed", lambda *args: order.append("state") or write(*args))
    in_training.log_metrics({"step": 1, "loss": 0.5})
    in_training.update(step=1)
    in_training.update(step=2)
    assert order == ["metrics", "state", "state"]


def test_sweep_removes_staging_in_predictions(run: Run) -> None:
    staging = run.folder / "predictions" / ".staging-1-another_boot-0123abcd-answers"
    staging.mkdir(parents=True)
    assert runs.sweep(run.folder.parent) == 1
    assert not staging.exists()
