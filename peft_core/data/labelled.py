"""Loading of labeled text for training: columns inferred, remedies applied, rows split and sampled."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pandas as pd
from datasets import Dataset

from peft_core.config import TrainConfig
from peft_core.data.cells import short_repr
from peft_core.data.columns import MULTI, REGRESSION, SINGLE
from peft_core.data.hub import declared_num_labels
from peft_core.data.preparing import PreparedRows, prepare_rows
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
from peft_core.models.presets import DATASETS, embedded_reviews_file
from peft_core.models.sources import dataset_revision

CHARACTERS_PER_TOKEN = 50  # longer texts are cut before tokenization: a 10 MB cell would take half a minute
MIN_SPARE_ROWS = 256  # with fewer, validation rows of an embedded data set come out of the training rows


@dataclass(frozen=True)
class LabeledSplits:
    """Training, validation and test rows with the columns `text`, `text_pair` (if used) and `label`.

    A label is an index into `label_names`, a multi-hot list of 0.0 and 1.0, or a float, by problem type.

    Attributes:
        validation: Empty if there are too few rows.
        eval: The test rows.
        has_label_names: False if the data holds bare numbers, so that the names in a kept head are better.
        record: What was read, left out and split, as JSON types.
    """

    train: Dataset
    validation: Dataset
    eval: Dataset
    label_names: tuple[str, ...]
    has_label_names: bool
    problem_type: str
    record: dict[str, Any]

    @property
    def num_labels(self) -> int:
        """Number of outputs of the classification head; 1 for regression."""
        return len(self.label_names) or 1


def load_labeled_splits(config: TrainConfig) -> LabeledSplits:
    """Load the rows of a config, sampled with its seed by `shuffle(seed).select(range(n))`.

    Raises:
        DataError: If the data cannot be used for training or evaluation.
        HubError: If the Hub does not provide the data set.
    """
    prepared = prepare_rows(config)
    rows = {role: _dataset(frame, prepared) for role, frame in prepared.frames.items()}
    train = rows[TRAIN] if prepared.sampled else rows[TRAIN].shuffle(seed=config.seed)
    spare = _slice(train, config.max_train_samples, len(train))
    train = _slice(train, 0, config.max_train_samples)
    test = _sample(rows[TEST], config.max_eval_samples, config.seed, prepared.sampled)
    if VALIDATION in rows:
        max_rows = min(VALIDATION_ROWS, config.max_eval_samples)
        validation = _sample(rows[VALIDATION], max_rows, config.split_seed, prepared.sampled)
    else:
        train, validation = _validation_of_preset(config, train, spare, test)
        validation = _slice(validation, 0, config.max_eval_samples)
    _check_rows(config, train, test, prepared)
    used = {"train": len(train), "validation": len(validation), "test": len(test)}
    record = {**prepared.record, "used": used, "train_labels": _label_counts(train, prepared)}
    problem_type = prepared.columns.problem_type
    return LabeledSplits(
        train, validation, test, prepared.label_names, prepared.has_label_names, problem_type, record
    )


def expected_num_labels(config: TrainConfig) -> int:
    """Return the number of outputs (1 for regression), if possible without reading the rows.

    Raises:
        DataError: If it is a Hub data set that does not declare its labels.
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
        return len(prepare_rows(config).label_names) or 1
    return declared_num_labels(config)


def is_hub_dataset(name: str) -> bool:
    """Return whether a data set is on the Hub, neither embedded nor local."""
    preset = DATASETS.get(name)
    return not (preset.embedded if preset is not None else is_local_data(name))


def check_dataset_name(config: TrainConfig) -> None:
    """Check that a data set exists, without reading its rows.

    Raises:
        DataError: If a local or embedded data set is missing.
        HubError: If a Hub data set is missing or the Hub cannot be reached.
    """
    preset = DATASETS.get(config.dataset_name)
    if preset is not None and preset.embedded:
        embedded_reviews_file()
    elif preset is None and is_local_data(config.dataset_name):
        local_state(config.dataset_name)
    else:
        dataset_revision(config.dataset_name)


def truncate_text(text: str, max_length: int) -> str:
    """Cut a text to the characters that `max_length` tokens could possibly need."""
    return text[: max(10_000, CHARACTERS_PER_TOKEN * max_length)]


