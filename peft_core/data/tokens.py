"""Texts as tokens, made once: what was tokenized before is read again by its content.

An entry of the cache is one file: an Arrow stream and a footer with its number of rows and SHA-256. It is
written under a staging name, synced and renamed, so that it is there whole or not at all, also when two
processes write the same entry; what a dead process left is swept with the folder of runs. Both are checked
whenever it is read, because a stream that is cut between two batches and a flipped bit in a label are valid
Arrow. A damaged entry is made again.
"""

import contextlib
import hashlib
import json
import logging
import os
import struct
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset

from peft_core.data.labelled import cut
from peft_core.errors import RunError
from peft_core.files import atomic_file, make_folder

CACHE_BYTES = 1_000_000_000  # of all tokens that are kept; the oldest go first
_FOOTER = struct.Struct("<8sIQ32s")  # mark, schema version, rows, SHA-256 of what comes before
_MARK, _SCHEMA_VERSION = b"pwtokens", 1
_HASHED = 1 << 20  # bytes at a time

logger = logging.getLogger(__name__)


class DamagedCache(Exception):
    """A cache entry that is not what was written."""


def encode(rows: Dataset, tokenizer: Any, max_length: int, cache: Path | None = None) -> Dataset:
    """Columns `input_ids`, `attention_mask` (lists of int, unpadded) and `labels`, as `label` is.

    One row a text; a pair is one input, its two texts parted as the tokenizer does. In the folder `cache`
    they are kept under the hash of texts, labels, tokenizer and `max_length`, and taken from there.
    """

    def batch(columns: dict[str, list]) -> dict[str, list]:
        texts = [[cut(text, max_length) for text in columns[name]] for name in names]
        return {**tokenizer(*texts, truncation=True, max_length=max_length), "labels": columns["label"]}

    names = [name for name in ("text", "text_pair") if name in rows.column_names]
    content = _content_hash(rows, tokenizer, max_length)
    # without a backend the digest covers the vocabulary alone, which does not decide what a tokenizer answers
    has_backend = getattr(tokenizer, "backend_tokenizer", None) is not None
    kept = cache / f"{content}.arrow" if cache is not None and has_backend else None
    if kept is not None and kept.exists():
        try:
            return read_entry(kept, len(rows))
        except (DamagedCache, OSError) as error:
            logger.warning("The tokens in %s are unusable (%s); the texts are tokenized again.", kept, error)
    tokens = rows.map(
        batch, batched=True, remove_columns=rows.column_names, keep_in_memory=True, new_fingerprint=content
    )
    if kept is not None:
        _keep(tokens, kept)
    return tokens


def read_entry(path: Path, rows: int) -> Dataset:
    """The tokens of a cache entry that must hold so many rows. Raises DamagedCache, or OSError."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size - _FOOTER.size
        if size < 0:
            raise DamagedCache("it is cut short")
        digest = hashlib.sha256()
        while size > file.tell():
            digest.update(file.read(min(_HASHED, size - file.tell())))
        if file.read() != _footer(rows, digest):
            raise DamagedCache("its bytes are not those that were written")
    try:
        tokens = Dataset.from_file(str(path))
    except pa.ArrowInvalid as error:
        raise DamagedCache(str(error)) from error
    if len(tokens) != rows:
        raise DamagedCache(f"it holds {len(tokens):,} of {rows:,} rows")
    with contextlib.suppress(OSError):  # a folder that may only be read
        os.utime(path)  # used last
    return tokens


def _footer(rows: int, digest: Any) -> bytes:
    return _FOOTER.pack(_MARK, _SCHEMA_VERSION, rows, digest.digest())


def _keep(tokens: Dataset, path: Path) -> None:
    """Write an entry and make room; a disk that has none leaves the next run to tokenize again."""
    try:
        make_folder(path.parent)
        with atomic_file(path) as staging, staging.open("w+b") as file:
            _write_entry(tokens, file)
        _keep_newest(path)
    except (OSError, RunError) as error:
        logger.warning("The tokens are not kept for the next run: %s", error)


def _write_entry(tokens: Dataset, file: Any) -> None:
    table = tokens.data.table
    with pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    file.flush()
    file.seek(0)
    footer = _footer(len(tokens), hashlib.file_digest(file, "sha256"))
    file.seek(0, os.SEEK_END)
    file.write(footer)


def rows_digest(rows: Dataset) -> str:
    """Return the SHA-256 of a split's column names, and of its texts and labels row by row in order."""
    digest = hashlib.sha256(json.dumps(sorted(rows.column_names)).encode())
    columns = [rows[name][:] for name in sorted(rows.column_names)]
    for row in zip(*columns, strict=True):
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()


def tokenizer_digest(tokenizer: Any) -> str:
    """Return the SHA-256 of what decides a tokenizer's answer.

    This is its backend's state, or its vocabulary where it has none.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = json.loads(backend.to_str()) if backend is not None else dict(tokenizer.get_vocab())
    state = {name: value for name, value in state.items() if name not in ("truncation", "padding")}
    content = json.dumps([type(tokenizer).__name__, tokenizer.truncation_side, state], sort_keys=True)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


def _content_hash(rows: Dataset, tokenizer: Any, max_length: int) -> str:
    content = json.dumps([rows_digest(rows), tokenizer_digest(tokenizer), max_length])
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _keep_newest(made: Path) -> None:
    """Remove the oldest entries until the rest fits, but never the one just made.

    Hidden files are what a process is writing, or what one left that died; these are swept with the runs.
    """
    entries = []
    for path in made.parent.glob("[!.]*.arrow"):
        with contextlib.suppress(OSError):  # another process has removed it
            entries.append((path.stat().st_mtime, path.stat().st_size, path))
    total = 0
    for _, size, path in sorted(entries, reverse=True):
        total += size
        if total > CACHE_BYTES and path != made:
            path.unlink(missing_ok=True)
