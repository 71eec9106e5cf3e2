"""Holes that the batteries found: what a failing disk says, and damage that nothing noticed."""

import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.errors import DamagedError, RunError
from peft_core.files import DISK_ERROR, DISK_FAILED, DISK_FULL, describe_disk_error, translate_disk_errors
from peft_core.manifests import verify_folder, write_manifest
from peft_core.runs import Run, RunInTraining, store
from peft_core.runs import run as run_module
from peft_core.runs.checkpoints import choose_checkpoint
from peft_core.train import describe_failure, train
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


def test_delete_on_a_full_disk_leaves_no_staging(own: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    own.update(status=runs.FINISHED)
    monkeypatch.setattr(store, "fsync", _full)
    with pytest.raises(RunError, match="The disk is full"):
        runs.delete(own.folder.parent, own.run_id)
    assert os.listdir(own.folder.parent) == []


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
