"""What of a public demo's folder of runs may be removed, in which order, and its removal.

A run that waits or trains and the host's own runs and uploads never go, and a shared run only for its age.
Zips and answered files of any ended run go first, since they are made again when they are asked for. Each
thing is looked at once more right before its removal, under the lock that whoever starts runs holds: it may
have been shared, continued or trained on since.
"""

import contextlib
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, NamedTuple

from peft_core import runs
from peft_core.disk.inventory import Inventory, RunsFolder, ownership_of
from peft_core.disk.quotas import Quotas
from peft_core.disk.usage import Size, total_bytes
from peft_core.errors import DamagedError, RunError
from peft_core.files import remove_folder
from peft_core.records import Record, read_record, write_sealed

EXPIRED_FILE = ".expired.json"
MOST_MARKS = 2000


class Candidate(NamedTuple):
    """Something that may be removed.

    Attributes:
        kind: What it is.
        path: Its file or folder.
        last_used: Since when it is of no use, in seconds since the epoch.
        size: Its bytes.
        run: The run whose cache it is.
        is_shared: Whether it is a run with a share link.
    """

    kind: Literal["trash", "run", "upload", "cache"]
    path: Path
    last_used: float
    size: Size
    run: Path | None = None
    is_shared: bool = False


class ExpiredRuns(Record):
    """The ids of runs that were removed, the latest last."""

    run_ids: list[str] = []


class Expiry:
    """Lists and removes what may go from one folder of runs."""

    def __init__(
        self, folder: RunsFolder, quotas: Quotas, clock: Callable[[], float], run_lock: AbstractContextManager
    ) -> None:
        self._folder, self._quotas, self._clock, self._run_lock = folder, quotas, clock, run_lock

    def list_overdue(self, inventory: Inventory, used: Collection[Path]) -> list[Candidate]:
        """Runs and uploads whose time is over, the oldest first; `used` ones stay."""
        items = [*self._ended_runs(inventory, used), *self._unused_uploads(inventory, used)]
        return sorted(filter(self._is_overdue, items), key=_by_time)

    def list_spare(self, inventory: Inventory, used: Collection[Path]) -> list[Candidate]:
        """All that may go to make room, in the order in which it goes; `used` runs and uploads stay."""
        overdue, present = self.list_overdue(inventory, used), self._clock()
        caches = (item for item in self._caches(inventory, used) if self._is_old(item, present))
        items = [*self._ended_runs(inventory, used), *self._unused_uploads(inventory, used)]
        old = (item for item in items if not item.is_shared and self._is_old(item, present))
        trashed = self._trashed(inventory, used)
        ordered = [*trashed, *overdue, *sorted(caches, key=_by_time), *sorted(old, key=_by_time)]
        return list({item.path: item for item in ordered}.values())

    def remove(self, item: Candidate) -> bool:
        """Remove something unless it is of use by now; whether it is gone."""
        with contextlib.suppress(OSError, RunError), self._run_lock:
            if self._may_still_go(item):
                if item.kind == "run":
                    runs.remove(self._folder.runs_dir, item.path.name)
                else:
                    remove_folder(item.path)
        return not os.path.lexists(item.path)

    def mark(self, removed: Collection[Candidate]) -> None:
        """Write down which runs were removed; a disk that is full does not keep them."""
        run_ids = [item.path.name for item in removed if item.kind == "run"]
        if run_ids:
            kept = [*self.read_marks(), *run_ids][-MOST_MARKS:]
            with contextlib.suppress(OSError, RunError):
                write_sealed(self._folder.runs_dir / EXPIRED_FILE, ExpiredRuns(run_ids=kept))

    def read_marks(self) -> list[str]:
        """The ids of runs that were removed; none if the record is lost."""
        try:
            path = self._folder.runs_dir / EXPIRED_FILE
            return read_record(path, ExpiredRuns, sealed=True).run_ids
        except DamagedError:
            return []

    def remove_empty_folders(self) -> None:
        """Remove the folders of visitors who have had no upload for as long as uploads are kept."""
        last = self._clock() - self._quotas.upload_seconds
        for folder in self._folder.owner_folders():
            with contextlib.suppress(OSError):
                if folder.stat().st_mtime <= last:
                    folder.rmdir()

    def _ended_runs(self, inventory: Inventory, used: Collection[Path]) -> Iterator[Candidate]:
        for run in inventory.runs:
            if run.ended is not None and run.owner is not None and run.folder not in used:
                yield Candidate("run", run.folder, run.ended, run.size, is_shared=run.is_shared)

    def _unused_uploads(self, inventory: Inventory, used: Collection[Path]) -> Iterator[Candidate]:
        last_uses, in_use = self._folder.last_uses(inventory), self._folder.uploads_in_use()
        for upload in inventory.uploads:
            if upload.owner is not None and upload.folder not in in_use and upload.folder not in used:
                yield Candidate("upload", upload.folder, last_uses[upload.folder], upload.size)

    def _caches(self, inventory: Inventory, used: Collection[Path]) -> Iterator[Candidate]:
        for file in self._folder.list_caches(inventory):
            if file.run not in used:
                size = self._folder.sizes.measure(file.path)
                yield Candidate("cache", file.path, file.last_used, size, file.run)

    def _trashed(self, inventory: Inventory, used: Collection[Path]) -> Iterator[Candidate]:
        sizes = dict(inventory.rest)
        for run in runs.list_trash(self._folder.runs_dir):
            if run.folder not in used:
                yield Candidate("trash", run.folder, run.deleted, sizes.get(run.folder, Size()))

    def _is_overdue(self, item: Candidate) -> bool:
        quotas = self._quotas
        kept = quotas.shared_run_seconds if item.is_shared else quotas.run_seconds
        return self._clock() - item.last_used >= (quotas.upload_seconds if item.kind == "upload" else kept)

    def _is_old(self, item: Candidate, present: float) -> bool:
        """Whether something may go to make room: nobody has just made it, or is about to use it."""
        quotas = self._quotas
        young = quotas.young_upload_seconds if item.kind == "upload" else quotas.young_run_seconds
        return present - item.last_used >= young

    def _may_still_go(self, item: Candidate) -> bool:
        if item.kind == "run":
            ownership = ownership_of(item.path)
            return ownership.owner is not None and item.is_shared == (ownership.link_sha256 is not None)
        return item.kind != "upload" or item.path not in self._folder.uploads_in_use()


def bytes_freed(candidates: Collection[Candidate]) -> int:
    """What the removal of all of them frees at most; a cache goes with its run."""
    paths = {item.path for item in candidates}
    return total_bytes(item.size for item in candidates if item.run not in paths)


def _by_time(item: Candidate) -> float:
    return item.last_used
