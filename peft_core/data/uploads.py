"""Uploaded files: each set of them in a folder of its own, whole or not at all; only so many are kept.

Those of a visitor of a public demo lie in a folder of the visitor, which is named by the SHA-256 of the
visitor's token. Settings and answers name such an upload by `upload:` and its folder's name.
"""

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from peft_core.data.formats import MOST_BYTES, SUFFIXES, suffix_of
from peft_core.data.unpacking import describe_read_errors, size_of, unpacked_bytes
from peft_core.errors import DataError, reason_of
from peft_core.files import atomic_folder, link_or_copy
from peft_core.presets import DATASETS

UPLOADS = ".uploads"  # in the runs folder; a run's name never starts with a dot
PREFIX = "upload:"
MOST_FILES = 20
MOST_UPLOADS = 200
_FOLDER = re.compile(r"[a-z0-9-]{1,60}-[0-9a-f]{12}")
_OWNER = re.compile(r"[0-9a-f]{64}")
_OWNERS_FOLDER = re.compile(rf"/{re.escape(UPLOADS)}/[0-9a-f]{{64}}/")  # a visitor's, without its place


class Upload(NamedTuple):
    """The folder of a set of uploaded files, and whether it was made for them just now."""

    folder: Path
    is_new: bool


def store_upload(
    paths: Sequence[Path],
    uploads_dir: Path,
    *,
    in_use: Collection[str] = (),
    most_uploads: int = MOST_UPLOADS,
    most_bytes: int = MOST_BYTES,
    link: bool = False,
) -> Upload:
    """Copy files into a folder of `uploads_dir` named by their contents and names.

    With `link` files that nobody changes any more, such as those of gradio's cache, get a second name instead
    where they lie on the same disk. The oldest folders are pruned so that `most_uploads` are left; those in
    use (by path) stay. Raises DataError for no file, too many, a namesake, a suffix that is not read, or more
    than `most_bytes`.
    """
    paths = [Path(path) for path in paths]
    check_files(paths, most_bytes)
    folder = uploads_dir / f"{_slug(paths[0])}-{_sha256(paths)}"
    is_new = not folder.is_dir()
    if not is_new:
        os.utime(folder)
    else:
        with atomic_folder(folder) as staging:
            for path in paths:
                _copy(path, staging / path.name, link=link)
    _prune(uploads_dir, {str(folder), *in_use}, most_uploads)
    return Upload(folder, is_new)


def is_upload(name: str, uploads_dir: Path) -> bool:
    """Whether a data set's name is a folder that `store_upload` made, and nothing else in disguise."""
    path = Path(name)
    return (
        path.parent == uploads_dir.absolute()
        and _FOLDER.fullmatch(path.name) is not None
        and path.is_dir()
        and not path.is_symlink()
    )


def hide_upload_folders(value: Any) -> Any:
    """A text, or JSON types that hold texts, in which visitors' uploads are named without their place."""
    match value:
        case str():
            return _without_places(value) if UPLOADS in value else value
        case dict():
            return {key: hide_upload_folders(entry) for key, entry in value.items()}
        case list():
            return [hide_upload_folders(entry) for entry in value]
    return value


def _without_places(text: str) -> str:
    """A text with `upload:` for each path of a visitor's folder, in a time that grows with its length alone.

    One pattern for whole paths would begin anew at each slash of a text that a stranger wrote.
    """
    parts, end = [], 0
    for folder in _OWNERS_FOLDER.finditer(text):
        before = text[end : folder.start()]
        parts += [before[: _start_of_path(before)], PREFIX]
        end = folder.end()
    return "".join([*parts, text[end:]])


def _start_of_path(text: str) -> int:
    """Where the path begins at which a text breaks off: after a quotation mark, else after the last blank."""
    quoted = max(text.rfind(mark) for mark in "'\"\n") + 1
    if quoted and text[quoted - 1] != "\n" and text[quoted : quoted + 1] in ("/", ""):
        return quoted
    word = "" if not text or text[-1].isspace() else text.rsplit(None, 1)[-1]
    return len(text) - len(word) + max(word.find("/"), 0)


def dataset_label(name: str) -> str:
    """What people read for a data set's name: a preset's label, or an upload's file names."""
    return DATASETS[name].label if name in DATASETS else upload_label(name) or name


def upload_label(name: str) -> str | None:
    """The file names of an upload by its folder, for people; None if the name is no upload.

    Of one that is named without its place, what its own name says.
    """
    path = Path(name.removeprefix(PREFIX))
    if not _FOLDER.fullmatch(path.name):
        return None
    if name.startswith(PREFIX):
        return path.name.rpartition("-")[0]
    parent = path.parent.parent if _OWNER.fullmatch(path.parent.name) else path.parent
    if parent.name != UPLOADS:
        return None
    with contextlib.suppress(OSError):  # a folder that was pruned
        return ", ".join(sorted(file.name for file in path.iterdir())) or None
    return None


def check_files(paths: Sequence[Path], most_bytes: int) -> None:
    """Raise DataError for no file, too many, a namesake, an unknown suffix, or over `most_bytes` unpacked."""
    if not paths or len(paths) > MOST_FILES:
        raise DataError(f"{len(paths)} files were given; give one to {MOST_FILES}.")
    names = [path.name for path in paths]
    for path in paths:
        if suffix_of(path) is None:
            raise DataError(f"{path.name!r} is no {' '.join(SUFFIXES)} file; save it as one of these.")
        if names.count(path.name) > 1:
            raise DataError(f"Two files are named {path.name!r}; give them names of their own.")
    size = 0
    for path in paths:  # a packed file counts as what it unpacks to, which is not read beyond the limit
        size += unpacked_bytes(path, most_bytes) if size <= most_bytes else size_of(path)
    if size > most_bytes:
        raise DataError(
            f"The files have {size / 1e6:,.1f} MB or more; at most {most_bytes / 1e6:,.0f} MB are taken, so "
            "leave out rows or columns that are not needed."
        )


def _copy(path: Path, target: Path, *, link: bool) -> None:
    try:
        (link_or_copy if link else shutil.copyfile)(path, target)
    except OSError as error:  # of a full disk, `atomic_folder` makes a sentence of its own
        raise DataError(f"{path.name!r} cannot be stored: {reason_of(error)}.") from error


def _slug(path: Path) -> str:
    return re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-")[:40] or "data"


def _sha256(paths: Sequence[Path]) -> str:
    """The first 12 hex digits of a hash of the names and contents, in whatever order they were given."""
    whole = hashlib.sha256()
    for path in sorted(paths, key=lambda path: path.name):
        with describe_read_errors(path.name), path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
        whole.update(path.name.encode("utf-8", "surrogatepass") + b"\0" + digest)
    return whole.hexdigest()[:12]


def _prune(uploads_dir: Path, in_use: Collection[str], most: int) -> None:
    folders = [path for path in uploads_dir.iterdir() if _FOLDER.fullmatch(path.name) and path.is_dir()]
    ages = []
    for path in folders:
        with contextlib.suppress(OSError):  # another app has removed it
            ages.append((path.stat().st_mtime, path))
    unused = [path for _, path in sorted(ages) if str(path) not in in_use]
    for path in unused[: max(0, len(ages) - most)]:
        shutil.rmtree(path, ignore_errors=True)
