"""The library that a page runs on: its pinned version, where browsers load it, and each file's checksum."""

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from peft_core.errors import ConfigError

PAGE = Path(__file__).parent / "static"  # what every page is made of, and the record of the library
RECORD = PAGE / "library.json"
# Browsers load the library here unless a page brings its own; the checksums hold wherever it comes from.
LIBRARY_URL = "https://cdn.jsdelivr.net/npm/"


def read_record() -> dict[str, Any]:
    """`package`, `version` and `files`: of each its name, package, path, bytes and integrity."""
    return json.loads(RECORD.read_text(encoding="utf-8"))


def library_files(base: str = LIBRARY_URL) -> list[dict[str, Any]]:
    """Of each file the `name`, `url`, `bytes` and `integrity`: the script, its loader and the WebAssembly.

    Raises ConfigError for an address that no browser loads scripts from.
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


def described(path: Path) -> dict[str, Any]:
    """A file's `bytes` and `integrity`, as a browser writes it: sha384 and the digest in base64."""
    digest = hashlib.sha384()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return {
        "bytes": path.stat().st_size,
        "integrity": f"sha384-{base64.b64encode(digest.digest()).decode()}",
    }
