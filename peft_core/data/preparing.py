"""Raw rows to rows that can be trained on: columns chosen, remedies applied, checked, and split."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pandas as pd

from peft_core.config import REMEDIES, TrainConfig
from peft_core.data.audit import apply_remedies, missing, small_labels
from peft_core.data.column_questions import read_columns
from peft_core.data.columns import (
    MULTI,
    REGRESSION,
    Columns,
    as_text,
    is_empty,
    label_order,
    labels_of,
    labels_of_columns,
)
from peft_core.data.files import shown
from peft_core.data.formats import MOST_NAME
from peft_core.data.pairs import group_pairs, group_strata, without_shared_texts
from peft_core.data.reading import TEST, TRAIN, VALIDATION, RawRows, is_local_data, local_state, read_rows
from peft_core.data.splits import TEST_SHARE, VALIDATION_ROWS, VALIDATION_SHARE, hold_out, strata
from peft_core.data.text_keys import pair_key, text_key
from peft_core.errors import DataError
from peft_core.presets import DATASETS

MOST_LABELS = 1000
_ROW_SETTINGS = (
    "dataset_name", "dataset_config_name", "train_split", "validation_split", "eval_split", "split_seed",
    "text_column", "text_pair_column", "label_column", "label_columns", "problem_type", "label_separator",
    "decimal_mark", "num_labels", "remedies", "sheet_name", "header_row",
)  # fmt: skip


@dataclass(frozen=True)
class Prepared:
    """Rows by role after the remedies and, where no sample comes first, the split; labels as names."""

    frames: Mapping[str, pd.DataFrame]
    columns: Columns
    label_names: tuple[str, ...]
    named: bool
    record: dict[str, Any]
    sampled: bool


def prepare(config: TrainConfig) -> Prepared:
    """All rows of a config's data with remedies and splits, before any is sampled. Raises as above."""
    preset = DATASETS.get(config.dataset_name)
    if not preset.embedded if preset else not is_local_data(config.dataset_name):
        return _prepared(config, read_rows(config))
    settings = tuple((name, getattr(config, name)) for name in _ROW_SETTINGS)
    return _prepared_here(settings, () if preset else local_state(config.dataset_name))


def tidy(raw: RawRows, columns: Columns) -> dict[str, pd.DataFrame]:
    """Each role's rows as `audit` takes them: text, text_pair, label, key; empty cells are still there.

    Raises DataError where a split lacks a column, or for a cell that is no text or no number.
    """
    tidied = {}
    for role, frame in raw.frames.items():
        for column in columns.names:
            if column not in frame.columns:
                has = ", ".join(frame.columns)
                raise DataError(f"The {role} rows have no column {column!r}; they have {has}.")
        rows = {"text": _texts(frame, columns.text)}
        if columns.text_pair is not None:
            rows["text_pair"] = _texts(frame, columns.text_pair)
        rows["label"] = _labels(frame, columns, raw.class_names)
        if "text_pair" in rows:
            rows["key"] = list(map(pair_key, rows["text"], rows["text_pair"]))
        else:
            rows["key"] = list(map(text_key, rows["text"]))
        found = pd.DataFrame({name: pd.Series(cells, dtype=object) for name, cells in rows.items()})
        found.index = frame.index
        _check_labels(found, columns)
        tidied[role] = found
    return tidied


@lru_cache(maxsize=4)
def _prepared_here(settings: tuple, state: tuple) -> Prepared:
    """Rows of this machine's files, read again only if a setting or a file has changed."""
    config = dataclasses.replace(TrainConfig(), **dict(settings))
    return _prepared(config, read_rows(config))


