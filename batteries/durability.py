"""Check that a log of operations survives a power cut: content is synced before its rename, and the folder of
the new name right after it.

Files are followed through renames by inode, folders by name. No reader opens a path with a staging name, so
only a rename out of staging requires that everything is synced.
"""

import os
from collections.abc import Callable, Iterable, Iterator

from batteries.fault_layer import Operation

_STAGING = ("/.staging-", "/.replaced-")


def unsynced_renames(operations: Iterable[Operation]) -> tuple[int, list[str]]:
    """Return the number of renames to visible names, and a problem for each that a power cut could undo."""
    log = _Log()
    problems = [problem for operation in operations for problem in log.add(operation)]
    return log.renames, [*problems, *log.end()]


class _Log:
    """Paths whose content or directory entries are not synced yet."""

    def __init__(self) -> None:
        self.renames = 0
        self._dirty: dict[str, int] = {}  # paths to inodes, 0 for a folder
        self._made: set[str] = set()  # visible new folders whose names are not synced
        self._waiting: tuple[str, str] | None = None  # a new name, and its folder, which must be synced next

    def add(self, operation: Operation) -> Iterator[str]:
        kind, path, target, inode = operation
        if self._waiting and (kind, path) != ("fsync", self._waiting[1]):
            yield from self.end()
        if kind == "fsync":
            self._made = {folder for folder in self._made if os.path.dirname(folder) != path}
            self._waiting = None if self._waiting and self._waiting[1] == path else self._waiting
            self._keep(lambda name: name != path and (not inode or self._dirty[name] != inode))
        elif kind == "remove":
            self._keep(lambda name: not _is_in(name, path))
        elif kind in ("rename", "exchange"):
            yield from self._rename(path, target, exchange=kind == "exchange")
        elif kind == "write":
            self._dirty[path] = inode
        else:
            self._dirty[os.path.dirname(target or path)] = 0
            if kind == "mkdir":
                self._dirty[path] = 0
                self._made |= set() if _is_staging(path) else {path}

    def end(self) -> Iterator[str]:
        """Yield a problem for a folder that still must be synced."""
        if self._waiting:
            name, folder = (os.path.basename(path) for path in self._waiting)
            yield f"{folder}/ was not synced right after {name} was renamed"
        self._waiting = None

    def _rename(self, path: str, target: str, *, exchange: bool) -> Iterator[str]:
        visible = not _is_staging(target)
        if visible:
            self.renames += 1
            for folder in sorted(folder for folder in self._made if _is_in(target, folder)):
                yield f"{os.path.basename(folder)}/ is new, and its name was not synced"
            for name in sorted(name for name in self._dirty if _is_in(name, path)):
                yield f"{os.path.basename(name)} was not synced before {os.path.basename(target)} was renamed"
        moved = {
            target + name[len(path) :]: inode for name, inode in self._dirty.items() if _is_in(name, path)
        }
        if exchange:
            back = (item for item in self._dirty.items() if _is_in(item[0], target))
            moved |= {path + name[len(target) :]: inode for name, inode in back}
        self._keep(lambda name: not _is_in(name, path) and not _is_in(name, target))
        self._dirty |= {**moved, os.path.dirname(target): 0}
        self._waiting = (target, os.path.dirname(target)) if visible else None

    def _keep(self, condition: Callable[[str], bool]) -> None:
        self._dirty = {name: inode for name, inode in self._dirty.items() if condition(name)}


def _is_staging(path: str) -> bool:
    return any(mark in path for mark in _STAGING)


def _is_in(name: str, folder: str) -> bool:
    return name == folder or name.startswith(f"{folder}/")
