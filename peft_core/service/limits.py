"""Limits of a public demo, and the check that settings do not name local files."""

import math
import os
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from peft_core.config import TrainConfig
from peft_core.data.uploads import hide_upload_folders, is_upload
from peft_core.errors import ConfigError
from peft_core.models.presets import DATASETS, MODELS
from peft_core.training.schedule import evaluations_of


@dataclass(frozen=True)
class Limits:
    """Limits of a public demo, with which many visitors can share one small machine."""

    max_train_samples: int = 4000
    max_eval_samples: int = 1000
    max_length: int = 256
    max_batch: int = 64
    max_steps: int = 1000
    max_seconds: float = 300.0  # of a training: a longer forecast is refused, a longer run is stopped
    max_memory_share: float = 0.7  # of the free memory, for the forecast of a training
    max_evaluations: int = 20
    max_characters: int = 2000
    max_waiting: int = 5
    max_runs: int = 50  # of a visitor
    max_compared: int = 20  # runs in a comparison of one text
    max_queue: int = 100  # events in gradio's queue
    max_upload_bytes: int = 10_000_000
    max_upload_rows: int = 20_000
    max_uploads: int = 20
    reading_seconds: float = 60.0
    reading_bytes: int = 2_000_000_000
    answer_seconds: float = 300.0  # a merge of a large model takes minutes
    job_seconds: float = 600.0
    job_bytes: int = 8_000_000_000

    def describe(self) -> str:
        """Return the limits as text for the page."""
        return (
            f"Public demo: models from the list, data from the list or your own files, at most "
            f"{self.max_train_samples:,} training rows, {self.max_eval_samples:,} evaluation rows, "
            f"{self.max_steps:,} steps, {self.max_seconds / 60:.0f} minutes, {self.max_length} tokens and "
            f"{self.max_characters:,} characters a text; one training at a time. Your runs and files are "
            "yours alone, until you share a run by its link."
        )

    def describe_uploads(self) -> str:
        """Return the limits for uploads as text for the page."""
        return (
            f"Files may have {self.max_upload_bytes / 1e6:,.0f} MB and {self.max_upload_rows:,} rows; the "
            f"newest {self.max_uploads} uploads are kept. Whoever has the link of a run that you share can "
            "read the rows it was tested on."
        )

    def describe_deadline(self) -> str:
        """Return the note of a run that was stopped at the time limit."""
        return f"This public demo stops a run after {_duration(self.max_seconds)}."

    def check_seconds(self, seconds: float | None) -> None:
        """Raise ConfigError if the forecast time of a training exceeds the limit."""
        if seconds is not None and seconds > self.max_seconds:
            raise ConfigError(
                f"These settings are forecast to take {seconds / 60:,.0f} minutes; this public demo limits "
                f"a run to {self.max_seconds / 60:.0f}. Use fewer rows, epochs or tokens, or a smaller model."
            )

    def check_memory(self, memory: int | None, free: int | None) -> None:
        """Raise ConfigError if the forecast memory of a training exceeds its share of the free memory."""
        if memory is not None and free is not None and memory > self.max_memory_share * free:
            raise ConfigError(
                f"These settings are forecast to take {memory / 1e9:.1f} GB of memory; this public demo "
                f"limits a run to {self.max_memory_share:.0%} of the {free / 1e9:.1f} GB of free memory. Use "
                "a smaller batch, a shorter max length or a smaller model."
            )

    def check_forecast(self, forecast: Mapping[str, Any]) -> None:
        """Raise ConfigError if a forecast by `tasks.forecast` exceeds the time or memory limit."""
        self.check_seconds(forecast["seconds"])
        self.check_memory(forecast["memory"], forecast["free"])

    def check(self, config: TrainConfig, rows: int | None = None) -> None:
        """Raise ConfigError if a config exceeds the limits.

        Args:
            config: The settings.
            rows: Number of training rows in the data set, if known.
        """
        bounds = {
            name: getattr(self, name) for name in ("max_train_samples", "max_eval_samples", "max_length")
        }
        for name, limit in {**bounds, "per_device_train_batch_size": self.max_batch}.items():
            number = getattr(config, name)
            if number > limit:
                raise ConfigError(f"{name} is {number:,}; this public demo allows at most {limit:,}.")
        train_rows = config.max_train_samples if rows is None else min(rows, config.max_train_samples)
        batches = math.ceil(train_rows / config.per_device_train_batch_size)
        batches = math.ceil(batches * config.num_train_epochs)  # gradient accumulation saves no time
        if batches > self.max_steps:
            raise ConfigError(
                f"These settings make {batches:,} steps; this public demo allows at most "
                f"{self.max_steps:,}. Use fewer rows or epochs, or a larger batch."
            )
        evaluations = evaluations_of(config, train_rows)
        if evaluations > self.max_evaluations:
            raise ConfigError(
                f"eval_steps is {config.eval_steps}, which makes {evaluations:,} evaluations; this public "
                f"demo allows at most {self.max_evaluations}. Use a larger interval, or leave it empty."
            )


def _duration(seconds: float) -> str:
    return f"{seconds / 60:,.0f} minutes" if seconds >= 60 else f"{seconds:.0f} seconds"


def check_presets(config: TrainConfig, uploads_dir: Path) -> None:
    """Raise ConfigError for a model or data set that is neither a preset nor an upload."""
    for name, presets, noun in (
        (config.model_name_or_path, MODELS, "base models"),
        (config.dataset_name, DATASETS, "data sets"),
    ):
        uploaded = noun == "data sets" and is_upload(name, uploads_dir)
        if name not in presets and not uploaded:
            quoted = hide_upload_folders(repr(name))
            raise ConfigError(f"{quoted} is not on this public demo's list of {noun}: {', '.join(presets)}.")
    if config.revision or config.dataset_config_name:
        raise ConfigError("A public demo accepts no revision and no data configuration; leave both empty.")


def settings_naming_files(config: TrainConfig, uploads_dir: Path) -> list[str]:
    """Return the settings that may name a local path which is not an upload. No file is opened.

    The check is by form, so that the answer does not reveal whether a file exists: every value counts except
    a preset, an upload and a Hub id. A Hub id that is also a path in the working folder counts too.
    """
    presets_by_setting = {"model_name_or_path": MODELS, "dataset_name": DATASETS}
    return [
        name
        for name, presets in presets_by_setting.items()
        if not _is_offered_or_on_hub(getattr(config, name), presets, uploads_dir)
    ]


def check_names_no_files(config: TrainConfig, uploads_dir: Path) -> None:
    """Raise ConfigError if a setting may name a file or folder of this machine."""
    for name in settings_naming_files(config, uploads_dir):
        raise ConfigError(
            f"{name} is {getattr(config, name)!r}, which is neither a preset, an upload nor a Hub id. "
            "Programs may name local paths only after a login: start the app with --auth, or use the page."
        )


def _is_offered_or_on_hub(name: str, presets: Container[str], uploads_dir: Path) -> bool:
    if name in presets or is_upload(name, uploads_dir):
        return True
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not name.startswith((".", "~")) and not os.path.lexists(name)