def _prepared(config: TrainConfig, raw: RawRows) -> Prepared:
    for role, frame in raw.frames.items():
        if not len(frame):
            raise DataError(f"The {role} split of {config.dataset_name!r} holds no rows; add some.")
    columns, findings = read_columns(config, raw)
    question = next((finding.sentence for finding in findings if finding.blocks), None)
    if question:
        raise DataError(question)
    frames, dropped = apply_remedies(tidy(raw, columns), config.remedies, columns.problem_type)
    _check_whole(frames, columns)
    declared = columns.label_names or raw.class_names.get(columns.label)
    names, named = _names(config, frames, columns, declared, dropped)
    held = [role for role in (TEST, VALIDATION) if role not in raw.frames]
    preset = config.dataset_name in DATASETS
    grouped_by = None
    if not preset:
        frames, grouped_by = _split(frames, columns.problem_type, config.split_seed)
    if "shared_texts" in config.remedies and columns.text_pair is not None:
        frames = _part_texts(frames, dropped)
    record = {
        **raw.record,
        "columns": columns.to_dict(),
        "guessed": list(columns.guessed),
        "dropped": dropped,
        "held_out": held,
        "split_seed": config.split_seed,
        "grouped_by": grouped_by,
        "rows": {role: len(rows) for role, rows in frames.items()},
    }
    return Prepared(frames, columns, names, named, record, raw.sampled)


def _split(
    frames: Mapping[str, pd.DataFrame], kind: str, seed: int
) -> tuple[dict[str, pd.DataFrame], str | None]:
    """Test and validation rows held out of the training rows where the source has none.

    Also what the rows of a pair were grouped by (`pairs.Grouping`); None for single texts.
    """
    frames, whole = dict(frames), len(frames[TRAIN])
    groups = pd.Series(list(frames[TRAIN]["key"]), index=range(whole), dtype=object)
    grouped_by = None
    if "text_pair" in frames[TRAIN]:
        grouping = group_pairs(list(groups))
        groups, grouped_by = pd.Series(grouping.groups, dtype=object), grouping.by
    if TEST not in frames:
        held = _held_out(frames[TRAIN], groups, kind, TEST_SHARE, seed, at_least=1)
        frames[TRAIN], frames[TEST] = _parted(frames[TRAIN], held)
        groups = groups.drop(held).reset_index(drop=True)
    if VALIDATION not in frames:
        rows = frames[TRAIN]
        share = min(VALIDATION_SHARE * whole, VALIDATION_ROWS) / max(1, len(rows))
        judged = set(frames[TEST]["key"])
        held = _held_out(rows, groups, kind, share, seed + 1)
        held = [i for i in held if rows["key"].iloc[i] not in judged]
        frames[TRAIN], frames[VALIDATION] = _parted(rows, held)
    return frames, grouped_by


def _held_out(
    rows: pd.DataFrame, groups: pd.Series, kind: str, share: float, seed: int, *, at_least: int = 0
) -> list[int]:
    """Positions of rows to hold out, whole groups of them."""
    by_label = strata(list(rows["label"]), kind)
    if "text_pair" in rows:
        by_label = group_strata(list(groups), by_label)
    return hold_out(list(groups), by_label, share, seed, at_least=at_least)


def _part_texts(frames: Mapping[str, pd.DataFrame], dropped: list[dict[str, Any]]) -> dict[str, pd.DataFrame]:
    """Without the rows that share a text of a pair with rows that judge them; `dropped` records these."""
    kept = without_shared_texts(frames)
    for role, rows in kept.items():
        if len(rows) < len(frames[role]):
            left_out = {"rows": len(frames[role]) - len(rows), "labels": []}
            dropped.append({"remedy": "shared_texts", "split": role, **left_out})
    if not len(kept[TRAIN]):
        raise DataError(
            f"Every training row shares a text with the rows judged on, so the remedy "
            f"“{REMEDIES['shared_texts']}” leaves none; do without it."
        )
    return kept


def _parted(rows: pd.DataFrame, held: list[int]) -> tuple[pd.DataFrame, pd.DataFrame]:
    out = set(held)
    return rows.iloc[[i for i in range(len(rows)) if i not in out]], rows.iloc[held]


def _labels(frame: pd.DataFrame, columns: Columns, classes: Mapping[str, Sequence[str]]) -> list[Any]:
    if columns.label_columns:
        return labels_of_columns(frame, columns.label_columns)
    return labels_of(frame[columns.label], columns, classes.get(columns.label))


def _texts(frame: pd.DataFrame, column: str) -> list[str | None]:
    """The texts of a column; a number among them is a text that looks like one."""
    for index, value in frame[column].items():
        if isinstance(value, list):
            raise DataError(
                f"{_place(index, column)} holds {shown(value)}, which is no text; name another text column, "
                "or mend the cell."
            )
    return [value if value is None else as_text(value) for value in frame[column]]


