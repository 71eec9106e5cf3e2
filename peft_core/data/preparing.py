"""Preparation of raw rows for training: infer columns, apply remedies, check, and split."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pandas as pd

from peft_core.config import REMEDIES, TrainConfig
from peft_core.data.audit import apply_remedies, labels_with_too_few_texts, missing_mask
from peft_core.data.cells import as_text, is_empty, short_repr
from peft_core.data.column_questions import resolve_columns
from peft_core.data.columns import (
    MULTI,
    REGRESSION,
    Columns,
    label_order,
    labels_of,
    labels_of_columns,
)
from peft_core.data.formats import MAX_NAME_LENGTH
from peft_core.data.pairs import drop_shared_texts, group_pairs, group_strata
from peft_core.data.reading import TEST, TRAIN, VALIDATION, RawRows, is_local_data, local_state, read_rows
from peft_core.data.splits import TEST_SHARE, VALIDATION_ROWS, VALIDATION_SHARE, hold_out, strata
from peft_core.data.text_keys import pair_key, text_key
from peft_core.errors import DataError
from peft_core.models.presets import DATASETS

MAX_LABELS = 1000
_ROW_SETTINGS = (
    "dataset_name", "dataset_config_name", "train_split", "validation_split", "eval_split", "split_seed",
    "text_column", "text_pair_column", "label_column", "label_columns", "problem_type", "label_separator",
    "decimal_mark", "num_labels", "remedies", "sheet_name", "header_row",
)  # fmt: skip


@dataclass(frozen=True)
class PreparedRows:
    """Rows by split after the remedies, with labels as names.

    Attributes:
        has_label_names: False if the labels are bare numbers.
        record: What was read, left out and split, as JSON types.
        sampled: Whether the rows are already in the order of the seed's shuffle.
    """

    frames: Mapping[str, pd.DataFrame]
    columns: Columns
    label_names: tuple[str, ...]
    has_label_names: bool
    record: dict[str, Any]
    sampled: bool


def prepare_rows(config: TrainConfig) -> PreparedRows:
    """Prepare all rows of a config's data set; none is sampled yet.

    Raises:
        DataError: If the data cannot be used for training or evaluation.
        HubError: If the Hub does not provide the data set.
    """
    preset = DATASETS.get(config.dataset_name)
    if not preset.embedded if preset else not is_local_data(config.dataset_name):
        return _prepare(config, read_rows(config))
    settings = tuple((name, getattr(config, name)) for name in _ROW_SETTINGS)
    return _prepare_local(settings, () if preset else local_state(config.dataset_name))


def normalize(raw: RawRows, columns: Columns) -> dict[str, pd.DataFrame]:
    """Return the rows of each split with the columns text, text_pair (if used), label and key.

    Empty cells are kept; `audit` expects rows of this form.

    Raises:
        DataError: If a split lacks a column, or a cell is not a text or not a number as required.
    """
    normalized = {}
    for role, frame in raw.frames.items():
        for column in columns.names:
            if column not in frame.columns:
                has = ", ".join(frame.columns)
                raise DataError(f"The {role} rows have no column {column!r}; they have {has}.")
        rows: dict[str, list[Any]] = {"text": _texts(frame, columns.text)}
        if columns.text_pair is not None:
            rows["text_pair"] = _texts(frame, columns.text_pair)
        rows["label"] = _labels(frame, columns, raw.class_names)
        if "text_pair" in rows:
            rows["key"] = list(map(pair_key, rows["text"], rows["text_pair"]))
        else:
            rows["key"] = list(map(text_key, rows["text"]))
        normalized_frame = pd.DataFrame(
            {name: pd.Series(cells, dtype=object) for name, cells in rows.items()}
        )
        normalized_frame.index = frame.index
        _check_labels(normalized_frame, columns)
        normalized[role] = normalized_frame
    return normalized


@lru_cache(maxsize=4)
def _prepare_local(settings: tuple, state: tuple) -> PreparedRows:
    """Prepare rows of local files; they are read again only if a setting or a file has changed."""
    config = dataclasses.replace(TrainConfig(), **dict(settings))
    return _prepare(config, read_rows(config))


def _prepare(config: TrainConfig, raw: RawRows) -> PreparedRows:
    for role, frame in raw.frames.items():
        if not len(frame):
            raise DataError(f"The {role} split of {config.dataset_name!r} has no rows; add some.")
    columns, findings = resolve_columns(config, raw)
    question = next((finding.sentence for finding in findings if finding.blocks), None)
    if question:
        raise DataError(question)
    frames, dropped = apply_remedies(normalize(raw, columns), config.remedies, columns.problem_type)
    _check_complete(frames, columns)
    declared = columns.label_names or raw.class_names.get(columns.label)
    names, has_label_names = _label_names(config, frames, columns, declared)
    held_out = [role for role in (TEST, VALIDATION) if role not in raw.frames]
    grouped_by = None
    if config.dataset_name not in DATASETS:
        frames, grouped_by = _split(frames, columns.problem_type, config.split_seed)
    if "shared_texts" in config.remedies and columns.text_pair is not None:
        frames = _drop_shared_texts(frames, dropped)
    record = {
        **raw.record,
        "columns": columns.to_dict(),
        "guessed": list(columns.guessed),
        "dropped": dropped,
        "held_out": held_out,
        "split_seed": config.split_seed,
        "grouped_by": grouped_by,
        "rows": {role: len(rows) for role, rows in frames.items()},
    }
    return PreparedRows(frames, columns, names, has_label_names, record, raw.sampled)


def _split(
    frames: Mapping[str, pd.DataFrame], problem_type: str, seed: int
) -> tuple[dict[str, pd.DataFrame], str | None]:
    """Hold out test and validation rows of the training rows if the source has none.

    Returns:
        The rows by split, and what text pairs were grouped by (`pairs.Grouping.by`; None for single texts).
    """
    frames, num_rows = dict(frames), len(frames[TRAIN])
    groups = pd.Series(list(frames[TRAIN]["key"]), index=range(num_rows), dtype=object)
    grouped_by = None
    if "text_pair" in frames[TRAIN]:
        grouping = group_pairs(list(groups))
        groups, grouped_by = pd.Series(grouping.groups, dtype=object), grouping.by
    if TEST not in frames:
        held_out = _choose_held_out(frames[TRAIN], groups, problem_type, TEST_SHARE, seed, at_least=1)
        frames[TRAIN], frames[TEST] = _split_at(frames[TRAIN], held_out)
        groups = groups.drop(held_out).reset_index(drop=True)
    if VALIDATION not in frames:
        rows = frames[TRAIN]
        share = min(VALIDATION_SHARE * num_rows, VALIDATION_ROWS) / max(1, len(rows))
        test_keys = set(frames[TEST]["key"])
        held_out = _choose_held_out(rows, groups, problem_type, share, seed + 1)
        held_out = [i for i in held_out if rows["key"].iloc[i] not in test_keys]
        frames[TRAIN], frames[VALIDATION] = _split_at(rows, held_out)
    return frames, grouped_by


def _choose_held_out(
    rows: pd.DataFrame, groups: pd.Series, problem_type: str, share: float, seed: int, *, at_least: int = 0
) -> list[int]:
    """Return the positions of rows to hold out; groups are never divided."""
    row_strata = strata(list(rows["label"]), problem_type)
    if "text_pair" in rows:
        row_strata = group_strata(list(groups), row_strata)
    return hold_out(list(groups), row_strata, share, seed, at_least=at_least)


def _drop_shared_texts(
    frames: Mapping[str, pd.DataFrame], dropped: list[dict[str, Any]]
) -> dict[str, pd.DataFrame]:
    """Drop the rows that share a text of a pair with an evaluation split, and record them in `dropped`."""
    remaining = drop_shared_texts(frames)
    for role, rows in remaining.items():
        if len(rows) < len(frames[role]):
            left_out = {"rows": len(frames[role]) - len(rows), "labels": []}
            dropped.append({"remedy": "shared_texts", "split": role, **left_out})
    if not len(remaining[TRAIN]):
        raise DataError(
            f"Every training row shares a text with the evaluation rows, so the remedy "
            f"“{REMEDIES['shared_texts']}” leaves none; remove this remedy."
        )
    return remaining


def _split_at(rows: pd.DataFrame, held_out: list[int]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the other rows and the rows at the positions `held_out`."""
    excluded = set(held_out)
    return rows.iloc[[i for i in range(len(rows)) if i not in excluded]], rows.iloc[held_out]


