"""Files and folders that appear whole or not at all, and survive a power cut once they have appeared.

Why this holds. Content is written under a staging name that no reader looks at; every file of it and every
directory is fsynced before the rename, so a name never points at content that is not on disk. One rename (or,
where a folder replaces another, one exchange of the two names) makes it visible, and the parent directory is
fsynced after it, so that the rename itself survives. The old content is removed last. A process that dies at
any point leaves the old content or the new one under the name, and at most a staging folder, whose name says
which process made it: `sweep_staging` removes those of processes that are gone.

A folder gets its name under `folder_lock`, so that whoever replaces one file of it works on a copy of what
has that name until the copy takes its place.

Files are read through `open_regular`: a FIFO or a device under the name of a file would block the reader, or
never end.
"""

import contextlib
import ctypes
import errno
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from peft_core.errors import RunError, causes
from peft_core.process_identity import is_same_process, own_identity

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

DISK_FULL = "The disk is full: free some space and try again; nothing half-written is left."
DISK_ERROR = "The disk reports an error ({error}): check it; nothing half-written is left."
DISK_FAILED = (
    "The disk is full or reports an error: free some space or check it, and try again; nothing half-written "
    "is left."
)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_REGULAR = "it is not a regular file"
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)  # without it, opening a FIFO waits for its writer
_STAGING = re.compile(
    r"\.(?P<kind>staging|replaced)-(?P<pid>\d+)-(?P<process>[\w.-]+)-(?P<token>[0-9a-f]{8})-(?P<name>.+)"
)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # <fcntl.h>, <linux/fs.h>
# messages of safetensors, torch.save and datasets, whose errors have no errno: a full disk or a file that may
# not grow, a disk that fails, and a write that failed without the reason
_FULL = ("No space left", "File too large", "Not enough disk space")
_FAILED = ("Input/output error", "Read-only file system")
_UNKNOWN_CAUSE = ("unexpected pos", "iostream error")


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A staging path to write; it takes the place of `path` when the block ends, and is removed if it fails.

    Raises RunError for a disk that is full or fails.
    """
    staging = staging_path(path)
    try:
        with translate_disk_errors():
            yield staging
            fsync(staging)
            os.replace(staging, path)
            fsync(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):  # of a read-only disk, which would hide the first error
            staging.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_file_alone(path: Path) -> Iterator[Path]:
    """As `atomic_file`, for a writer that creates files beside the one it writes, such as safetensors.

    The staging path lies in a staging folder, with which the sweep removes what a killed writer left.
    """
    container = staging_path(path)
    try:
        with translate_disk_errors():
            container.mkdir()
            yield container / path.name
            fsync(container / path.name)
            os.replace(container / path.name, path)
            fsync(path.parent)
    finally:
        remove_tree(container)


@contextlib.contextmanager
def atomic_folder(final: Path, *, root: Path | None = None, parent_is_locked: bool = False) -> Iterator[Path]:
    """A staging folder to fill; it takes the place of `final` when the block ends, or is removed if it fails.

    It has the name of `final` already, in a folder of its own.

    Args:
        final: The folder to create or replace.
        root: A folder above `final` that must exist; by default every missing parent is created.
        parent_is_locked: Whether the caller holds `folder_lock` of the parent folder.

    Raises:
        RunError: The disk is full or fails, or a parent's name belongs to a file.
        FileNotFoundError: `root` does not exist, or was removed before the block ended.
    """
    container = staging_path(final)
    staging = container / final.name
    try:
        with translate_disk_errors():
            make_folder(final.parent, root)
            container.mkdir()
            staging.mkdir()
            yield staging
            fsync_tree(staging)
            with contextlib.nullcontext() if parent_is_locked else folder_lock(final.parent):
                _swap(staging, final)
    except BaseException:
        shutil.rmtree(container, ignore_errors=True)
        raise
    try:
        with translate_disk_errors():
            fsync(final.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            container.rmdir()  # unless the old content is in it, which stays for the sweep
        raise
    shutil.rmtree(container, ignore_errors=True)


@contextlib.contextmanager
def edited_folder(final: Path) -> Iterator[Path]:
    """As `atomic_folder`, with the files of `final` in it already, as hard links: replace them, never write
    into them.

    The caller holds `folder_lock(final.parent)`: otherwise a folder that takes the name meanwhile is lost.
    """
    with atomic_folder(final, parent_is_locked=True) as staging:
        shutil.copytree(final, staging, copy_function=link_or_copy, dirs_exist_ok=True)
        yield staging


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Keep other threads and processes from replacing what lies directly in a folder; not reentrant.

    The system releases it when the process ends. Without effect where a file system has no such locks.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file to read its bytes; OSError for anything else, such as a FIFO or a device."""
    return open(path, "rb", opener=_open_regular)


