"""Rate limits for requests or bytes: one token bucket per key, in bounded memory."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

MAX_KEYS = 5_000


@dataclass(frozen=True)
class Rate:
    """A rate of requests or bytes.

    Attributes:
        per_minute: Allowed in the long run.
        burst: Allowed at once after a pause.
    """

    per_minute: float
    burst: int


@dataclass(frozen=True)
class _Bucket:
    tokens: float
    time: float


class Rates:
    """One token bucket per key.

    To make room, the least recently used bucket is dropped, and starts full again. A client that sends enough
    requests to be refused therefore gains nothing from it.
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
        """Take tokens of a key; more tokens than a full bucket holds are lent once it is full.

        Returns:
            0 if there were enough tokens, else the seconds until there are. A refused request takes none.
        """
        now, needed = self._clock(), min(count, self._rate.burst)
        bucket = self._buckets.pop(key, _Bucket(self._rate.burst, now))
        tokens = min(self._rate.burst, bucket.tokens + (now - bucket.time) * self._per_second)
        wait = 0.0 if tokens >= needed else (needed - tokens) / self._per_second
        self._buckets[key] = _Bucket(tokens if wait else tokens - count, now)
        if len(self._buckets) > self._max_keys:
            self._buckets.popitem(last=False)
        return wait