def _place(index: tuple[str, int], column: str) -> str:
    return f"{index[0]!r}, row {index[1]}, column {column!r}"


def _check_labels(rows: pd.DataFrame, columns: Columns) -> None:
    """Raise DataError for a hidden or a long label, or a cell without a number where one is asked for."""
    for index, label in rows["label"].items():
        names = (label,) if isinstance(label, str) else label if isinstance(label, tuple) else ()
        long = next((name for name in names if len(name) > MOST_NAME), None)
        if long is not None:
            raise DataError(
                f"{_place(index, columns.label)} holds {shown(long)} of {len(long):,} characters; at most "
                f"{MOST_NAME:,} can be a label, so name another column as the label_column."
            )
        if label == "" or (isinstance(label, tuple) and "" in label):
            raise DataError(
                f"{_place(index, columns.label)}: the label is hidden (-1); choose another test split."
            )
        if columns.problem_type == REGRESSION and isinstance(label, str):
            raise DataError(
                f"{_place(index, columns.label)} holds {shown(label)}, which is no number; mend the cell, or "
                "choose one label a text as the task."
            )
        if columns.problem_type == MULTI and isinstance(label, str):
            wanted = f" of {len(columns.places)} numbers, each 0 or 1" if columns.places else ""
            raise DataError(
                f"{_place(index, columns.label)} holds {shown(label)}, which is no list{wanted} as in the "
                "other rows; mend the cell."
            )


def _check_whole(frames: Mapping[str, pd.DataFrame], columns: Columns) -> None:
    """Raise DataError for the first row without text or label."""
    gaps = pd.concat([rows[missing(rows)] for rows in frames.values()])
    if not len(gaps):
        return
    first = gaps.iloc[0]
    pairs = {columns.text: first["text"], columns.label: first["label"]}
    if columns.text_pair is not None:
        pairs[columns.text_pair] = first["text_pair"]
    column = next(name for name, value in pairs.items() if is_empty(value))
    more = f" ({len(gaps):,} such rows)" if len(gaps) > 1 else ""
    raise DataError(
        f"{_place(gaps.index[0], column)} is empty{more}; fill the cell, or choose the remedy "
        f"“{REMEDIES['empty']}”."
    )


def _names(
    config: TrainConfig,
    frames: Mapping[str, pd.DataFrame],
    columns: Columns,
    declared: Sequence[str] | None,
    dropped: Sequence[Mapping[str, Any]],
) -> tuple[tuple[str, ...], bool]:
    """The label names in order, none for a number. DataError for too many, too few or too rare ones."""
    kind = columns.problem_type
    if kind == REGRESSION:
        return (), True
    found = [name for y in frames[TRAIN]["label"] for name in (y if kind == MULTI else (y,))]
    if {"small_classes", "label_spelling"} & set(config.remedies) and declared:
        declared = [name for name in declared if name in set(found)]
    names, named = label_order(found, declared)
    if len(set(found)) < 2:
        only = (
            f"All {len(frames[TRAIN]):,} training rows have the label {found[0]!r}" if found else "No label"
        )
        raise DataError(f"{only}; a classifier needs two or more.")
    if len(names) > MOST_LABELS:
        raise DataError(
            f"The label_column {columns.label!r} holds {len(names):,} different labels; at most "
            f"{MOST_LABELS:,} can be learned, so name another column, or choose a number as the task."
        )
    _check_small(config, frames, columns)
    if config.num_labels not in (None, len(names)):
        has = ", ".join(names[:10])
        raise DataError(f"num_labels is {config.num_labels}, but the data has {len(names)}: {has}.")
    return names, named


def _check_small(config: TrainConfig, frames: Mapping[str, pd.DataFrame], columns: Columns) -> None:
    small = small_labels(frames, columns.problem_type)
    if not small:
        return
    many = f" and {len(small) - 1:,} more" if len(small) > 1 else ""
    why = "too few rows to learn from and be judged on" if TEST not in frames else "no training row"
    raise DataError(
        f"The label {shown(small[0])}{many} has {why}; add rows, or choose the remedy "
        f"“{REMEDIES['small_classes']}”."
    )
