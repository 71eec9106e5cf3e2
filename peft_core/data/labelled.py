"""Labelled text ready for training: columns chosen, remedies applied, split and sampled."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pandas as pd
from datasets import Dataset

from peft_core.config import TrainConfig
from peft_core.data.columns import MULTI, REGRESSION, SINGLE
from peft_core.data.files import shown
from peft_core.data.hub import declared_num_labels
from peft_core.data.preparing import Prepared, prepare
from peft_core.data.reading import (
    TEST,
    TRAIN,
    VALIDATION,
    is_local_data,
    local_state,
)
from peft_core.data.splits import VALIDATION_ROWS, VALIDATION_SHARE, hold_out, strata
from peft_core.data.text_keys import text_key
from peft_core.errors import DataError
from peft_core.presets import DATASETS, embedded_reviews_file
from peft_core.sources import dataset_revision

CHARACTERS_PER_TOKEN = 50  # a text is cut here before it is tokenised: a 10 MB cell would take half a minute
ENOUGH_VALIDATION = 256  # rows: with fewer to spare, an embedded data set's come out of the training rows


@dataclass(frozen=True)
class LabelledText:
    """Rows to train on, to draw the curve from and to judge on: columns `text`, `text_pair` where a pair is
    used, and `label`: an index into `label_names`, a list of 0.0 and 1.0 for each of them, or a float.

    `validation` may be empty where there are too few rows. `record` says what was read, left out and split.
    """

    train: Dataset
    validation: Dataset
    eval: Dataset
    label_names: tuple[str, ...]
    named: bool  # False where the data holds bare numbers, so that a kept head's own names are better
    problem_type: str
    record: dict[str, Any]

    @property
    def num_labels(self) -> int:
        """The width of the head: 1 for a number."""
        return len(self.label_names) or 1


def load_labelled_text(config: TrainConfig) -> LabelledText:
    """The rows that a config asks for, sampled with its seed: `shuffle(seed).select(range(n))`.

    Raises DataError for data that cannot be trained or judged on, HubError for the Hub.
    """
    prepared = prepare(config)
    rows = {role: _dataset(frame, prepared) for role, frame in prepared.frames.items()}
    train = rows[TRAIN] if prepared.sampled else rows[TRAIN].shuffle(seed=config.seed)
    spare = _part(train, config.max_train_samples, len(train))
    train = _part(train, 0, config.max_train_samples)
    judged = _sample(rows[TEST], config.max_eval_samples, config.seed, prepared.sampled)
    if VALIDATION in rows:
        most = min(VALIDATION_ROWS, config.max_eval_samples)
        validation = _sample(rows[VALIDATION], most, config.split_seed, prepared.sampled)
    else:
        train, validation = _validation_of_preset(config, train, spare, judged)
        validation = _part(validation, 0, config.max_eval_samples)
    _check_rows(config, train, judged, prepared)
    used = {"train": len(train), "validation": len(validation), "test": len(judged)}
    record = {**prepared.record, "used": used, "train_labels": _label_counts(train, prepared)}
    kind = prepared.columns.problem_type
    return LabelledText(train, validation, judged, prepared.label_names, prepared.named, kind, record)


def expected_num_labels(config: TrainConfig) -> int:
    """The number of outputs, found without reading the rows wherever that can be; 1 for a number.

    Raises DataError where only the rows would tell.
    """
    if config.problem_type == REGRESSION:
        return 1
    if config.num_labels is not None:
        return config.num_labels
    if config.label_columns:
        return len(config.label_columns)
    if config.dataset_name in DATASETS:
        return len(DATASETS[config.dataset_name].label_names)
    if is_local_data(config.dataset_name):
        return len(prepare(config).label_names) or 1
    return declared_num_labels(config)


def on_hub(name: str) -> bool:
    """Whether a data set must be fetched from the Hub."""
    preset = DATASETS.get(name)
    return not (preset.embedded if preset is not None else is_local_data(name))


def check_dataset_name(config: TrainConfig) -> None:
    """Raise DataError or HubError if a data set does not exist, without reading its rows."""
    preset = DATASETS.get(config.dataset_name)
    if preset is not None and preset.embedded:
        embedded_reviews_file()
    elif preset is None and is_local_data(config.dataset_name):
        local_state(config.dataset_name)
    else:
        dataset_revision(config.dataset_name)


def cut(text: str, max_length: int) -> str:
    """A text shortened to the characters that `max_length` tokens could possibly need."""
    return text[: max(10_000, CHARACTERS_PER_TOKEN * max_length)]


def _validation_of_preset(
    config: TrainConfig, train: Dataset, spare: Dataset, judged: Dataset
) -> tuple[Dataset, Dataset]:
    """Validation rows from those that the sample leaves unused; an embedded set's from the sample if these
    are too few, so that a published training split stays whole."""
    taken = {text_key(text) for rows in (train, judged) for text in rows["text"][:]}
    free = [i for i, text in enumerate(spare["text"][:]) if text_key(text) not in taken]
    share, rows = VALIDATION_ROWS / max(1, len(free)), spare.select(free)
    embedded = DATASETS[config.dataset_name].embedded
    if len(free) < ENOUGH_VALIDATION and embedded:
        share, rows = VALIDATION_SHARE, train
    keys = [text_key(text) for text in rows["text"][:]]
    held = hold_out(keys, strata(rows["label"][:], SINGLE), min(1.0, share), config.split_seed)
    if rows is train:
        out = set(held)
        train = train.select([i for i in range(len(train)) if i not in out])
        return train, rows.select(held)
    return train, rows.select(held[:VALIDATION_ROWS])


def _dataset(rows: pd.DataFrame, prepared: Prepared) -> Dataset:
    """A frame as a Dataset whose labels are numbers."""
    index = {name: i for i, name in enumerate(prepared.label_names)}
    labels = rows["label"].tolist()
    if prepared.columns.problem_type == MULTI:
        labels = [[float(name in y) for name in index] for y in map(set, labels)]
    elif prepared.columns.problem_type == SINGLE:
        labels = [index[y] for y in labels]
    texts = {name: rows[name].tolist() for name in ("text", "text_pair") if name in rows}
    return Dataset.from_dict({**texts, "label": labels})


def _sample(rows: Dataset, most: int, seed: int, sampled: bool) -> Dataset:
    return _part(rows if sampled else rows.shuffle(seed=seed), 0, most)


def _part(rows: Dataset, start: int, stop: int) -> Dataset:
    """Rows from `start` up to `stop`, as far as there are any."""
    places = range(min(start, len(rows)), min(stop, len(rows)))
    return rows.select(places if len(places) else [])


def _label_counts(rows: Dataset, prepared: Prepared) -> dict[str, int]:
    """How many of these rows carry each label; empty for a number."""
    labels = rows["label"][:]
    if prepared.columns.problem_type == REGRESSION:
        return {}
    if prepared.columns.problem_type == MULTI:
        return {name: int(sum(y[i] for y in labels)) for i, name in enumerate(prepared.label_names)}
    counts = Counter(labels)
    return {name: counts[i] for i, name in enumerate(prepared.label_names)}


def _check_rows(config: TrainConfig, train: Dataset, judged: Dataset, prepared: Prepared) -> None:
    """Raise DataError where the rows that a sample took cannot teach or judge.

    A rare label may be missing from the sampled test rows, but not from those that the model learns from.
    """
    for rows, setting, side in (
        (train, "max_train_samples", "training"),
        (judged, "max_eval_samples", "evaluation"),
    ):
        seen, absent = _seen(rows, prepared)
        if len(seen) < 2 and side == "training":
            only = f"the label {shown(seen[0])}" if seen else "no label"
            raise DataError(
                f"All {len(rows):,} training rows have {only}; a classifier needs two or more, so raise "
                f"{setting} or add such rows."
            )
        if absent and (side == "training" or len(seen) < 2):
            raise DataError(
                f"None of the {len(rows):,} {side} rows has the label {shown(absent[0])}; raise {setting} or "
                "add such rows."
            )


def _seen(rows: Dataset, prepared: Prepared) -> tuple[list, list]:
    """The labels (or different numbers) that some row has, and the labels that none has."""
    if prepared.columns.problem_type == REGRESSION:
        return sorted(set(rows["label"][:])), []
    counts = _label_counts(rows, prepared)
    return [name for name in counts if counts[name]], [name for name in counts if not counts[name]]
