"""transformers.js as the exported page uses it: pinned version, URLs and checksums."""

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from peft_core.errors import ConfigError

STATIC_FOLDER = Path(__file__).parent / "static"  # templates and scripts of a page, and the library record
RECORD = STATIC_FOLDER / "library.json"
# where browsers load the library unless the page ships it; the checksums hold for both
LIBRARY_URL = "https://cdn.jsdelivr.net/npm/"


def read_record() -> dict[str, Any]:
    """Return the library record: `package`, `version` and `files` (name, package, path, bytes, integrity)."""
    return json.loads(RECORD.read_text(encoding="utf-8"))


def library_files(base: str = LIBRARY_URL) -> list[dict[str, Any]]:
    """Return `name`, `url`, `bytes` and `integrity` of each library file: script, loader and WebAssembly.

    Raises:
        ConfigError: `base` is not an HTTP URL that ends in a slash.
    """
    if not re.fullmatch(r"https?://[\w.:@/-]+/", base, re.ASCII):
        raise ConfigError(f"The library's address is {base!r}; it must be a URL that ends in a slash.")
    return [
        {
            "name": file["name"],
            "url": f"{base}{file['package']}/{file['path']}",
            "bytes": file["bytes"],
            "integrity": file["integrity"],
        }
        for file in read_record()["files"]
    ]


def file_integrity(path: Path) -> dict[str, Any]:
    """Return a file's `bytes` and `integrity` (Subresource Integrity: `sha384-` and the digest in base64)."""
    digest = hashlib.sha384()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return {
        "bytes": path.stat().st_size,
        "integrity": f"sha384-{base64.b64encode(digest.digest()).decode()}",
    }
