"""How often somebody may ask, or how much they may send: one token bucket for each key, in bounded memory."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

MAX_KEYS = 5_000


@dataclass(frozen=True)
class Rate:
    """So many requests, or bytes, a minute in the long run, and so many at once after a pause."""

    per_minute: float
    burst: int


@dataclass(frozen=True)
class _Bucket:
    tokens: float
    time: float


class Rates:
    """A token bucket for each key.

    A bucket that is dropped to make room is the one that was asked for the longest time ago. It starts full
    again, so whoever asks often enough to be refused is not the one who gains by it.
    """

    def __init__(
        self, rate: Rate, *, max_keys: int = MAX_KEYS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate, self._max_keys, self._clock = rate, max_keys, clock
        self._per_second = rate.per_minute / 60
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def check(self, key: str, count: int = 1) -> float:
        """Take tokens of this key; more than a bucket holds are lent once it is full.

        Returns:
            0 if there were enough, else the seconds until there will be. A refused request takes none.
        """
        now, needed = self._clock(), min(count, self._rate.burst)
        bucket = self._buckets.pop(key, _Bucket(self._rate.burst, now))
        tokens = min(self._rate.burst, bucket.tokens + (now - bucket.time) * self._per_second)
        wait = 0.0 if tokens >= needed else (needed - tokens) / self._per_second
        self._buckets[key] = _Bucket(tokens if wait else tokens - count, now)
        if len(self._buckets) > self._max_keys:
            self._buckets.popitem(last=False)
        return wait
