"""Tests of atomic writes: files and folders appear complete or not at all, and are synced before renames."""

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
    """Both ways of replacing a folder: an atomic exchange, and renames where the system has none."""
    if request.param == "three renames":
        monkeypatch.setattr(atomic, "_exchange", lambda source, target: False)
    return request.param


def write_folder(final: Path, **contents: str) -> None:
    with atomic_folder(final) as staging:
        for name, content in contents.items():
            (staging / name).write_text(content, encoding="utf-8")
            assert not (final / name).exists()


def test_atomic_folder_replaces_previous_folder(tmp_path: Path, swap: str) -> None:
    final = tmp_path / "final"
    write_folder(final, first="1")
    write_folder(final, second="2")
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
    assert [path.name for path in final.iterdir()] == ["second"]


def test_atomic_folder_that_fails_keeps_previous_folder(tmp_path: Path, swap: str) -> None:
    final = tmp_path / "final"
    write_folder(final, first="1")
    with pytest.raises(RuntimeError), atomic_folder(final) as staging:
        (staging / "second").touch()
        raise RuntimeError
    assert [path.name for path in final.iterdir()] == ["first"]
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_atomic_folder_exists_at_every_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: the old folder was removed before the rename, so a kill in between left no folder."""
    final, moments = tmp_path / "final", []
    write_folder(final, first="1")
    real = shutil.rmtree

    def watched(path: Path, **options: bool) -> None:
        moments.append((final / "second").exists())
        real(path, **options)

    monkeypatch.setattr(atomic.shutil, "rmtree", watched)
    write_folder(final, second="2")
    assert moments == [True], "the old folder is removed once, after the new one has its name"


def test_sweep_staging_restores_folder_of_interrupted_replacement(tmp_path: Path) -> None:
    """Without an atomic exchange, a process killed between two renames leaves the old folder aside."""
    aside = tmp_path / ".replaced-1-another_boot-0123abcd-final"
    aside.mkdir()
    (aside / "first").touch()
    assert sweep_staging(tmp_path) == 0
    assert (tmp_path / "final" / "first").exists()


def test_sweep_staging_skips_folder_of_running_process(tmp_path: Path) -> None:
    aside = atomic.staging_path(tmp_path / "final", "replaced")
    aside.mkdir()
    assert sweep_staging(tmp_path) == 0
    assert aside.is_dir() and not (tmp_path / "final").exists()


def test_atomic_folder_that_cannot_be_renamed_restores_previous_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final, replace = tmp_path / "final", os.replace
    write_folder(final, first="1")

    def refuse_the_new_one(source: Path, target: Path) -> None:
        if source.name == "final" and ".staging-" in str(source):
            raise OSError(errno.EIO, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(atomic, "_exchange", lambda source, target: False)
    monkeypatch.setattr(os, "replace", refuse_the_new_one)
    with pytest.raises(RunError, match="reports an error"):
        write_folder(final, second="2")
    assert [path.name for path in final.iterdir()] == ["first"]
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_atomic_folder_with_unsynced_rename_keeps_previous_content(
    tmp_path: Path, swap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    final, fsync = tmp_path / "final", atomic.fsync
    write_folder(final, first="1")

    def fail_for_the_parent(path: Path) -> None:
        if path == tmp_path:
            raise OSError(errno.EIO, "Input/output error")
        fsync(path)

    monkeypatch.setattr(atomic, "fsync", fail_for_the_parent)
    with pytest.raises(RunError, match="reports an error"):
        write_folder(final, second="2")
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"first", "second"}


def test_new_atomic_folder_with_unsynced_rename_leaves_no_staging(
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


def test_make_folder_syncs_parent_of_each_created_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(atomic, "fsync", synced.append)
    atomic.make_folder(tmp_path / "a" / "b")
    atomic.make_folder(tmp_path / "a" / "b")
    assert synced == [tmp_path, tmp_path / "a"]


def test_atomic_writes_sync_content_before_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file and directory is fsynced before the rename, and the parent directory after it.

    A kill cannot reveal a missing fsync, because the system's cache survives it; the order of calls can.
    """
    calls: list[tuple[str, str]] = []
    real_fsync, real_replace = atomic.fsync, os.replace
    monkeypatch.setattr(atomic, "fsync", lambda path: (calls.append(("fsync", path.name)), real_fsync(path)))
    monkeypatch.setattr(
        atomic.os,
        "replace",
        lambda source, target: (calls.append(("rename", target.name)), real_replace(source, target)),
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


def test_concurrent_writers_of_one_folder_do_not_collide(tmp_path: Path) -> None:
    """Regression: two zips written at the same time used the same staging name."""
    final = tmp_path / "final"
    with atomic_folder(final) as first, atomic_folder(final) as second:
        assert first != second
        (first / "from").write_text("one")
        (second / "from").write_text("other")
    assert (final / "from").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_edited_folder_keeps_unchanged_files(tmp_path: Path) -> None:
    final = tmp_path / "final"
    write_folder(final, kept="1", changed="2")
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


def test_replace_file_beside_damaged_file_is_refused(tmp_path: Path) -> None:
    """Regression: the new manifest covered the damaged file, which was then reported as undamaged."""
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


def test_verify_folder_ignores_hidden_folders(tmp_path: Path) -> None:
    (tmp_path / "weights").touch()
    manifests.write_manifest(tmp_path)
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints" / "notes").touch()
    assert set(manifests.verify_folder(tmp_path).files) == {"weights"}


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "flipped", "added"])
def test_verify_folder_names_changed_file(damage: str, tmp_path: Path) -> None:
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
def test_atomic_folder_on_failing_disk_raises_one_sentence(
    number: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    write_folder(tmp_path / "final", first="1")
    monkeypatch.setattr(atomic.os, "fsync", fail)
    with pytest.raises(RunError, match=words):
        write_folder(tmp_path / "final", second="2")
    assert [path.name for path in (tmp_path / "final").iterdir()] == ["first"]
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_replace_file_keeps_folder_written_concurrently(tmp_path: Path) -> None:
    """Regression: an outdated copy of the folder replaced the new one."""
    final = tmp_path / "final"
    with atomic_folder(final) as staging:
        (staging / "model").write_text("old")
        manifests.write_manifest(staging)

    def rewrite_folder() -> None:
        with atomic_folder(final) as staging:
            (staging / "model").write_text("new")

    writer = threading.Thread(target=rewrite_folder)

    def write(path: Path) -> None:
        writer.start()
        writer.join(0.5)  # it waits until the file is replaced
        path.write_text("rule")

    manifests.replace_file(final, "rule.json", write)
    writer.join()
    assert (final / "model").read_text() == "new"


def test_atomic_file_on_read_only_disk_raises_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: removing the staging file failed too, and that error hid the message."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(tmp_path))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(RunError, match="Read-only file system"), atomic_file(tmp_path / "file"):
        refuse()


def test_make_folder_below_a_file_raises_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "downloads").touch()
    with pytest.raises(RunError, match="'downloads' is not a folder; move it elsewhere"):
        write_folder(tmp_path / "downloads" / "onnx", first="1")


def test_open_regular_refuses_fifo_folder_and_device(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "device").symlink_to("/dev/full")
    for path in (tmp_path / "fifo", tmp_path, tmp_path / "device"):
        with pytest.raises(OSError, match="it is not a regular file"):
            atomic.open_regular(path)
