"""Texts as tokens, made once: what was tokenised before is read again by its content."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset

from peft_core.data.labelled import cut

CACHE_BYTES = 1_000_000_000  # of all tokens that are kept; the oldest go first


def encode(rows: Dataset, tokenizer: Any, max_length: int, cache: Path | None = None) -> Dataset:
    """Columns `input_ids`, `attention_mask` (lists of int, unpadded) and `labels`, as `label` is.

    One row a text; a pair is one input, its two texts parted as the tokenizer does. In the folder `cache`
    they are kept under the hash of texts, labels, tokenizer and `max_length`, and taken from there.
    """

    def batch(columns: dict[str, list]) -> dict[str, list]:
        texts = [[cut(text, max_length) for text in columns[name]] for name in names]
        return {**tokenizer(*texts, truncation=True, max_length=max_length), "labels": columns["label"]}

    names = [name for name in ("text", "text_pair") if name in rows.column_names]
    told = _told(tokenizer)
    content = _hash(rows, told, max_length)
    kept = cache / f"{content}.arrow" if cache is not None and told is not None else None
    if kept is not None and kept.is_file():
        try:
            kept.touch()  # used last
            return Dataset.from_file(str(kept))
        except (pa.ArrowInvalid, OSError):  # damaged: made again below
            kept.unlink(missing_ok=True)
    tokens = rows.map(
        batch, batched=True, remove_columns=rows.column_names, keep_in_memory=True, new_fingerprint=content
    )
    if kept is not None:
        _keep(tokens, kept)
    return tokens


def _keep(tokens: Dataset, path: Path) -> None:
    """Write them whole or not at all, and make room; a disk that has none leaves the next run to tokenise."""
    made = path.with_name(f".{path.name}.{os.getpid()}")
    table = tokens.data.table
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with made.open("wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
        made.replace(path)
        _keep_newest(path)
    except OSError:
        made.unlink(missing_ok=True)


def _hash(rows: Dataset, told: str | None, max_length: int) -> str:
    digest = hashlib.sha256(json.dumps([told, max_length, len(rows), rows.column_names]).encode())
    for name in rows.column_names:
        for value in rows[name][:]:
            digest.update(json.dumps(value).encode() + b"\n")
    return digest.hexdigest()[:32]


def _told(tokenizer: Any) -> str | None:
    """Everything that decides a tokenizer's answer, or None where it does not tell."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    held = json.loads(backend.to_str())
    held = {name: value for name, value in held.items() if name not in ("truncation", "padding")}
    return json.dumps([type(tokenizer).__name__, tokenizer.truncation_side, held], sort_keys=True)


def _keep_newest(made: Path) -> None:
    """Take away the oldest files until the rest fits, but never the one that was just made."""
    files = sorted(made.parent.glob("*.arrow"), key=lambda path: path.stat().st_mtime, reverse=True)
    total = 0
    for path in files:
        total += path.stat().st_size
        if total > CACHE_BYTES and path != made:
            path.unlink(missing_ok=True)
