"""Disk space of a public demo: quotas, reservations, and the removal of old files.

Why the quotas hold: every large write (upload, training, merge, export) first reserves its bytes. A
reservation is granted under one lock, after the contents of the folder of runs and all reservations were
added up, and it counts until it is released; of many simultaneous requests only those pass that fit together.
A training writes for longer than the request that submitted it: `keep_until_ended` lets its reservation
count, less what the run has written, until the run has ended. Reservations are listed before the folder is
read, so that bytes written under a reservation that is released meanwhile are counted.

If space is short, a reservation removes the least needed files, or nothing if that would not be enough.
"""

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from peft_core import runs
from peft_core.disk.expiry import Candidate, Expiry, bytes_freed
from peft_core.disk.inventory import Inventory, RunsFolder, ended_at, ownership_of
from peft_core.disk.quotas import Quotas, Usage
from peft_core.disk.usage import describe_bytes, total_bytes
from peft_core.errors import StorageError
from peft_core.runs import Run
from peft_core.runs.trash import TRASH, TRASH_SECONDS

__all__ = ["Quotas", "Reservation", "Storage", "Usage"]
_DEMO_IS_FULL = "This public demo's disk is full; try again in an hour, when older runs have been removed."


@dataclass(eq=False)
class Reservation:
    """Reserved bytes, which count until they are released. The end of a `with` block releases them.

    Attributes:
        owner: SHA-256 of the visitor's token; None for the host.
        size: Bytes.
        uses: Folders of runs and uploads that are not removed meanwhile.
        on_release: Called by `release`.
        run_id: The run that writes the bytes, if the reservation lasts until that run has ended.
    """

    owner: str | None
    size: int
    uses: frozenset[Path]
    on_release: Callable[["Reservation"], None] = field(repr=False)
    run_id: str | None = None

    def keep_until_ended(self, run_id: str) -> None:
        """Keep the reservation until a run that was just submitted has ended, less what it has written."""
        self.run_id = run_id

    def release(self) -> None:
        """End the reservation."""
        self.on_release(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.run_id is None:
            self.release()


class Storage:
    """Keeps one folder of runs within its quotas. Thread-safe."""

    def __init__(
        self,
        runs_dir: Path,
        quotas: Quotas | None = None,
        *,
        clock: Callable[[], float] = time.time,
        free_bytes: Callable[[], int] | None = None,
        run_lock: AbstractContextManager[Any] | None = None,
    ) -> None:
        """Manage the disk space of a folder of runs.

        Args:
            runs_dir: The folder of runs.
            quotas: Limits; by default those of `Quotas`.
            clock: Returns seconds since the epoch.
            free_bytes: Returns the free space on the disk; by default that of `runs_dir`.
            run_lock: The lock held to start, delete or restore runs, such as `Launcher.lock`. Calling this
                class while holding it is a deadlock.
        """
        self.runs_dir, self.quotas = runs_dir.resolve(), quotas or Quotas()
        self._clock = clock
        self._free_bytes = free_bytes or (lambda: _free_bytes(self.runs_dir))
        self._folder = RunsFolder(self.runs_dir)
        self._expiry = Expiry(self._folder, self.quotas, clock, run_lock or contextlib.nullcontext())
        self._reservations: list[Reservation] = []
        self._lock = threading.RLock()

    def usage(self, owner: str | None) -> Usage:
        """Return the disk usage of a visitor, or with None of the host."""
        inventory = self._folder.inventory()
        own_runs, own_uploads = inventory.runs_of(owner), inventory.uploads_of(owner)
        return Usage(
            run_bytes=total_bytes(run.size for run in own_runs),
            upload_bytes=total_bytes(upload.size for upload in own_uploads),
            total_bytes=inventory.bytes_of(owner),
            runs=len(own_runs),
            uploads=len(own_uploads),
            quota_bytes=self.quotas.visitor_bytes,
        )

    def reserve(
        self, owner: str | None, needed_bytes: int, noun: str, *, uses: Collection[Path] = ()
    ) -> Reservation:
        """Reserve bytes before they are written, and make room for them.

        Args:
            owner: SHA-256 of the visitor's token; None for the host, who has no quota.
            needed_bytes: Estimate of the bytes to be written.
            noun: A noun for the error message, such as "upload" or "training".
            uses: Folders of runs and uploads that are read meanwhile, and so must not be removed.

        Raises:
            StorageError: The bytes do not fit into the visitor's quota, or the demo is full.
        """
        with self._lock:
            self._refuse_over_quota(owner, needed_bytes, noun)
            if not self._make_room(needed_bytes, uses):
                raise StorageError(_DEMO_IS_FULL)
            return self._add(owner, needed_bytes, uses)

    def reserve_restore(self, run_id: str) -> Reservation:
        """Reserve a deleted run's bytes in its owner's quota, before the run is restored.

        Raises:
            StorageError: They no longer fit.
        """
        trashed = self.runs_dir / TRASH / run_id
        with self._lock:
            size = total_bytes([self._folder.sizes.measure(trashed)])
            owner = ownership_of(trashed).owner
            self._refuse_over_quota(owner, size, "run")
            return self._add(owner, size, (trashed,))

    def reserve_copy(self, run: Path, folder: Path) -> Reservation:
        """Reserve the bytes of a copy of a folder or file of a run, for anyone who may read the run.

        The copy counts in nobody's quota.

        Raises:
            StorageError: The demo is full.
        """
        return self.reserve(None, total_bytes([self._folder.sizes.measure(folder)]), "download", uses=(run,))

    def expire(self) -> list[str]:
        """Remove the runs and uploads past their time, and return their names."""
        with self._lock:
            runs.purge_trash(self.runs_dir, TRASH_SECONDS, now=self._clock())
            state = self._read()
            removed = self._remove(self._expiry.list_overdue(state.inventory, state.used))
            self._expiry.remove_empty_folders()
            self._folder.forget_missing()
            return [candidate.path.name for candidate in removed]

    def was_expired(self, run_id: str) -> bool:
        """Return whether a run was removed for its age or to make room."""
        return run_id in self._expiry.read_marks()

    def _refuse_over_quota(self, owner: str | None, needed: int, noun: str) -> None:
        quota = self.quotas.visitor_bytes
        if owner is None or self._read().bytes_of(owner) + needed <= quota:
            return
        if needed > quota:
            raise StorageError(
                f"This {noun} needs about {describe_bytes(needed)}, and a visitor of this public demo may "
                f"use {describe_bytes(quota)}; take a smaller one."
            )
        self.expire()
        used = self._read().bytes_of(owner)
        if used + needed > quota:
            raise StorageError(
                f"You use {describe_bytes(used)} of {describe_bytes(quota)} and this {noun} needs about "
                f"{describe_bytes(needed)} more; delete a run."
            )

    def _make_room(self, needed: int, uses: Collection[Path]) -> bool:
        """Remove candidates until the bytes fit. Returns False, and removes nothing, if they cannot fit."""
        state = self._read()
        lacking = self._lacking(needed, state)
        if lacking <= 0:
            return True
        spare = self._expiry.list_spare(state.inventory, state.used.union(uses))
        if bytes_freed(spare) < lacking:
            return False
        self._remove(spare, lambda: self._lacking(needed, self._read()) <= 0)
        return self._lacking(needed, self._read()) <= 0

    def _lacking(self, needed: int, state: "_State") -> int:
        """Return how many bytes must be removed before the needed ones fit; 0 or less if they fit."""
        expected = needed + sum(map(state.outstanding, state.reservations))
        return max(
            state.inventory.total_bytes + expected - self.quotas.total_bytes,
            self.quotas.min_free_bytes + expected - self._free_bytes(),
        )

    def _remove(
        self, candidates: Collection[Candidate], is_enough: Callable[[], bool] = lambda: False
    ) -> list[Candidate]:
        """Remove candidates in order until `is_enough` returns True; return those that are gone."""
        removed: list[Candidate] = []
        try:
            for candidate in candidates:
                if self._expiry.remove(candidate):
                    removed.append(candidate)
                    if is_enough():
                        break
        finally:
            self._expiry.mark(removed)
        return removed

    def _read(self) -> "_State":
        """Release the reservations of ended runs, list the others, and then read the folder."""
        for reservation in list(self._reservations):
            run_id = reservation.run_id
            if run_id is not None and ended_at(Run(self.runs_dir / run_id).state()) is not None:
                reservation.release()
        return _State(tuple(self._reservations), self._folder.inventory())

    def _add(self, owner: str | None, size: int, uses: Collection[Path]) -> Reservation:
        reservation = Reservation(owner, size, frozenset(uses), self._release)
        self._reservations.append(reservation)
        return reservation

    def _release(self, reservation: Reservation) -> None:
        with self._lock:
            if reservation in self._reservations:
                self._reservations.remove(reservation)


class _State(NamedTuple):
    """The reservations, and the contents of the folder of runs, which were read after them."""

    reservations: tuple[Reservation, ...]
    inventory: Inventory

    @property
    def used(self) -> frozenset[Path]:
        return frozenset(path for reservation in self.reservations for path in reservation.uses)

    def bytes_of(self, owner: str) -> int:
        """Return the bytes of a visitor, including reserved ones."""
        own = (reservation for reservation in self.reservations if reservation.owner == owner)
        return self.inventory.bytes_of(owner) + sum(map(self.outstanding, own))

    def outstanding(self, reservation: Reservation) -> int:
        """Return the reserved bytes that are not written yet; all of them unless its run is set."""
        written = (run.size for run in self.inventory.runs if run.folder.name == reservation.run_id)
        return max(0, reservation.size - total_bytes(written))


def _free_bytes(folder: Path) -> int:
    """Return the free space on the disk of a folder, which need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
