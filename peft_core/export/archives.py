"""Zip downloads of a run's folders, built from verified files.

A zip lies in `downloads/KIND/` with a manifest of its own. Its comment holds the digest of the files that it
was built from. It is rebuilt whenever the manifest or the digest does not match; file times play no role.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path

from peft_core.errors import DamagedError, RunError
from peft_core.export.onnx.report import read_onnx_report
from peft_core.files.atomic import translate_disk_errors
from peft_core.files.manifests import FileEntry, digest_of, entries_of, verify_folder
from peft_core.merging.certificate import verified_certificate
from peft_core.runs import Run

# kind (and folder name): glob of the files that a download needs, and what the error message advises
KINDS: Mapping[str, tuple[str, str]] = {
    "adapter": ("*.safetensors", "train it first"),
    "merged": ("*.safetensors", "merge it first"),
    "onnx": ("onnx/*.onnx", "export it first"),
    "embeddings": ("*.safetensors", "export it first"),
    "page": ("index.html", "export it first"),
}
_WEIGHTS = (".safetensors", ".onnx", ".onnx_data", ".data", ".parquet")  # do not compress further


def zip_of(run: Run, kind: str) -> Path:
    """Return the path of the zip of one of a run's folders, and rebuild it if the folder has changed.

    Raises:
        RunError: there is nothing to download.
        DamagedError: a file of the folder is damaged.
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
    """Return a run's folder of a kind; RunError if the kind is unknown or the folder has no files for it."""
    if kind not in KINDS:
        raise RunError(f"There is no download {kind!r}; it is one of {', '.join(KINDS)}.")
    folder, (pattern, advice) = run.folder / kind, KINDS[kind]
    if not any(folder.glob(pattern)):
        if kind == "adapter":
            run.verify_adapter()
        raise RunError(f"The run {run.run_id!r} has no {kind} to download; {advice}.")
    return folder


def verified_files(run: Run, folder: Path) -> dict[str, FileEntry]:
    """Verify a folder of a run and return its files.

    Raises:
        RunError: a merged model or an ONNX model is of an earlier adapter, as after Continue.
        DamagedError: a file has changed or is missing.
    """
    if run.is_version_0:
        return entries_of(folder)
    run.verify(folder)
    if folder == run.merged:
        verified_certificate(run)
    if folder == run.onnx and read_onnx_report(run) is None:
        raise RunError(f"The ONNX model of {run.run_id!r} belongs to an earlier adapter; export it again.")
    return verify_folder(folder).files


def write_zip(path: Path, folder: Path, files: Mapping[str, FileEntry]) -> None:
    """Write files of a folder as a zip whose comment is their digest; weights are stored uncompressed."""
    with translate_disk_errors(), zipfile.ZipFile(path, "w", strict_timestamps=False) as archive:
        archive.comment = digest_of(dict(files)).encode()
        for name in files:
            compression = zipfile.ZIP_STORED if name.endswith(_WEIGHTS) else zipfile.ZIP_DEFLATED
            archive.write(folder / name, name, compression)


def _source_digest(path: Path) -> str | None:
    """Return the digest of the files that a zip was built from; None if the zip is missing or damaged."""
    try:
        verify_folder(path.parent)
        with zipfile.ZipFile(path) as archive:
            return archive.comment.decode()
    except (DamagedError, OSError, ValueError, zipfile.BadZipFile):
        return None
