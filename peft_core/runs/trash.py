"""Deleted runs: the folder `.trash` beside the runs, from which they can be restored until they are purged.

Why no run is lost or half visible: a run moves into the trash, and back, by one rename, and both folders are
fsynced after it. A run is purged by a rename to a staging name, and its files are removed under that name. A
process that dies therefore leaves the run in the list, in the trash, or as a staging folder that the next
sweep removes. The folder's modification time is set just before the move; it is the time of deletion.

A full disk does not prevent a deletion. If there is no room for a new name, the trash is emptied and the run
is removed permanently. While little space is free, the oldest deleted runs are removed at once.
"""

import contextlib
import logging
import os
import shutil
import time
from pathlib import Path
from typing import NamedTuple

from peft_core.errors import RunError
from peft_core.files.atomic import NO_ROOM, fsync, make_folder, remove_folder, translate_disk_errors

TRASH = ".trash"
TRASH_SECONDS = 3600.0  # that a deleted run can be restored
MIN_FREE_BYTES = 2_000_000_000  # with less free disk space deleted runs are not kept
_log = logging.getLogger(__name__)


class TrashedRun(NamedTuple):
    """A deleted run: its folder, and when it was deleted."""

    folder: Path
    deleted: float


def list_trash(runs_dir: Path) -> list[TrashedRun]:
    """Return the deleted runs, oldest first."""
    trashed = []
    with contextlib.suppress(OSError):  # no run was deleted yet
        for path in (runs_dir / TRASH).iterdir():
            with contextlib.suppress(OSError):  # it was restored or purged meanwhile
                if not path.name.startswith("."):
                    trashed.append(TrashedRun(path, path.stat().st_mtime))
    return sorted(trashed, key=lambda run: (run.deleted, run.folder))


def move_to_trash(folder: Path) -> None:
    """Move a run's folder into the trash, or remove it permanently if the disk has no room for that."""
    with translate_disk_errors():
        try:
            _rename_into_trash(folder)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            purge_trash(folder.parent)
            remove_folder(folder)
            fsync(folder.parent)


def restore_from_trash(folder: Path) -> None:
    """Move a run from the trash back to `folder`.

    Raises:
        RunError: `folder` exists, or the run is not in the trash.
    """
    trashed = folder.parent / TRASH / folder.name
    if os.path.lexists(folder):
        raise RunError(f"There is a run {folder.name!r} already; the deleted one cannot be restored.")
    with translate_disk_errors():
        try:
            trashed.rename(folder)
        except FileNotFoundError as error:
            raise RunError(f"The run {folder.name!r} was permanently removed meanwhile.") from error
        fsync(folder.parent)
        fsync(trashed.parent)


def purge_trash(runs_dir: Path, older_than_seconds: float = 0.0, *, now: float | None = None) -> int:
    """Permanently remove runs that were deleted at least this long ago; return the number removed.

    Args:
        runs_dir: The folder of runs.
        older_than_seconds: 0 removes all of them, whatever their deletion times.
        now: Seconds since the epoch; by default the current time.
    """
    latest = (time.time() if now is None else now) - older_than_seconds
    old = [run for run in list_trash(runs_dir) if not older_than_seconds or run.deleted <= latest]
    return sum(_try_purge(run.folder) for run in old)


def free_disk(runs_dir: Path) -> None:
    """While the disk is nearly full, permanently remove the oldest deleted runs."""
    for run in list_trash(runs_dir):
        if shutil.disk_usage(runs_dir).free >= MIN_FREE_BYTES:
            return
        _try_purge(run.folder)


def _try_purge(folder: Path) -> bool:
    """Permanently remove a deleted run. Returns False if the disk refuses; the next purge tries again."""
    try:
        remove_folder(folder)
    except OSError:
        _log.warning("The deleted run %s cannot be removed.", folder.name, exc_info=True)
        return False
    return True


def _rename_into_trash(folder: Path) -> None:
    trashed = folder.parent / TRASH / folder.name
    make_folder(trashed.parent, folder.parent)
    remove_folder(trashed)  # an earlier run with the same id
    with contextlib.suppress(OSError):  # of a folder that belongs to another user
        os.utime(folder)
    fsync(folder)  # a lock may just have been created in it
    folder.rename(trashed)
    fsync(trashed.parent)
    fsync(folder.parent)
