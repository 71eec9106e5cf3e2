"""Guesses of a password: many at once, from one and from many addresses, at an app with a login."""

import http.client
import ipaddress
import tempfile
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from app_server import serve

from batteries.result import BatteryResult
from peft_core.access.passwords import MAX_WAIT_SECONDS

NAME = "guesses of a password"
PASSES_WHEN = "limited and logged; the right one still enters"
GUESSES = 10_000
ADDRESSES = 1_000  # of half of the guesses; the other half comes from one address
AT_ONCE = 64
MAX_CHECKED = 300  # guesses that may be compared with the password
MAX_LOGIN_SECONDS = 40.0  # time limit of a login with the right password
_USER, _PASSWORD = "me", "the right one"
_OWNER_ADDRESS, _ATTACKER_ADDRESS, _NEW_ADDRESS = "198.51.100.1", "203.0.113.1", "198.51.100.2"
_FIRST_OF_MANY = ipaddress.ip_address("10.0.0.1")
_CHECKED, _TURNED_AWAY, _ENTERED = 400, 429, 200
_PATCH = "from peft_core.access import passwords\npasswords.MAX_WAIT_SECONDS = {most_seconds}\n"
_BROKEN = """
async def verify(self, user, password):
    return self._credentials.match(user, password)
passwords.Login.verify = verify
"""


def run(share: float = 1.0, *, most_seconds: float = MAX_WAIT_SECONDS, broken: bool = False) -> BatteryResult:
    """Send `share` of all guesses to an app with this longest wait.

    `broken` removes the wait from the app under test.
    """
    start, count = time.monotonic(), max(1, round(GUESSES * share))
    with tempfile.TemporaryDirectory(prefix="guesses-") as folder:
        runs_dir = Path(folder) / "runs"
        patch = _PATCH.format(most_seconds=most_seconds) + (_BROKEN if broken else "")
        with serve(runs_dir, patch=patch, AUTH=f"{_USER}:{_PASSWORD}") as server:
            port = int(server.url.rpartition(":")[2])
            problems = _login_problems(port, _OWNER_ADDRESS, MAX_LOGIN_SECONDS)
            with ThreadPoolExecutor(AT_ONCE) as pool:
                guesses = [pool.submit(_log_in, port, *guess) for guess in _guesses(count)]
                problems += _login_problems(port, _OWNER_ADDRESS, 2.0)
                answers = Counter(guess.result() for guess in guesses)
            for address in (_OWNER_ADDRESS, _NEW_ADDRESS, _ATTACKER_ADDRESS):
                problems += _login_problems(port, address, MAX_LOGIN_SECONDS)
            log = (runs_dir.parent / f"app-{port}.log").read_text(encoding="utf-8", errors="replace")
    logged_count = log.count("Wrong password from")
    if answers[_ENTERED]:
        problems.append(f"{answers[_ENTERED]} wrong passwords entered")
    if set(answers) - {_CHECKED, _TURNED_AWAY}:
        problems.append(f"answered otherwise: {dict(answers)}")
    if answers[_CHECKED] > MAX_CHECKED:
        problems.append(f"{answers[_CHECKED]:,} of {count:,} guesses were compared with the password")
    if logged_count < answers[_CHECKED]:
        problems.append(f"{answers[_CHECKED]:,} were checked, {logged_count:,} logged")
    if _PASSWORD in log:
        problems.append("the log holds the password")
    outcomes = (("checked", answers[_CHECKED]), ("turned away", answers[_TURNED_AWAY]))
    return BatteryResult(NAME, count, tuple(problems), outcomes, PASSES_WHEN, time.monotonic() - start)


def _guesses(count: int) -> Iterator[tuple[str, str]]:
    """Yield passwords and the addresses from which they are sent."""
    for number in range(count):
        spread_address = str(_FIRST_OF_MANY + number // 2 % ADDRESSES)
        yield f"guess {number}", spread_address if number % 2 else _ATTACKER_ADDRESS


def _login_problems(port: int, address: str, seconds: float) -> list[str]:
    """Log in with the right password; return a problem if that fails within so many seconds."""
    start = time.monotonic()
    while (status := _log_in(port, _PASSWORD, address)) == _TURNED_AWAY:
        if time.monotonic() - start > seconds:
            break
        time.sleep(0.2)
    elapsed = time.monotonic() - start
    if status == _ENTERED and elapsed <= seconds:
        return []
    return [f"the right one from {address} was answered {status} after {elapsed:.1f} s"]


def _log_in(port: int, password: str, address: str) -> int:
    """Return the status of one attempt; the app trusts the address in the header of a local proxy."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    headers = {"Content-Type": "application/x-www-form-urlencoded", "X-Forwarded-For": address}
    try:
        form = urllib.parse.urlencode({"username": _USER, "password": password})
        connection.request("POST", "/login", form, headers)
        return connection.getresponse().status
    finally:
        connection.close()
