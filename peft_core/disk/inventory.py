"""Inventory of the folder of runs: owner, size and last use of each run and upload, and what is in use."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from peft_core.disk.usage import FolderSizes, Size, list_entries, total_bytes
from peft_core.errors import DamagedError
from peft_core.files.records import read_json
from peft_core.runs import ENDED, Run, RunState
from peft_core.runs.ownership import Ownership, is_owner, read_ownership
from peft_core.runs.run import CONFIG_FILE
from peft_core.runs.store import TOKENS, UPLOADS
from peft_core.runs.trash import TRASH

_CACHES = ("downloads", "predictions")  # folders of a run whose files are recreated on request


@dataclass(frozen=True)
class StoredRun:
    """A run on the disk.

    Attributes:
        folder: The run folder.
        owner: SHA-256 of a visitor's token; None for the host, or if the record is damaged.
        is_shared: Whether it has a share link.
        size: Size of all its files.
        ended: When it ended, in seconds since the epoch; None while it waits or trains.
    """

    folder: Path
    owner: str | None
    is_shared: bool
    size: Size
    ended: float | None


@dataclass(frozen=True)
class StoredUpload:
    """A set of uploaded files: its folder, its owner (None for the host), its size, and its last use."""

    folder: Path
    owner: str | None
    size: Size
    last_used: float


class CachedFile(NamedTuple):
    """A file or folder that is recreated on request, the ended run that contains it, and its last use."""

    path: Path
    run: Path | None
    last_used: float


@dataclass(frozen=True)
class Inventory:
    """The contents of the folder of runs; `rest` is everything that is neither a run nor an upload."""

    runs: tuple[StoredRun, ...]
    uploads: tuple[StoredUpload, ...]
    rest: tuple[tuple[Path, Size], ...]

    @property
    def total_bytes(self) -> int:
        return total_bytes(self.sizes().values())

    def sizes(self) -> dict[Path, Size]:
        """Return the size of each run, upload and other file by its path."""
        return {stored.folder: stored.size for stored in (*self.runs, *self.uploads)} | dict(self.rest)

    def runs_of(self, owner: str | None) -> list[StoredRun]:
        return [run for run in self.runs if run.owner == owner]

    def uploads_of(self, owner: str | None) -> list[StoredUpload]:
        return [upload for upload in self.uploads if upload.owner == owner]

    def bytes_of(self, owner: str | None) -> int:
        """Return the bytes of one visitor's runs and uploads."""
        return total_bytes(stored.size for stored in (*self.runs_of(owner), *self.uploads_of(owner)))


