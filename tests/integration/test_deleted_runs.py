"""Runs that are deleted while a job uses them: the job fails and the folder is not recreated."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.errors import RunError
from peft_core.export import archives
from peft_core.export.archives import zip_of
from peft_core.files.atomic import atomic_folder
from peft_core.runs import Run
from peft_core.runs.trash import TRASH
from peft_core.service import tasks

DELETED = "was deleted meanwhile; choose another run"


@pytest.fixture
def created_run(tmp_path: Path) -> Run:
    run = runs.create(tmp_path / "runs", TrainConfig())
    run.update(status=runs.FINISHED)
    return run


def delete(run: Run) -> None:
    runs.delete(run.folder.parent, run.run_id)


def remaining_folders(run: Run) -> list[Path]:
    return [path for path in run.folder.parent.iterdir() if path.name != TRASH]


def delete_at(run: Run, start: str) -> Callable[[float, str], None]:
    """Return a progress callback that deletes the run at the first stage that starts with `start`."""

    def report(share: float, stage: str) -> None:
        if stage.startswith(start) and run.folder.is_dir():
            delete(run)

    return report


def run_task(monkeypatch: pytest.MonkeyPatch, run: Run, start: str, task: Callable[[], Any]) -> str:
    """Return the error message of a task whose run is deleted at a stage; check that no folder remains."""
    monkeypatch.setattr(tasks, "report", delete_at(run, start))
    with pytest.raises(RunError) as raised:
        task()
    assert remaining_folders(run) == []
    assert str(run.folder.parent) not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("stage", ["Loading", "Adapter", "Merged: ", "Merged, loaded again"])
def test_merge_run_deleted_meanwhile_raises(
    stage: str, own_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Libraries that save a model recreate its folder, and with it part of the deleted run."""
    message = run_task(monkeypatch, own_run, stage, lambda: tasks.merge(str(own_run.folder)))
    assert DELETED in message


@pytest.mark.parametrize("stage", ["Loading", "Base", "Reloaded"])
def test_export_run_deleted_meanwhile_raises(
    stage: str, own_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(own_run.folder)
    message = run_task(monkeypatch, own_run, stage, lambda: tasks.export_run(folder, "embeddings", {}))
    assert DELETED in message


@pytest.mark.parametrize("stage", ["Loading the model", "Reading", "2 of 2"])
def test_predict_file_run_deleted_meanwhile_raises(
    stage: str, own_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, folder = tmp_path / "rows.csv", str(own_run.folder)
    path.write_text("text\nThe food was good.\nThe room was bad.\n")
    request = {"text": "text"}
    message = run_task(
        monkeypatch, own_run, stage, lambda: tasks.predict_file(folder, "adapter", str(path), request)
    )
    assert DELETED in message


def test_task_run_deleted_before_start_raises(created_run: Run) -> None:
    delete(created_run)
    with pytest.raises(RunError, match=r"There is no run '.*'; it may have been deleted"):
        tasks.decision_rule(str(created_run.folder))
    assert not created_run.folder.exists()


def test_zip_of_run_deleted_meanwhile_raises(own_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "write_zip", lambda *_: delete(own_run))
    with pytest.raises(RunError, match=DELETED):
        zip_of(own_run, "adapter")
    assert remaining_folders(own_run) == []


@pytest.mark.parametrize("name", ["onnx", "downloads/onnx"])
def test_new_folder_does_not_recreate_a_deleted_run(name: str, created_run: Run) -> None:
    delete(created_run)
    with pytest.raises(RunError, match="There is no run"), created_run.new_folder(created_run.folder / name):
        pass
    with pytest.raises(FileNotFoundError), atomic_folder(created_run.folder / name, root=created_run.folder):
        pass
    assert not created_run.folder.exists()


def test_detect_deletion_existing_run_passes_errors(created_run: Run) -> None:
    with pytest.raises(ValueError, match="wrong"), created_run.detect_deletion():
        raise ValueError("wrong")
    with created_run.detect_deletion():
        (created_run.folder / "status.json").unlink()
    assert created_run.folder.is_dir()