def _validation_of_preset(
    config: TrainConfig, train: Dataset, spare: Dataset, test: Dataset
) -> tuple[Dataset, Dataset]:
    """Return training and validation rows of a preset data set.

    Validation rows come from the spare rows, so that a published training split stays whole. If an embedded
    data set has too few of these, they come from the training rows.
    """
    used_keys = {text_key(text) for rows in (train, test) for text in rows["text"][:]}
    unused = [i for i, text in enumerate(spare["text"][:]) if text_key(text) not in used_keys]
    share, rows = VALIDATION_ROWS / max(1, len(unused)), spare.select(unused)
    embedded = DATASETS[config.dataset_name].embedded
    if len(unused) < MIN_SPARE_ROWS and embedded:
        share, rows = VALIDATION_SHARE, train
    keys = [text_key(text) for text in rows["text"][:]]
    held_out = hold_out(keys, strata(rows["label"][:], SINGLE), min(1.0, share), config.split_seed)
    if rows is train:
        excluded = set(held_out)
        train = train.select([i for i in range(len(train)) if i not in excluded])
        return train, rows.select(held_out)
    return train, rows.select(held_out[:VALIDATION_ROWS])


def _dataset(rows: pd.DataFrame, prepared: PreparedRows) -> Dataset:
    """Convert a frame to a Dataset whose labels are numbers."""
    index = {name: i for i, name in enumerate(prepared.label_names)}
    labels = rows["label"].tolist()
    if prepared.columns.problem_type == MULTI:
        labels = [[float(name in y) for name in index] for y in map(set, labels)]
    elif prepared.columns.problem_type == SINGLE:
        labels = [index[y] for y in labels]
    texts = {name: rows[name].tolist() for name in ("text", "text_pair") if name in rows}
    return Dataset.from_dict({**texts, "label": labels})


def _sample(rows: Dataset, max_rows: int, seed: int, sampled: bool) -> Dataset:
    return _slice(rows if sampled else rows.shuffle(seed=seed), 0, max_rows)


def _slice(rows: Dataset, start: int, stop: int) -> Dataset:
    """Return the rows from `start` up to `stop`, both clipped to the number of rows."""
    positions = range(min(start, len(rows)), min(stop, len(rows)))
    return rows.select(positions if len(positions) else [])


def _label_counts(rows: Dataset, prepared: PreparedRows) -> dict[str, int]:
    """Return the number of rows with each label; empty for regression."""
    labels = rows["label"][:]
    if prepared.columns.problem_type == REGRESSION:
        return {}
    if prepared.columns.problem_type == MULTI:
        return {name: int(sum(y[i] for y in labels)) for i, name in enumerate(prepared.label_names)}
    counts = Counter(labels)
    return {name: counts[i] for i, name in enumerate(prepared.label_names)}


def _check_rows(config: TrainConfig, train: Dataset, test: Dataset, prepared: PreparedRows) -> None:
    """Raise DataError if the sampled rows cannot be used for training or evaluation.

    A rare label may be missing from the sampled test rows, but not from the training rows.
    """
    for rows, setting, side in (
        (train, "max_train_samples", "training"),
        (test, "max_eval_samples", "evaluation"),
    ):
        present, absent = _present_labels(rows, prepared)
        if len(present) < 2 and side == "training":
            only = f"the label {short_repr(present[0])}" if present else "no label"
            raise DataError(
                f"All {len(rows):,} training rows have {only}; a classifier needs two or more, so raise "
                f"{setting} or add such rows."
            )
        if absent and (side == "training" or len(present) < 2):
            raise DataError(
                f"None of the {len(rows):,} {side} rows has the label {short_repr(absent[0])}; raise "
                f"{setting} or add such rows."
            )


def _present_labels(rows: Dataset, prepared: PreparedRows) -> tuple[list[Any], list[str]]:
    """Return the labels (or distinct numbers) that occur in the rows, and the labels that do not."""
    if prepared.columns.problem_type == REGRESSION:
        return sorted(set(rows["label"][:])), []
    counts = _label_counts(rows, prepared)
    return [name for name in counts if counts[name]], [name for name in counts if not counts[name]]
