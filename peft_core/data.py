"""Read, check, sample and encode labelled text."""

import hashlib
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Value,
    load_dataset,
    load_dataset_builder,
)
from datasets.config import HF_DATASETS_CACHE
from datasets.exceptions import DatasetNotFoundError

from peft_core.config import TrainConfig
from peft_core.errors import DataError, HubError, RunError
from peft_core.presets import DATASETS, embedded_reviews_file
from peft_core.runs import disk_full_in_words
from peft_core.sources import dataset_revision, hub_sentence, is_local

TEXT_COLUMNS = ("text", "sentence", "review", "content", "body", "comment", "title")
LABEL_COLUMNS = ("label", "labels", "stars", "rating", "sentiment", "class", "category", "target")
HELD_OUT = 5  # one row in this many is held out where a data set has no evaluation split
CHARACTERS_PER_TOKEN = 50  # a text is cut here before it is tokenised: a 10 MB cell would take half a minute


@dataclass(frozen=True)
class LabelledText:
    """Rows to train and to judge on: columns `text` (str) and `label` (int index into `label_names`)."""

    train: Dataset
    validation: Dataset
    eval: Dataset
    label_names: tuple[str, ...]
    named: bool  # False where the data holds bare numbers, so that a kept head's own names are better
    problem_type: str = "single_label_classification"


def load_labelled_text(config: TrainConfig) -> LabelledText:
    """The rows that a config asks for, sampled with its seed: `shuffle(seed).select(range(n))`.

    Raises DataError for data that no classifier can be trained or judged on, HubError for the Hub.
    """
    train, held_out = _read_splits(config)
    text, label = _columns(config, train)
    names, named = _label_names(train, label)
    train = _tidy(
        _sample(train, config.max_train_samples, config.seed), text, label, names, config.train_split
    )
    held_out = _sample(held_out, config.max_eval_samples, config.seed)
    held_out = _tidy(held_out, text, label, names, config.eval_split)
    _check_classes(train, held_out, names)
    return LabelledText(train, held_out, held_out, _checked_names(config, names), named)


def expected_num_labels(config: TrainConfig) -> int:
    """The number of labels, found without reading the rows wherever that can be.

    Raises DataError where only the rows would tell.
    """
    if config.num_labels is not None:
        return config.num_labels
    if config.dataset_name in DATASETS:
        return len(DATASETS[config.dataset_name].label_names)
    if is_local(config.dataset_name):
        train, _ = _read_splits(config)
        return len(_label_names(train, _columns(config, train)[1])[0])
    return _declared_num_labels(config)


def on_hub(name: str) -> bool:
    """Whether a data set must be fetched from the Hub."""
    preset = DATASETS.get(name)
    return not (preset.embedded if preset is not None else is_local(name))


def check_dataset_name(config: TrainConfig) -> None:
    """Raise DataError or HubError if a data set does not exist, without reading its rows."""
    preset = DATASETS.get(config.dataset_name)
    if preset is not None and preset.embedded:
        embedded_reviews_file()
    elif is_local(config.dataset_name):
        _local_folder(config.dataset_name)
    else:
        dataset_revision(config.dataset_name)


def cut(text: str, max_length: int) -> str:
    """A text shortened to the characters that `max_length` tokens could possibly need."""
    return text[: max(10_000, CHARACTERS_PER_TOKEN * max_length)]


def encode(rows: Dataset, tokenizer: Any, max_length: int) -> Dataset:
    """Columns `input_ids`, `attention_mask` (lists of int, unpadded) and `labels` (int), one row a text."""

    def batch(columns: dict[str, list]) -> dict[str, list]:
        texts = [[cut(text, max_length) for text in columns[name]] for name in names]
        return {**tokenizer(*texts, truncation=True, max_length=max_length), "labels": columns["label"]}

    names = [name for name in ("text", "text_pair") if name in rows.column_names]

    return rows.map(batch, batched=True, remove_columns=rows.column_names, keep_in_memory=True)


def _read_splits(config: TrainConfig) -> tuple[Dataset, Dataset]:
    """The training and evaluation rows as the source has them; held out by a hash of the text if need be."""
    preset = DATASETS.get(config.dataset_name)
    if preset is not None and preset.embedded:
        return _hold_out(_embedded_rows(config.dataset_name), "text")
    splits = _load(config)
    if config.train_split not in splits:
        raise DataError(
            f"{config.dataset_name!r} has no split {config.train_split!r}; it has {', '.join(splits)}."
        )
    train = splits[config.train_split]
    if not len(train):
        raise DataError(f"The split {config.train_split!r} of {config.dataset_name!r} holds no rows.")
    if config.eval_split in splits and config.eval_split != config.train_split:
        return train, splits[config.eval_split]
    return _hold_out(train, _columns(config, train)[0])


