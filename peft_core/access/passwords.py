"""The login of `--auth`: one name and password, and a wait that grows with the wrong ones.

The wait counts the wrong passwords of an address, and those of the account from everywhere, so that neither
one machine nor many guess quickly. Attempts wait before they are checked, and only so many at a time; the
rest is turned away unchecked. Nobody is locked out: the right password enters after a wait of at most
`MOST_SECONDS`, and at once from an address that has logged in before if only others guess.
"""

import asyncio
import hashlib
import hmac
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from starlette.exceptions import HTTPException

from peft_core.access.address import CLIENT_ADDRESS, network_of
from peft_core.errors import ConfigError

MOST_SECONDS = 30.0
FORGOTTEN_AFTER = 3600.0  # seconds without a wrong password
_FIRST_WAIT = 0.5  # seconds, doubled by each further wrong password
_MOST_ADDRESSES = 10_000
_Value = TypeVar("_Value")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Credentials:
    """A name and a password."""

    user: str
    password: str

    @classmethod
    def parse(cls, value: str, source: str) -> "Credentials":
        """Of `USER:PASS`; ConfigError, which does not repeat the value, names the source of a wrong one."""
        user, colon, password = value.partition(":")
        if not (user.strip() and colon and password):
            raise ConfigError(f"{source} must be USER:PASS: a name, a colon and a password.")
        return cls(user.strip(), password)

    @classmethod
    def find(
        cls, argument: str | None, file: str | None, environment: Mapping[str, str]
    ) -> "Credentials | None":
        """The first that is given: `--auth`, the first line of `--auth-file`, AUTH; None without any."""
        if argument is not None:
            return cls.parse(argument, "--auth")
        if file is not None:
            return cls.parse(_first_line(Path(file)), f"The first line of {file}")
        return cls.parse(environment["AUTH"], "AUTH") if environment.get("AUTH") else None

    def match(self, user: str, password: str) -> bool:
        """Compared by digests, so that the time tells nothing of how much is right."""
        pairs = ((self.user, user), (self.password, password))
        same = [hmac.compare_digest(_digest(own), _digest(given)) for own, given in pairs]
        return all(same)


@dataclass
class _Failures:
    """The wrong passwords of one address, or of the account."""

    free: int  # wrong passwords before the first wait
    most_waiting: int
    count: int = 0
    last: float = 0.0
    waiting: int = 0

    def seconds(self, now: float) -> float:
        """How long the next attempt waits."""
        if now - self.last > FORGOTTEN_AFTER:
            self.count = 0
        if self.count < self.free:
            return 0.0
        return min(MOST_SECONDS, _FIRST_WAIT * 2.0 ** min(self.count - self.free, 16))


class Login:
    """Checks the credentials that somebody gives, as gradio's `auth` asks for it: pass it `login.verify`."""

    def __init__(
        self,
        credentials: Credentials,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._credentials, self._clock, self._sleep = credentials, clock, sleep
        self._addresses: OrderedDict[str, _Failures] = OrderedDict()
        self._account = _Failures(free=20, most_waiting=50)
        self._trusted: OrderedDict[str, None] = OrderedDict()

    async def verify(self, user: str, password: str) -> bool:
        """Whether they are right, after the wait; HTTPException 429 if too many attempts wait already."""
        address = network_of(CLIENT_ADDRESS.get())
        own = self._failures_of(address)
        counted = [own] if address in self._trusted else [own, self._account]
        seconds = max(failures.seconds(self._clock()) for failures in counted)
        if any(failures.waiting >= failures.most_waiting for failures in counted):
            again = f"{max(1.0, seconds):.0f}"
            raise HTTPException(
                429, f"Too many wrong passwords. Try again in {again} s.", {"Retry-After": again}
            )
        for failures in counted:
            failures.waiting += 1
        try:
            await self._sleep(seconds)
        finally:
            for failures in counted:
                failures.waiting -= 1
        return self._check(user, password, address, own)

    def _check(self, user: str, password: str, address: str, own: _Failures) -> bool:
        if self._credentials.match(user, password):
            own.count = 0
            _keep_newest(self._trusted, address, None)
            return True
        for failures in (own, self._account):
            failures.count += 1
            failures.last = self._clock()
        _logger.warning("Wrong password from %s, its number %d.", address, own.count)
        return False

    def _failures_of(self, address: str) -> _Failures:
        failures = self._addresses.get(address) or _Failures(free=3, most_waiting=5)
        _keep_newest(self._addresses, address, failures)
        return failures


def _keep_newest(entries: OrderedDict[str, _Value], address: str, value: _Value) -> None:
    entries[address] = value
    entries.move_to_end(address)
    if len(entries) > _MOST_ADDRESSES:
        entries.popitem(last=False)


def _first_line(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.readline(10_000).rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--auth-file {path} cannot be read: {error}.") from error


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
