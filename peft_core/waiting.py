"""The queue as it lies on disk: which runs wait, which one comes when, and about how long each waits.

A page asks every second, so a `QueueView` keeps its answer for a moment.
"""

import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from peft_core import runs
from peft_core.runs import RUNNING, SCHEDULED, Run, RunState

_KEPT_SECONDS = 1.0  # that an answer is kept
_WITHOUT_ETA = ("evaluating", "saving")  # stages after the training, whose seconds are few


def first_in_queue(listed: Sequence[Run]) -> Run | None:
    """The run that trains, else the one that comes next."""
    states = in_queue_order([(run, run.state()) for run in listed])
    training = [run for run, state in states if state.status == RUNNING]
    waiting = [run for run, state in states if state.status == SCHEDULED]
    return next(iter(training + waiting), None)


def in_queue_order(states: Iterable[tuple[Run, RunState]]) -> list[tuple[Run, RunState]]:
    """Runs by when they were made or, if they were continued since, by when that was last."""
    return sorted(states, key=lambda pair: (pair[1].queued or pair[1].created, pair[0].run_id))


@dataclass(frozen=True)
class QueuePlace:
    """Where a run waits.

    Attributes:
        place: 1 for the run that comes next; None for a run that does not wait.
        seconds: Until it probably starts; None where that is unknown.
    """

    place: int | None = None
    seconds: float | None = None

    def to_dict(self) -> dict[str, float | None]:
        """As a run's description has it."""
        return {"queue_place": self.place, "queue_seconds": self.seconds}


@dataclass(frozen=True)
class Queue:
    """The run that trains or starts, and those that wait, the next one first, each with its state."""

    training: tuple[tuple[Run, RunState], ...]
    waiting: tuple[tuple[Run, RunState], ...]

    @classmethod
    def read(cls, runs_dir: Path) -> "Queue":
        """The queue now."""
        states = in_queue_order([(run, run.state()) for run in runs.list_runs(runs_dir)])
        return cls(
            tuple(pair for pair in states if pair[1].status == RUNNING or is_starting(pair[1])),
            tuple(pair for pair in states if pair[1].status == SCHEDULED and not is_starting(pair[1])),
        )

    def place_of(self, run_id: str, max_seconds: float | None = None) -> QueuePlace:
        """Where a run waits; no run before it takes longer than `max_seconds`."""
        ahead = [state for _, state in self.training]
        for place, (run, state) in enumerate(self.waiting, 1):
            if run.run_id == run_id:
                return QueuePlace(place, _sum([remaining_seconds(one, max_seconds) for one in ahead]))
            ahead.append(state)
        return QueuePlace()

    def seconds_until_start(self, max_seconds: float | None = None) -> float | None:
        """Until the next run probably starts, and leaves the queue; None where that is unknown."""
        return _sum([remaining_seconds(state, max_seconds) for _, state in self.training])


@dataclass
class QueueView:
    """The queue of a folder of runs, read once a second at most."""

    runs_dir: Path
    _last: tuple[float, Queue] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def place_of(self, run_id: str, max_seconds: float | None = None) -> QueuePlace:
        """As `Queue.place_of`, of a run whose state says that it waits."""
        place = self.queue(_KEPT_SECONDS).place_of(run_id, max_seconds)
        if place.place is None:  # it came after the queue was read
            place = self.queue(0.0).place_of(run_id, max_seconds)
        return place

    def queue(self, max_age: float) -> Queue:
        """The queue as it was at most so many seconds ago."""
        with self._lock:
            if self._last is None or time.monotonic() - self._last[0] >= max_age:
                self._last = time.monotonic(), Queue.read(self.runs_dir)
            return self._last[1]


def about_duration(seconds: float) -> str:
    """Seconds in words, as precise as a forecast is: "a few seconds", "about 40 seconds"."""
    if seconds < 5:
        return "a few seconds"
    if seconds < 55:
        return f"about {5 * round(seconds / 5)} seconds"
    minutes = max(1, round(seconds / 60))
    if minutes < 90:
        return "about a minute" if minutes == 1 else f"about {minutes} minutes"
    return f"about {minutes / 60:.1f} hours"


def is_starting(state: RunState) -> bool:
    """Whether a run has left the queue, but its process has not taken it over yet."""
    return state.status == SCHEDULED and state.stage is not None


def remaining_seconds(state: RunState, max_seconds: float | None = None) -> float | None:
    """About how long a run still takes, at most `max_seconds` in all; None where that is unknown."""
    elapsed = time.time() - state.started if state.status == RUNNING and state.started else 0.0
    left = _unbounded_seconds(state, elapsed)
    if left is None or max_seconds is None:
        return left
    return min(left, max(0.0, max_seconds - elapsed))


def _unbounded_seconds(state: RunState, elapsed: float) -> float | None:
    if state.status == RUNNING and state.stage in _WITHOUT_ETA:
        return 0.0
    if state.status == RUNNING and state.stage == "training" and state.eta is not None:
        return max(0.0, state.eta)
    if state.forecast_seconds is None:
        return None
    if state.status == SCHEDULED and state.step and state.max_steps:  # it goes on from there
        return state.forecast_seconds * max(0.0, 1 - state.step / state.max_steps)
    return max(0.0, state.forecast_seconds - elapsed)


def _sum(seconds: Sequence[float | None]) -> float | None:
    known = [one for one in seconds if one is not None]
    return sum(known) if len(known) == len(seconds) else None
