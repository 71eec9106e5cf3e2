"""The SHA-256 of files, computed again only for a file that has changed."""

import hashlib
from pathlib import Path

from peft_core.files.atomic import Stamp, open_regular, stamp_of

_MAX_CACHED = 4096
_cache: dict[str, tuple[Stamp | None, str]] = {}


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits, cached until its time, size or inode changes."""
    stamp, key = stamp_of(path), str(path.absolute())
    cached = _cache.get(key)
    if cached is None or stamp is None or cached[0] != stamp:
        with open_regular(path) as file:
            cached = (stamp, hashlib.file_digest(file, "sha256").hexdigest())
        if len(_cache) >= _MAX_CACHED:
            _cache.clear()
        _cache[key] = cached
    return cached[1]
