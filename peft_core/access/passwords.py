"""The login of `--auth`: checks one user name and password, and delays further attempts after failures.

Failures are counted per address and for the account, so that neither one machine nor many can guess quickly:
an attempt waits up to `MAX_WAIT_SECONDS` before it is checked. At most 5 attempts of an address and 50 in
total wait at a time, about 100 guesses a minute; others are refused unchecked. While many addresses attack, a
new user with the right password may therefore be refused too, and has to try again. An address that has
logged in before waits only for its own failures.
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

MAX_WAIT_SECONDS = 30.0
RESET_SECONDS = 3600.0  # without a wrong password, after which failures are forgotten
_FIRST_WAIT = 0.5  # seconds, doubled by each further wrong password
_MAX_ADDRESSES = 10_000
_Entry = TypeVar("_Entry")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Credentials:
    """A user name and a password."""

    user: str
    password: str

    @classmethod
    def parse(cls, text: str, source: str) -> "Credentials":
        """Parse `USER:PASS`.

        Raises:
            ConfigError: The text has another form. The message names the source and does not repeat the text.
        """
        user, colon, password = text.partition(":")
        if not (user.strip() and colon and password):
            raise ConfigError(f"{source} must be USER:PASS: a name, a colon and a password.")
        return cls(user.strip(), password)

    @classmethod
    def find(
        cls, argument: str | None, file: str | None, environment: Mapping[str, str]
    ) -> "Credentials | None":
        """Read `--auth`, else the first line of `--auth-file`, else AUTH; return None without any of them."""
        if argument is not None:
            return cls.parse(argument, "--auth")
        if file is not None:
            return cls.parse(_first_line(Path(file)), f"The first line of {file}")
        return cls.parse(environment["AUTH"], "AUTH") if environment.get("AUTH") else None

    def match(self, user: str, password: str) -> bool:
        """Return whether name and password are right, comparing in constant time."""
        pairs = ((self.user, user), (self.password, password))
        matches = [hmac.compare_digest(_digest(expected), _digest(actual)) for expected, actual in pairs]
        return all(matches)


@dataclass
class _Failures:
    """Counts the wrong passwords of one address, or of the account."""

    allowed_without_wait: int
    max_waiting: int
    count: int = 0
    last: float = 0.0
    waiting: int = 0

    def seconds(self, now: float) -> float:
        """Return how long the next attempt waits."""
        if now - self.last > RESET_SECONDS:
            self.count = 0
        if self.count < self.allowed_without_wait:
            return 0.0
        return min(MAX_WAIT_SECONDS, _FIRST_WAIT * 2.0 ** min(self.count - self.allowed_without_wait, 16))


class Login:
    """Checks the credentials of a login. Pass `login.verify` to gradio as `auth`."""

    def __init__(
        self,
        credentials: Credentials,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._credentials, self._clock, self._sleep = credentials, clock, sleep
        self._addresses: OrderedDict[str, _Failures] = OrderedDict()
        self._account = _Failures(allowed_without_wait=20, max_waiting=50)
        self._trusted: OrderedDict[str, None] = OrderedDict()

    async def verify(self, user: str, password: str) -> bool:
        """Return whether name and password are right, after the wait.

        Raises:
            HTTPException: 429 if too many attempts are waiting already.
        """
        address = network_of(CLIENT_ADDRESS.get())
        of_address = self._failures_of(address)
        counted = [of_address] if address in self._trusted else [of_address, self._account]
        seconds = max(failures.seconds(self._clock()) for failures in counted)
        if any(failures.waiting >= failures.max_waiting for failures in counted):
            retry_after = f"{MAX_WAIT_SECONDS:.0f}"  # by then an attempt that waits now has been checked
            raise HTTPException(
                429, f"Too many wrong passwords. Try again in {retry_after} s.", {"Retry-After": retry_after}
            )
        for failures in counted:
            failures.waiting += 1
        try:
            await self._sleep(seconds)
        finally:
            for failures in counted:
                failures.waiting -= 1
        return self._check(user, password, address, of_address)

    def _check(self, user: str, password: str, address: str, of_address: _Failures) -> bool:
        if self._credentials.match(user, password):
            of_address.count = 0
            _keep_newest(self._trusted, address, None)
            return True
        for failures in (of_address, self._account):
            failures.count += 1
            failures.last = self._clock()
        _logger.warning("Wrong password from %s (number %d).", address, of_address.count)
        return False

    def _failures_of(self, address: str) -> _Failures:
        failures = self._addresses.get(address) or _Failures(allowed_without_wait=3, max_waiting=5)
        _keep_newest(self._addresses, address, failures)
        return failures


def _keep_newest(entries: OrderedDict[str, _Entry], address: str, entry: _Entry) -> None:
    entries[address] = entry
    entries.move_to_end(address)
    if len(entries) > _MAX_ADDRESSES:
        entries.popitem(last=False)


def _first_line(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.readline(10_000).rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--auth-file {path} cannot be read: {error}.") from error


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
