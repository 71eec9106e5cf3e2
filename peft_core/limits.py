"""What a public demo allows."""

import math
from dataclasses import dataclass

from peft_core.config import TrainConfig
from peft_core.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """What a public demo allows, so that strangers can share one small machine."""

    max_train_samples: int = 4000
    max_eval_samples: int = 1000
    max_length: int = 256
    max_steps: int = 1000
    max_characters: int = 2000
    max_waiting: int = 5
    max_upload_bytes: int = 10_000_000
    max_upload_rows: int = 20_000
    max_uploads: int = 20

    def describe(self) -> str:
        """One sentence for the page."""
        return (
            f"Public demo: models from the list, data from the list or your own files, at most "
            f"{self.max_train_samples:,} training rows, {self.max_eval_samples:,} evaluation rows, "
            f"{self.max_steps:,} steps, {self.max_length} tokens and {self.max_characters:,} "
            "characters a text; one training at a time; everyone sees every run."
        )

    def describe_uploads(self) -> str:
        """One sentence for whoever uploads a file."""
        return (
            f"Files may have {self.max_upload_bytes / 1e6:,.0f} MB and {self.max_upload_rows:,} rows; the "
            f"newest {self.max_uploads} uploads are kept, and everyone sees what a run was tested on."
        )

    def check(self, config: TrainConfig, rows: int | None = None) -> None:
        """Raise ConfigError if a config asks for more than a public demo gives.

        `rows` are those that the data set has, where they are known: it cannot be trained on more.
        """
        for name in ("max_train_samples", "max_eval_samples", "max_length"):
            value, limit = getattr(config, name), getattr(self, name)
            if value > limit:
                raise ConfigError(f"{name} is {value:,}; this public demo allows at most {limit:,}.")
        most = config.max_train_samples if rows is None else min(rows, config.max_train_samples)
        steps = math.ceil(most / config.per_device_train_batch_size)
        steps = math.ceil(steps * config.num_train_epochs)
        if steps > self.max_steps:
            raise ConfigError(
                f"These settings make {steps:,} steps; this public demo allows at most {self.max_steps:,}. "
                "Take fewer rows or epochs, or a larger batch."
            )
