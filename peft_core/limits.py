"""Limits of a public demo, and the check that settings name no local files."""

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
from peft_core.presets import DATASETS, MODELS
from peft_core.schedule import evaluations_of


@dataclass(frozen=True)
class Limits:
    """What a public demo allows, so that strangers can share one small machine."""

    max_train_samples: int = 4000
    max_eval_samples: int = 1000
    max_length: int = 256
    max_batch: int = 64
    max_steps: int = 1000
    max_seconds: float = 300.0  # of a training; at most so long is forecast, and then it is stopped
    max_memory_share: float = 0.7  # of what is free, that a training may be forecast to take
    max_evaluations: int = 20
    max_characters: int = 2000
    max_waiting: int = 5
    max_runs: int = 50  # of a visitor
    max_compared: int = 20  # runs asked for one text
    max_queue: int = 100  # calls of the page and programs that wait for an answer
    max_upload_bytes: int = 10_000_000
    max_upload_rows: int = 20_000
    max_uploads: int = 20
    reading_seconds: float = 60.0
    reading_bytes: int = 2_000_000_000
    answer_seconds: float = 300.0  # a merge of a large model takes minutes
    job_seconds: float = 600.0
    job_bytes: int = 8_000_000_000

    def describe(self) -> str:
        """One sentence for the page."""
        return (
            f"Public demo: models from the list, data from the list or your own files, at most "
            f"{self.max_train_samples:,} training rows, {self.max_eval_samples:,} evaluation rows, "
            f"{self.max_steps:,} steps, {self.max_seconds / 60:.0f} minutes, {self.max_length} tokens and "
            f"{self.max_characters:,} characters a text; one training at a time. Your runs and files are "
            "yours alone, until you share a run by its link."
        )

    def describe_uploads(self) -> str:
        """One sentence for whoever uploads a file."""
        return (
            f"Files may have {self.max_upload_bytes / 1e6:,.0f} MB and {self.max_upload_rows:,} rows; the "
            f"newest {self.max_uploads} uploads are kept. Whoever has the link of a run that you share can "
            "read the rows it was tested on."
        )

    def describe_deadline(self) -> str:
        """One sentence for a run that was stopped."""
        return f"It had {_duration(self.max_seconds)}, the most that this public demo gives a run."

    def check_seconds(self, seconds: float | None) -> None:
        """Raise ConfigError for a training that is forecast to take longer than a public demo gives."""
        if seconds is not None and seconds > self.max_seconds:
            raise ConfigError(
                f"These settings are forecast to take {seconds / 60:,.0f} minutes; this public demo gives "
                f"a run {self.max_seconds / 60:.0f}. Take fewer rows, epochs or tokens, or a smaller model."
            )

    def check_memory(self, memory: int | None, free: int | None) -> None:
        """Raise ConfigError for a training that is forecast to take too much of the memory that is free."""
        if memory is not None and free is not None and memory > self.max_memory_share * free:
            raise ConfigError(
                f"These settings are forecast to take {memory / 1e9:.1f} GB of memory; this public demo "
                f"gives a run {self.max_memory_share:.0%} of the {free / 1e9:.1f} GB that are free. Take a "
                "smaller batch, a shorter max length or a smaller model."
            )

    def check_forecast(self, forecast: Mapping[str, Any]) -> None:
        """Raise ConfigError for a training that takes too long or too much memory, by `tasks.forecast`."""
        self.check_seconds(forecast["seconds"])
        self.check_memory(forecast["memory"], forecast["free"])

    def check(self, config: TrainConfig, rows: int | None = None) -> None:
        """Raise ConfigError if a config asks for more than a public demo gives.

        `rows` are those that the data set has, where they are known: it cannot be trained on more.
        """
        bounds = {
            name: getattr(self, name) for name in ("max_train_samples", "max_eval_samples", "max_length")
        }
        for name, limit in {**bounds, "per_device_train_batch_size": self.max_batch}.items():
            value = getattr(config, name)
            if value > limit:
                raise ConfigError(f"{name} is {value:,}; this public demo allows at most {limit:,}.")
        most = config.max_train_samples if rows is None else min(rows, config.max_train_samples)
        batches = math.ceil(most / config.per_device_train_batch_size)
        batches = math.ceil(batches * config.num_train_epochs)  # accumulating them makes them no cheaper
        if batches > self.max_steps:
            raise ConfigError(
                f"These settings make {batches:,} steps; this public demo allows at most "
                f"{self.max_steps:,}. Take fewer rows or epochs, or a larger batch."
            )
        evaluations = evaluations_of(config, most)
        if evaluations > self.max_evaluations:
            raise ConfigError(
                f"eval_steps is {config.eval_steps}, which makes {evaluations:,} evaluations; this public "
                f"demo allows at most {self.max_evaluations}. Take a larger interval, or leave it empty."
            )


def _duration(seconds: float) -> str:
    return f"{seconds / 60:,.0f} minutes" if seconds >= 60 else f"{seconds:.0f} seconds"


def check_offered(config: TrainConfig, uploads_dir: Path) -> None:
    """Raise ConfigError for a model or data set that is not on the list, unless it was uploaded here."""
    for value, offered, what in (
        (config.model_name_or_path, MODELS, "base models"),
        (config.dataset_name, DATASETS, "data sets"),
    ):
        uploaded = what == "data sets" and is_upload(value, uploads_dir)
        if value not in offered and not uploaded:
            named = hide_upload_folders(repr(value))
            raise ConfigError(f"{named} is not on this public demo's list of {what}: {', '.join(offered)}.")
    if config.revision or config.dataset_config_name:
        raise ConfigError("A public demo takes no revision and no data configuration; leave both empty.")


def settings_with_files(config: TrainConfig, uploads_dir: Path) -> list[str]:
    """The settings that may name a local path which is not an upload. No file is opened.

    They are judged by their form, so that the answer does not tell whether there is such a file: everything
    but a preset, an upload and a Hub id. A Hub id that is a path in the working folder as well counts as one.
    """
    offered = {"model_name_or_path": MODELS, "dataset_name": DATASETS}
    return [
        name
        for name, presets in offered.items()
        if not _is_offered_or_on_hub(getattr(config, name), presets, uploads_dir)
    ]


def check_names_no_files(config: TrainConfig, uploads_dir: Path) -> None:
    """Raise ConfigError if a setting names a file or folder of this machine."""
    for name in settings_with_files(config, uploads_dir):
        raise ConfigError(
            f"{name} is {getattr(config, name)!r}, which is neither a preset, an upload nor a Hub id. "
            "Programs may name local paths after a login alone: start the app with --auth, or use the page."
        )


def _is_offered_or_on_hub(name: str, presets: Container[str], uploads_dir: Path) -> bool:
    if name in presets or is_upload(name, uploads_dir):
        return True
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not name.startswith((".", "~")) and not os.path.lexists(name)
