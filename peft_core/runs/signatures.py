"""What a run's files look like from outside: what was read from them is read again only if that changed.

A signature is the time, size and inode of every file that `Run.damage` reads: those of the run folder itself,
of the adapter and of the result. Taking one costs a tenth of what it spares, and each open page asks once a
second. A file that is changed in place within the clock's grain and keeps its size is not noticed; nothing
that the app writes is changed in place but metrics.jsonl, which grows.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

Signature = tuple[tuple[str, int, int, int], ...]
_READ_WHOLE = ("adapter", "evaluation")  # folders of a run whose files are verified
_MOST_REMEMBERED = 4096
_remembered: dict[tuple[str, str], tuple[Signature, Any]] = {}
Read = TypeVar("Read")


def remember(what: str, folder: Path, read: Callable[[], Read]) -> Read:
    """What `read` returned for this run folder when its files were as they are now; reads it if it never did.

    The signature is taken before the files are read: what changes meanwhile is read again next time.
    """
    key, signature = (what, str(folder)), signature_of(folder)
    known = _remembered.get(key)
    if known is None or known[0] != signature:
        known = (signature, read())
        if len(_remembered) >= _MOST_REMEMBERED:
            _remembered.clear()
        _remembered[key] = known
    return known[1]


def signature_of(folder: Path) -> Signature:
    """Name, time, size and inode of the files of a run folder that tell what is damaged."""
    return tuple(sorted(_entries(str(folder), "", _READ_WHOLE)))


def _entries(folder: str, prefix: str, inner: tuple[str, ...] | None) -> list[tuple[str, int, int, int]]:
    """The entries of a folder, and those of its folders: of the ones named in `inner`, or of all."""
    entries = []
    try:
        with os.scandir(folder) as scanned:
            for entry in scanned:
                status, name = entry.stat(follow_symlinks=False), f"{prefix}{entry.name}"
                entries.append((name, status.st_mtime_ns, status.st_size, status.st_ino))
                if entry.is_dir() and (inner is None or entry.name in inner):
                    entries += _entries(entry.path, f"{name}/", None)
    except OSError:  # removed meanwhile, or not a folder: what reads it says so
        entries.append((f"{prefix}?", 0, 0, 0))
    return entries
