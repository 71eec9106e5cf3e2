"""What a person takes away of a run, each kind a folder that becomes one zip."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

from peft_core.errors import RunError
from peft_core.runs import Run, whole_file

# the folder of a run, the files without which there is nothing to take, and what makes them
KINDS: Mapping[str, tuple[str, str]] = {
    "adapter": ("*.safetensors", "train it first"),
    "merged": ("*.safetensors", "merge it first"),
    "onnx": ("onnx/*.onnx", "export it first"),
    "embeddings": ("*.safetensors", "make it first"),
    "page": ("index.html", "make it first"),
}


def zip_of(run: Run, kind: str) -> Path:
    """The zip of one of a run's folders, written anew if the folder has changed.

    Weights do not compress, so files are stored as they are. Raises RunError if there is nothing to take.
    """
    folder = folder_of(run, kind)
    path = run.folder / f"{run.run_id}-{kind}.zip"
    files = {
        str(file.relative_to(folder).as_posix()): file for file in sorted(folder.rglob("*")) if file.is_file()
    }
    if _holds(path, files):
        return path
    with whole_file(path) as staging, zipfile.ZipFile(staging, "w", zipfile.ZIP_STORED) as archive:
        for name, file in files.items():
            archive.write(file, name)
    return path


def folder_of(run: Run, kind: str) -> Path:
    """A run's folder of one of `KINDS`; RunError if it has none, or nothing is called that."""
    if kind not in KINDS:
        raise RunError(f"There is no download {kind!r}; it is one of {', '.join(KINDS)}.")
    folder, (needed, step) = run.folder / kind, KINDS[kind]
    if not any(folder.glob(needed)):
        raise RunError(f"The run {run.run_id!r} has no {kind} to download; {step}.")
    return folder


def _holds(path: Path, files: Mapping[str, Path]) -> bool:
    """Whether a zip is whole, holds just these files, and is as new as each of them."""
    try:
        with zipfile.ZipFile(path) as archive:
            held = {entry.filename: entry.file_size for entry in archive.infolist()}
    except (OSError, zipfile.BadZipFile):
        return False
    found = {name: file.stat() for name, file in files.items()}
    written = path.stat().st_mtime
    return held == {name: stat.st_size for name, stat in found.items()} and all(
        stat.st_mtime <= written for stat in found.values()
    )
