"""Limits for gradio's folder of uploads: its total size, and the free space left on the disk.

Gradio writes an upload to files `tmp…` in its folder of uploads, moves each into a subfolder named by a hash,
and removes it after a day.

Why the limits hold: an upload reserves its bytes before the first one is read, and may not exceed them.
Uploads are admitted one at a time. Each admission adds up the reservations first and the folder's contents
second, so that bytes whose reservation ends meanwhile are in at least one of the two sums. A file that is
still arriving is covered by its upload's reservation and not counted a second time. If room is lacking,
uploads older than a few minutes are removed, oldest first: by then the page has stored them as data sets.
The app's downloads lie in the same folder under other names, and are neither counted nor removed.
"""

import asyncio
import contextlib
import re
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from peft_core.access.refusals import Refusal

MIN_FILE_BYTES = 25_000  # counted for a smaller file, since even empty files cost inodes and time
_CACHED = re.compile(r"[0-9a-f]{64}")
_ARRIVING = re.compile(r"tmp\w+")


@dataclass(frozen=True)
class RoomLimits:
    """Limits for the disk space of uploads.

    Attributes:
        total_bytes: Maximum size of all stored and arriving uploads.
        min_free_bytes: Free space that must remain on the disk.
        min_age_seconds: Younger uploads are never removed.
        arriving_seconds: An unfinished file older than this was left by an app that was killed.
    """

    total_bytes: int = 1_000_000_000
    min_free_bytes: int = 2_000_000_000
    min_age_seconds: float = 600.0
    arriving_seconds: float = 400.0


@dataclass(frozen=True)
class _Entry:
    """An upload folder of gradio, or an abandoned file."""

    path: Path
    size: int
    used: float


class UploadRoom:
    """Keeps gradio's folder of uploads within its limits. All calls come from one event loop."""

    def __init__(
        self,
        folder: Path,
        limits: RoomLimits | None = None,
        *,
        clock: Callable[[], float] = time.time,
        free_bytes: Callable[[], int] | None = None,
    ) -> None:
        """Manage gradio's folder of uploads.

        Args:
            folder: Gradio's folder of uploads; it need not exist yet.
            limits: By default those of `RoomLimits`.
            clock: Returns seconds since the epoch.
            free_bytes: Returns the free space on the disk; by default that of the folder.
        """
        self._folder, self._limits, self._clock = folder, limits or RoomLimits(), clock
        self._free_bytes = free_bytes or (lambda: _free_bytes(folder))
        self._reserved = 0
        self._admission = asyncio.Lock()

    @asynccontextmanager
    async def reserve(self, size: int) -> AsyncIterator[None]:
        """Reserve bytes until the block ends.

        Raises:
            Refusal: 503 if there is no room for them.
        """
        async with self._admission:
            await asyncio.to_thread(self._make_room, self._reserved + size)
            self._reserved += size
        try:
            yield
        finally:
            self._reserved -= size

    def _make_room(self, reserved: int) -> None:
        """Remove old uploads until the reserved bytes fit; if they cannot fit, raise a Refusal first."""
        entries = sorted(self._entries(), key=lambda entry: entry.used)
        lacking = self._lacking(reserved, entries)
        if lacking <= 0:
            return
        oldest = _first_of_size(entries, lacking)
        seconds = oldest[-1].used + self._limits.min_age_seconds - self._clock() if oldest else 0.0
        if seconds > 0 or not oldest:
            raise _no_room(seconds or self._limits.min_age_seconds)
        for entry in oldest:
            _remove(entry.path)
        if self._lacking(reserved, self._entries()) > 0:  # a small file frees less than it counts for
            raise _no_room(0.0)

    def _lacking(self, reserved: int, entries: Iterable[_Entry]) -> int:
        """Return how many bytes must be removed before the reserved ones fit; 0 or less if they fit."""
        return max(
            sum(entry.size for entry in entries) + reserved - self._limits.total_bytes,
            self._limits.min_free_bytes + reserved - self._free_bytes(),
        )

    def _entries(self) -> Iterator[_Entry]:
        for path in self._folder.iterdir() if self._folder.is_dir() else ():
            with contextlib.suppress(FileNotFoundError):  # gradio has moved or removed it
                if _CACHED.fullmatch(path.name) and not path.is_symlink():
                    yield _entry(path, path.iterdir())
                elif _ARRIVING.fullmatch(path.name) and path.is_file():
                    unfinished = _entry(path, [path])
                    if unfinished.used + self._limits.arriving_seconds < self._clock():
                        yield unfinished


def _entry(path: Path, files: Iterable[Path]) -> _Entry:
    """Return the entry of a folder or file, with the latest time of both: gradio's copies keep old times."""
    stats = [file.lstat() for file in files]
    size = sum(max(stat.st_size, MIN_FILE_BYTES) for stat in stats)
    used = max(stat.st_mtime for stat in (*stats, path.lstat()))
    return _Entry(path, max(size, MIN_FILE_BYTES), used)


def _first_of_size(entries: Iterable[_Entry], size: int) -> list[_Entry]:
    """Return the first entries that together have this size; an empty list if all are smaller."""
    first: list[_Entry] = []
    for entry in entries:
        first.append(entry)
        size -= entry.size
        if size <= 0:
            return first
    return []


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _no_room(seconds: float) -> Refusal:
    minutes = max(1, ceil(seconds / 60))
    when = "a minute" if minutes == 1 else f"{minutes} minutes"
    return Refusal(503, f"This demo has no room for more uploads. Try again in {when}.", 60 * minutes)


def _free_bytes(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
