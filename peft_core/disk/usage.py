"""How many bytes folders take, asked often: a folder is walked again only if one of its folders has changed.

A file counts as whole blocks of 4 KB, so that many tiny files are not free, and by its length, so that a file
with holes counts as what it may become. A file with several names counts once; symlinks are not followed.
What cannot be read counts as nothing.

A walk is kept with the times of every folder in it: a file that appears, goes or is replaced changes its
folder's. A file that grows under its name does not, so folders in which that happens must not be kept; nor
are those that changed within the last ticks of the file system's clock.
"""

import contextlib
import os
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

_BLOCK = 4096
_CLOCK_TICK_NS = 100_000_000  # file systems of Linux give times by ticks of 10 ms or less


class LinkedFile(NamedTuple):
    """A file that has several names, and its bytes."""

    device: int
    inode: int
    size: int


class Size(NamedTuple):
    """The bytes of a folder's files that have one name each, and its other files."""

    own: int = 0
    linked: frozenset[LinkedFile] = frozenset()


class _Walk(NamedTuple):
    size: Size
    folders: tuple[tuple[str, tuple[int, int]], ...]  # each with its times


class FolderSizes:
    """Sizes of files and folders, remembered between calls. Calls from several threads are safe."""

    def __init__(self) -> None:
        self._walks: dict[str, _Walk] = {}

    def measure(self, path: str | Path, *, keep: bool = True) -> Size:
        """The size of a folder, or of a file; nothing for one that is gone.

        `keep` is False where files grow under their names.
        """
        name = str(path)
        known = self.known_size(name)
        if known is not None:
            return known
        walk = _walk(name)
        if keep and walk.folders and not _has_just_changed(walk):
            self._walks[name] = walk
        else:
            self._walks.pop(name, None)
        return walk.size

    def known_size(self, name: str) -> Size | None:
        """The size as it was kept; None if a file appeared, went or was replaced since, or none was kept."""
        known = self._walks.get(name)
        if known is None or any(_times_of(folder) != times for folder, times in known.folders):
            return None
        return known.size

    def forget_missing(self) -> None:
        """Forget folders that are gone."""
        for name in list(self._walks):
            if not os.path.lexists(name):
                self._walks.pop(name, None)


def total_bytes(sizes: Iterable[Size]) -> int:
    """The bytes of several folders together; a file that has names in more than one counts once."""
    own, linked = 0, set[LinkedFile]()
    for size in sizes:
        own += size.own
        linked |= size.linked
    return own + sum(file.size for file in linked)


def list_entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """What lies in a folder; nothing if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def describe_bytes(count: float) -> str:
    """A number of bytes as people read it, such as "12 MB" or "1.9 GB"."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= 0.9995 * size:
            return f"{_digits(count / size)} {unit}"
    return f"{_digits(count / 1e3)} KB" if count else "0 MB"


def _digits(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0") if value < 10 else f"{value:,.0f}"


def _walk(name: str) -> _Walk:
    own, linked, folders = 0, set[LinkedFile](), []
    pending = [name]
    while pending:
        folder = pending.pop()
        times = _times_of(folder)  # before its names are read: what comes later changes them
        for status, path in _statuses(folder):
            if stat.S_ISDIR(status.st_mode):
                own += _BLOCK if path == folder else 0
                pending += [] if path == folder else [path]
            elif status.st_nlink > 1 and stat.S_ISREG(status.st_mode):
                linked.add(LinkedFile(status.st_dev, status.st_ino, _in_blocks(status.st_size)))
            else:
                own += _in_blocks(status.st_size)
        if times is not None:
            folders.append((folder, times))
    return _Walk(Size(own, frozenset(linked)), tuple(folders))


def _statuses(folder: str) -> Iterator[tuple[os.stat_result, str]]:
    """A folder's own status, or a file's, and of what lies in it."""
    with contextlib.suppress(OSError):
        status = os.lstat(folder)
        yield status, folder
        for entry in list_entries(folder) if stat.S_ISDIR(status.st_mode) else ():
            with contextlib.suppress(OSError):  # it has gone meanwhile
                yield entry.stat(follow_symlinks=False), entry.path


def _times_of(folder: str) -> tuple[int, int] | None:
    """When a folder's names changed; None if it is gone, or is a file."""
    try:
        status = os.lstat(folder)
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_ctime_ns) if stat.S_ISDIR(status.st_mode) else None


def _in_blocks(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _has_just_changed(walk: _Walk) -> bool:
    return max(max(times) for _, times in walk.folders) > time.time_ns() - _CLOCK_TICK_NS
