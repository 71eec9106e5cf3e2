"""Manifests: the SHA-256 and size of every file of a folder, written with it and verified before it is read.

Each folder that a run writes contains `manifest.json`, sealed by its own digest, which lists every other
file. `verify_folder` compares them before the folder is used: a file that is missing, truncated, changed by
one bit or not in the manifest raises DamagedError, so that damaged weights are never loaded silently. Hashes
are cached by path, modification time, size and inode, so that an unchanged folder is hashed once per process.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from peft_core.errors import DamagedError
from peft_core.files.atomic import edited_folder, folder_lock
from peft_core.files.hashing import sha256_of_file
from peft_core.files.records import Record, read_record, write_sealed

MANIFEST_FILE = "manifest.json"


class FileEntry(Record):
    """SHA-256 (64 hex digits) and size in bytes of one file."""

    sha256: str
    size: int


class Manifest(Record):
    """The files of a folder by their relative paths, with `/` as separator."""

    files: dict[str, FileEntry]


def entries_of(folder: Path, *, without: tuple[str, ...] = ()) -> dict[str, FileEntry]:
    """Return an entry for every regular file except the manifest, hidden files and those in `without`."""
    files = ((name, path) for name, path in _files(folder) if path.is_file() and name not in without)
    return {name: _entry(path) for name, path in files}


def write_manifest(folder: Path, *names: str) -> None:
    """Write the manifest of a folder for these files, or for all of its files."""
    entries = {name: _entry(folder / name) for name in names} or entries_of(folder)
    write_sealed(folder / MANIFEST_FILE, Manifest(files=entries))


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a folder without checking the files.

    Raises:
        DamagedError: The manifest is missing or damaged.
    """
    try:
        return read_record(folder / MANIFEST_FILE, Manifest, sealed=True)
    except DamagedError as error:
        raise DamagedError(f"{folder.name}/{error}") from error


def verify_folder(folder: Path) -> Manifest:
    """Verify all files of a folder, and return its manifest.

    Raises:
        DamagedError: A file is missing, damaged, or not in the manifest; the message names the first.
    """
    manifest = read_manifest(folder)
    for name, entry in manifest.files.items():
        _verify_file(folder, name, entry)
    strays = sorted({name for name, path in _files(folder)} - set(manifest.files))
    if strays:
        raise DamagedError(
            f"The folder {folder.name}/ holds {strays[0]!r}, which the run did not write; move it elsewhere."
        )
    return manifest


def verify_file(folder: Path, name: str) -> Path:
    """Verify one file of a folder, and return its path.

    Raises:
        DamagedError: The file is missing, damaged, or not in the manifest.
    """
    entry = read_manifest(folder).files.get(name)
    if entry is None:
        raise DamagedError(f"The {MANIFEST_FILE} of {folder.name}/ does not list {name!r}.")
    _verify_file(folder, name, entry)
    return folder / name


def replace_file(folder: Path, name: str, write: Callable[[Path], None]) -> None:
    """Replace or remove one file of a folder and update its manifest, atomically.

    Args:
        folder: The folder.
        name: Name of the file.
        write: Writes the file at the path that it is called with, or does not to remove the file. The path
            lies in a copy of the folder, from which an earlier file of that name was removed.

    Raises:
        DamagedError: A file of the folder is damaged; nothing was changed.
    """
    with folder_lock(folder.parent):
        entries = dict(verify_folder(folder).files)
        with edited_folder(folder) as staging:
            for replaced in (name, MANIFEST_FILE):
                (staging / replaced).unlink(missing_ok=True)
            write(staging / name)
            entries.pop(name, None)
            if (staging / name).exists():
                entries[name] = _entry(staging / name)
            write_sealed(staging / MANIFEST_FILE, Manifest(files=entries))


def digest_of(files: dict[str, FileEntry]) -> str:
    """Return one SHA-256 for a set of files: over their names and hashes, sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name}\0{files[name].sha256}\n".encode())
    return digest.hexdigest()


def _verify_file(folder: Path, name: str, entry: FileEntry) -> None:
    path = folder / name
    try:
        size = path.stat().st_size
        if size != entry.size:
            raise DamagedError(
                f"The file {name!r} of {folder.name}/ is damaged: it has {size:,} bytes, not {entry.size:,}."
            )
        if sha256_of_file(path) != entry.sha256:
            raise DamagedError(f"The file {name!r} of {folder.name}/ is damaged: its content has changed.")
    except FileNotFoundError as error:
        raise DamagedError(f"The file {name!r} of {folder.name}/ is missing.") from error
    except OSError as error:
        raise DamagedError(
            f"The file {name!r} of {folder.name}/ cannot be read: {error.strerror}."
        ) from error


def _entry(path: Path) -> FileEntry:
    return FileEntry(sha256=sha256_of_file(path), size=path.stat().st_size)


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield names and paths of all entries except folders, the manifest and hidden files."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        is_hidden = any(part.startswith(".") for part in name.parts)
        if not path.is_dir() and name.as_posix() != MANIFEST_FILE and not is_hidden:
            yield name.as_posix(), path
