"""Uploaded files: one folder per content, stored completely or not at all, and limited in number."""

import errno
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest
from small_data import write_csv

from peft_core.config import TrainConfig
from peft_core.data import uploads
from peft_core.data.labelled import load_labeled_splits
from peft_core.data.uploads import is_upload, store_upload, upload_label
from peft_core.errors import ConfigError, DataError, RunError
from peft_core.service import visitor_uploads
from peft_core.service.limits import Limits
from peft_core.service.visitor_uploads import VisitorUploads
from peft_core.service.workbench import Workbench
from peft_core.service.worker import WorkerError

ROWS = [(f"Text {i}", ["yes", "no"][i % 2]) for i in range(40)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_csv(tmp_path / "given" / "Meine Daten.csv", ROWS)
    return tmp_path / "given" / "Meine Daten.csv"


def test_store_upload_creates_a_data_set(file: Path, tmp_path: Path) -> None:
    write_csv(file.with_name("test.csv"), ROWS[:10])
    folder = store_upload([file, file.with_name("test.csv")], tmp_path / ".uploads").folder
    assert sorted(path.name for path in folder.iterdir()) == ["Meine Daten.csv", "test.csv"]
    assert folder.parent == tmp_path / ".uploads" and folder.name.startswith("meine-daten-")
    assert upload_label(str(folder)) == "Meine Daten.csv, test.csv"
    other_folder = store_upload([file], tmp_path / ".uploads").folder
    assert other_folder != folder
    assert len(load_labeled_splits(TrainConfig(dataset_name=str(other_folder))).eval) == 8


def test_store_upload_of_same_files_reuses_the_folder(file: Path, tmp_path: Path) -> None:
    first = store_upload([file], tmp_path / ".uploads")
    assert first.is_new
    assert store_upload([file], tmp_path / ".uploads") == (first.folder, False)
    write_csv(file, ROWS[1:])
    assert store_upload([file], tmp_path / ".uploads").folder != first.folder


def test_store_upload_that_fails_leaves_nothing(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(source: Path, target: Path) -> None:
        Path(target).write_text("half", encoding="utf-8")
        raise OSError(errno.EACCES, "Permission denied", str(target))

    monkeypatch.setattr(uploads.shutil, "copyfile", broken)
    with pytest.raises(DataError, match="^'Meine Daten.csv' cannot be stored: Permission denied.$"):
        store_upload([file], tmp_path / ".uploads")
    assert list((tmp_path / ".uploads").iterdir()) == []


def test_store_upload_beyond_limit_removes_oldest_unused(file: Path, tmp_path: Path) -> None:
    folders = []
    for i in range(5):
        write_csv(file, ROWS[i:])
        in_use = {str(folders[0])} if folders else ()
        folders.append(store_upload([file], tmp_path / ".uploads", in_use=in_use, max_uploads=3).folder)
        os.utime(folders[-1], (i, i))
    remaining = set((tmp_path / ".uploads").iterdir())
    assert remaining == {folders[0], folders[3], folders[4]}


def test_store_upload_prune_ignores_folder_removed_meanwhile(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = store_upload([file], tmp_path / ".uploads").folder
    is_dir = Path.is_dir

    def remove_after_is_dir(path: Path) -> bool:
        answer = is_dir(path)
        if path == first:
            shutil.rmtree(first)
        return answer

    write_csv(file, ROWS[1:])
    with monkeypatch.context() as patches:
        patches.setattr(Path, "is_dir", remove_after_is_dir)
        second = store_upload([file], tmp_path / ".uploads", max_uploads=1).folder
    assert list((tmp_path / ".uploads").iterdir()) == [second]


def test_upload_of_simultaneous_requests_is_serialized(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workbench, storing, concurrency = Workbench.open(tmp_path / "runs"), [], []

    def store_slowly(*arguments: object, **options: object) -> object:
        storing.append(1)
        concurrency.append(len(storing))
        time.sleep(0.1)
        storing.pop()
        return store_upload(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(visitor_uploads, "store_upload", store_slowly)
    with ThreadPoolExecutor() as threads:
        folders = list(threads.map(workbench.upload, [[file]] * 3))
    assert len(set(folders)) == 1 and concurrency == [1, 1, 1]


def test_upload_with_link_shares_the_inode(file: Path, tmp_path: Path) -> None:
    workbench, content = Workbench.open(tmp_path / "runs"), file.read_bytes()
    copied = Path(workbench.upload([file])) / file.name
    assert copied.stat().st_ino != file.stat().st_ino
    shutil.rmtree(copied.parent)
    linked = Path(workbench.upload([file], link=True)) / file.name
    assert linked.stat().st_ino == file.stat().st_ino
    file.unlink()
    assert linked.read_bytes() == content


@pytest.mark.parametrize("error", [WorkerError("The worker ran out of memory."), DataError("Too many rows.")])
def test_upload_that_fails_keeps_earlier_folder(
    error: Exception, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another visitor's run may train on it."""
    public = Workbench.open(tmp_path / "runs", public=True)
    monkeypatch.setattr(VisitorUploads, "_check_rows", lambda *_: None)
    folder = Path(public.upload([file]))
    monkeypatch.setattr(VisitorUploads, "_check_rows", mock.Mock(side_effect=error))
    with pytest.raises(type(error)):
        public.upload([file])
    assert [path.name for path in folder.iterdir()] == ["Meine Daten.csv"]


@pytest.mark.parametrize(
    "names, words",
    [
        ([], "0 files were given"),
        (["a.exe"], "'a.exe' is not a .csv"),
        (["x/a.csv", "y/a.csv"], "Two files are named 'a.csv'"),
        (["big.csv"], "at most 0 MB are taken"),
    ],
)
def test_store_upload_of_unsupported_files_raises_data_error(
    names: list[str], words: str, tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text,label\n" * (10 if "big" in name else 1), encoding="utf-8")
    with pytest.raises(DataError, match=words):
        store_upload([tmp_path / name for name in names], tmp_path / ".uploads", max_bytes=100)
    assert not (tmp_path / ".uploads").exists()


def test_is_upload_rejects_other_paths(file: Path, tmp_path: Path) -> None:
    folder = store_upload([file], tmp_path / ".uploads").folder
    other = tmp_path / ".uploads" / "link-0123456789ab"
    other.symlink_to(tmp_path / "given")
    assert is_upload(str(folder), tmp_path / ".uploads")
    for name in (
        file.parent,
        other,
        f"{folder}/..",
        f"{folder}/../{folder.name}",
        tmp_path / ".uploads",
        "imdb",
    ):
        assert not is_upload(str(name), tmp_path / ".uploads"), name


def test_public_demo_accepts_only_its_uploads_as_data_sets(file: Path, tmp_path: Path) -> None:
    public = Workbench.open(tmp_path / "runs", public=True)
    try:
        folder = public.upload([file])
        assert public.config({"dataset_name": folder}).dataset_name == folder
        assert public.inspect({"dataset_name": folder})["used"]["test"] == 8
        assert public.config({"dataset_name": folder, "num_train_epochs": 10}), "steps are of the rows it has"
        for name in (str(file), str(file.parent), f"{folder}/../..", str(tmp_path)):
            with pytest.raises(ConfigError, match="not on this public demo's list"):
                public.config({"dataset_name": name})
        write_csv(file, [(f"Text {i}", "yes") for i in range(Limits().max_upload_rows + 1)])
        with pytest.raises(DataError, match="20,001 rows; this public demo takes at most 20,000"):
            public.upload([file])
        file.write_bytes(b'text,label\n"never closed, and,so\n')
        with pytest.raises(DataError, match="quotation mark"):
            public.upload([file])
        assert [str(path) for path in public.uploads.folder.iterdir()] == [folder]
        assert public.list_runs() == []
    finally:
        public.files.close()


@pytest.mark.parametrize("failing_call", ["mkdir", "utime"])
def test_upload_on_read_only_disk_raises_run_error(
    failing_call: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workbench = Workbench.open(tmp_path / "runs")
    if failing_call == "utime":
        workbench.upload([file])

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path if failing_call == "mkdir" else os, failing_call, refuse)
    with pytest.raises(RunError, match="Read-only file system") as refusal:
        workbench.upload([file])
    assert str(tmp_path) not in str(refusal.value)
