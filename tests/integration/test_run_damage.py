"""Regressions from the batteries: messages of disk errors, and damage that was not detected."""

import errno
import json
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.errors import DamagedError, RunError
from peft_core.export.archives import zip_of
from peft_core.files.atomic import (
    DISK_ERROR,
    DISK_FAILED,
    DISK_FULL,
    describe_disk_error,
    fsync,
    translate_disk_errors,
)
from peft_core.files.manifests import verify_folder, write_manifest
from peft_core.runs import Run, RunInTraining, trash
from peft_core.runs import run as run_module
from peft_core.runs.checkpoints import choose_checkpoint
from peft_core.service.workbench import Workbench
from peft_core.training.entry import describe_failure, train
from peft_core.training.recorded_inputs import INPUTS_FILE


@pytest.fixture
def new_run(tmp_path: Path) -> Run:
    return runs.create(tmp_path / "runs", TrainConfig())


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), DISK_FULL),
        (OSError(errno.EIO, "Input/output error"), DISK_ERROR.format(error="Input/output error")),
        (RuntimeError("I/O error: No space left on device (os error 28)"), DISK_FULL),
        (
            RuntimeError("open file failed with strerror: Input/output error"),
            DISK_ERROR.format(error="Input/output error"),
        ),
        (RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 64 vs 0"), DISK_FAILED),
        (ValueError("unexpected label"), None),
    ],
)
def test_describe_disk_error_without_errno_recognizes_message(error: Exception, message: str | None) -> None:
    """Regression: torch reports "unexpected pos" for any failed write, which was described as a full disk."""
    assert describe_disk_error(error) == message


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/data/runs/x/train.log"), "Permission denied"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/data/a.csv"), "No such file"),
        (OSError("cannot read /data/a.csv"), "cannot read a.csv"),
        (ValueError("no header in /data/runs/x/a.bin"), "ValueError: no header in a.bin .a bug; "),
    ],
)
def test_describe_failure_names_no_folder(error: Exception, message: str) -> None:
    described = describe_failure(error)
    assert re.search(message, described) and "/" not in described
    assert ("bug" in described) == (not isinstance(error, OSError))


def test_translate_disk_errors_nested_keeps_first_message() -> None:
    with pytest.raises(RunError, match="reports an error"), translate_disk_errors(), translate_disk_errors():
        raise OSError(errno.EIO, "Input/output error")


def _raise_disk_full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("owner", "name", "act"),
    [
        (Path, "touch", lambda run: run.request_stop()),
        (run_module.FileLock, "acquire", lambda run: run.lock().__enter__()),
        (Path, "open", lambda run: RunInTraining(run.folder).log_metrics({"step": 1, "loss": 1.0})),
    ],
)
def test_run_writes_on_full_disk_raise_run_error(
    new_run: Run, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, act: Callable[[Run], Any]
) -> None:
    monkeypatch.setattr(owner, name, _raise_disk_full)
    with pytest.raises(RunError, match="The disk is full"):
        act(new_run)


def test_delete_with_failing_fsync_leaves_no_staging_folder(
    new_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_run.update(status=runs.FINISHED)
    monkeypatch.setattr(trash, "fsync", _raise_disk_full)
    with pytest.raises(RunError, match="The disk is full"):
        runs.delete(new_run.folder.parent, new_run.run_id)
    assert os.listdir(new_run.folder.parent) == [trash.TRASH]
    assert os.listdir(new_run.folder.parent / trash.TRASH) == []


def test_metrics_without_last_rows_and_result_are_damaged(new_run: Run) -> None:
    training = RunInTraining(new_run.folder)
    training.begin()
    for step in (1, 2):
        training.log_metrics({"step": step, "loss": 1.0})
    training.update(step=2)
    training.log_metrics({"step": 3, "loss": 1.0})  # not in the state yet
    assert new_run.metrics_damage() == ""
    path = new_run.folder / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]))
    assert new_run.metrics_damage() == ""
    for remaining in (lines[0], b""):
        path.write_bytes(remaining)
        assert "is missing its last rows" in new_run.metrics_damage()
    path.unlink()
    assert "is missing its last rows" in new_run.metrics_damage()


def test_metrics_dropped_by_continue_are_not_damaged(new_run: Run) -> None:
    training = RunInTraining(new_run.folder)
    training.begin()
    for step in (1, 2, 3):
        training.log_metrics({"step": step, "loss": 1.0})
        training.update(step=step)
    training.forget_metrics_after(2)
    assert new_run.metrics_damage() == ""
    training.update(step=2)
    assert new_run.metrics_damage() == "" and len(new_run.metrics()) == 2


def test_metrics_of_continued_run_are_not_damaged(settings: dict[str, Any], tmp_path: Path) -> None:
    """Its result refers to a row of the previous training, which Continue drops."""
    run = runs.create(tmp_path / "runs", TrainConfig.from_dict({**settings, "num_train_epochs": 1}))
    train(run.folder)
    assert run.result() and run.metrics_damage() == ""
    training = RunInTraining(run.folder)
    training.begin()
    training.forget_metrics_after(4)
    training.log_metrics({"step": 5, "loss": 1.0})
    training.update(step=5)
    assert run.metrics_damage() == ""