def _embedded_rows(name: str) -> Dataset:
    """One source of the embedded CSV, its labels 0 and 1 named."""
    frame = pd.read_csv(embedded_reviews_file(), dtype=str, keep_default_na=False)
    frame = frame[frame["source"] == name]
    rows = Dataset.from_dict({"text": frame["text"].tolist(), "label": frame["label"].astype(int).tolist()})
    return rows.cast_column("label", ClassLabel(names=list(DATASETS[name].label_names)))


def _load(config: TrainConfig) -> DatasetDict:
    name = config.dataset_name
    if is_local(name):
        return _load_folder(_local_folder(name), config.dataset_config_name)
    revision = dataset_revision(name)
    try:
        with disk_full_in_words():
            return load_dataset(
                name,
                config.dataset_config_name,
                revision=revision,
                trust_remote_code=False,
            )
    except RunError:
        raise
    except Exception as error:
        raise _data_error(error, name) from error


def _data_error(error: Exception, name: str) -> Exception:
    """A sentence for what load_dataset raised, or the error itself if it is a bug."""
    sentence = hub_sentence(error, name, "data set")
    if sentence is not None:
        return HubError(sentence)
    if isinstance(error, DatasetNotFoundError) and "gated" in str(error):
        return HubError(
            f"The data set {name!r} is gated: accept its terms on the Hub and log in, or choose another."
        )
    if isinstance(error, DatasetNotFoundError):
        return HubError(f"There is no data set {name!r} on the Hub, or it is private; check the spelling.")
    if isinstance(error, ValueError):
        return DataError(f"The data set {name!r} cannot be read: {str(error).splitlines()[0]}")
    return error


def _local_folder(name: str) -> Path:
    folder = os.path.expanduser(name)
    if not os.path.isdir(folder):
        raise DataError(f"There is no folder {name!r}; give a folder of CSV, JSON or Parquet files.")
    return Path(folder).resolve()


def _load_folder(folder: Path, config_name: str | None) -> DatasetDict:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    # pandas reads "null", "NA" and "None" as missing; here they are words
    reading = {"keep_default_na": False} if any(path.suffix in (".csv", ".tsv") for path in files) else {}
    try:
        with disk_full_in_words():
            return load_dataset(str(folder), config_name, cache_dir=_cache(files), **reading)
    except RunError:
        raise
    except Exception as error:
        said = f"{error} {error.__cause__}"
        if "corresponds to no data" in said or "first 0 values" in said:  # one file, or one of several
            raise DataError(f"The folder {str(folder)!r} has a file that holds no rows; add some.") from error
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"The folder {str(folder)!r} cannot be read as a data set ({why}); "
            "it should hold train and test files in CSV, JSON or Parquet."
        ) from error


