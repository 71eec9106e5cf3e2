"""Token buckets: burst size, long-term rate and number of keys in memory."""

import pytest

from peft_core.access.rates import Rate, Rates


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_rates_burst_used_up_returns_seconds_until_next_token(clock: Clock) -> None:
    rates = Rates(Rate(per_minute=30, burst=3), clock=clock)
    assert [rates.check("a") for _ in range(3)] == [0, 0, 0]
    assert rates.check("a") == pytest.approx(2)
    clock.now += 1.5
    assert rates.check("a") == pytest.approx(0.5)  # a refused request takes no token
    clock.now += 0.5
    assert rates.check("a") == 0


def test_rates_long_pause_refills_at_most_burst(clock: Clock) -> None:
    rates = Rates(Rate(per_minute=60, burst=2), clock=clock)
    rates.check("a")
    clock.now += 3600
    assert [rates.check("a") > 0 for _ in range(3)] == [False, False, True]


def test_rates_hour_of_requests_allows_the_rate(clock: Clock) -> None:
    rates = Rates(Rate(per_minute=60, burst=10), clock=clock)
    allowed = 0
    for _ in range(36_000):
        clock.now += 0.1
        allowed += rates.check("a") == 0
    assert allowed == pytest.approx(3600, abs=11)


def test_rates_keys_are_counted_separately(clock: Clock) -> None:
    rates = Rates(Rate(per_minute=60, burst=1), clock=clock)
    assert rates.check("a") == 0 and rates.check("b") == 0
    assert rates.check("a") > 0 and rates.check("b") > 0


def test_rates_too_many_keys_drops_stalest(clock: Clock) -> None:
    rates = Rates(Rate(per_minute=60, burst=1), max_keys=10, clock=clock)
    rates.check("flood")
    for number in range(1000):
        rates.check(f"key {number}")
        assert rates.check("flood") > 0  # used all the time, so never dropped
    assert len(rates) == 10
    assert rates.check("key 0") == 0


def test_rates_cost_above_burst_is_allowed_when_bucket_is_full(clock: Clock) -> None:
    rates = Rates(Rate(per_minute=60, burst=100), clock=clock)
    assert rates.check("a", 250) == 0
    assert rates.check("a", 1) == pytest.approx(151)
    assert rates.check("a", 250) == pytest.approx(250)
    clock.now += 250
    assert rates.check("a", 40) == 0 and rates.check("a", 60) == 0
    assert rates.check("a", 1) == pytest.approx(1)
