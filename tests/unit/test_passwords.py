"""The login: right and wrong credentials, the wait that grows, and ten thousand guesses."""

import asyncio
import logging
from collections.abc import Awaitable
from pathlib import Path

import pytest
from starlette.exceptions import HTTPException

from peft_core.access.address import CLIENT_ADDRESS, network_of
from peft_core.access.passwords import MAX_WAIT_SECONDS, RESET_SECONDS, Credentials, Login
from peft_core.errors import ConfigError

RIGHT = ("me", "pässwörd:1")


class Clock:
    """A clock that advances only in `sleep`."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


def make_login(clock: Clock) -> Login:
    return Login(Credentials(*RIGHT), clock, clock.sleep)


def attempt(login: Login, user: str, password: str, address: str = "192.0.2.1") -> bool:
    async def verify() -> bool:
        CLIENT_ADDRESS.set(address)
        return await login.verify(user, password)

    return asyncio.run(verify())


@pytest.mark.parametrize(
    ("user", "password"),
    [("me", "pässwörd:"), ("Me", RIGHT[1]), ("", ""), ("me", ""), ("you", RIGHT[1]), ("me", "\ud800")],
)
def test_login_accepts_only_the_right_name_and_password(user: str, password: str) -> None:
    login = make_login(Clock())
    assert attempt(login, *RIGHT)
    assert not attempt(login, user, password)


def test_wait_doubles_with_each_wrong_password_up_to_its_limit() -> None:
    clock = Clock()
    login = make_login(clock)
    for _ in range(14):
        attempt(login, "me", "wrong")
    assert clock.waits == [0, 0, 0, 0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30, 30]
    assert attempt(login, *RIGHT)
    assert clock.waits[-1] == MAX_WAIT_SECONDS
    attempt(login, "me", "wrong")
    assert clock.waits[-1] == 0  # a correct login resets the count


def test_wrong_passwords_are_forgotten_after_an_hour() -> None:
    clock = Clock()
    login = make_login(clock)
    for _ in range(8):
        attempt(login, "me", "wrong")
    clock.now += RESET_SECONDS + 1
    attempt(login, "me", "wrong")
    assert clock.waits[-1] == 0


def test_account_is_guarded_against_guesses_from_many_addresses() -> None:
    clock = Clock()
    login = make_login(clock)
    assert attempt(login, *RIGHT, "198.51.100.1")
    for number in range(40):
        attempt(login, "me", "wrong", f"192.0.2.{number}")
    assert clock.waits[-1] == MAX_WAIT_SECONDS
    assert attempt(login, *RIGHT, "198.51.100.1")
    assert clock.waits[-1] == 0  # it has logged in before
    assert attempt(login, *RIGHT, "198.51.100.2")
    assert clock.waits[-1] == MAX_WAIT_SECONDS


def test_addresses_of_one_ipv6_network_count_as_one() -> None:
    assert network_of("2001:db8:1:2::5") == network_of("2001:db8:1:2:ffff::9") == "2001:db8:1:2::/64"
    assert network_of("::ffff:192.0.2.1") == "192.0.2.1"
    assert network_of("x" * 60_000) == network_of("unix socket\x1b[2J") == "unknown"


def test_ten_thousand_guesses_are_throttled_and_the_right_one_enters(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """All from one address at once: five wait to be checked, the others are rejected."""
    gate = asyncio.Event()
    checked = turned_away = 0
    seconds: list[float] = []

    async def sleep(wait: float) -> None:
        seconds.append(wait)
        await gate.wait()

    login = Login(Credentials(*RIGHT), sleep=sleep)

    async def guess(number: int) -> None:
        nonlocal checked, turned_away
        try:
            assert not await login.verify("me", f"guess {number}")
            checked += 1
        except HTTPException as error:
            assert error.status_code == 429 and "Retry-After" in (error.headers or {})
            turned_away += 1

    async def attack() -> bool:
        CLIENT_ADDRESS.set("192.0.2.1")
        guesses = [asyncio.create_task(guess(number)) for number in range(10_000)]
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(*guesses)
        return await login.verify(*RIGHT)

    with caplog.at_level(logging.WARNING):
        assert asyncio.run(attack())
    assert (checked, turned_away) == (5, 9_995)
    assert seconds[-1] == 2.0  # after five wrong ones
    assert len(caplog.messages) == checked
    assert not any(RIGHT[1] in message or "guess" in message for message in caplog.messages)


def test_canceled_attempt_frees_its_place() -> None:
    login = Login(Credentials(*RIGHT), sleep=lambda seconds: _never())

    async def drop() -> None:
        CLIENT_ADDRESS.set("192.0.2.1")
        for _ in range(20):
            attempts = [asyncio.create_task(login.verify("me", "wrong")) for _ in range(5)]
            await asyncio.sleep(0)
            for task in attempts:
                task.cancel()
            results = await asyncio.gather(*attempts, return_exceptions=True)
            assert all(isinstance(result, asyncio.CancelledError) for result in results)

    asyncio.run(drop())


def test_credentials_come_from_the_argument_a_file_or_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "login"
    file.write_text("me:from a file\nnot this line\n", encoding="utf-8")
    environment = {"AUTH": "me:from the environment"}
    assert Credentials.find("me:a:b", str(file), environment) == Credentials("me", "a:b")
    assert Credentials.find(None, str(file), environment) == Credentials("me", "from a file")
    assert Credentials.find(None, None, environment) == Credentials("me", "from the environment")
    assert Credentials.find(None, None, {"AUTH": ""}) is None


@pytest.mark.parametrize("credentials", ["me", "me:", ":secret", " :secret", ""])
def test_incomplete_credentials_are_refused_without_repeating_them(credentials: str) -> None:
    with pytest.raises(ConfigError, match="^AUTH must be USER:PASS") as refused:
        Credentials.parse(credentials, "AUTH")
    assert "secret" not in str(refused.value)


def test_unreadable_credentials_file_raises_config_error(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe:\xff")
    for name in ("missing", "binary", "."):
        with pytest.raises(ConfigError, match="cannot be read"):
            Credentials.find(None, str(tmp_path / name), {})


async def _never() -> Awaitable[None]:
    await asyncio.Event().wait()
