"""What a person takes away: the adapter and the merged model, each as one zip."""

import zipfile
from pathlib import Path

from peft_core.errors import RunError
from peft_core.runs import Run, whole_file

KINDS = ("adapter", "merged")


def zip_of(run: Run, kind: str) -> Path:
    """The zip of a run's `adapter/` or `merged/` folder, written anew if the folder is newer.

    Safetensors do not compress, so files are stored as they are. Raises RunError if there is nothing to take.
    """
    folder = folder_of(run, kind)
    path = run.folder / f"{run.run_id}-{kind}.zip"
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    if path.is_file() and path.stat().st_mtime >= max(file.stat().st_mtime for file in files):
        return path
    with whole_file(path) as staging, zipfile.ZipFile(staging, "w", zipfile.ZIP_STORED) as archive:
        for file in files:
            archive.write(file, file.relative_to(folder))
    return path


def folder_of(run: Run, kind: str) -> Path:
    """A run's `adapter/` or `merged/` folder; RunError if it has none, or nothing is called that."""
    if kind not in KINDS:
        raise RunError(f"There is no download {kind!r}; it is one of {', '.join(KINDS)}.")
    folder = run.folder / kind
    if not any(folder.glob("*.safetensors")):
        step = "train it first" if kind == "adapter" else "merge it first"
        raise RunError(f"The run {run.run_id!r} has no {kind} to download; {step}.")
    return folder