def _labels(frame: pd.DataFrame, columns: Columns, classes: Mapping[str, Sequence[str]]) -> list[Any]:
    if columns.label_columns:
        return labels_of_columns(frame, columns.label_columns)
    return labels_of(frame[columns.label], columns, classes.get(columns.label))


def _texts(frame: pd.DataFrame, column: str) -> list[str | None]:
    """Return the texts of a column; a number is converted to the text it was typed as."""
    for index, value in zip(frame.index, frame[column], strict=True):
        if isinstance(value, list):
            raise DataError(
                f"{_position(index, column)} holds {short_repr(value)}, which is not text; name another text "
                "column, or correct the cell."
            )
    return [value if value is None else as_text(value) for value in frame[column]]


def _position(index: tuple[str, int], column: str) -> str:
    """Return the file, row and column of a cell for an error message."""
    return f"{index[0]!r}, row {index[1]}, column {column!r}"


def _check_labels(rows: pd.DataFrame, columns: Columns) -> None:
    """Raise DataError for a hidden or too long label, or one that does not fit the problem type."""
    for index, label in zip(rows.index, rows["label"], strict=True):
        names = (label,) if isinstance(label, str) else label if isinstance(label, tuple) else ()
        long_name = next((name for name in names if len(name) > MAX_NAME_LENGTH), None)
        if long_name is not None:
            raise DataError(
                f"{_position(index, columns.label)} holds {short_repr(long_name)} of {len(long_name):,} "
                f"characters; at most {MAX_NAME_LENGTH:,} can be a label, so name another column as the "
                "label_column."
            )
        if label == "" or (isinstance(label, tuple) and "" in label):
            raise DataError(
                f"{_position(index, columns.label)}: the label is hidden (-1); choose another test split."
            )
        if columns.problem_type == REGRESSION and isinstance(label, str):
            raise DataError(
                f"{_position(index, columns.label)} holds {short_repr(label)}, which is not a number; "
                "correct the cell, or choose the task “One label per text”."
            )
        if columns.problem_type == MULTI and isinstance(label, str):
            width = len(columns.indicator_labels)
            expected_entries = f" of {width} numbers, each 0 or 1" if width else ""
            raise DataError(
                f"{_position(index, columns.label)} holds {short_repr(label)}, which is not a "
                f"list{expected_entries} as in the other rows; correct the cell."
            )


