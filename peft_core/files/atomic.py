"""Atomic, durable writes of files and folders.

Why they are atomic and durable: content is written under a staging name that no reader opens. Every file and
directory is fsynced before the rename, so that a name never refers to content that is not on disk. One rename
(or, if a folder replaces another, one exchange of the two names) makes the content visible, and the parent
directory is fsynced after it, so that the rename itself survives a power cut. The old content is removed
last. A process that dies at any point leaves the old or the new content under the name, and at most a staging
folder, whose name identifies the process: `sweep_staging` removes those of dead processes.

A folder gets its name under `folder_lock`, so that replacing one of its files (in a copy of the folder, which
then takes its place) cannot overwrite a folder that took the name meanwhile.

Files are read through `open_regular`, since a FIFO or a device in place of a file would block the reader or
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
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

from peft_core.errors import RunError, causes
from peft_core.files.process_identity import is_same_process, own_identity

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
_STAGING_NAME = re.compile(
    r"\.(?P<kind>staging|replaced)-(?P<pid>\d+)-(?P<process>[\w.-]+)-(?P<token>[0-9a-f]{8})-(?P<name>.+)"
)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # <fcntl.h>, <linux/fs.h>
# Error messages of safetensors, torch.save and datasets, which set no errno.
_FULL = ("No space left", "File too large", "Not enough disk space")
_FAILED = ("Input/output error", "Read-only file system")
_UNKNOWN_CAUSE = ("unexpected pos", "iostream error")  # the write failed without a reason


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a staging path to write; it replaces `path` when the block ends, and is removed if it fails.

    Raises:
        RunError: The disk is full or fails.
    """
    staging = staging_path(path)
    try:
        with translate_disk_errors():
            yield staging
            fsync(staging)
            os.replace(staging, path)
            fsync(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):  # a read-only disk would replace the first error
            staging.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_file_alone(path: Path) -> Iterator[Path]:
    """Like `atomic_file`, for a writer that creates files beside the one it writes, such as safetensors.

    The staging path lies in a staging folder, which the sweep removes with everything a killed writer left.
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
    """Yield a staging folder to fill; it replaces `final` when the block ends, or is removed if it fails.

    It has the name of `final` already, inside a container folder.

    Args:
        final: The folder to create or replace.
        root: A folder above `final` that must exist; by default every missing parent is created.
        parent_is_locked: Whether the caller holds `folder_lock` for the parent folder.

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
            container.rmdir()  # fails if the old content is in it, which is left for the sweep
        raise
    shutil.rmtree(container, ignore_errors=True)


@contextlib.contextmanager
def edited_folder(final: Path) -> Iterator[Path]:
    """Like `atomic_folder`, with hard links to the files of `final` in the staging folder.

    Replace these files and never write into them. The caller must hold `folder_lock(final.parent)`, otherwise
    a folder that takes the name meanwhile is lost.
    """
    with atomic_folder(final, parent_is_locked=True) as staging:
        shutil.copytree(final, staging, copy_function=link_or_copy, dirs_exist_ok=True)
        yield staging


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Keep other threads and processes from replacing entries of a folder; not reentrant.

    The system releases the lock when the process ends. It has no effect on file systems without such locks.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file to read its bytes; raise OSError for anything else, such as a FIFO or a device."""
    return open(path, "rb", opener=_open_regular)


class Stamp(NamedTuple):
    """Time, size and inode of a file, by which a change is noticed; a replacement changes the inode."""

    mtime_ns: int
    size: int
    inode: int


def stamp_of(path: Path | str) -> Stamp | None:
    """Return the stamp of a file, or None if it cannot be accessed."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return Stamp(status.st_mtime_ns, status.st_size, status.st_ino)


def make_folder(folder: Path, root: Path | None = None) -> None:
    """Create a folder and its missing parents, durably.

    Args:
        folder: The folder.
        root: The folder itself or one above it, which must exist.

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


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically. Raises ValueError for NaN and infinity."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_file(path) as staging, staging.open("w", encoding="utf-8") as file:
        file.write(text)


def staging_path(final: Path, kind: str = "staging") -> Path:
    """Return a unique path beside `final` whose name identifies this process."""
    return final.with_name(f".{kind}-{os.getpid()}-{own_identity()}-{secrets.token_hex(4)}-{final.name}")


def sweep_staging(folder: Path) -> int:
    """Remove what dead processes left half written in a folder; return the number of files and folders.

    A folder that was being replaced, on a system that cannot exchange names, is restored first.
    """
    if not folder.is_dir():
        return 0
    swept = 0
    for path in list(folder.iterdir()):
        match = _STAGING_NAME.fullmatch(path.name)
        if match is None or is_same_process(int(match["pid"]), match["process"]):
            continue
        if match["kind"] == "replaced" and not path.with_name(match["name"]).exists():
            path.rename(path.with_name(match["name"]))
        else:
            remove_tree(path)
            swept += 1
    return swept


def remove_tree(path: Path) -> None:
    """Remove a file or folder if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder if it exists. A rename first makes it disappear at once, never partially.

    If the disk has no room even for the new name, its files are removed under the old one.
    """
    removed = staging_path(folder)
    try:
        folder.rename(removed)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        removed = folder
    remove_tree(removed)


def fsync(path: Path) -> None:
    """Wait until a file's content, or a directory's entries, are on disk."""
    descriptor = os.open(path, os.O_RDONLY | _NONBLOCK)
    try:
        os.fsync(descriptor)
    except OSError as error:  # FIFOs do not support fsync, nor do directories of some network file systems
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
    """Return the message for an error of the disk; None for any other error."""
    for codes, texts, message in (
        (NO_ROOM, _FULL, DISK_FULL),
        ((errno.EIO, errno.EROFS), _FAILED, DISK_ERROR),
        ((), _UNKNOWN_CAUSE, DISK_FAILED),
    ):
        for cause in causes(error):
            code: object = getattr(cause, "errno", None)
            if isinstance(code, int) and code in codes:
                return message.format(error=os.strerror(code))
            text = next((text for text in texts if text in str(cause)), None)
            if text:
                return message.format(error=text)
    return None


@contextlib.contextmanager
def translate_disk_errors() -> Iterator[None]:
    """Raise RunError if the disk is full or fails; other errors pass unchanged."""
    try:
        yield
    except RunError:
        raise
    except Exception as error:
        message = describe_disk_error(error)
        if message is None:
            raise
        raise RunError(message) from error


def _open_regular(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | _NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, NOT_REGULAR, path)
    return descriptor


def _swap(staging: Path, final: Path) -> None:
    """Give the staging folder the final name; a previous folder of that name gets the staging name."""
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


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names in one step (Linux renameat2). Returns False if the system or disk cannot."""
    rename = getattr(_libc(), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(second))


def _libc() -> Any:
    try:
        return ctypes.CDLL(None, use_errno=True)
    except (OSError, TypeError):
        return None


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Create a hard link, or a copy if that is impossible (another disk, or a file system without links).

    A link takes no space, and its content is stable, since files of a run are replaced, never modified.
    """
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
