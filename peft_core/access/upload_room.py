"""Room on the disk for what gradio keeps of uploads.

Gradio writes an upload to files `tmp…` in its folder of uploads, then moves each into a folder there that is
named by a hash, and removes it after a day. Here the folder gets a bound, and the disk a floor of free space.

Why they hold. An upload reserves its bytes before the first one is read, and gets no more. Uploads are
admitted one after another: each adds up what is reserved, and then what lies in the folder, so that bytes
whose reservation ends meanwhile are in one of the two sums. A file that still arrives is covered by its
upload's reservation and not counted a second time. Where room is lacking, what has lain there for some
minutes goes, the oldest first: by then the page has had it stored as a data set. What the app hands out lies
beside it under other names, and is neither counted nor removed.
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

LEAST_FILE_BYTES = 25_000  # what a small file counts as, since files without content cost inodes and time
_CACHED = re.compile(r"[0-9a-f]{64}")
_ARRIVING = re.compile(r"tmp\w+")


@dataclass(frozen=True)
class RoomLimits:
    """How much uploads may take.

    Attributes:
        total_bytes: of all that are kept or arrive.
        least_free_bytes: that stay free on the disk.
        seconds_kept: that an upload stays at least.
        arriving_seconds: after which a file does not arrive any more, but was left by an app that was killed.
    """

    total_bytes: int = 1_000_000_000
    least_free_bytes: int = 2_000_000_000
    seconds_kept: float = 600.0
    arriving_seconds: float = 400.0


@dataclass(frozen=True)
class _Entry:
    """A folder of gradio's, or a file that was left."""

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
        """
        Args:
            folder: Gradio's folder of uploads; it need not be there yet.
            limits: By default those of `RoomLimits`.
            clock: Seconds since the epoch.
            free_bytes: Free space on the disk; by default that of the folder.
        """
        self._folder, self._limits, self._clock = folder, limits or RoomLimits(), clock
        self._free_bytes = free_bytes or (lambda: _free_bytes(folder))
        self._reserved = 0
        self._admission = asyncio.Lock()

    @asynccontextmanager
    async def reserve(self, size: int) -> AsyncIterator[None]:
        """Let so many bytes count until the block ends.

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
        """Remove old uploads until the reserved bytes fit, or raise a Refusal: nothing goes in vain."""
        entries = sorted(self._entries(), key=lambda entry: entry.used)
        lacking = self._lacking(reserved, entries)
        if lacking <= 0:
            return
        leaving = _first_of_size(entries, lacking)
        seconds = leaving[-1].used + self._limits.seconds_kept - self._clock() if leaving else 0.0
        if seconds > 0 or not leaving:
            raise _no_room(seconds or self._limits.seconds_kept)
        for entry in leaving:
            _remove(entry.path)
        if self._lacking(reserved, self._entries()) > 0:  # a small file frees less than it counts
            raise _no_room(0.0)

    def _lacking(self, reserved: int, entries: Iterable[_Entry]) -> int:
        """How many bytes must go before the reserved ones fit; 0 or less if they fit."""
        return max(
            sum(entry.size for entry in entries) + reserved - self._limits.total_bytes,
            self._limits.least_free_bytes + reserved - self._free_bytes(),
        )

    def _entries(self) -> Iterator[_Entry]:
        for path in self._folder.iterdir() if self._folder.is_dir() else ():
            with contextlib.suppress(FileNotFoundError):  # gradio has moved or removed it
                if _CACHED.fullmatch(path.name) and not path.is_symlink():
                    yield _entry(path, path.iterdir())
                elif _ARRIVING.fullmatch(path.name) and path.is_file():
                    left = _entry(path, [path])
                    if left.used + self._limits.arriving_seconds < self._clock():
                        yield left


def _entry(path: Path, files: Iterable[Path]) -> _Entry:
    """What a folder or a file counts as. A copy of gradio's has the time of its original, its folder not."""
    stats = [file.lstat() for file in files]
    size = sum(max(stat.st_size, LEAST_FILE_BYTES) for stat in stats)
    used = max(stat.st_mtime for stat in (*stats, path.lstat()))
    return _Entry(path, max(size, LEAST_FILE_BYTES), used)


def _first_of_size(entries: Iterable[_Entry], size: int) -> list[_Entry]:
    """The first entries that have so many bytes together; none if all of them have fewer."""
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
