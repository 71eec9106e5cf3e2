"""Manifests: the SHA-256 and size of every file of a folder, written with it and verified as it is read.

A folder that a run makes holds `manifest.json`, sealed by its own digest, which names every other file in it.
`verify_folder` compares them before anything of the folder is used: a file that is missing, cut, changed by
one bit or not in the manifest raises DamagedError, so that damaged weights are never loaded silently. Hashing
is cached by path, modification time, size and inode, so that a folder is hashed once per process while it
stays as it is.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from peft_core.errors import DamagedError
from peft_core.files import Stamp, edited_folder, folder_lock, open_regular, stamp_of
from peft_core.records import Record, read_record, write_sealed

MANIFEST_FILE = "manifest.json"


class FileEntry(Record):
    """SHA-256 (64 hex digits) and size in bytes of one file."""

    sha256: str
    size: int


class Manifest(Record):
    """The files of a folder by their names inside it, with `/` between folders."""

    files: dict[str, FileEntry]


_hashed: dict[str, tuple[Stamp | None, str]] = {}


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, read again only if its time, size or inode changed since."""
    stamp, key = stamp_of(path), str(path.absolute())
    known = _hashed.get(key)
    if known is None or stamp is None or known[0] != stamp:
        with open_regular(path) as file:
            known = (stamp, hashlib.file_digest(file, "sha256").hexdigest())
        _hashed[key] = known
    return known[1]


def entries_of(folder: Path, *, without: tuple[str, ...] = ()) -> dict[str, FileEntry]:
    """Every regular file of a folder but the manifest, hidden files and those named in `without`."""
    files = ((name, path) for name, path in _files(folder) if path.is_file() and name not in without)
    return {name: _entry(path) for name, path in files}


def write_manifest(folder: Path, *names: str) -> None:
    """Write the manifest of a folder: of these files, or of all that it holds."""
    entries = {name: _entry(folder / name) for name in names} or entries_of(folder)
    write_sealed(folder / MANIFEST_FILE, Manifest(files=entries))


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder, whose files are not looked at; DamagedError if it is lost or damaged."""
    try:
        return read_record(folder / MANIFEST_FILE, Manifest, sealed=True)
    except DamagedError as error:
        raise DamagedError(f"{folder.name}/{error}") from error


def verify_folder(folder: Path) -> Manifest:
    """The manifest of a folder whose files are all there as they were written, and no others.

    Raises DamagedError, which names the first file that is not.
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
    """The path of a file that the folder's manifest names; DamagedError unless it is as it was written."""
    entry = read_manifest(folder).files.get(name)
    if entry is None:
        raise DamagedError(f"The {MANIFEST_FILE} of {folder.name}/ does not name {name!r}.")
    _verify_file(folder, name, entry)
    return folder / name


def replace_file(folder: Path, name: str, write: Callable[[Path], None]) -> None:
    """Replace or remove one file of a folder with a manifest, in one step: `write` gets the file's path in a
    copy of the folder, from which an earlier file of that name is gone.

    Raises DamagedError, and changes nothing, if a file of the folder is not as it was written.
    """
    with folder_lock(folder.parent):
        entries = verify_folder(folder).files
        with edited_folder(folder) as staging:
            for replaced in (name, MANIFEST_FILE):
                (staging / replaced).unlink(missing_ok=True)
            write(staging / name)
            kept = {other: entry for other, entry in entries.items() if other != name}
            if (staging / name).exists():
                kept[name] = _entry(staging / name)
            write_sealed(staging / MANIFEST_FILE, Manifest(files=kept))


def digest_of(files: dict[str, FileEntry]) -> str:
    """One SHA-256 for a set of files: of their names and hashes, in the order of the names."""
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
        if sha256_of(path) != entry.sha256:
            raise DamagedError(f"The file {name!r} of {folder.name}/ is damaged: its content has changed.")
    except FileNotFoundError as error:
        raise DamagedError(f"The file {name!r} of {folder.name}/ is missing.") from error
    except OSError as error:
        raise DamagedError(
            f"The file {name!r} of {folder.name}/ cannot be read: {error.strerror}."
        ) from error


def _entry(path: Path) -> FileEntry:
    return FileEntry(sha256=sha256_of(path), size=path.stat().st_size)


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Names and paths of all that a folder holds but folders, the manifest and what is hidden."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        is_hidden = any(part.startswith(".") for part in name.parts)
        if not path.is_dir() and name.as_posix() != MANIFEST_FILE and not is_hidden:
            yield name.as_posix(), path