def _check_complete(frames: Mapping[str, pd.DataFrame], columns: Columns) -> None:
    """Raise DataError for the first row without a text or a label."""
    gaps = pd.concat([rows.loc[missing_mask(rows)] for rows in frames.values()])
    if not len(gaps):
        return
    first = gaps.iloc[0]
    pairs = {columns.text: first["text"], columns.label: first["label"]}
    if columns.text_pair is not None:
        pairs[columns.text_pair] = first["text_pair"]
    column = next(name for name, value in pairs.items() if is_empty(value))
    more = f" ({len(gaps):,} such rows)" if len(gaps) > 1 else ""
    raise DataError(
        f"{_position(next(iter(gaps.index)), column)} is empty{more}; fill the cell, or choose the "
        f"remedy “{REMEDIES['empty']}”."
    )


def _label_names(
    config: TrainConfig,
    frames: Mapping[str, pd.DataFrame],
    columns: Columns,
    declared: Sequence[str] | None,
) -> tuple[tuple[str, ...], bool]:
    """Return the label names in order (none for regression), and whether they are more than bare numbers.

    Raises:
        DataError: If there are too many or too few labels, or one is too rare.
    """
    problem_type = columns.problem_type
    if problem_type == REGRESSION:
        return (), True
    train_labels = frames[TRAIN]["label"]
    occurrences = [name for label in train_labels for name in (label if problem_type == MULTI else (label,))]
    distinct = set(occurrences)
    if {"small_classes", "label_spelling"} & set(config.remedies) and declared:
        declared = [name for name in declared if name in distinct]
    names, has_label_names = label_order(occurrences, declared)
    if len(distinct) < 2:
        only = (
            f"All {len(frames[TRAIN]):,} training rows have the label {occurrences[0]!r}"
            if occurrences
            else "No label"
        )
        raise DataError(f"{only}; a classifier needs two or more.")
    if len(names) > MAX_LABELS:
        raise DataError(
            f"The label_column {columns.label!r} holds {len(names):,} different labels; at most "
            f"{MAX_LABELS:,} can be learned, so name another column, or choose the task “A number per text”."
        )
    _check_rare_labels(config, frames, columns)
    if config.num_labels not in (None, len(names)):
        has = ", ".join(names[:10])
        raise DataError(f"num_labels is {config.num_labels}, but the data has {len(names)}: {has}.")
    return names, has_label_names


def _check_rare_labels(config: TrainConfig, frames: Mapping[str, pd.DataFrame], columns: Columns) -> None:
    rare = labels_with_too_few_texts(frames, columns.problem_type)
    if not rare:
        return
    more = f" and {len(rare) - 1:,} more" if len(rare) > 1 else ""
    reason = "too few rows for training and evaluation" if TEST not in frames else "no training row"
    raise DataError(
        f"The label {short_repr(rare[0])}{more} has {reason}; add rows, or choose the remedy "
        f"“{REMEDIES['small_classes']}”."
    )
