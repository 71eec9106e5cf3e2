"""The checkpoint folders of a run: list them, verify them, and choose the one that a run continues from.

A checkpoint appears by one rename. It holds a manifest of its files and a record of the run's inputs. Before
a checkpoint is used, every file is compared with that manifest; a damaged one is skipped for the next older.
Whether the data, labels, base model and settings are still those of the checkpoint is checked when the
training starts, by `training/recorded_inputs.py`.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from peft_core.errors import DamagedError, RunError
from peft_core.files.atomic import remove_tree
from peft_core.files.manifests import verify_folder
from peft_core.runs.run import Run

STATE_FILE, INPUTS_FILE = "trained.safetensors", "inputs.json"
MAX_CHECKPOINTS = 2  # of a run: one may be damaged
_NAME = re.compile(r"checkpoint-(\d+)", re.ASCII)


@dataclass(frozen=True)
class CheckpointChoice:
    """The newest undamaged checkpoint, and a message for each newer one that is damaged."""

    checkpoint: Path
    skipped: tuple[str, ...]

    @property
    def step(self) -> int:
        return step_of(self.checkpoint)


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoint folders, newest first."""
    paths = [path for path in folder.glob("checkpoint-*") if _NAME.fullmatch(path.name)]
    return sorted(paths, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """Return the number of optimizer steps at which a checkpoint was saved."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def choose_checkpoint(run: Run) -> CheckpointChoice | None:
    """Return the checkpoint that a run continues from, or None if it has no checkpoint yet.

    Raises:
        DamagedError: There are checkpoints, and all of them are damaged.
        RunError: The checkpoints are of schema version 0.
    """
    checkpoints = list_checkpoints(run.checkpoints)
    if checkpoints and run.is_version_0:
        raise RunError(
            f"The run {run.run_id!r} was started by an earlier version, which kept no record of its inputs; "
            "train it as a new run with its settings."
        )
    skipped: list[str] = []
    for checkpoint in checkpoints:
        try:
            _verify(checkpoint)
            return CheckpointChoice(checkpoint, tuple(skipped))
        except DamagedError as error:
            skipped.append(f"{checkpoint.name} was skipped: {error}")
    if skipped:
        raise DamagedError(
            f"No checkpoint of {run.run_id!r} is intact ({' '.join(skipped)}); train it as a new run with "
            "its settings."
        )
    return None


def can_continue(run: Run) -> bool:
    """Return whether the run has an undamaged checkpoint to continue from."""
    try:
        return choose_checkpoint(run) is not None
    except RunError:
        return False


def remove_older(folder: Path, keep: int = MAX_CHECKPOINTS) -> None:
    """Remove all checkpoints but the newest `keep`."""
    for checkpoint in list_checkpoints(folder)[keep:]:
        remove_tree(checkpoint)


def _verify(checkpoint: Path) -> None:
    files = verify_folder(checkpoint).files
    for name in (STATE_FILE, INPUTS_FILE):
        if name not in files:
            raise DamagedError(f"it has no {name}.")


def describe_early_stop(run: Run, stage: str) -> str:
    """Return the note of a run that was stopped before its first step since it was started or continued."""
    checkpoints = list_checkpoints(run.checkpoints)
    if not checkpoints:
        return f"Stopped while {stage}; nothing was saved."
    return f"Stopped while {stage}. Continue resumes from step {step_of(checkpoints[0]):,}."
