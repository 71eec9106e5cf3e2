"""Cache what was read from a run folder until the signature of its files changes.

A signature is the time, size and inode of every file that `Run.damage` reads: those of the run folder itself,
of the adapter and of the result. Computing it costs a tenth of the reads that it saves, and each open page
polls once a second. A file that is changed in place within the clock's resolution and keeps its size is not
noticed; the app changes no file in place except metrics.jsonl, which grows.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

Signature = tuple[tuple[str, int, int, int], ...]
_VERIFIED_FOLDERS = ("adapter", "evaluation")  # of a run
_MAX_CACHED = 4096
_cache: dict[tuple[str, str], tuple[Signature, Any]] = {}
Content = TypeVar("Content")


def read_cached(kind: str, folder: Path, read: Callable[[], Content]) -> Content:
    """Return the cached result of `read` for a run folder; call it again if the signature has changed.

    The signature is taken before the files are read, so that a change during the read is noticed next time.

    Args:
        kind: Name of the content, part of the cache key.
        folder: The run folder.
        read: Reads the content from the folder.
    """
    key, signature = (kind, str(folder)), signature_of(folder)
    cached = _cache.get(key)
    if cached is None or cached[0] != signature:
        cached = (signature, read())
        if len(_cache) >= _MAX_CACHED:
            _cache.clear()
        _cache[key] = cached
    return cached[1]


def signature_of(folder: Path) -> Signature:
    """Return name, time, size and inode of the files of a run folder that are verified."""
    return tuple(sorted(_entries(str(folder), "", _VERIFIED_FOLDERS)))


def _entries(folder: str, prefix: str, subfolders: tuple[str, ...] | None) -> list[tuple[str, int, int, int]]:
    """Return the entries of a folder and, recursively, of its subfolders: of these, or of all if None."""
    entries = []
    try:
        with os.scandir(folder) as scanned:
            for entry in scanned:
                status, name = entry.stat(follow_symlinks=False), f"{prefix}{entry.name}"
                entries.append((name, status.st_mtime_ns, status.st_size, status.st_ino))
                if entry.is_dir() and (subfolders is None or entry.name in subfolders):
                    entries += _entries(entry.path, f"{name}/", None)
    except OSError:  # removed meanwhile, or not a folder: `read` reports it
        entries.append((f"{prefix}?", 0, 0, 0))
    return entries
