"""Downloads: files that a browser or client may fetch, linked or copied into gradio's cache.

Gradio serves only files of its cache, the working folder and the temporary folder. A run may lie elsewhere
(/data of a Space, ~/runs), and `allowed_paths` would expose every file of every run to anyone who knows its
path. A requested file is therefore linked into the cache under a random name (copied if the cache is on
another disk): only the client that received the path can fetch it, and no other file of the run is exposed.

One copy of a file is kept for a day, and all copies are removed when the app ends. Copies of a killed app are
removed at the start of the next one: each process holds a lock beside its folder, which the system releases
however the process dies.
"""

import atexit
import contextlib
import logging
import os
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from peft_core.errors import RunError
from peft_core.files.atomic import Stamp, link_or_copy, stamp_of, translate_disk_errors

MAX_AGE_SECONDS = 86_400
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Copy:
    """A copy of a file, and the stamp of the original when it was copied."""

    version: Stamp | None
    path: Path


class DownloadCache:
    """The downloads of this process, each in a folder with a random name."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / secrets.token_hex(16)
        self._copies: dict[Path, _Copy] = {}
        self._mutex = threading.Lock()
        root.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(_lock_path(self.folder), thread_local=False)
        self._lock.acquire(timeout=10)
        atexit.register(self.close)
        self.sweep()

    def publish(self, path: Path) -> str:
        """Return the path under which gradio serves the current content of a file.

        The content stays available after the file is replaced or removed.

        Raises:
            RunError: The file cannot be read or copied. The message does not contain its folder.
        """
        with self._mutex, translate_os_errors(path.name):
            if path.is_relative_to(self.folder):
                return str(path)
            copy, version = self._copies.get(path), stamp_of(path)
            if copy is None or copy.version != version or not copy.path.is_file():
                previous, copy = copy, _Copy(version, self.new_file(path.name))
                link_or_copy(path, copy.path)
                self._copies[path] = copy
                if previous is not None:
                    shutil.rmtree(previous.path.parent, ignore_errors=True)
            # Restart its day: `sweep` reads the folder's mtime, gradio the file's ctime (its mtime is that of
            # the run's file).
            os.utime(copy.path.parent)
            copy.path.chmod(copy.path.stat().st_mode)
        return str(copy.path)

    def new_file(self, name: str) -> Path:
        """Return a path at which a file with this name can be written for download."""
        self.sweep()
        folder = self.folder / secrets.token_hex(16)
        folder.mkdir(parents=True)
        return folder / name

    def close(self) -> None:
        """Remove all downloads."""
        shutil.rmtree(self.folder, ignore_errors=True)
        _lock_path(self.folder).unlink(missing_ok=True)
        self._lock.release()

    def sweep(self) -> None:
        """Remove downloads that are older than a day, and those of dead processes."""
        for lock in self.root.glob("*.lock"):
            if lock != _lock_path(self.folder):
                _remove_if_abandoned(lock)
        oldest = time.time() - MAX_AGE_SECONDS
        for folder in self.folder.iterdir() if self.folder.is_dir() else ():
            if folder.stat().st_mtime < oldest:
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def translate_os_errors(name: str) -> Iterator[None]:
    """Translate an OSError, whose message contains a path on this machine, into a RunError without it."""
    try:
        with translate_disk_errors():
            yield
    except OSError as error:
        _log.warning("%s cannot be downloaded", name, exc_info=True)
        reason = error.strerror or type(error).__name__
        raise RunError(f"{name} cannot be downloaded: {reason}.") from error


def _lock_path(folder: Path) -> Path:
    return folder.with_suffix(".lock")


def _remove_if_abandoned(path: Path) -> None:
    """Remove a lock that no process holds, and the folder of the process that held it."""
    lock = FileLock(path)
    with contextlib.suppress(Timeout), lock.acquire(timeout=0):
        shutil.rmtree(path.with_suffix(""), ignore_errors=True)
        path.unlink(missing_ok=True)
