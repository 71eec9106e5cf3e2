"""Holes that the batteries found: what a failing disk says, and damage that nothing noticed."""

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
from peft_core.training.inputs import INPUTS_FILE


@pytest.fixture
def own(tmp_path: Path) -> Run:
    return runs.create(tmp_path / "runs", TrainConfig())


@pytest.mark.parametrize(
    ("error", "sentence"),
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
def test_describe_disk_error_of_libraries_without_errno_is_true(
    error: Exception, sentence: str | None
) -> None:
    """torch says "unexpected pos" whichever way a write fails; it was told as a full disk."""
    assert describe_disk_error(error) == sentence


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/data/runs/x/train.log"), "Permission denied"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/data/a.csv"), "No such file"),
        (OSError("cannot read /data/a.csv"), "cannot read a.csv"),
        (ValueError("no header in /data/runs/x/a.bin"), "ValueError: no header in a.bin .a bug; "),
    ],
)
def test_describe_failure_names_no_folder(error: Exception, sentence: str) -> None:
    described = describe_failure(error)
    assert re.search(sentence, described) and "/" not in described
    assert ("bug" in described) == (not isinstance(error, OSError))


def test_translate_disk_errors_keeps_the_first_sentence() -> None:
    with pytest.raises(RunError, match="reports an error"), translate_disk_errors(), translate_disk_errors():
        raise OSError(errno.EIO, "Input/output error")


def _full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("owner", "name", "act"),
    [
        (Path, "touch", lambda run: run.request_stop()),
        (run_module.FileLock, "acquire", lambda run: run.lock().__enter__()),
        (Path, "open", lambda run: RunInTraining(run.folder).log_metrics({"step": 1, "loss": 1.0})),
    ],
)
def test_stop_lock_and_metrics_on_a_full_disk_raise_one_sentence(
    own: Run, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, act: Callable[[Run], Any]
) -> None:
    monkeypatch.setattr(owner, name, _full)
    with pytest.raises(RunError, match="The disk is full"):
        act(own)


def test_delete_on_a_disk_that_cannot_sync_leaves_no_staging(
    own: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    own.update(status=runs.FINISHED)
    monkeypatch.setattr(trash, "fsync", _full)
    with pytest.raises(RunError, match="The disk is full"):
        runs.delete(own.folder.parent, own.run_id)
    assert os.listdir(own.folder.parent) == [trash.TRASH]
    assert os.listdir(own.folder.parent / trash.TRASH) == []


def test_metrics_that_lost_their_last_rows_are_damage_without_a_result(own: Run) -> None:
    training = RunInTraining(own.folder)
    training.begin()
    for step in (1, 2):
        training.log_metrics({"step": step, "loss": 1.0})
    training.update(step=2)
    training.log_metrics({"step": 3, "loss": 1.0})  # which the state does not name yet
    assert own.metrics_damage() == ""
    path = own.folder / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]))
    assert own.metrics_damage() == ""
    for left in (lines[0], b""):
        path.write_bytes(left)
        assert "has lost its last rows" in own.metrics_damage()
    path.unlink()
    assert "has lost its last rows" in own.metrics_damage()


def test_metrics_dropped_by_continue_are_no_damage(own: Run) -> None:
    training = RunInTraining(own.folder)
    training.begin()
    for step in (1, 2, 3):
        training.log_metrics({"step": step, "loss": 1.0})
        training.update(step=step)
    training.forget_metrics_after(2)
    assert own.metrics_damage() == ""
    training.update(step=2)
    assert own.metrics_damage() == "" and len(own.metrics()) == 2


def test_metrics_of_a_run_that_continues_are_no_damage(settings: dict[str, Any], tmp_path: Path) -> None:
    """Its result names a row of the training before, which Continue drops."""
    run = runs.create(tmp_path / "runs", TrainConfig.from_dict({**settings, "num_train_epochs": 1}))
    train(run.folder)
    assert run.result() and run.metrics_damage() == ""
    training = RunInTraining(run.folder)
    training.begin()
    training.forget_metrics_after(4)
    training.log_metrics({"step": 5, "loss": 1.0})
    training.update(step=5)
    assert run.metrics_damage() == ""