class Stamp(NamedTuple):
    """What tells whether a file was written since; a rename into its place changes the inode."""

    mtime_ns: int
    size: int
    inode: int


def stamp_of(path: Path | str) -> Stamp | None:
    """The stamp of a file, or None if it cannot be looked at."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return Stamp(status.st_mtime_ns, status.st_size, status.st_ino)


def make_folder(folder: Path, root: Path | None = None) -> None:
    """Create a folder and its missing parents, each of which survives a power cut from then on.

    Args:
        folder: The folder.
        root: A folder above it, or itself, that is not created if it is missing.

    Raises:
        RunError: The name of one of them belongs to a file.
        FileNotFoundError: `root` does not exist.
    """
    if folder == root or folder.is_dir():
        return
    make_folder(folder.parent, root)
    try:
        folder.mkdir(exist_ok=True)
    except FileExistsError as error:
        raise RunError(f"{folder.name!r} is not a folder; move it elsewhere and try again.") from error
    fsync(folder.parent)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all. Raises ValueError for a number that JSON does not have."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with atomic_file(path) as staging, staging.open("w", encoding="utf-8") as file:
        file.write(text)


def staging_path(final: Path, kind: str = "staging") -> Path:
    """A name beside `final` that nothing else has; it says which process writes under it."""
    return final.with_name(f".{kind}-{os.getpid()}-{own_identity()}-{secrets.token_hex(4)}-{final.name}")


def sweep_staging(folder: Path) -> int:
    """Remove what dead processes left half-written in a folder; returns how many files and folders.

    A folder that was being replaced where the system cannot exchange names is put back first.
    """
    if not folder.is_dir():
        return 0
    swept = 0
    for path in list(folder.iterdir()):
        staging = _STAGING.fullmatch(path.name)
        if staging is None or is_same_process(int(staging["pid"]), staging["process"]):
            continue
        if staging["kind"] == "replaced" and not path.with_name(staging["name"]).exists():
            path.rename(path.with_name(staging["name"]))
        else:
            remove_tree(path)
            swept += 1
    return swept


def remove_tree(path: Path) -> None:
    """Remove a file or folder if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder if it is there; its name is gone at once, and nobody sees half of it.

    Where the disk has no room even for the new name, its files are removed under the old one.
    """
    doomed = staging_path(folder)
    try:
        folder.rename(doomed)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        doomed = folder
    remove_tree(doomed)


def fsync(path: Path) -> None:
    """Wait until a file's content, or a directory's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY | _NONBLOCK)
    try:
        os.fsync(descriptor)
    except OSError as error:  # FIFOs have no fsync, nor have directories of some network file systems
        if path.is_file() or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def fsync_tree(folder: Path) -> None:
    """Wait until every file and directory of a folder is on disk, the folder itself last."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            fsync(Path(parent, name))
        fsync(Path(parent))


def describe_disk_error(error: BaseException) -> str | None:
    """Return the message for an error that comes from a disk; None for any other error."""
    for numbers, texts, sentence in (
        (NO_ROOM, _FULL, DISK_FULL),
        ((errno.EIO, errno.EROFS), _FAILED, DISK_ERROR),
        ((), _UNKNOWN_CAUSE, DISK_FAILED),
    ):
        for cause in causes(error):
            number = getattr(cause, "errno", None)
            text = next((text for text in texts if text in str(cause)), None)
            if number in numbers or text:
                return sentence.format(error=os.strerror(number) if number in numbers else text)
    return None


@contextlib.contextmanager
def translate_disk_errors() -> Iterator[None]:
    """Raise RunError for a disk that is full or fails; other errors pass."""
    try:
        yield
    except RunError:
        raise
    except Exception as error:
        sentence = describe_disk_error(error)
        if sentence is None:
            raise
        raise RunError(sentence) from error


def _open_regular(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | _NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, NOT_REGULAR, path)
    return descriptor


def _swap(staging: Path, final: Path) -> None:
    """Give the staging folder the final name; what had that name before is under the staging name then."""
    if not final.exists():
        os.replace(staging, final)
    elif not _exchange(staging, final):
        replaced = staging_path(final, "replaced")
        os.replace(final, replaced)
        try:
            os.replace(staging, final)
        except OSError:
            os.replace(replaced, final)
            raise
        os.replace(replaced, staging)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step (Linux renameat2); False where the system or its disk cannot."""
    rename = getattr(_libc(), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(other))


def _libc() -> Any:
    try:
        return ctypes.CDLL(None, use_errno=True)
    except (OSError, TypeError):
        return None


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Make a hard link, or a copy on another disk or a file system without links.

    A link costs nothing and keeps its content, since files of a run are replaced and never written into.
    """
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
