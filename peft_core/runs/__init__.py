"""Run folders: create, find, list, delete and restore them. Other code uses a run through `Run`."""

from peft_core.runs.records import (
    ENDED,
    FAILED,
    FINISHED,
    KILLED,
    RUNNING,
    SCHEDULED,
    RunResult,
    RunState,
)
from peft_core.runs.run import Run
from peft_core.runs.run_in_training import RunInTraining
from peft_core.runs.store import create, delete, find, list_runs, remove, restore, sweep, unknown_run
from peft_core.runs.trash import list_trash, purge_trash

__all__ = [
    "ENDED",
    "FAILED",
    "FINISHED",
    "KILLED",
    "RUNNING",
    "SCHEDULED",
    "Run",
    "RunInTraining",
    "RunResult",
    "RunState",
    "create",
    "delete",
    "find",
    "list_runs",
    "list_trash",
    "purge_trash",
    "remove",
    "restore",
    "sweep",
    "unknown_run",
]
