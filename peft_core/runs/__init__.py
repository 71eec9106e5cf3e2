"""Run folders: create, find, list and delete them; everything else reads and writes runs through `Run`."""

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
from peft_core.runs.store import create, delete, find, list_runs, sweep, unknown_run

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
    "sweep",
    "unknown_run",
]
