"""The queue of runs as stored on disk: their order, and estimates of the waiting time.

Pages poll every second, so `QueueView` caches the queue for a second.
"""

import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from peft_core import runs
from peft_core.runs import RUNNING, SCHEDULED, Run, RunState

_CACHE_SECONDS = 1.0
_WITHOUT_ETA = ("evaluating", "saving")  # stages after the training, which take only seconds


def first_in_queue(listed: Sequence[Run]) -> Run | None:
    """Return the run that trains, else the next one in the queue, or None."""
    states = in_queue_order([(run, run.state()) for run in listed])
    training = [run for run, state in states if state.status == RUNNING]
    waiting = [run for run, state in states if state.status == SCHEDULED]
    return next(iter(training + waiting), None)


def in_queue_order(states: Iterable[tuple[Run, RunState]]) -> list[tuple[Run, RunState]]:
    """Return runs sorted by the time they were last continued, or else created."""
    return sorted(states, key=lambda pair: (pair[1].queued or pair[1].created, pair[0].run_id))


@dataclass(frozen=True)
class QueuePlace:
    """Where a run waits.

    Attributes:
        place: 1 for the next run; None for a run that does not wait.
        seconds: Estimated time until it starts; None if unknown.
    """

    place: int | None = None
    seconds: float | None = None

    def to_dict(self) -> dict[str, float | None]:
        """Return the entries for the description of a run."""
        return {"queue_place": self.place, "queue_seconds": self.seconds}


@dataclass(frozen=True)
class Queue:
    """Training or starting runs, and waiting runs in order, each with its state."""

    training: tuple[tuple[Run, RunState], ...]
    waiting: tuple[tuple[Run, RunState], ...]

    @classmethod
    def read(cls, runs_dir: Path) -> "Queue":
        """Read the current queue."""
        states = in_queue_order([(run, run.state()) for run in runs.list_runs(runs_dir)])
        return cls(
            tuple(pair for pair in states if pair[1].status == RUNNING or is_starting(pair[1])),
            tuple(pair for pair in states if pair[1].status == SCHEDULED and not is_starting(pair[1])),
        )

    def place_of(self, run_id: str, max_seconds: float | None = None) -> QueuePlace:
        """Return where a run waits, if no run before it takes longer than `max_seconds`."""
        ahead = [remaining_seconds(state, max_seconds) for _, state in self.training]
        for place, (run, state) in enumerate(self.waiting, 1):
            if run.run_id == run_id:
                return QueuePlace(place, _sum(ahead))
            ahead.append(remaining_seconds(state, max_seconds))
        return QueuePlace()

    def seconds_until_start(self, max_seconds: float | None = None) -> float | None:
        """Return the estimated time until the next run starts and leaves the queue; None if unknown."""
        return _sum([remaining_seconds(state, max_seconds) for _, state in self.training])


@dataclass
class QueueView:
    """The queue of a folder of runs, read at most once a second."""

    runs_dir: Path
    _last: tuple[float, Queue] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def place_of(self, run_id: str, max_seconds: float | None = None) -> QueuePlace:
        """Like `Queue.place_of`, for a run whose state says that it waits."""
        place = self.queue(_CACHE_SECONDS).place_of(run_id, max_seconds)
        if place.place is None:  # it was submitted after the queue was read
            place = self.queue(0.0).place_of(run_id, max_seconds)
        return place

    def queue(self, max_age: float) -> Queue:
        """Return the queue, at most `max_age` seconds old."""
        with self._lock:
            if self._last is None or time.monotonic() - self._last[0] >= max_age:
                self._last = time.monotonic(), Queue.read(self.runs_dir)
            return self._last[1]


def describe_duration(seconds: float) -> str:
    """Return a duration in words with the precision of a forecast: "a few seconds", "about 40 seconds"."""
    if seconds < 5:
        return "a few seconds"
    if seconds < 55:
        return f"about {5 * round(seconds / 5)} seconds"
    minutes = max(1, round(seconds / 60))
    if minutes < 90:
        return "about a minute" if minutes == 1 else f"about {minutes} minutes"
    return f"about {minutes / 60:.1f} hours"


def is_starting(state: RunState) -> bool:
    """Return whether a run has left the queue, but its process has not taken it over yet."""
    return state.status == SCHEDULED and state.stage is not None


def remaining_seconds(state: RunState, max_seconds: float | None = None) -> float | None:
    """Return the estimated time that a run still takes, at most `max_seconds` in all; None if unknown."""
    elapsed = time.time() - state.started if state.status == RUNNING and state.started else 0.0
    remaining = _unbounded_seconds(state, elapsed)
    if remaining is None or max_seconds is None:
        return remaining
    return min(remaining, max(0.0, max_seconds - elapsed))


def _unbounded_seconds(state: RunState, elapsed: float) -> float | None:
    if state.status == RUNNING and state.stage in _WITHOUT_ETA:
        return 0.0
    if state.status == RUNNING and state.stage == "training" and state.eta is not None:
        return max(0.0, state.eta)
    if state.forecast_seconds is None:
        return None
    if state.status == SCHEDULED and state.step and state.max_steps:  # it continues from there
        return state.forecast_seconds * max(0.0, 1 - state.step / state.max_steps)
    return max(0.0, state.forecast_seconds - elapsed)


def _sum(durations: Sequence[float | None]) -> float | None:
    """Return the sum, or None if any duration is unknown."""
    known_seconds = [seconds for seconds in durations if seconds is not None]
    return sum(known_seconds) if len(known_seconds) == len(durations) else None
