"""How often somebody may ask: one token bucket for each key, in bounded memory."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

MAX_KEYS = 5_000


@dataclass(frozen=True)
class Rate:
    """So many requests a minute in the long run, and so many at once after a pause."""

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

    def check(self, key: str) -> float:
        """Take a token of this key.

        Returns:
            0 if there was one, else the seconds until there will be one again. A refused request takes none.
        """
        now = self._clock()
        bucket = self._buckets.pop(key, _Bucket(self._rate.burst, now))
        tokens = min(self._rate.burst, bucket.tokens + (now - bucket.time) * self._per_second)
        wait = 0.0 if tokens >= 1 else (1 - tokens) / self._per_second
        self._buckets[key] = _Bucket(tokens if wait else tokens - 1, now)
        if len(self._buckets) > self._max_keys:
            self._buckets.popitem(last=False)
        return wait
