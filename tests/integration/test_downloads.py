"""Download cache: contents and lifetime of the copies, and error messages without server paths."""

import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import ROOT, environment

from peft_core.errors import RunError
from peft_core.service.downloads import MAX_AGE_SECONDS, DownloadCache, translate_os_errors

PUBLISH_AND_WAIT = """
import sys
from pathlib import Path
from peft_core.service.downloads import DownloadCache
cache = DownloadCache(Path(sys.argv[1]))
print(cache.publish(Path(sys.argv[2])), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[DownloadCache]:
    cache = DownloadCache(tmp_path / "cache")
    yield cache
    cache.close()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "elsewhere" / "run-adapter.zip"
    path.parent.mkdir()
    path.write_bytes(b"weights")
    return path


def refuse_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make hard links fail, as if the cache were on another disk."""

    def refuse(source: Path, copy: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


@pytest.mark.parametrize("linked", [True, False], ids=["link", "copy"])
def test_publish_returns_a_copy_inside_the_cache(
    linked: bool, cache: DownloadCache, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not linked:
        refuse_links(monkeypatch)
    copy = Path(cache.publish(archive))
    assert copy.is_relative_to(cache.root)
    assert copy.name == archive.name and copy.read_bytes() == b"weights"
    assert copy.samefile(archive) is linked
    assert re.fullmatch(r"[0-9a-f]{32}", copy.parent.name), "an address that can be guessed"


@pytest.mark.parametrize("linked", [True, False], ids=["link", "copy"])
def test_publish_twice_keeps_one_copy_of_the_newest_file(
    linked: bool, cache: DownloadCache, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not linked:
        refuse_links(monkeypatch)
    written = archive.stat().st_mtime_ns
    first = cache.publish(archive)
    assert cache.publish(archive) == first
    assert archive.stat().st_mtime_ns == written, "a download changes nothing of the run"
    newer = archive.with_name("newer")
    newer.write_bytes(b"trained on")
    newer.replace(archive)
    assert Path(cache.publish(archive)).read_bytes() == b"trained on"
    assert len(files_in(cache.root)) == 1


def test_publish_keeps_the_copy_when_the_file_is_removed(cache: DownloadCache, archive: Path) -> None:
    copy = Path(cache.publish(archive))
    archive.unlink()
    with pytest.raises(RunError, match="No such file"):
        cache.publish(archive)
    assert copy.read_bytes() == b"weights"


def test_publish_restores_a_removed_copy(cache: DownloadCache, archive: Path) -> None:
    Path(cache.publish(archive)).unlink()
    assert Path(cache.publish(archive)).read_bytes() == b"weights"


def test_sweep_removes_copies_older_than_a_day(cache: DownloadCache, archive: Path) -> None:
    old_copy, other_archive = Path(cache.publish(archive)), archive.with_name("other.zip")
    other_archive.write_bytes(b"other")
    fresh_copy = Path(cache.publish(other_archive))
    yesterday = old_copy.stat().st_mtime - MAX_AGE_SECONDS - 1
    os.utime(old_copy.parent, (yesterday, yesterday))
    cache.sweep()
    assert not old_copy.exists() and fresh_copy.exists()


def test_publish_again_resets_the_age_of_a_copy(cache: DownloadCache, archive: Path) -> None:
    copy = Path(cache.publish(archive))
    hour_left = copy.stat().st_mtime - MAX_AGE_SECONDS + 3600
    os.utime(copy.parent, (hour_left, hour_left))
    cache.publish(archive)
    assert copy.parent.stat().st_mtime > hour_left + 3600


def test_close_removes_all_files(cache: DownloadCache, archive: Path) -> None:
    cache.publish(archive)
    cache.new_file("counts.csv").write_text("r\n8\n", encoding="utf-8")
    cache.close()
    assert list(cache.root.iterdir()) == []


def test_new_cache_removes_files_of_a_killed_process(tmp_path: Path, archive: Path) -> None:
    root = tmp_path / "cache"
    command = [sys.executable, "-c", PUBLISH_AND_WAIT, str(root), str(archive)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment(), **pipes) as process:
        copy = Path(process.stdout.readline().strip())
        DownloadCache(root).close()
        assert copy.is_file(), "a running process keeps its files"
        process.send_signal(signal.SIGKILL)
        process.wait()
    DownloadCache(root).close()
    assert list(root.iterdir()) == []


def test_process_exit_removes_its_files(tmp_path: Path, archive: Path) -> None:
    root = tmp_path / "cache"
    command = [sys.executable, "-c", PUBLISH_AND_WAIT, str(root), str(archive)]
    subprocess.run(command, cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, check=True)
    assert list(root.iterdir()) == []


def test_publish_missing_file_error_hides_the_path(cache: DownloadCache, archive: Path) -> None:
    archive.unlink()
    with pytest.raises(RunError) as raised:
        cache.publish(archive)
    assert str(raised.value) == "run-adapter.zip cannot be downloaded: No such file or directory."


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/data/runs"), "Permission denied"),
        (OSError(), "OSError"),
    ],
)
def test_translate_os_errors_hides_the_path(error: OSError, reason: str) -> None:
    with pytest.raises(RunError) as raised, translate_os_errors("The file"):
        raise error
    assert str(raised.value) == f"The file cannot be downloaded: {reason}."


def test_publish_full_disk_raises_disk_full_error(
    cache: DownloadCache, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_links(monkeypatch)
    full = OSError(errno.ENOSPC, "No space left on device", str(archive))
    monkeypatch.setattr("shutil.copy2", lambda source, copy: (_ for _ in ()).throw(full))
    with pytest.raises(RunError, match="The disk is full"):
        cache.publish(archive)
    assert not files_in(cache.root)
