"""The downloads of a run: each of its folders as one zip, made from verified files and verified itself.

A zip lies in `downloads/KIND/` with a manifest of its own, and its comment names the digest of the files that
it was made from: it is made again whenever either does not fit, whatever the times of the files say.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path

from peft_core.errors import DamagedError, RunError
from peft_core.files import translate_disk_errors
from peft_core.manifests import FileEntry, digest_of, entries_of, verify_folder
from peft_core.runs import Run

# the folder of a run, the files without which there is nothing to download, and what makes them
KINDS: Mapping[str, tuple[str, str]] = {
    "adapter": ("*.safetensors", "train it first"),
    "merged": ("*.safetensors", "merge it first"),
    "onnx": ("onnx/*.onnx", "export it first"),
    "embeddings": ("*.safetensors", "make it first"),
    "page": ("index.html", "make it first"),
}
_WEIGHTS = (".safetensors", ".onnx", ".onnx_data", ".data", ".parquet")  # which do not compress


def zip_of(run: Run, kind: str) -> Path:
    """The zip of one of a run's folders, made anew if the folder has changed.

    Raises RunError if there is nothing to download, or DamagedError if a file of it is damaged.
    """
    with run.detect_deletion():
        folder = folder_of(run, kind)
        path = run.folder / "downloads" / kind / f"{run.run_id}-{kind}.zip"
        files = verified_files(run, folder)
        if _source_digest(path) != digest_of(files):
            with run.new_folder(path.parent) as staging:
                write_zip(staging / path.name, folder, files)
    return path


def folder_of(run: Run, kind: str) -> Path:
    """A run's folder of one of `KINDS`; RunError if it has none, or nothing is called that."""
    if kind not in KINDS:
        raise RunError(f"There is no download {kind!r}; it is one of {', '.join(KINDS)}.")
    folder, (needed, step) = run.folder / kind, KINDS[kind]
    if not any(folder.glob(needed)):
        if kind == "adapter":
            run.verify_adapter()
        raise RunError(f"The run {run.run_id!r} has no {kind} to download; {step}.")
    return folder


def verified_files(run: Run, folder: Path) -> dict[str, FileEntry]:
    """The files of one of a run's folders, every one as it was written; DamagedError if one is not."""
    if run.is_version_0:
        return entries_of(folder)
    run.verify(folder)
    return verify_folder(folder).files


def write_zip(path: Path, folder: Path, files: Mapping[str, FileEntry]) -> None:
    """Write files of a folder as a zip that names their digest. Weights are stored as they are."""
    with translate_disk_errors(), zipfile.ZipFile(path, "w", strict_timestamps=False) as archive:
        archive.comment = digest_of(dict(files)).encode()
        for name in files:
            kind = zipfile.ZIP_STORED if name.endswith(_WEIGHTS) else zipfile.ZIP_DEFLATED
            archive.write(folder / name, name, kind)


def _source_digest(path: Path) -> str | None:
    """The digest of the files that a zip was made from; None if there is no zip, or it is damaged."""
    try:
        verify_folder(path.parent)
        with zipfile.ZipFile(path) as archive:
            return archive.comment.decode()
    except (DamagedError, OSError, ValueError, zipfile.BadZipFile):
        return None
