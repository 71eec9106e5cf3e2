"""A run as its training process has it: it alone writes the state and the training log.

The state is kept in memory and written whole at each change, so that a read that fails loses nothing.
"""

import os
import time
from dataclasses import dataclass, field
from typing import Any

from peft_core.process_identity import own_identity
from peft_core.records import write_sealed
from peft_core.runs.metrics import METRICS_FILE, append_metrics, keep_metrics, read_metrics, sync_metrics
from peft_core.runs.records import RUNNING, RunState
from peft_core.runs.run import STATUS_FILE, Run


@dataclass
class _CachedState:
    """What a training process knows of its run without reading it: the state, and the last row's check."""

    state: RunState | None = None
    metrics_check: str = ""


@dataclass(frozen=True)
class RunInTraining(Run):
    """A run as its training process has it: the state is held here and written whole at each change, so that
    a read that fails loses nothing."""

    cached: _CachedState = field(default_factory=_CachedState, compare=False, repr=False)

    def begin(self) -> None:
        """Take over the state from whoever scheduled the run: this process trains it now."""
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
        """The state as this process wrote it last."""
        return self.cached.state or self._read_state()

    def update(self, **changes: Any) -> None:
        check = self.cached.metrics_check or None
        if check != self.current.metrics_check:
            sync_metrics(self.folder)  # before a state that names its last row
        self.cached.state = self.current.changed(**{"metrics_check": check, **changes})
        write_sealed(self.folder / STATUS_FILE, self.cached.state)

    def note(self, sentence: str) -> None:
        """Tell the person something about this training, once."""
        if sentence not in self.current.notes:
            self.update(notes=[*self.current.notes, sentence])

    def log_metrics(self, row: dict[str, Any]) -> None:
        """Append one row to metrics.jsonl."""
        self.cached.metrics_check = append_metrics(self.folder, row, self.cached.metrics_check)

    def forget_metrics_after(self, step: int) -> None:
        """Drop the rows of later steps, which are about to be taken (again), and those of the result."""
        if not (self.folder / METRICS_FILE).exists():
            return
        kept = [
            row
            for row in self.metrics()
            if row["step"] <= step and not any(key.startswith("test_") for key in row)
        ]
        self.cached.metrics_check = ""
        self.update()  # so that the state names no row that is about to be dropped
        self.cached.metrics_check = keep_metrics(self.folder, kept)
