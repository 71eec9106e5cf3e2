"""Sizes of folders, cached: a folder is walked again only if one of its subfolders has changed.

A file counts in whole blocks of 4 KB, so that many tiny files are not free, and by its length, so that a
sparse file counts with its full size. A file with several hard links counts once; symlinks are not followed.
What cannot be read counts as 0.

A walk is cached with the times of every folder in it: creating, removing or replacing a file changes the
times of its folder. A file that grows in place does not, so folders in which files grow must not be cached;
folders that changed within the last ticks of the file system's clock are not cached either.
"""

import contextlib
import os
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

_BLOCK = 4096
_CLOCK_TICK_NS = 100_000_000  # Linux file systems have a time resolution of 10 ms or less


class LinkedFile(NamedTuple):
    """A file with several hard links, and its size in bytes."""

    device: int
    inode: int
    size: int


class Size(NamedTuple):
    """The size of a folder: bytes of the files with one name, and the files with several hard links."""

    own: int = 0
    linked: frozenset[LinkedFile] = frozenset()


class _Walk(NamedTuple):
    size: Size
    folders: tuple[tuple[str, tuple[int, int]], ...]  # each with its times


class FolderSizes:
    """Sizes of files and folders, cached between calls. Thread-safe."""

    def __init__(self) -> None:
        self._walks: dict[str, _Walk] = {}

    def measure(self, path: str | Path, *, cache: bool = True) -> Size:
        """Return the size of a folder or a file; 0 if it does not exist.

        Args:
            path: The folder or file.
            cache: Whether the size may be cached; False for a folder in which files grow in place.
        """
        name = str(path)
        cached = self.cached_size(name)
        if cached is not None:
            return cached
        walk = _walk(name)
        if cache and walk.folders and not _has_just_changed(walk):
            self._walks[name] = walk
        else:
            self._walks.pop(name, None)
        return walk.size

    def cached_size(self, name: str) -> Size | None:
        """Return the cached size; None if there is none, or a file was created, removed or replaced since."""
        walk = self._walks.get(name)
        if walk is None or any(_times_of(folder) != times for folder, times in walk.folders):
            return None
        return walk.size

    def forget_missing(self) -> None:
        """Drop the cached sizes of folders that no longer exist."""
        for name in list(self._walks):
            if not os.path.lexists(name):
                self._walks.pop(name, None)


def total_bytes(sizes: Iterable[Size]) -> int:
    """Return the bytes of several folders together; a file with links in more than one counts once."""
    own, linked = 0, set[LinkedFile]()
    for size in sizes:
        own += size.own
        linked |= size.linked
    return own + sum(file.size for file in linked)


def list_entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder; an empty list if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def describe_bytes(count: float) -> str:
    """Format a number of bytes for display, such as "12 MB" or "1.9 GB"."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= 0.9995 * size:
            return f"{_format_number(count / size)} {unit}"
    return f"{_format_number(count / 1e3)} KB" if count else "0 MB"


def _format_number(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0") if number < 10 else f"{number:,.0f}"


def _walk(name: str) -> _Walk:
    own, linked, folders = 0, set[LinkedFile](), []
    pending = [name]
    while pending:
        folder = pending.pop()
        times = _times_of(folder)  # before its entries are read: a later change of them changes the times
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
    """Yield the status and path of a file, or of a folder and its entries."""
    with contextlib.suppress(OSError):
        status = os.lstat(folder)
        yield status, folder
        for entry in list_entries(folder) if stat.S_ISDIR(status.st_mode) else ():
            with contextlib.suppress(OSError):  # removed meanwhile
                yield entry.stat(follow_symlinks=False), entry.path


def _times_of(folder: str) -> tuple[int, int] | None:
    """Return the times of a folder, which change with its entries; None for a file, or if it is gone."""
    try:
        status = os.lstat(folder)
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_ctime_ns) if stat.S_ISDIR(status.st_mode) else None


def _in_blocks(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _has_just_changed(walk: _Walk) -> bool:
    return max(max(times) for _, times in walk.folders) > time.time_ns() - _CLOCK_TICK_NS
