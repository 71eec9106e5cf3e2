"""Tokenization with an on-disk cache that is keyed by content.

A cache entry is one file: an Arrow stream and a footer with its number of rows and SHA-256. It is written
under a staging name, synced and renamed, so that it exists completely or not at all, even if two processes
write the same entry; leftovers of a dead process are removed with the folder of runs. Both values are
verified on every read, because a stream that ends between two batches and a flipped bit in a label are valid
Arrow. A damaged entry is replaced.
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

from peft_core.data.labelled import truncate_text
from peft_core.errors import RunError
from peft_core.files.atomic import atomic_file, make_folder

CACHE_BYTES = 1_000_000_000  # total size of the cache; the least recently used entries are removed first
_FOOTER = struct.Struct("<8sIQ32s")  # magic, schema version, rows, SHA-256 of the bytes before the footer
_MAGIC, _SCHEMA_VERSION = b"pwtokens", 1
_HASH_BLOCK = 1 << 20  # bytes

logger = logging.getLogger(__name__)


class DamagedCache(Exception):
    """A cache entry differs from what was written."""


def encode(rows: Dataset, tokenizer: Any, max_length: int, cache: Path | None = None) -> Dataset:
    """Tokenize texts, or text pairs, with truncation and without padding.

    Args:
        rows: Rows with `text`, `text_pair` for pairs, and `label`.
        tokenizer: A transformers tokenizer.
        max_length: Maximum number of tokens of a row.
        cache: Folder of cached results, keyed by a hash of texts, labels, tokenizer and `max_length`.

    Returns:
        A dataset with `input_ids` and `attention_mask` (lists of int) and `labels`, a copy of `label`.
    """

    def batch(columns: dict[str, list]) -> dict[str, list]:
        texts = [[truncate_text(text, max_length) for text in columns[name]] for name in names]
        return {**tokenizer(*texts, truncation=True, max_length=max_length), "labels": columns["label"]}

    names = [name for name in ("text", "text_pair") if name in rows.column_names]
    content = _content_hash(rows, tokenizer, max_length)
    # without a backend the digest covers only the vocabulary, which does not determine the tokens
    has_backend = getattr(tokenizer, "backend_tokenizer", None) is not None
    entry = cache / f"{content}.arrow" if cache is not None and has_backend else None
    if entry is not None and entry.exists():
        try:
            return read_entry(entry, len(rows))
        except (DamagedCache, OSError) as error:
            logger.warning("The tokens in %s are unusable (%s); the texts are tokenized again.", entry, error)
    tokens = rows.map(
        batch, batched=True, remove_columns=rows.column_names, keep_in_memory=True, new_fingerprint=content
    )
    if entry is not None:
        _store(tokens, entry)
    return tokens


def read_entry(path: Path, rows: int) -> Dataset:
    """Read and verify a cache entry of `rows` rows, and mark it as used.

    Raises:
        DamagedCache: If the entry is not what was written.
        OSError: If it cannot be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size - _FOOTER.size
        if size < 0:
            raise DamagedCache("it is truncated")
        digest = hashlib.sha256()
        while size > file.tell():
            digest.update(file.read(min(_HASH_BLOCK, size - file.tell())))
        if file.read() != _footer(rows, digest):
            raise DamagedCache("its bytes are not those that were written")
    try:
        tokens = Dataset.from_file(str(path))
    except pa.ArrowInvalid as error:
        raise DamagedCache(str(error)) from error
    if len(tokens) != rows:
        raise DamagedCache(f"it has {len(tokens):,} of {rows:,} rows")
    with contextlib.suppress(OSError):  # a read-only folder
        os.utime(path)  # the order of eviction
    return tokens


def _footer(rows: int, digest: Any) -> bytes:
    return _FOOTER.pack(_MAGIC, _SCHEMA_VERSION, rows, digest.digest())


def _store(tokens: Dataset, path: Path) -> None:
    """Write a cache entry and evict old ones; if that fails, log it, and the next run tokenizes again."""
    try:
        make_folder(path.parent)
        with atomic_file(path) as staging, staging.open("w+b") as file:
            _write_entry(tokens, file)
        _evict_oldest(path)
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
    """Return the SHA-256 of a tokenizer's backend, or of its vocabulary if it has no backend."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = json.loads(backend.to_str()) if backend is not None else dict(tokenizer.get_vocab())
    state = {name: value for name, value in state.items() if name not in ("truncation", "padding")}
    content = json.dumps([type(tokenizer).__name__, tokenizer.truncation_side, state], sort_keys=True)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


def _content_hash(rows: Dataset, tokenizer: Any, max_length: int) -> str:
    content = json.dumps([rows_digest(rows), tokenizer_digest(tokenizer), max_length])
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _evict_oldest(new_entry: Path) -> None:
    """Remove the oldest entries until the cache fits its limit, but never the new one.

    Hidden files are being written, or are leftovers of a dead process, which are removed with the runs.
    """
    entries = []
    for path in new_entry.parent.glob("[!.]*.arrow"):
        with contextlib.suppress(OSError):  # another process has removed it
            entries.append((path.stat().st_mtime, path.stat().st_size, path))
    total = 0
    for _, size, path in sorted(entries, reverse=True):
        total += size
        if total > CACHE_BYTES and path != new_entry:
            path.unlink(missing_ok=True)
