"""Uploaded files: a folder by their contents, whole or not at all, only so many, and nothing in disguise."""

import os
from pathlib import Path

import pytest
from small_data import write_csv

from peft_core.config import TrainConfig
from peft_core.data import uploads
from peft_core.data.labelled import load_labelled_text
from peft_core.data.uploads import is_upload, store_upload, upload_label
from peft_core.errors import ConfigError, DataError
from peft_core.limits import Limits
from peft_core.workbench import Workbench

ROWS = [(f"Text {i}", ["yes", "no"][i % 2]) for i in range(40)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_csv(tmp_path / "given" / "Meine Daten.csv", ROWS)
    return tmp_path / "given" / "Meine Daten.csv"


def test_files_become_a_data_set(file: Path, tmp_path: Path) -> None:
    write_csv(file.with_name("test.csv"), ROWS[:10])
    folder = store_upload([file, file.with_name("test.csv")], tmp_path / ".uploads")
    assert sorted(path.name for path in folder.iterdir()) == ["Meine Daten.csv", "test.csv"]
    assert folder.parent == tmp_path / ".uploads" and folder.name.startswith("meine-daten-")
    assert upload_label(str(folder)) == "Meine Daten.csv, test.csv"
    one = store_upload([file], tmp_path / ".uploads")
    assert one != folder
    assert len(load_labelled_text(TrainConfig(dataset_name=str(one))).eval) == 8


def test_the_same_files_are_the_same_data_set(file: Path, tmp_path: Path) -> None:
    first = store_upload([file], tmp_path / ".uploads")
    assert store_upload([file], tmp_path / ".uploads") == first
    write_csv(file, ROWS[1:])
    assert store_upload([file], tmp_path / ".uploads") != first


def test_nothing_is_left_of_an_upload_that_fails(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(source: Path, target: Path) -> None:
        Path(target).write_text("half", encoding="utf-8")
        raise OSError("gone")

    monkeypatch.setattr(uploads.shutil, "copyfile", broken)
    with pytest.raises(OSError, match="gone"):
        store_upload([file], tmp_path / ".uploads")
    assert list((tmp_path / ".uploads").iterdir()) == []


def test_the_oldest_unused_are_pruned(file: Path, tmp_path: Path) -> None:
    kept = []
    for i in range(5):
        write_csv(file, ROWS[i:])
        kept.append(
            store_upload([file], tmp_path / ".uploads", in_use={str(kept[0])} if kept else (), most_uploads=3)
        )
        os.utime(kept[-1], (i, i))
    left = set((tmp_path / ".uploads").iterdir())
    assert left == {kept[0], kept[3], kept[4]}


@pytest.mark.parametrize(
    "names, words",
    [
        ([], "0 files were given"),
        (["a.exe"], "'a.exe' is no .csv"),
        (["x/a.csv", "y/a.csv"], "Two files are named 'a.csv'"),
        (["big.csv"], "at most 0 MB are taken"),
    ],
)
def test_what_is_not_taken(names: list[str], words: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text,label\n" * (10 if "big" in name else 1), encoding="utf-8")
    with pytest.raises(DataError, match=words):
        store_upload([tmp_path / name for name in names], tmp_path / ".uploads", most_bytes=100)
    assert not (tmp_path / ".uploads").exists()


def test_only_uploads_pass_for_uploads(file: Path, tmp_path: Path) -> None:
    folder = store_upload([file], tmp_path / ".uploads")
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


def test_a_public_demo_takes_its_own_uploads_and_no_other_path(file: Path, tmp_path: Path) -> None:
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
        assert [str(path) for path in public.uploads_dir.iterdir()] == [folder]
        assert public.list_runs() == []
    finally:
        public.worker.close()
