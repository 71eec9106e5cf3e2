"""Removal of old runs, uploads and cached files of a public demo: what may be removed, and in which order.

A run that waits or trains and the host's own runs and uploads are never removed; a shared run is removed only
for its age. Zips and prediction files of ended runs are removed first, since they are recreated on request.
Each candidate is checked again right before its removal, under the lock that is held to start runs: it may
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
from peft_core.files.atomic import remove_folder
from peft_core.files.records import Record, read_record, write_sealed

EXPIRED_FILE = ".expired.json"
MAX_MARKS = 2000


class Candidate(NamedTuple):
    """A file or folder that may be removed.

    Attributes:
        kind: What it contains.
        path: Its file or folder.
        last_used: Time of its last use, in seconds since the epoch.
        size: Its size.
        run: For a cache, the folder of its run.
        is_shared: Whether it is a run with a share link.
    """

    kind: Literal["trash", "run", "upload", "cache"]
    path: Path
    last_used: float
    size: Size
    run: Path | None = None
    is_shared: bool = False


class ExpiredRuns(Record):
    """The ids of removed runs, latest last."""

    run_ids: list[str] = []


class Expiry:
    """Lists and removes the candidates of one folder of runs."""

    def __init__(
        self, folder: RunsFolder, quotas: Quotas, clock: Callable[[], float], run_lock: AbstractContextManager
    ) -> None:
        self._folder, self._quotas, self._clock, self._run_lock = folder, quotas, clock, run_lock

    def list_overdue(self, inventory: Inventory, used: Collection[Path]) -> list[Candidate]:
        """Return the runs and uploads past their time, oldest first, without `used` ones."""
        candidates = [*self._ended_runs(inventory, used), *self._unused_uploads(inventory, used)]
        return sorted(filter(self._is_overdue, candidates), key=_by_time)

    def list_spare(self, inventory: Inventory, used: Collection[Path]) -> list[Candidate]:
        """Return all candidates to make room, in the order of removal, without `used` runs and uploads."""
        overdue, now = self.list_overdue(inventory, used), self._clock()
        caches = (cache for cache in self._caches(inventory, used) if self._is_old(cache, now))
        candidates = [*self._ended_runs(inventory, used), *self._unused_uploads(inventory, used)]
        old = (
            candidate for candidate in candidates if not candidate.is_shared and self._is_old(candidate, now)
        )
        trashed = self._trashed(inventory, used)
        ordered = [*trashed, *overdue, *sorted(caches, key=_by_time), *sorted(old, key=_by_time)]
        return list({candidate.path: candidate for candidate in ordered}.values())

    def remove(self, candidate: Candidate) -> bool:
        """Remove a candidate unless it is in use by now. Returns whether it is gone."""
        with contextlib.suppress(OSError, RunError), self._run_lock:
            if self._is_still_removable(candidate):
                if candidate.kind == "run":
                    runs.remove(self._folder.runs_dir, candidate.path.name)
                else:
                    remove_folder(candidate.path)
        return not os.path.lexists(candidate.path)

    def mark(self, removed: Collection[Candidate]) -> None:
        """Record which runs were removed. A full disk loses the record."""
        run_ids = [candidate.path.name for candidate in removed if candidate.kind == "run"]
        if run_ids:
            latest_ids = [*self.read_marks(), *run_ids][-MAX_MARKS:]
            with contextlib.suppress(OSError, RunError):
                write_sealed(self._folder.runs_dir / EXPIRED_FILE, ExpiredRuns(run_ids=latest_ids))

    def read_marks(self) -> list[str]:
        """Return the ids of removed runs; an empty list if the record is lost."""
        try:
            path = self._folder.runs_dir / EXPIRED_FILE
            return read_record(path, ExpiredRuns, sealed=True).run_ids
        except DamagedError:
            return []

    def remove_empty_folders(self) -> None:
        """Remove the upload folders of visitors that have been empty for as long as uploads are kept."""
        latest = self._clock() - self._quotas.upload_seconds
        for folder in self._folder.owner_folders():
            with contextlib.suppress(OSError):
                if folder.stat().st_mtime <= latest:
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

    def _is_overdue(self, candidate: Candidate) -> bool:
        quotas = self._quotas
        run_seconds = quotas.shared_run_seconds if candidate.is_shared else quotas.run_seconds
        seconds = quotas.upload_seconds if candidate.kind == "upload" else run_seconds
        return self._clock() - candidate.last_used >= seconds

    def _is_old(self, candidate: Candidate, now: float) -> bool:
        """Return whether a candidate may be removed to make room, since its last use is not recent."""
        quotas = self._quotas
        young = quotas.young_upload_seconds if candidate.kind == "upload" else quotas.young_run_seconds
        return now - candidate.last_used >= young

    def _is_still_removable(self, candidate: Candidate) -> bool:
        if candidate.kind == "run":
            ownership = ownership_of(candidate.path)
            return ownership.owner is not None and candidate.is_shared == (ownership.link_sha256 is not None)
        return candidate.kind != "upload" or candidate.path not in self._folder.uploads_in_use()


def bytes_freed(candidates: Collection[Candidate]) -> int:
    """Return the maximum of bytes that removing all candidates frees; a run's caches count in its size."""
    paths = {candidate.path for candidate in candidates}
    return total_bytes(candidate.size for candidate in candidates if candidate.run not in paths)


def _by_time(candidate: Candidate) -> float:
    return candidate.last_used