class RunsFolder:
    """Reads the inventory of a folder of runs. Sizes and settings are cached between calls."""

    def __init__(self, runs_dir: Path) -> None:
        self.runs_dir = runs_dir
        self.sizes = FolderSizes()
        self._ended_runs: dict[str, StoredRun] = {}
        self._dataset_names: dict[Path, str] = {}

    def inventory(self) -> Inventory:
        """Return the current contents."""
        stored, rest = [], []
        for entry in list_entries(self.runs_dir):
            if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                stored.append(self._stored_run(entry.path))
            elif entry.name not in (UPLOADS, TRASH):
                rest.append((self.runs_dir / entry.name, self.sizes.measure(entry.path)))
        trashed = [self.runs_dir / TRASH / entry.name for entry in list_entries(self.runs_dir / TRASH)]
        uploads, stray_paths = self._uploads()
        rest += [(path, self.sizes.measure(path)) for path in (*trashed, *stray_paths)]
        return Inventory(tuple(stored), tuple(uploads), tuple(rest))

    def uploads_in_use(self) -> set[Path]:
        """Return the uploads that a waiting or training run uses."""
        unfinished = (run for run in self.list_runs() if ended_at(run.state()) is None)
        return {upload for run in unfinished if (upload := self._upload_of(run.folder)) is not None}

    def last_uses(self, inventory: Inventory) -> dict[Path, float]:
        """Return the last use of each upload: when it was stored, or its latest run ended or was created."""
        uses = {upload.folder: upload.last_used for upload in inventory.uploads}
        for run in inventory.runs:
            upload = self._upload_of(run.folder)
            if upload in uses:
                uses[upload] = max(uses[upload], run.ended or 0.0)
        return uses

    def list_runs(self) -> Iterator[Run]:
        for entry in list_entries(self.runs_dir):
            if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                yield Run(self.runs_dir / entry.name)

    def owner_folders(self) -> Iterator[Path]:
        """Yield the upload folders of the visitors."""
        for entry in list_entries(self.runs_dir / UPLOADS):
            if is_owner(entry.name):
                yield self.runs_dir / UPLOADS / entry.name

    def forget_missing(self) -> None:
        """Drop the cache entries of folders that no longer exist."""
        self.sizes.forget_missing()
        for folder in [folder for folder in list(self._dataset_names) if not folder.is_dir()]:
            self._dataset_names.pop(folder, None)
        for name in [name for name in list(self._ended_runs) if not os.path.isdir(name)]:
            self._ended_runs.pop(name, None)

    def list_caches(self, inventory: Inventory) -> Iterator[CachedFile]:
        """Yield the tokenized texts, and the zips and prediction files of ended runs."""
        yield from _cached_files(self.runs_dir / TOKENS, None)
        for run in inventory.runs:
            for name in _CACHES if run.ended is not None else ():
                yield from _cached_files(run.folder / name, run.folder)

    def _stored_run(self, name: str) -> StoredRun:
        """Return a run by its path; an ended run is cached until its folder changes."""
        cached = self._ended_runs.get(name)
        if cached is not None and cached.size is self.sizes.cached_size(name):
            return cached
        run = Run(Path(name))
        size = self.sizes.measure(name, cache=ended_at(run.state()) is not None)
        ended, ownership = ended_at(run.state()), ownership_of(run.folder)  # read after the folder's times
        stored = StoredRun(run.folder, ownership.owner, ownership.link_sha256 is not None, size, ended)
        if ended is not None:
            self._ended_runs[name] = stored
        return stored

    def _uploads(self) -> tuple[list[StoredUpload], list[Path]]:
        """Return the uploads, and the other paths in the folder of uploads."""
        stored, stray_paths = [], []
        for entry in list_entries(self.runs_dir / UPLOADS):
            path = self.runs_dir / UPLOADS / entry.name
            is_folder = entry.is_dir(follow_symlinks=False)
            owner = entry.name if is_folder and is_owner(entry.name) else None
            for upload in [path / child.name for child in list_entries(path)] if owner else [path]:
                if upload.name.startswith(".") or not is_folder:
                    stray_paths.append(upload)
                else:
                    size = self.sizes.measure(upload)
                    stored.append(StoredUpload(upload, owner, size, modified_at(upload)))
        return stored, stray_paths

    def _upload_of(self, run_dir: Path) -> Path | None:
        """Return the upload that a run trains on; None for other data sets and for damaged settings."""
        if run_dir not in self._dataset_names:
            with contextlib.suppress(DamagedError):
                self._dataset_names[run_dir] = str(read_json(run_dir / CONFIG_FILE).get("dataset_name"))
        parts = Path(self._dataset_names.get(run_dir, "")).parts
        if UPLOADS not in parts:
            return None
        return Path(self.runs_dir, *parts[parts.index(UPLOADS) :])


def ownership_of(run_dir: Path) -> Ownership:
    """Return the ownership of a run; that of a run of the host if the record is damaged or unreadable."""
    with contextlib.suppress(OSError):
        return read_ownership(run_dir)
    return Ownership()


def ended_at(state: RunState) -> float | None:
    """Return when a run ended, or its latest recorded time; None if it waits or trains."""
    if state.status not in ENDED:
        return None
    return max(state.ended or 0.0, state.started or 0.0, state.created)


def modified_at(path: Path) -> float:
    """Return the modification time of a file or folder; 0 if it is gone."""
    try:
        return os.lstat(path).st_mtime
    except OSError:
        return 0.0


def _cached_files(folder: Path, run: Path | None) -> Iterator[CachedFile]:
    for entry in list_entries(folder):
        if not entry.name.startswith("."):
            path = folder / entry.name
            yield CachedFile(path, run, modified_at(path))