def _cache(files: list[Path]) -> str:
    """A cache for these files as they are now: the loader's own key misses a change beside a card."""
    state = [(str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in files]
    return str(Path(HF_DATASETS_CACHE) / hashlib.sha256(repr(state).encode()).hexdigest()[:16])


def _declared_num_labels(config: TrainConfig) -> int:
    """The labels that a Hub data set's card declares."""
    name = config.dataset_name
    revision = dataset_revision(name)
    try:
        features = load_dataset_builder(name, config.dataset_config_name, revision=revision).info.features
    except Exception as error:
        raise _data_error(error, name) from error
    for column, feature in (features or {}).items():
        if isinstance(feature, ClassLabel) and config.label_column in (None, column):
            return feature.num_classes
    raise DataError(f"{name!r} does not declare its labels; give num_labels to count before it is loaded.")


def _columns(config: TrainConfig, rows: Dataset) -> tuple[str, str]:
    """The names of the text and the label column, as given or guessed."""
    label = config.label_column or _guess_label(rows)
    text = config.text_column or _guess_text(rows, label)
    for role, name in (("text_column", text), ("label_column", label)):
        if name not in rows.column_names:
            has = ", ".join(rows.column_names)
            raise DataError(
                f"{config.dataset_name!r} has no {role} {name or 'that could be guessed'}; it has {has}."
            )
    for role, name in (("text_column", text), ("label_column", label)):
        feature = rows.features[name]
        if not isinstance(feature, ClassLabel | Value) or (role == "text_column" and not _is_text(feature)):
            kind = getattr(feature, "dtype", type(feature).__name__)
            raise DataError(f"The {role} {name!r} of {config.dataset_name!r} holds {kind}; name another.")
    return text, label


def _is_text(feature: Any) -> bool:
    """Whether a column holds texts, or nothing at all."""
    return getattr(feature, "dtype", None) in ("string", "large_string", "null")


def _guess_label(rows: Dataset) -> str | None:
    declared = [name for name, feature in rows.features.items() if isinstance(feature, ClassLabel)]
    by_name = [name for name in LABEL_COLUMNS if name in rows.column_names]
    return next(iter(declared + by_name), None)


def _guess_text(rows: Dataset, label: str | None) -> str | None:
    strings = [name for name, feature in rows.features.items() if name != label and _is_text(feature)]
    return next((name for name in TEXT_COLUMNS if name in strings), strings[0] if strings else None)


def _label_names(rows: Dataset, label: str) -> tuple[tuple[str, ...], bool]:
    """The labels in order, and whether they are names rather than bare numbers."""
    feature = rows.features[label]
    if isinstance(feature, ClassLabel):
        return tuple(feature.names), True
    values = set(rows.unique(label)) - {None}
    if all(isinstance(value, int | float) for value in values):
        return tuple(f"{value:g}" for value in sorted(values)), False
    return tuple(sorted(str(value) for value in values)), True


def _tidy(rows: Dataset, text: str, label: str, names: tuple[str, ...], split: str) -> Dataset:
    """Columns `text` and `label` alone, the label as an index; DataError where a row lacks either."""
    if not len(rows):
        raise DataError(f"The split {split!r} holds no rows.")
    texts, labels = rows[text][:], rows[label][:]
    pairs = zip(texts, labels, strict=True)
    missing = [i for i, (t, y) in enumerate(pairs) if y in (None, "") or not (t or "").strip()]
    if missing:
        raise DataError(
            f"{len(missing):,} of {len(rows):,} rows taken from the split {split!r} have no text or no "
            "label; fill or remove such rows."
        )
    if not isinstance(rows.features[label], ClassLabel):
        labels = _as_indices(labels, names, split)
    elif min(labels) < 0:
        raise DataError(f"The split {split!r} has rows whose label is hidden (-1); choose a labelled split.")
    return Dataset.from_dict({"text": texts, "label": labels})


def _as_indices(labels: list, names: tuple[str, ...], split: str) -> list[int]:
    index = {name: i for i, name in enumerate(names)}
    keys = [f"{y:g}" if isinstance(y, int | float) else str(y) for y in labels]
    unknown = sorted(set(keys) - set(index))
    if unknown:
        raise DataError(f"The split {split!r} has the label {unknown[0]!r}, which no training row has.")
    return [index[key] for key in keys]


def _sample(rows: Dataset, most: int, seed: int) -> Dataset:
    return rows.shuffle(seed=seed).select(range(min(most, len(rows))))


def _hold_out(rows: Dataset, text: str) -> tuple[Dataset, Dataset]:
    """Rows split by a hash of their text: the same for every seed, and no text on both sides."""
    held = [_bucket(value) == 0 for value in rows[text][:]]
    train = rows.select([i for i, out in enumerate(held) if not out])
    return train, rows.select([i for i, out in enumerate(held) if out])


def _bucket(text: str | None) -> int:
    digest = hashlib.sha256((text or "").strip().encode("utf-8", "surrogatepass")).hexdigest()
    return int(digest[:8], 16) % HELD_OUT


def _check_classes(train: Dataset, held_out: Dataset, names: tuple[str, ...]) -> None:
    """Raise DataError for one class only, or a class that one side lacks."""
    seen = Counter(train["label"][:])
    if len(seen) < 2:
        only = names[next(iter(seen))]
        raise DataError(
            f"All {len(train):,} training rows have the label {only!r}; a classifier needs two or more."
        )
    for rows, setting in ((train, "max_train_samples"), (held_out, "max_eval_samples")):
        absent = [names[i] for i in range(len(names)) if i not in set(rows["label"][:])]
        if absent:
            side = "training" if rows is train else "evaluation"
            raise DataError(
                f"None of the {len(rows):,} {side} rows has the label {absent[0]!r}; "
                f"raise {setting} or add such rows."
            )


def _checked_names(config: TrainConfig, names: tuple[str, ...]) -> tuple[str, ...]:
    if config.num_labels not in (None, len(names)):
        raise DataError(
            f"num_labels is {config.num_labels}, but the data has {len(names)}: {', '.join(names[:10])}."
        )
    return names
