"""Files handed to a browser or a client: a copy of their own in gradio's cache, whatever the runs folder.

Gradio hands out files of its cache, the working and the temporary folder alone. A run may lie elsewhere
(/data of a Space, ~/runs), and `allowed_paths` would open every file of every run to whoever knows its
path. So a file that somebody asked for is linked into the cache under a random name (copied where the cache
is on another disk): its address is known to whoever got it as an answer, and no other file of the run can
be reached.

Nothing stays for ever. One copy of a file is kept, for a day, and all are removed when the app ends. What a
killed app leaves is removed by the next one when it starts: each process holds a lock beside its folder,
which the system lets go of however the process dies.
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
from peft_core.files import Stamp, link_or_copy, stamp_of, translate_disk_errors

SECONDS_KEPT = 86_400
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Copy:
    """A file that was handed out, as it was then."""

    version: Stamp | None
    path: Path


class DownloadCache:
    """The files that this process has handed out, each in a folder with a random name."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / secrets.token_hex(16)
        self._copies: dict[Path, _Copy] = {}
        self._mutex = threading.Lock()
        root.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(_lock_of(self.folder), thread_local=False)
        self._lock.acquire(timeout=10)
        atexit.register(self.close)
        self.sweep()

    def publish(self, path: Path) -> str:
        """The path under which gradio hands out this file as it is now, also once it is replaced or removed.

        Raises RunError, without the file's place on this machine, for one that cannot be read or copied.
        """
        with self._mutex, describe_os_errors(path.name):
            if path.is_relative_to(self.folder):
                return str(path)
            copy, version = self._copies.get(path), stamp_of(path)
            if copy is None or copy.version != version or not copy.path.is_file():
                earlier, copy = copy, _Copy(version, self.new_file(path.name))
                link_or_copy(path, copy.path)
                self._copies[path] = copy
                if earlier is not None:
                    shutil.rmtree(earlier.path.parent, ignore_errors=True)
            os.utime(copy.path.parent)  # its day begins anew: for `sweep`, and for gradio, which reads the
            copy.path.chmod(copy.path.stat().st_mode)  # file's ctime (its mtime is that of the run's file)
        return str(copy.path)

    def new_file(self, name: str) -> Path:
        """Where a file with this name can be written to be handed out."""
        self.sweep()
        folder = self.folder / secrets.token_hex(16)
        folder.mkdir(parents=True)
        return folder / name

    def close(self) -> None:
        """Remove all that was handed out."""
        shutil.rmtree(self.folder, ignore_errors=True)
        _lock_of(self.folder).unlink(missing_ok=True)
        self._lock.release()

    def sweep(self) -> None:
        """Remove what was handed out longer than a day ago, and what processes left that are gone."""
        for lock in self.root.glob("*.lock"):
            if lock != _lock_of(self.folder):
                _remove_if_left(lock)
        oldest = time.time() - SECONDS_KEPT
        for folder in self.folder.iterdir() if self.folder.is_dir() else ():
            if folder.stat().st_mtime < oldest:
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def describe_os_errors(what: str) -> Iterator[None]:
    """Turn an OSError, which names a place on this machine, into a RunError that does not."""
    try:
        with translate_disk_errors():
            yield
    except OSError as error:
        log.warning("%s cannot be handed out", what, exc_info=True)
        reason = error.strerror or type(error).__name__
        raise RunError(f"{what} cannot be downloaded: {reason}.") from error


def _lock_of(folder: Path) -> Path:
    return folder.with_suffix(".lock")


def _remove_if_left(path: Path) -> None:
    """Remove a lock that nobody holds, and the folder of the process that held it."""
    lock = FileLock(path)
    with contextlib.suppress(Timeout), lock.acquire(timeout=0):
        shutil.rmtree(path.with_suffix(""), ignore_errors=True)
        path.unlink(missing_ok=True)
