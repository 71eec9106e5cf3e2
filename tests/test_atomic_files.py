"""Files and folders appear whole or not at all, and are on disk before their name points at them."""

import errno
import os
import shutil
import threading
from pathlib import Path

import pytest

from peft_core.errors import DamagedError, RunError
from peft_core.files import atomic, manifests
from peft_core.files.atomic import atomic_file, atomic_folder, edited_folder, sweep_staging, write_json


@pytest.fixture(params=["exchange", "three renames"])
def swap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of replacing a folder: in one step, and where the system cannot."""
    if request.param == "three renames":
        monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    return request.param


def filled(final: Path, **contents: str) -> None:
    with atomic_folder(final) as staging:
        for name, content in contents.items():
            (staging / name).write_text(content, encoding="utf-8")
            assert not (final / name).exists()


def test_atomic_folder_replaces_the_old_one_whole(tmp_path: Path, swap: str) -> None:
    final = tmp_path / "final"
    filled(final, first="1")
    filled(final, second="2")
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
    assert [path.name for path in final.iterdir()] == ["second"]


def test_atomic_folder_that_fails_leaves_the_old_one(tmp_path: Path, swap: str) -> None:
    final = tmp_path / "final"
    filled(final, first="1")
    with pytest.raises(RuntimeError), atomic_folder(final) as staging:
        (staging / "second").touch()
        raise RuntimeError
    assert [path.name for path in final.iterdir()] == ["first"]
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_atomic_folder_is_there_at_every_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It used to remove the old folder before the rename: a process killed between left none."""
    final, moments = tmp_path / "final", []
    filled(final, first="1")
    real = shutil.rmtree

    def watched(path: Path, **options: bool) -> None:
        moments.append((final / "second").exists())
        real(path, **options)

    monkeypatch.setattr(atomic.shutil, "rmtree", watched)
    filled(final, second="2")
    assert moments == [True], "the old folder is removed once, after the new one has its name"


def test_sweep_puts_back_a_folder_that_was_being_replaced(tmp_path: Path) -> None:
    """Where names cannot be exchanged, a process killed between two renames leaves the old folder aside."""
    aside = tmp_path / ".replaced-1-another_boot-0123abcd-final"
    aside.mkdir()
    (aside / "first").touch()
    assert sweep_staging(tmp_path) == 0
    assert (tmp_path / "final" / "first").exists()


def test_sweep_leaves_a_folder_that_a_living_process_replaces(tmp_path: Path) -> None:
    aside = atomic.staging_path(tmp_path / "final", "replaced")
    aside.mkdir()
    assert sweep_staging(tmp_path) == 0
    assert aside.is_dir() and not (tmp_path / "final").exists()


