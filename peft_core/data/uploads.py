"""Storage of uploaded files: one folder per set of files, created atomically, with a limit on their number.

Uploads of a visitor of a public demo are in the visitor's own folder, which is named by the SHA-256 of the
visitor's token. Settings and API responses refer to such an upload as `upload:` plus its folder's name.
"""

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from peft_core.data.formats import MAX_FILE_BYTES, SUFFIXES, suffix_of
from peft_core.data.unpacking import describe_read_errors, size_of, unpacked_bytes
from peft_core.errors import DataError, reason_of
from peft_core.files.atomic import atomic_folder, link_or_copy
from peft_core.models.presets import DATASETS

UPLOADS = ".uploads"  # in the runs folder; a run ID never starts with a dot
PREFIX = "upload:"
MAX_FILES = 20
MAX_UPLOADS = 200
_FOLDER = re.compile(r"[a-z0-9-]{1,60}-[0-9a-f]{12}")
_OWNER = re.compile(r"[0-9a-f]{64}")
_VISITOR_FOLDER = re.compile(rf"/{re.escape(UPLOADS)}/[0-9a-f]{{64}}/")  # part of a path


class Upload(NamedTuple):
    """The folder of a set of uploaded files.

    Attributes:
        is_new: Whether the folder was created for them just now.
    """

    folder: Path
    is_new: bool


def store_upload(
    paths: Sequence[Path],
    uploads_dir: Path,
    *,
    in_use: Collection[str] = (),
    max_uploads: int = MAX_UPLOADS,
    max_bytes: int = MAX_FILE_BYTES,
    link: bool = False,
) -> Upload:
    """Copy files into a folder of `uploads_dir` that is named by their contents and names.

    Args:
        paths: The uploaded files.
        uploads_dir: Parent folder of all uploads.
        in_use: Paths of upload folders that must not be removed.
        max_uploads: Number of folders to keep; the oldest unused ones are removed.
        max_bytes: Limit of the unpacked size of all files.
        link: Create hard links where possible; for files that no longer change, as in Gradio's cache.

    Raises:
        DataError: If there is no file, or too many, two have the same name, a suffix is not supported, or
            they are too large.
    """
    paths = [Path(path) for path in paths]
    check_files(paths, max_bytes)
    folder = uploads_dir / f"{_slug(paths[0])}-{_sha256(paths)}"
    is_new = not folder.is_dir()
    if not is_new:
        os.utime(folder)
    else:
        with atomic_folder(folder) as staging:
            for path in paths:
                _copy(path, staging / path.name, link=link)
    _prune(uploads_dir, {str(folder), *in_use}, max_uploads)
    return Upload(folder, is_new)


def is_upload(name: str, uploads_dir: Path) -> bool:
    """Return whether a data set name is a folder that `store_upload` created, and not a symbolic link."""
    path = Path(name)
    return (
        path.parent == uploads_dir.absolute()
        and _FOLDER.fullmatch(path.name) is not None
        and path.is_dir()
        and not path.is_symlink()
    )


def hide_upload_folders(value: Any) -> Any:
    """Replace the parent path of visitors' uploads by `upload:` in all texts of a JSON value."""
    match value:
        case str():
            return _hide_visitor_folders(value) if UPLOADS in value else value
        case dict():
            return {key: hide_upload_folders(entry) for key, entry in value.items()}
        case list():
            return [hide_upload_folders(entry) for entry in value]
    return value


def _hide_visitor_folders(text: str) -> str:
    """Replace the parent path of each visitor's upload in a text by `upload:`, in linear time.

    A single pattern for whole paths would restart at each slash of an untrusted text.
    """
    parts: list[str] = []
    end = 0
    for folder in _VISITOR_FOLDER.finditer(text):
        before = text[end : folder.start()]
        parts += [before[: _start_of_path(before)], PREFIX]
        end = folder.end()
    return "".join([*parts, text[end:]])