def test_damage_of_the_recorded_inputs_is_listed(own: Run) -> None:
    (own.folder / INPUTS_FILE).write_text('{"splits": {}}')
    write_manifest(own.folder, "config.json", INPUTS_FILE)
    assert own.damage() == []
    (own.folder / INPUTS_FILE).write_text('{"splits": []}')
    (problem,) = own.damage()
    assert "'inputs.json'" in problem and "its content has changed" in problem


def test_manifest_with_any_bit_flipped_is_damage(own: Run, tmp_path: Path) -> None:
    """A changed name of an entry that has a default was ignored."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "x").write_text("x")
    write_manifest(folder)
    path = folder / "manifest.json"
    written = path.read_bytes()
    for place in range(len(written)):
        changed = bytearray(written)
        changed[place] ^= 1
        path.write_bytes(changed)
        if _json(changed) != json.loads(written):
            with pytest.raises(DamagedError):
                verify_folder(folder)


def _json(content: bytes | bytearray) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None


def test_checkpoints_stay_until_finished_is_written(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were removed before it: a kill in between left a FAILED run that nothing could continue.

    Continued, its result is of the training before, whose last rows are dropped: that is no damage.
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


def test_sweep_removes_checkpoints_of_a_finished_run(own: Run) -> None:
    (own.checkpoints / "checkpoint-3").mkdir(parents=True)
    assert runs.sweep(own.folder.parent) == 0
    own.update(status=runs.FINISHED)
    assert runs.sweep(own.folder.parent) == 1
    assert not own.checkpoints.exists()


def _within_seconds(act: Callable[[], Any]) -> Any:
    """What a call returns; it fails, rather than hangs, if that takes long."""
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
def test_damage_lists_a_file_that_is_not_regular(name: str, kind: str, own: Run) -> None:
    """A FIFO kept the app from starting, as each run is read then."""
    other, path = runs.create(own.folder.parent, TrainConfig()), own.folder / name
    own.update(status=runs.FAILED)
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    if kind == "FIFO":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/full")
    assert _within_seconds(lambda: runs.sweep(own.folder.parent)) == 0
    assert set(_within_seconds(lambda: runs.list_runs(own.folder.parent))) == {own, other}
    described = _within_seconds(lambda: Workbench.open(own.folder.parent).describe(own))
    assert any(path.name in sentence for sentence in described["damage"])
    assert other.damage() == []
    runs.delete(own.folder.parent, own.run_id)


@pytest.mark.parametrize("kind", ["folder", "dangling link", "link to itself"])
def test_lock_that_is_not_a_file_is_damage_and_lets_delete(kind: str, own: Run) -> None:
    own.update(status=runs.FAILED)
    lock = own.folder / "lock"
    if kind == "folder":
        lock.mkdir()
    else:
        lock.symlink_to("/nonexistent/lock" if kind == "dangling link" else lock)
    assert own.damage() == ["lock cannot be used: it is not a regular file."]
    with pytest.raises(DamagedError, match="its file 'lock' cannot be locked"), own.lock():
        pass
    runs.delete(own.folder.parent, own.run_id)
    assert not own.folder.exists()


@pytest.mark.parametrize("name", ["downloads", "adapter", "evaluation", "merged"])
def test_damage_lists_a_folder_that_is_a_file(name: str, own: Run) -> None:
    (own.folder / name).touch()
    assert own.damage() == [f"{name} cannot be used: it is not a folder."]


def test_zip_of_a_run_whose_downloads_is_a_file_is_one_sentence(own_run: Run) -> None:
    (own_run.folder / "downloads").touch()
    with pytest.raises(RunError, match="'downloads' is not a folder; move it elsewhere"):
        zip_of(own_run, "adapter")


def test_verify_folder_refuses_a_fifo_that_no_manifest_names(tmp_path: Path) -> None:
    """It was not listed, and was waited for when the folder was synced."""
    write_manifest(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DamagedError, match="'pipe', which the run did not write"):
        verify_folder(tmp_path)
    _within_seconds(lambda: fsync(tmp_path / "pipe") or True)