def test_atomic_folder_that_cannot_be_renamed_puts_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final, replace = tmp_path / "final", os.replace
    filled(final, first="1")

    def refuse_the_new_one(source: Path, target: Path) -> None:
        if source.name == "final" and ".staging-" in str(source):
            raise OSError(errno.EIO, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    monkeypatch.setattr(os, "replace", refuse_the_new_one)
    with pytest.raises(RunError, match="reports an error"):
        filled(final, second="2")
    assert [path.name for path in final.iterdir()] == ["first"]
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_atomic_folder_whose_rename_is_not_on_disk_keeps_the_old_content(
    tmp_path: Path, swap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    final, fsync = tmp_path / "final", atomic.fsync
    filled(final, first="1")

    def fail_for_the_parent(path: Path) -> None:
        if path == tmp_path:
            raise OSError(errno.EIO, "Input/output error")
        fsync(path)

    monkeypatch.setattr(atomic, "fsync", fail_for_the_parent)
    with pytest.raises(RunError, match="reports an error"):
        filled(final, second="2")
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"first", "second"}


def test_atomic_folder_that_is_new_and_not_on_disk_leaves_no_staging(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = atomic.fsync

    def fail_for_the_parent(path: Path) -> None:
        if path == tmp_path:
            raise OSError(errno.EIO, "Input/output error")
        fsync(path)

    monkeypatch.setattr(atomic, "fsync", fail_for_the_parent)
    with pytest.raises(RunError, match="reports an error"), atomic_folder(tmp_path / "final") as staging:
        (staging / "weights").write_bytes(b"1")
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_make_folder_syncs_the_parent_of_each_folder_that_it_creates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(atomic, "fsync", synced.append)
    atomic.make_folder(tmp_path / "a" / "b")
    atomic.make_folder(tmp_path / "a" / "b")
    assert synced == [tmp_path, tmp_path / "a"]


def test_names_point_at_what_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file and directory is fsynced before the rename, and the parent directory after it.

    A kill cannot show a missing fsync, as what the system has cached survives it; the order of calls can.
    """
    calls: list[tuple[str, str]] = []
    real_fsync, real_replace = atomic.fsync, os.replace
    monkeypatch.setattr(atomic, "fsync", lambda path: (calls.append(("fsync", path.name)), real_fsync(path)))
    monkeypatch.setattr(
        atomic.os, "replace", lambda one, two: (calls.append(("rename", two.name)), real_replace(one, two))
    )
    with atomic_folder(tmp_path / "final") as staging:
        (staging / "inner").mkdir()
        (staging / "inner" / "weights").touch()
    assert calls == [
        ("fsync", "weights"),
        ("fsync", "inner"),
        ("fsync", "final"),
        ("rename", "final"),
        ("fsync", tmp_path.name),
    ]
    calls.clear()
    with atomic_file(tmp_path / "state") as staging:
        staging.touch()
    assert [name for name, _ in calls] == ["fsync", "rename", "fsync"]
    assert calls[-1] == ("fsync", tmp_path.name)


def test_two_writers_of_one_folder_do_not_collide(tmp_path: Path) -> None:
    """Two zips at once used one staging name."""
    final = tmp_path / "final"
    with atomic_folder(final) as one, atomic_folder(final) as other:
        assert one != other
        (one / "from").write_text("one")
        (other / "from").write_text("other")
    assert (final / "from").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_edited_folder_leaves_the_files_of_the_old_one_as_they_were(tmp_path: Path) -> None:
    final = tmp_path / "final"
    filled(final, kept="1", changed="2")
    inode = (final / "kept").stat().st_ino
    with edited_folder(final) as staging:
        (staging / "changed").unlink()
        (staging / "changed").write_text("3")
    assert ((final / "kept").stat().st_ino, (final / "changed").read_text()) == (inode, "3")


def test_replace_file_changes_file_and_manifest_together(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "final") as staging:
        write_json(staging / "rule.json", {"temperature": 1})
        manifests.write_manifest(staging)
    manifests.replace_file(tmp_path / "final", "rule.json", lambda path: write_json(path, {"temperature": 2}))
    assert set(manifests.verify_folder(tmp_path / "final").files) == {"rule.json"}
    manifests.replace_file(tmp_path / "final", "rule.json", lambda path: None)
    assert not manifests.verify_folder(tmp_path / "final").files


def test_replace_file_beside_a_damaged_one_is_refused(tmp_path: Path) -> None:
    """It used to seal whatever lay in the folder: the damaged file was whole from then on."""
    folder = tmp_path / "final"
    with atomic_folder(folder) as staging:
        (staging / "model.onnx").write_bytes(b"weights")
        manifests.write_manifest(staging)
    (folder / "model.onnx").write_bytes(b"weightz")
    with pytest.raises(DamagedError, match="'model.onnx' of final/ is damaged"):
        manifests.replace_file(folder, "rule.json", lambda path: write_json(path, {}))
    with pytest.raises(DamagedError, match="'model.onnx' of final/ is damaged"):
        manifests.verify_folder(folder)
    assert {path.name for path in folder.iterdir()} == {"model.onnx", "manifest.json"}


def test_verify_folder_leaves_hidden_folders_aside(tmp_path: Path) -> None:
    (tmp_path / "weights").touch()
    manifests.write_manifest(tmp_path)
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints" / "notes").touch()
    assert set(manifests.verify_folder(tmp_path).files) == {"weights"}


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "flipped", "added"])
def test_verify_folder_names_what_is_not_as_it_was_written(damage: str, tmp_path: Path) -> None:
    folder = tmp_path / "final"
    with atomic_folder(folder) as staging:
        (staging / "weights").write_bytes(b"0123456789")
        manifests.write_manifest(staging)
    path = folder / "weights"
    content = {"empty": b"", "cut": b"01234", "flipped": b"0123456788"}
    if damage == "missing":
        path.unlink()
    elif damage == "added":
        (folder / "vocab.txt").touch()
    else:
        path.write_bytes(content[damage])
    with pytest.raises(DamagedError, match="vocab.txt" if damage == "added" else "weights"):
        manifests.verify_folder(folder)


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "The disk is full"), (errno.EIO, "The disk reports an error")]
)
def test_atomic_folder_on_a_bad_disk_is_one_sentence(
    number: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    filled(tmp_path / "final", first="1")
    monkeypatch.setattr(atomic.os, "fsync", fail)
    with pytest.raises(RunError, match=words):
        filled(tmp_path / "final", second="2")
    assert [path.name for path in (tmp_path / "final").iterdir()] == ["first"]
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_replace_file_does_not_lose_a_folder_made_meanwhile(tmp_path: Path) -> None:
    """A copy of the folder before took the place of the new one."""
    final = tmp_path / "final"
    with atomic_folder(final) as staging:
        (staging / "model").write_text("old")
        manifests.write_manifest(staging)

    def make_again() -> None:
        with atomic_folder(final) as staging:
            (staging / "model").write_text("new")

    maker = threading.Thread(target=make_again)

    def write(path: Path) -> None:
        maker.start()
        maker.join(0.5)  # it waits until the file is replaced
        path.write_text("rule")

    manifests.replace_file(final, "rule.json", write)
    maker.join()
    assert (final / "model").read_text() == "new"


def test_atomic_file_on_a_read_only_disk_raises_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Removing the staging file failed as well, and that error hid the sentence."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(tmp_path))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(RunError, match="Read-only file system"), atomic_file(tmp_path / "file"):
        refuse()


def test_make_folder_below_a_file_raises_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "downloads").touch()
    with pytest.raises(RunError, match="'downloads' is not a folder; move it elsewhere"):
        filled(tmp_path / "downloads" / "onnx", first="1")


def test_open_regular_refuses_a_fifo_a_folder_and_a_device(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "device").symlink_to("/dev/full")
    for path in (tmp_path / "fifo", tmp_path, tmp_path / "device"):
        with pytest.raises(OSError, match="it is not a regular file"):
            atomic.open_regular(path)
