"""Deleted runs: each waits in `.trash` beside the runs, from where it can be restored until it is purged.

Why no run is lost or seen half. A run goes into the trash, and back, by one rename; both folders are fsynced
after it. A run is purged by a rename to a staging name, and its files are removed under that name: a process
that dies leaves the run in the list, in the trash, or as a staging folder that the next sweep removes. The
folder's own time is set just before the run goes into the trash, and says since when it has been there.

A full disk does not keep a run from being deleted. Where it has no room for a new name, the trash is emptied
and the run is removed for good; and while little space is left, the oldest deleted runs go at once.
"""

import contextlib
import logging
import os
import shutil
import time
from pathlib import Path
from typing import NamedTuple

from peft_core.errors import RunError
from peft_core.files import NO_ROOM, fsync, make_folder, remove_folder, translate_disk_errors

TRASH = ".trash"
SECONDS_KEPT = 3600.0
LEAST_FREE = 2_000_000_000  # bytes; with less free disk space deleted runs are not kept
_log = logging.getLogger(__name__)


class TrashedRun(NamedTuple):
    """A deleted run: its folder, and when it was deleted."""

    folder: Path
    deleted: float


def list_trash(runs_dir: Path) -> list[TrashedRun]:
    """Deleted runs, the oldest first."""
    trashed = []
    with contextlib.suppress(OSError):  # no run was deleted yet
        for path in (runs_dir / TRASH).iterdir():
            with contextlib.suppress(OSError):  # it was restored or purged meanwhile
                if not path.name.startswith("."):
                    trashed.append(TrashedRun(path, path.stat().st_mtime))
    return sorted(trashed, key=lambda run: (run.deleted, run.folder))


def discard(folder: Path) -> None:
    """Move a run's folder into the trash, or remove it for good where the disk has no room for that."""
    with translate_disk_errors():
        try:
            _move_to_trash(folder)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            purge_trash(folder.parent)
            remove_folder(folder)
            fsync(folder.parent)


def take_back(folder: Path) -> None:
    """Move a run from the trash to its folder. RunError if that exists, or the run is not in the trash."""
    trashed = folder.parent / TRASH / folder.name
    if os.path.lexists(folder):
        raise RunError(f"There is a run {folder.name!r} already; the deleted one cannot be restored.")
    with translate_disk_errors():
        try:
            trashed.rename(folder)
        except FileNotFoundError as error:
            raise RunError(f"The run {folder.name!r} was removed for good meanwhile.") from error
        fsync(folder.parent)
        fsync(trashed.parent)


def purge_trash(runs_dir: Path, older_than_seconds: float = 0.0, *, now: float | None = None) -> int:
    """Remove runs for good that were deleted at least so many seconds ago; returns how many.

    Args:
        runs_dir: The folder of runs.
        older_than_seconds: 0 for all of them, whatever the clock says.
        now: Seconds since the epoch; by default the present.
    """
    last = (time.time() if now is None else now) - older_than_seconds
    old = [run for run in list_trash(runs_dir) if not older_than_seconds or run.deleted <= last]
    return sum(_is_purged(run.folder) for run in old)


def free_disk(runs_dir: Path) -> None:
    """While the disk is nearly full, remove the oldest deleted runs for good."""
    for run in list_trash(runs_dir):
        if shutil.disk_usage(runs_dir).free >= LEAST_FREE:
            return
        _is_purged(run.folder)


def _is_purged(folder: Path) -> bool:
    """Remove a deleted run for good; False for one that the disk does not let go, which is tried again."""
    try:
        remove_folder(folder)
    except OSError:
        _log.warning("The deleted run %s cannot be removed.", folder.name, exc_info=True)
        return False
    return True


def _move_to_trash(folder: Path) -> None:
    trashed = folder.parent / TRASH / folder.name
    make_folder(trashed.parent, folder.parent)
    remove_folder(trashed)  # an earlier run of the same id
    with contextlib.suppress(OSError):  # of a folder that belongs to another user
        os.utime(folder)
    fsync(folder)  # in which a lock was perhaps made just now
    folder.rename(trashed)
    fsync(trashed.parent)
    fsync(folder.parent)
