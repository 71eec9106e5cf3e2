"""The disk of a public demo: quotas, reservations, and the removal of what is old.

Why the quotas hold. Whatever writes much (an upload, a training, a merge, an export) reserves its bytes
before. A reservation is granted under one lock, after all that lies in the folder of runs and all that is
reserved was added up, and it counts until it is released: of many who ask at once only those pass who fit
together. A training writes for longer than the request that submitted it takes: `keep_until_ended` lets its
reservation count, less what the run has written, until the run has ended. Reservations are listed before the
folder is read, so that what was written under one that is released meanwhile is counted.

If the demo is short of room, reserving removes what is needed least, and nothing if that would not be enough.
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
from peft_core.runs.trash import SECONDS_KEPT, TRASH

__all__ = ["Quotas", "Reservation", "Storage", "Usage"]
_DEMO_IS_FULL = "This public demo's disk is full; try again in an hour, when older runs go."


@dataclass(eq=False)
class Reservation:
    """Bytes that somebody is about to write; they count until it is released, as at the end of a `with`.

    Attributes:
        owner: SHA-256 of the visitor's token; None for the host.
        size: Bytes.
        uses: Folders of runs and uploads that stay meanwhile.
        run_id: The run that the bytes are for, if the reservation lasts until it has ended.
    """

    owner: str | None
    size: int
    uses: frozenset[Path]
    on_release: Callable[["Reservation"], None] = field(repr=False)
    run_id: str | None = None

    def keep_until_ended(self, run_id: str) -> None:
        """Let the bytes count until a run that was just submitted has ended, less what it has written."""
        self.run_id = run_id

    def release(self) -> None:
        """Let the bytes count no longer."""
        self.on_release(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.run_id is None:
            self.release()


class Storage:
    """Keeps one folder of runs within its quotas. Calls from several threads are safe."""

    def __init__(
        self,
        runs_dir: Path,
        quotas: Quotas | None = None,
        *,
        clock: Callable[[], float] = time.time,
        free_bytes: Callable[[], int] | None = None,
        run_lock: AbstractContextManager[Any] | None = None,
    ) -> None:
        """
        Args:
            runs_dir: The folder of runs.
            quotas: Limits; by default those of `Quotas`.
            clock: Seconds since the epoch.
            free_bytes: Free space on the disk; by default that of `runs_dir`.
            run_lock: Held by whoever starts, deletes or restores runs, such as `Launcher.lock`. Who holds
                it calls nothing here, or waits for ever.
        """
        self.runs_dir, self.quotas = runs_dir.resolve(), quotas or Quotas()
        self._clock = clock
        self._free_bytes = free_bytes or (lambda: _free_bytes(self.runs_dir))
        self._folder = RunsFolder(self.runs_dir)
        self._expiry = Expiry(self._folder, self.quotas, clock, run_lock or contextlib.nullcontext())
        self._reservations: list[Reservation] = []
        self._lock = threading.RLock()

    def usage(self, owner: str | None) -> Usage:
        """What the runs and uploads of a visitor take, or with None those of the host."""
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
        self, owner: str | None, needed_bytes: int, what: str, *, uses: Collection[Path] = ()
    ) -> Reservation:
        """Reserve bytes before they are written, and make room for them.

        Args:
            owner: SHA-256 of the visitor's token; None for the host, whom no quota of a visitor binds.
            needed_bytes: About how many bytes will be written.
            what: A noun for the message, such as "upload" or "training".
            uses: Folders of runs and uploads that are read meanwhile, so that they stay.

        Raises:
            StorageError: It does not fit into the visitor's quota, or the demo is full.
        """
        with self._lock:
            self._refuse_over_quota(owner, needed_bytes, what)
            if not self._make_room(needed_bytes, uses):
                raise StorageError(_DEMO_IS_FULL)
            return self._add(owner, needed_bytes, uses)

    def reserve_restore(self, run_id: str) -> Reservation:
        """Reserve a deleted run's bytes in its owner's quota, before the run is restored.

        Raises StorageError if they do not fit any more.
        """
        trashed = self.runs_dir / TRASH / run_id
        with self._lock:
            size = total_bytes([self._folder.sizes.measure(trashed)])
            owner = ownership_of(trashed).owner
            self._refuse_over_quota(owner, size, "run")
            return self._add(owner, size, (trashed,))

    def reserve_copy(self, run: Path, part: Path) -> Reservation:
        """Reserve the bytes of a copy of a part of a run, which anyone who may read it can ask for.

        It counts in nobody's quota. Raises StorageError if the demo is full.
        """
        return self.reserve(None, total_bytes([self._folder.sizes.measure(part)]), "download", uses=(run,))

    def expire(self) -> list[str]:
        """Remove what is past its time; returns the names of the runs and uploads."""
        with self._lock:
            runs.purge_trash(self.runs_dir, SECONDS_KEPT, now=self._clock())
            state = self._read()
            removed = self._remove(self._expiry.list_overdue(state.inventory, state.used))
            self._expiry.remove_empty_folders()
            self._folder.forget_missing()
            return [item.path.name for item in removed]

    def was_expired(self, run_id: str) -> bool:
        """Whether a run that is not there any more was removed for its age or to make room."""
        return run_id in self._expiry.read_marks()

    def _refuse_over_quota(self, owner: str | None, needed: int, what: str) -> None:
        most = self.quotas.visitor_bytes
        if owner is None or self._read().bytes_of(owner) + needed <= most:
            return
        if needed > most:
            raise StorageError(
                f"This {what} needs about {describe_bytes(needed)}, and a visitor of this public demo may "
                f"use {describe_bytes(most)}; take a smaller one."
            )
        self.expire()
        used = self._read().bytes_of(owner)
        if used + needed > most:
            raise StorageError(
                f"You use {describe_bytes(used)} of {describe_bytes(most)} and this {what} needs about "
                f"{describe_bytes(needed)} more; delete a run."
            )

    def _make_room(self, needed: int, uses: Collection[Path]) -> bool:
        """Remove what may go until so many bytes fit; False, and nothing is removed, if they cannot."""
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
        """How many bytes must go before so many more fit; 0 or less if they fit."""
        more = needed + sum(map(state.outstanding, state.reservations))
        return max(
            state.inventory.total_bytes + more - self.quotas.total_bytes,
            self.quotas.least_free_bytes + more - self._free_bytes(),
        )

    def _remove(
        self, items: Collection[Candidate], is_enough: Callable[[], bool] = lambda: False
    ) -> list[Candidate]:
        """Remove things in their order until it is enough; returns those that are gone."""
        removed: list[Candidate] = []
        try:
            for item in items:
                if self._expiry.remove(item):
                    removed.append(item)
                    if is_enough():
                        break
        finally:
            self._expiry.mark(removed)
        return removed

    def _read(self) -> "_State":
        """The reservations that count, and then the folder; those of runs that have ended are released."""
        for item in list(self._reservations):
            if item.run_id is not None and ended_at(Run(self.runs_dir / item.run_id).state()) is not None:
                item.release()
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
    """What is reserved, and what lay in the folder of runs after that was read."""

    reservations: tuple[Reservation, ...]
    inventory: Inventory

    @property
    def used(self) -> frozenset[Path]:
        return frozenset(path for item in self.reservations for path in item.uses)

    def bytes_of(self, owner: str) -> int:
        """The bytes of a visitor, reserved ones included."""
        own = (item for item in self.reservations if item.owner == owner)
        return self.inventory.bytes_of(owner) + sum(map(self.outstanding, own))

    def outstanding(self, reservation: Reservation) -> int:
        """The reserved bytes that are not written yet, as far as the run is known that writes them."""
        written = (run.size for run in self.inventory.runs if run.folder.name == reservation.run_id)
        return max(0, reservation.size - total_bytes(written))


def _free_bytes(folder: Path) -> int:
    """Free space on the disk of a folder, which need not be there yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
