"""The JavaScript library of an exported page: fetched by npm and checked against the record.

python tests/support/page_library.py FOLDER puts the pinned files into FOLDER, for a page's `vendor/`.
python tests/support/page_library.py --pin VERSION writes another version and its checksums into the record.
"""

import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from filelock import FileLock

from peft_core.export.page.weblibrary import RECORD, file_integrity, read_record

PACKAGE = "@huggingface/transformers"
RUNTIME = "onnxruntime-web"  # in the version that the package itself asks for
FILES = {
    PACKAGE: ["dist/transformers.min.js"],
    RUNTIME: ["dist/ort-wasm-simd-threaded.mjs", "dist/ort-wasm-simd-threaded.wasm"],
}


def fetch_library(folder: Path) -> Path:
    """Return the folder after fetching the pinned files that it lacks with npm."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"), tempfile.TemporaryDirectory() as scratch:
        for file in read_record()["files"]:
            expected = {key: file[key] for key in ("bytes", "integrity")}
            path = folder / file["name"]
            if path.is_file() and file_integrity(path) == expected:
                continue
            source = unpacked(file["package"], Path(scratch)) / file["path"]
            assert file_integrity(source) == expected, (
                f"{source.name} of {file['package']} is not the pinned file"
            )
            shutil.copyfile(source, path)
    return folder


def unpacked(package: str, scratch: Path) -> Path:
    """Return the unpacked folder of a package, downloaded and checked by npm, below `scratch`."""
    target = scratch / package.replace("/", "-")
    if not target.is_dir():
        target.mkdir()
        with tarfile.open(_packed(package, target)) as archive:
            archive.extractall(target, filter="data")
    return target / "package"


def pinned(version: str, scratch: Path) -> dict[str, Any]:
    """Return the record of a version: the files that a page loads, with their sizes and checksums."""
    package = f"{PACKAGE}@{version}"
    manifest = unpacked(package, scratch) / "package.json"
    dependencies = json.loads(manifest.read_text("utf-8"))["dependencies"]
    files = [
        {
            "name": Path(path).name,
            "package": name,
            "path": path,
            **file_integrity(unpacked(name, scratch) / path),
        }
        for name in (package, f"{RUNTIME}@{dependencies[RUNTIME]}")
        for path in FILES[name.rsplit("@", 1)[0]]
    ]
    return {"package": PACKAGE, "version": version, "files": files}


def _packed(package: str, folder: Path) -> Path:
    npm = shutil.which("npm")
    assert npm, (
        "No npm: the page's tests take its library from a package; install Node.js and run them again."
    )
    command = [npm, "pack", "--silent", "--ignore-scripts", "--pack-destination", str(folder), package]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"npm could not fetch {package}: {done.stderr.strip()[-300:]}"
    return next(folder.glob("*.tgz"))


def main() -> int:
    if len(sys.argv) == 3 and sys.argv[1] == "--pin":
        with tempfile.TemporaryDirectory() as scratch:
            record = pinned(sys.argv[2], Path(scratch))
        RECORD.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        print(RECORD.read_text(encoding="utf-8"))
        return 0
    if len(sys.argv) == 2 and not sys.argv[1].startswith("-"):
        print(fetch_library(Path(sys.argv[1])))
        return 0
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