def test_damage_lists_changed_inputs_file(new_run: Run) -> None:
    (new_run.folder / INPUTS_FILE).write_text('{"splits": {}}')
    write_manifest(new_run.folder, "config.json", INPUTS_FILE)
    assert new_run.damage() == []
    (new_run.folder / INPUTS_FILE).write_text('{"splits": []}')
    (damage,) = new_run.damage()
    assert "'inputs.json'" in damage and "its content has changed" in damage


def test_manifest_with_any_bit_flipped_raises_damaged_error(new_run: Run, tmp_path: Path) -> None:
    """Regression: a changed name of an entry with a default was ignored."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "x").write_text("x")
    write_manifest(folder)
    path = folder / "manifest.json"
    written = path.read_bytes()
    for offset in range(len(written)):
        changed = bytearray(written)
        changed[offset] ^= 1
        path.write_bytes(changed)
        if _parse_json(changed) != json.loads(written):
            with pytest.raises(DamagedError):
                verify_folder(folder)


def _parse_json(content: bytes | bytearray) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None


def test_checkpoints_remain_until_status_is_finished(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: they were removed earlier, so a kill in between left a FAILED run without checkpoints.

    Once continued, its result belongs to the previous training, whose last rows are dropped: no damage.
    """
    run = runs.create(tmp_path / "runs", TrainConfig.from_dict({**settings, "num_train_epochs": 1}))
    update = RunInTraining.update

    def failing(self: RunInTraining, **changes: Any) -> None:
        if changes.get("status") == runs.FINISHED:
            raise RunError(DISK_FULL)
        update(self, **changes)

    monkeypatch.setattr(RunInTraining, "update", failing)
    with pytest.raises(RunError):
        train(run.folder)
    assert run.state().status == "FAILED" and run.result() and run.metrics_damage() == ""
    choice = choose_checkpoint(run)
    assert choice is not None
    training = RunInTraining(run.folder)
    training.begin()
    training.forget_metrics_after(choice.step)
    training.log_metrics({"step": choice.step + 1, "loss": 1.0})
    training.update(step=choice.step + 1)
    assert run.metrics_damage() == ""


def test_sweep_removes_checkpoints_of_finished_run(new_run: Run) -> None:
    (new_run.checkpoints / "checkpoint-3").mkdir(parents=True)
    assert runs.sweep(new_run.folder.parent) == 0
    new_run.update(status=runs.FINISHED)
    assert runs.sweep(new_run.folder.parent) == 1
    assert not new_run.checkpoints.exists()


def _within_seconds(act: Callable[[], Any]) -> Any:
    """Return what a call returns; fail if it takes longer than 20 seconds."""
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(act()), daemon=True)
    thread.start()
    thread.join(20)
    assert answers, "it hangs, or raised an error"
    return answers[0]


@pytest.mark.parametrize("kind", ["FIFO", "device"])
@pytest.mark.parametrize(
    "name", ["status.json", "config.json", "manifest.json", "metrics.jsonl", "adapter/manifest.json", "lock"]
)
def test_damage_lists_non_regular_file(name: str, kind: str, new_run: Run) -> None:
    """Regression: a FIFO kept the app from starting, because it reads every run at startup."""
    other, path = runs.create(new_run.folder.parent, TrainConfig()), new_run.folder / name
    new_run.update(status=runs.FAILED)
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    if kind == "FIFO":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/full")
    assert _within_seconds(lambda: runs.sweep(new_run.folder.parent)) == 0
    assert set(_within_seconds(lambda: runs.list_runs(new_run.folder.parent))) == {new_run, other}
    described = _within_seconds(lambda: Workbench.open(new_run.folder.parent).describe(new_run))
    assert any(path.name in message for message in described["damage"])
    assert other.damage() == []
    runs.delete(new_run.folder.parent, new_run.run_id)


@pytest.mark.parametrize("kind", ["folder", "dangling link", "link to itself"])
def test_lock_not_a_regular_file_is_damage_but_run_can_be_deleted(kind: str, new_run: Run) -> None:
    new_run.update(status=runs.FAILED)
    lock = new_run.folder / "lock"
    if kind == "folder":
        lock.mkdir()
    else:
        lock.symlink_to("/nonexistent/lock" if kind == "dangling link" else lock)
    assert new_run.damage() == ["lock cannot be used: it is not a regular file."]
    with pytest.raises(DamagedError, match="its file 'lock' cannot be locked"), new_run.lock():
        pass
    runs.delete(new_run.folder.parent, new_run.run_id)
    assert not new_run.folder.exists()


@pytest.mark.parametrize("name", ["downloads", "adapter", "evaluation", "merged"])
def test_damage_lists_file_in_place_of_folder(name: str, new_run: Run) -> None:
    (new_run.folder / name).touch()
    assert new_run.damage() == [f"{name} cannot be used: it is not a folder."]


def test_zip_with_file_in_place_of_downloads_raises_run_error(own_run: Run) -> None:
    (own_run.folder / "downloads").touch()
    with pytest.raises(RunError, match="'downloads' is not a folder; move it elsewhere"):
        zip_of(own_run, "adapter")


def test_verify_folder_with_unlisted_fifo_raises_damaged_error(tmp_path: Path) -> None:
    """Regression: it was not listed, and syncing the folder blocked on it."""
    write_manifest(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DamagedError, match="'pipe', which the run did not write"):
        verify_folder(tmp_path)
    _within_seconds(lambda: fsync(tmp_path / "pipe") or True)
