"""Read data sets with the datasets library: from the Hub, and from folders with a data set card."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from datasets import (
    ClassLabel,
    DatasetDict,
    Value,
    get_dataset_config_names,
    get_dataset_split_names,
    load_dataset,
    load_dataset_builder,
)
from datasets.config import HF_DATASETS_CACHE
from datasets.exceptions import DatasetNotFoundError

from peft_core.config import TrainConfig
from peft_core.data.cells import first_error_line
from peft_core.errors import DataError, HubError, RunError
from peft_core.files.atomic import translate_disk_errors
from peft_core.models.sources import dataset_revision, describe_hub_error


class FirstRows(NamedTuple):
    """The first rows of a split; `split_sizes` are the rows of every split that the card declares."""

    features: Mapping[str, Any]
    rows: list[dict[str, Any]]
    split_sizes: dict[str, int]


class ConfigsAndSplits(NamedTuple):
    """The configurations of a Hub data set, and the splits of one of them."""

    configs: list[str]
    splits: list[str]


def list_configs_and_splits(name: str, config_name: str | None = None) -> ConfigsAndSplits:
    """Return the configurations of a Hub data set, and the splits of one (by default the first)."""
    revision = dataset_revision(name)
    try:
        configs = get_dataset_config_names(name, revision=revision)
        splits = get_dataset_split_names(name, config_name or configs[0], revision=revision)
    except Exception as error:
        raise _translate_hub_error(error, name) from error
    return ConfigsAndSplits(configs, splits)


def stream_first_rows(name: str, config_name: str, split: str, max_rows: int) -> FirstRows:
    """Stream at most `max_rows` rows of a split of a Hub data set, without columns that must be decoded."""
    revision = dataset_revision(name)
    try:
        stream = load_dataset(
            name, config_name, split=split, revision=revision, streaming=True, trust_remote_code=False
        )
        stream = stream.select_columns(readable_columns(stream.features)) if stream.features else stream
        rows: list[dict[str, Any]] = list(stream.take(max_rows))
    except Exception as error:
        raise _translate_hub_error(error, name) from error
    columns: list[str] = list(rows[0]) if rows else []
    features: Mapping[str, Any] = stream.features or dict.fromkeys(columns)
    split_sizes = {split: info.num_examples for split, info in (stream.info.splits or {}).items()}
    return FirstRows(features, rows, split_sizes)


def declared_num_labels(config: TrainConfig) -> int:
    """Return the number of labels that a Hub data set's card declares, without reading its rows.

    Raises:
        DataError: If the card declares no labels.
    """
    name = config.dataset_name
    revision = dataset_revision(name)
    try:
        features = load_dataset_builder(name, config.dataset_config_name, revision=revision).info.features
    except Exception as error:
        raise _translate_hub_error(error, name) from error
    for column, names in declared_class_names(features or {}).items():
        if config.label_column in (None, column):
            return len(names)
    raise DataError(
        f"{name!r} does not declare its labels; set num_labels to count the parameters before it is loaded."
    )


def readable_columns(features: Mapping[str, Any]) -> list[str]:
    """Return the columns of texts, numbers and lists of them, so that no image or audio is decoded."""
    inner = {name: getattr(feature, "feature", feature) for name, feature in features.items()}
    return [name for name, feature in inner.items() if isinstance(feature, ClassLabel | Value)]


def declared_class_names(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return the class names of each `ClassLabel` column, also of columns that hold lists of them."""
    inner = {name: getattr(feature, "feature", feature) for name, feature in features.items()}
    return {name: tuple(feature.names) for name, feature in inner.items() if isinstance(feature, ClassLabel)}


def load_hub_dataset(config: TrainConfig) -> tuple[DatasetDict, dict[str, Any]]:
    """Load all splits of a Hub data set, with a record of its revision and configuration.

    Without `dataset_config_name`, a data set with several configurations and no default loads the first.
    """
    name, config_name = config.dataset_name, config.dataset_config_name
    revision = dataset_revision(name)
    try:
        with translate_disk_errors():
            try:
                splits = load_dataset(name, config_name, revision=revision, trust_remote_code=False)
            except ValueError as error:
                if config_name is not None or "Config name is missing" not in str(error):
                    raise
                config_name = get_dataset_config_names(name, revision=revision)[0]
                splits = load_dataset(name, config_name, revision=revision, trust_remote_code=False)
    except RunError:
        raise
    except Exception as error:
        raise _translate_hub_error(error, name) from error
    return splits, {"source": "Hub", "revision": revision, "dataset_config_name": config_name}


def _translate_hub_error(error: Exception, name: str) -> Exception:
    """Return a HubError or DataError for an error of the datasets library, or the error itself if unknown."""
    sentence = describe_hub_error(error, name, "data set")
    if sentence is not None:
        return HubError(sentence)
    if isinstance(error, DatasetNotFoundError) and "gated" in str(error):
        return HubError(
            f"The data set {name!r} is gated: accept its terms on the Hub and log in, or choose another."
        )
    if isinstance(error, DatasetNotFoundError):
        return HubError(f"There is no data set {name!r} on the Hub, or it is private; check the spelling.")
    if isinstance(error, ValueError):
        return DataError(f"The data set {name!r} cannot be read: {first_error_line(error)}")
    return error


def has_dataset_card(path: Path) -> bool:
    """Return whether a folder has a data set card (README.md) that describes how to read its files."""
    card = path / "README.md"
    if not card.is_file():
        return False
    head = card.read_text(encoding="utf-8", errors="replace")[:20_000]
    return head.startswith("---") and re.search(r"^(configs|dataset_info):", head, re.MULTILINE) is not None


def load_dataset_folder(folder: Path, config_name: str | None) -> DatasetDict:
    """Load all splits of a folder with a data set card."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    has_csv = any(path.suffix in (".csv", ".tsv") for path in files)
    # by default pandas reads the words "null", "NA" and "None" as missing values
    csv_options: dict[str, Any] = {"keep_default_na": False} if has_csv else {}
    try:
        with translate_disk_errors():
            return load_dataset(
                str(folder),
                config_name,
                split=None,
                cache_dir=_cache_folder(files),
                streaming=False,
                **csv_options,
            )
    except RunError:
        raise
    except Exception as error:
        raise DataError(
            f"The folder {str(folder)!r} cannot be read as its card says ({first_error_line(error)}); "
            "correct the card or remove it."
        ) from error


def _cache_folder(files: list[Path]) -> str:
    """Return a cache folder for the current state of the files; the loader's own key ignores some changes."""
    state = [(str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in files]
    return str(Path(HF_DATASETS_CACHE) / hashlib.sha256(repr(state).encode()).hexdigest()[:16])
