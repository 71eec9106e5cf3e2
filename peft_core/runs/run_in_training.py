"""The run as seen by its training process, the only writer of its state and training log.

The state is kept in memory and written whole at each change, so that a failed read loses nothing.
"""

import os
import time
from dataclasses import dataclass, field
from typing import Any

from peft_core.files.process_identity import own_identity
from peft_core.files.records import write_sealed
from peft_core.runs.metrics import METRICS_FILE, append_metrics, read_metrics, rewrite_metrics, sync_metrics
from peft_core.runs.records import RUNNING, RunState
from peft_core.runs.run import STATUS_FILE, Run


@dataclass
class _CachedState:
    """The state as last written, and the check of the last row of metrics.jsonl."""

    state: RunState | None = None
    metrics_check: str = ""


@dataclass(frozen=True)
class RunInTraining(Run):
    """A run in its training process, with the state cached in memory."""

    cached: _CachedState = field(default_factory=_CachedState, compare=False, repr=False)

    def begin(self) -> None:
        """Take over the state from the process that scheduled the run: this process trains it now."""
        self.cached.state = self._read_state()
        self.cached.metrics_check = read_metrics(self.folder).check
        self.update(
            status=RUNNING,
            pid=os.getpid(),
            process=own_identity(),
            started=time.time(),
            ended=None,
            error=None,
        )

    @property
    def current(self) -> RunState:
        """The state as this process last wrote it."""
        return self.cached.state or self._read_state()

    def update(self, **changes: Any) -> None:
        check = self.cached.metrics_check or None
        if check != self.current.metrics_check:
            sync_metrics(self.folder)  # before a state that names its last row
        self.cached.state = self.current.replace(**{"metrics_check": check, **changes})
        write_sealed(self.folder / STATUS_FILE, self.cached.state)

    def note(self, sentence: str) -> None:
        """Add a message about this training for the user, once."""
        if sentence not in self.current.notes:
            self.update(notes=[*self.current.notes, sentence])

    def log_metrics(self, row: dict[str, Any]) -> None:
        """Append one row to metrics.jsonl."""
        self.cached.metrics_check = append_metrics(self.folder, row, self.cached.metrics_check)

    def forget_metrics_after(self, step: int) -> None:
        """Drop the rows of later steps, which are about to be run again, and those of the result."""
        if not (self.folder / METRICS_FILE).exists():
            return
        remaining = [
            row
            for row in self.metrics()
            if row["step"] <= step and not any(key.startswith("test_") for key in row)
        ]
        self.cached.metrics_check = ""
        self.update()  # so that the state refers to no row that is about to be dropped
        self.cached.metrics_check = rewrite_metrics(self.folder, remaining)
