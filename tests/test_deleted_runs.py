"""A run that is deleted while a job works on it: one sentence, and no folder of it is left or made again."""

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
def own(tmp_path: Path) -> Run:
    run = runs.create(tmp_path / "runs", TrainConfig())
    run.update(status=runs.FINISHED)
    return run


def delete(run: Run) -> None:
    runs.delete(run.folder.parent, run.run_id)


def left_beside_trash(run: Run) -> list[Path]:
    return [path for path in run.folder.parent.iterdir() if path.name != TRASH]


def delete_at(run: Run, start: str) -> Callable[[float, str], None]:
    """A callback that deletes the run at the first stage that begins with these words."""

    def report(share: float, what: str) -> None:
        if what.startswith(start) and run.folder.is_dir():
            delete(run)

    return report


def run_task(monkeypatch: pytest.MonkeyPatch, run: Run, start: str, task: Callable[[], Any]) -> str:
    """The sentence of a task whose run is deleted at a stage; nothing of the run must be left."""
    monkeypatch.setattr(tasks, "report", delete_at(run, start))
    with pytest.raises(RunError) as refusal:
        task()
    assert left_beside_trash(run) == []
    assert str(run.folder.parent) not in str(refusal.value)
    return str(refusal.value)


@pytest.mark.parametrize("stage", ["Loading", "Adapter", "Merged: ", "Merged, loaded again"])
def test_merge_of_a_run_deleted_meanwhile_is_refused(
    stage: str, own_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Libraries that save a model create its folder, and so a part of the deleted run, again."""
    sentence = run_task(monkeypatch, own_run, stage, lambda: tasks.merge(str(own_run.folder)))
    assert DELETED in sentence


@pytest.mark.parametrize("stage", ["Loading", "Base", "Written"])
def test_export_of_a_run_deleted_meanwhile_is_refused(
    stage: str, own_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(own_run.folder)
    sentence = run_task(monkeypatch, own_run, stage, lambda: tasks.export_run(folder, "embeddings", {}))
    assert DELETED in sentence


@pytest.mark.parametrize("stage", ["Loading the model", "Reading", "2 of 2"])
def test_predict_file_of_a_run_deleted_meanwhile_is_refused(
    stage: str, own_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, folder = tmp_path / "rows.csv", str(own_run.folder)
    path.write_text("text\nThe food was good.\nThe room was bad.\n")
    request = {"text": "text"}
    sentence = run_task(
        monkeypatch, own_run, stage, lambda: tasks.predict_file(folder, "adapter", str(path), request)
    )
    assert DELETED in sentence


def test_task_of_a_run_deleted_before_it_begins_is_refused(own: Run) -> None:
    delete(own)
    with pytest.raises(RunError, match=r"There is no run '.*'; it may have been deleted"):
        tasks.decision_rule(str(own.folder))
    assert not own.folder.exists()


def test_zip_of_a_run_deleted_meanwhile_is_refused(own_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "write_zip", lambda *_: delete(own_run))
    with pytest.raises(RunError, match=DELETED):
        zip_of(own_run, "adapter")
    assert left_beside_trash(own_run) == []


@pytest.mark.parametrize("name", ["onnx", "downloads/onnx"])
def test_new_folder_does_not_create_a_deleted_run_again(name: str, own: Run) -> None:
    delete(own)
    with pytest.raises(RunError, match="There is no run"), own.new_folder(own.folder / name):
        pass
    with pytest.raises(FileNotFoundError), atomic_folder(own.folder / name, root=own.folder):
        pass
    assert not own.folder.exists()


def test_detect_deletion_passes_errors_of_a_run_that_is_there(own: Run) -> None:
    with pytest.raises(ValueError, match="wrong"), own.detect_deletion():
        raise ValueError("wrong")
    with own.detect_deletion():
        (own.folder / "status.json").unlink()
    assert own.folder.is_dir()