def _start_of_path(text: str) -> int:
    """Return the start of the path at the end of a text: after a quotation mark, or the last space."""
    quoted = max(text.rfind(mark) for mark in "'\"\n") + 1
    if quoted and text[quoted - 1] != "\n" and text[quoted : quoted + 1] in ("/", ""):
        return quoted
    word = "" if not text or text[-1].isspace() else text.rsplit(None, 1)[-1]
    return len(text) - len(word) + max(word.find("/"), 0)


def dataset_label(name: str) -> str:
    """Return the display name of a data set: a preset's label, an upload's file names, or the name itself."""
    return DATASETS[name].label if name in DATASETS else upload_label(name) or name


def upload_label(name: str) -> str | None:
    """Return the file names of an upload for display; None if the name is not an upload.

    For a name with the prefix `upload:` the label is derived from the name itself.
    """
    path = Path(name.removeprefix(PREFIX))
    if not _FOLDER.fullmatch(path.name):
        return None
    if name.startswith(PREFIX):
        return path.name.rpartition("-")[0]
    parent = path.parent.parent if _OWNER.fullmatch(path.parent.name) else path.parent
    if parent.name != UPLOADS:
        return None
    with contextlib.suppress(OSError):  # a folder that has been removed
        return ", ".join(sorted(file.name for file in path.iterdir())) or None
    return None


def check_files(paths: Sequence[Path], max_bytes: int) -> None:
    """Check files before they are stored.

    Raises:
        DataError: If there is no file, or too many, two have the same name, a suffix is not supported, or
            they unpack to over `max_bytes`.
    """
    if not paths or len(paths) > MAX_FILES:
        raise DataError(f"{len(paths)} files were given; give one to {MAX_FILES}.")
    names = [path.name for path in paths]
    for path in paths:
        if suffix_of(path) is None:
            raise DataError(f"{path.name!r} is not a {' '.join(SUFFIXES)} file; save it as one of these.")
        if names.count(path.name) > 1:
            raise DataError(f"Two files are named {path.name!r}; give them names of their own.")
    size = 0
    for path in paths:  # a compressed file counts with its unpacked size, which is not read beyond the limit
        size += unpacked_bytes(path, max_bytes) if size <= max_bytes else size_of(path)
    if size > max_bytes:
        raise DataError(
            f"The files have {size / 1e6:,.1f} MB or more; at most {max_bytes / 1e6:,.0f} MB are taken, so "
            "leave out rows or columns that are not needed."
        )


def _copy(path: Path, target: Path, *, link: bool) -> None:
    try:
        (link_or_copy if link else shutil.copyfile)(path, target)
    except OSError as error:  # `atomic_folder` translates the error of a full disk
        raise DataError(f"{path.name!r} cannot be stored: {reason_of(error)}.") from error


def _slug(path: Path) -> str:
    return re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-")[:40] or "data"


def _sha256(paths: Sequence[Path]) -> str:
    """Return 12 hex digits of a hash of the names and contents, independent of the order of the files."""
    total = hashlib.sha256()
    for path in sorted(paths, key=lambda path: path.name):
        with describe_read_errors(path.name), path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
        total.update(path.name.encode("utf-8", "surrogatepass") + b"\0" + digest)
    return total.hexdigest()[:12]


def _prune(uploads_dir: Path, in_use: Collection[str], max_uploads: int) -> None:
    """Remove the oldest unused upload folders until `max_uploads` are left."""
    folders = [path for path in uploads_dir.iterdir() if _FOLDER.fullmatch(path.name) and path.is_dir()]
    ages = []
    for path in folders:
        with contextlib.suppress(OSError):  # another app has removed it
            ages.append((path.stat().st_mtime, path))
    unused = [path for _, path in sorted(ages) if str(path) not in in_use]
    for path in unused[: max(0, len(ages) - max_uploads)]:
        shutil.rmtree(path, ignore_errors=True)
