"""Data sets that the datasets library reads: those on the Hub, and folders with a Hub's card."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
from peft_core.errors import DataError, HubError, RunError
from peft_core.files import translate_disk_errors
from peft_core.sources import dataset_revision, hub_sentence


def hub_choices(name: str, config_name: str | None = None) -> dict[str, list[str]]:
    """The configurations of a Hub data set, and the splits of one (the first if none is named)."""
    revision = dataset_revision(name)
    try:
        configs = get_dataset_config_names(name, revision=revision)
        splits = get_dataset_split_names(name, config_name or configs[0], revision=revision)
    except Exception as error:
        raise _data_error(error, name) from error
    return {"configs": configs, "splits": splits}


def first_rows(
    name: str, config_name: str, split: str, most: int
) -> tuple[Mapping[str, Any], list[dict[str, Any]], dict[str, int]]:
    """The features, the first rows of a split, and as far as the card says the rows of every split."""
    revision = dataset_revision(name)
    try:
        stream = load_dataset(
            name, config_name, split=split, revision=revision, streaming=True, trust_remote_code=False
        )
        stream = stream.select_columns(readable(stream.features)) if stream.features else stream
        rows = list(stream.take(most))
    except Exception as error:
        raise _data_error(error, name) from error
    features = stream.features or dict.fromkeys(rows[0] if rows else ())
    sizes = {key: size.num_examples for key, size in (stream.info.splits or {}).items()}
    return features, rows, sizes


def declared_num_labels(config: TrainConfig) -> int:
    """The labels that a Hub data set's card declares, read without its rows; DataError if it does not."""
    name = config.dataset_name
    revision = dataset_revision(name)
    try:
        features = load_dataset_builder(name, config.dataset_config_name, revision=revision).info.features
    except Exception as error:
        raise _data_error(error, name) from error
    for column, names in class_names(features or {}).items():
        if config.label_column in (None, column):
            return len(names)
    raise DataError(f"{name!r} does not declare its labels; give num_labels to count before it is loaded.")


def readable(features: Mapping[str, Any]) -> list[str]:
    """The columns of texts, numbers and lists of them: pictures and sounds need not be decoded."""
    inner = {name: getattr(feature, "feature", feature) for name, feature in features.items()}
    return [name for name, feature in inner.items() if isinstance(feature, ClassLabel | Value)]


def class_names(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    inner = {name: getattr(feature, "feature", feature) for name, feature in features.items()}
    return {name: tuple(feature.names) for name, feature in inner.items() if isinstance(feature, ClassLabel)}


def load_hub(config: TrainConfig) -> tuple[DatasetDict, dict[str, Any]]:
    """All splits of a Hub data set; the first configuration where it has several and none is the default."""
    name, config_name = config.dataset_name, config.dataset_config_name
    revision = dataset_revision(name)
    try:
        with translate_disk_errors():
            try:
                found = load_dataset(name, config_name, revision=revision, trust_remote_code=False)
            except ValueError as error:
                if config_name is not None or "Config name is missing" not in str(error):
                    raise
                config_name = get_dataset_config_names(name, revision=revision)[0]
                found = load_dataset(name, config_name, revision=revision, trust_remote_code=False)
    except RunError:
        raise
    except Exception as error:
        raise _data_error(error, name) from error
    return found, {"source": "Hub", "revision": revision, "dataset_config_name": config_name}


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


def has_card(path: Path) -> bool:
    """Whether a folder is a data set as the Hub has it, whose card says how its files are to be read."""
    card = path / "README.md"
    if not card.is_file():
        return False
    head = card.read_text(encoding="utf-8", errors="replace")[:20_000]
    return head.startswith("---") and re.search(r"^(configs|dataset_info):", head, re.MULTILINE) is not None


def load_folder(folder: Path, config_name: str | None) -> DatasetDict:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    # pandas reads "null", "NA" and "None" as missing; here they are words
    reading = {"keep_default_na": False} if any(path.suffix in (".csv", ".tsv") for path in files) else {}
    try:
        with translate_disk_errors():
            return load_dataset(str(folder), config_name, cache_dir=_cache(files), **reading)
    except RunError:
        raise
    except Exception as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"The folder {str(folder)!r} cannot be read as its card says ({why}); mend the card or remove it."
        ) from error


def _cache(files: list[Path]) -> str:
    """A cache for these files as they are now: the loader's own key misses a change beside a card."""
    state = [(str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in files]
    return str(Path(HF_DATASETS_CACHE) / hashlib.sha256(repr(state).encode()).hexdigest()[:16])
