"""Files that are handed out: what a copy holds, how long it stays, and what an error says of the server."""

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
    """As if the cache lay on another disk."""

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


def test_publish_makes_a_copy_again_that_was_removed(cache: DownloadCache, archive: Path) -> None:
    Path(cache.publish(archive)).unlink()
    assert Path(cache.publish(archive)).read_bytes() == b"weights"


def test_sweep_removes_copies_older_than_a_day(cache: DownloadCache, archive: Path) -> None:
    old, other = Path(cache.publish(archive)), archive.with_name("other.zip")
    other.write_bytes(b"other")
    fresh = Path(cache.publish(other))
    yesterday = old.stat().st_mtime - MAX_AGE_SECONDS - 1
    os.utime(old.parent, (yesterday, yesterday))
    cache.sweep()
    assert not old.exists() and fresh.exists()


def test_publish_again_begins_the_day_of_a_copy_anew(cache: DownloadCache, archive: Path) -> None:
    copy = Path(cache.publish(archive))
    hour_left = copy.stat().st_mtime - MAX_AGE_SECONDS + 3600
    os.utime(copy.parent, (hour_left, hour_left))
    cache.publish(archive)
    assert copy.parent.stat().st_mtime > hour_left + 3600


def test_close_leaves_nothing(cache: DownloadCache, archive: Path) -> None:
    cache.publish(archive)
    cache.new_file("counts.csv").write_text("r\n8\n", encoding="utf-8")
    cache.close()
    assert list(cache.root.iterdir()) == []


def test_a_new_cache_removes_what_a_killed_process_left(tmp_path: Path, archive: Path) -> None:
    root = tmp_path / "cache"
    command = [sys.executable, "-c", PUBLISH_AND_WAIT, str(root), str(archive)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment(), **pipes) as process:
        copy = Path(process.stdout.readline().strip())
        DownloadCache(root).close()
        assert copy.is_file(), "a process that lives keeps its files"
        process.send_signal(signal.SIGKILL)
        process.wait()
    DownloadCache(root).close()
    assert list(root.iterdir()) == []


def test_a_process_that_ends_removes_its_files(tmp_path: Path, archive: Path) -> None:
    root = tmp_path / "cache"
    command = [sys.executable, "-c", PUBLISH_AND_WAIT, str(root), str(archive)]
    subprocess.run(command, cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, check=True)
    assert list(root.iterdir()) == []


def test_publish_of_a_missing_file_names_no_place(cache: DownloadCache, archive: Path) -> None:
    archive.unlink()
    with pytest.raises(RunError) as refused:
        cache.publish(archive)
    assert str(refused.value) == "run-adapter.zip cannot be downloaded: No such file or directory."


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/data/runs"), "Permission denied"),
        (OSError(), "OSError"),
    ],
)
def test_translate_os_errors_names_no_place(error: OSError, reason: str) -> None:
    with pytest.raises(RunError) as refused, translate_os_errors("The file"):
        raise error
    assert str(refused.value) == f"The file cannot be downloaded: {reason}."


def test_a_full_disk_is_described_as_such(
    cache: DownloadCache, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_links(monkeypatch)
    full = OSError(errno.ENOSPC, "No space left on device", str(archive))
    monkeypatch.setattr("shutil.copy2", lambda source, copy: (_ for _ in ()).throw(full))
    with pytest.raises(RunError, match="The disk is full"):
        cache.publish(archive)
    assert not files_in(cache.root)
