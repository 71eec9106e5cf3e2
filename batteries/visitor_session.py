"""Visitor sessions of the battery `visitors`: expected outcomes, and the search for data of others."""

import asyncio
import io
import json
import random
import re
import zipfile
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from batteries.demo_client import Answer, DemoClient, PageFunctions, Reply
from batteries.visitor_runs import Possession

_TRIES = 40
_SECRET_PATTERN = re.compile(rb"cnry[0-9a-f]{12}|[0-9a-f]{64}|run-[0-9a-f]{12}")
ResponseT = TypeVar("ResponseT", Answer, Reply)


@dataclass
class Demo:
    """The app under test, its visitors, and the recorded failures and outcomes.

    Attributes:
        owner_of: the owner of each secret word: canary, token, hash of a token, run id.
        count: operations so far.
    """

    port: int
    runs_dir: Path
    page: PageFunctions
    visitors: "list[VisitorSession]" = field(default_factory=list)
    owner_of: dict[str, Possession] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    count: int = 0

    def add(self, visitor: "VisitorSession") -> None:
        words = (*visitor.own.secrets, *visitor.own.runs)
        self.owner_of |= dict.fromkeys(words, visitor.own)
        self.visitors.append(visitor)


class VisitorSession:
    """A visitor with a token, an address and a session, whose answers are searched for data of others."""

    def __init__(self, demo: Demo, own: Possession, rng: random.Random, number: int) -> None:
        self.demo, self.own, self.random = demo, own, rng
        address = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        session = f"{rng.getrandbits(80):020x}"
        self.client = DemoClient(demo.port, own.token, address, session, self.check_answer)
        self.mentioned: set[str] = set()  # ids of others in requests, which errors may repeat
        self.operation = ""

    def check_answer(self, answer: Answer, link: str | None) -> None:
        """Search an answer for data of other visitors, except data that the sent link shares."""
        for body in unpack(answer.body):
            for match in set(_SECRET_PATTERN.findall(body)):
                word = match.decode()
                owner = self.demo.owner_of.get(word)
                if owner is None or owner is self.own or word in self.mentioned:
                    continue
                if not (word in (owner.canary, owner.main_run_id) and is_shared(owner, link, answer.sent)):
                    self.fail(f"read: {_kind(owner, word)} of another")

    def fail(self, problem: str) -> None:
        self.demo.failures.append(f"{self.operation}: {problem}")

    def note(self, what: str) -> None:
        self.demo.outcomes[what] += 1

    def other(self) -> "VisitorSession":
        """Return another visitor, at random."""
        return self.random.choice([each for each in self.demo.visitors if each is not self])

    def mention(self, run_id: str) -> str:
        """Return the id of another visitor's run and allow answers to repeat it."""
        self.mentioned.add(run_id)
        return run_id

    async def expect_served(self, request: Callable[[], Awaitable[Reply]], text: str = "") -> list[Any]:
        """Send an honest call; its data must contain a text. Return no data if the app was busy each time."""
        reply = await retry_while_busy(request)
        if reply.is_served and text in json.dumps(reply.data):
            self.note("honest, served")
            return reply.data or []
        if reply.is_busy:
            self.note("honest, turned away as too many")
        else:
            problem = reply.text if not reply.is_served else f"{json.dumps(reply.data)[:100]} lacks {text!r}"
            self.fail(f"not served: {problem}")
        return []

    async def expect_refused(self, request: Callable[[], Awaitable[Reply]], *sentences: str) -> None:
        """Send a call that must end with an error, which contains one of the sentences if any are given."""
        reply = await retry_while_busy(request)
        if reply.is_busy:
            self.note("attempts, turned away as too many")
        elif reply.is_served or not any(each in reply.text for each in sentences or ("",)):
            self.fail(f"was answered: {reply.data or reply.text}"[:300])
        else:
            self.note("attempts, refused")

    async def expect_unknown_session(self, request: Callable[[], Awaitable[Answer]]) -> None:
        """Send a request that must be answered as one for an unknown session."""
        answer = await retry_while_busy(request)
        if answer.status == 404:
            self.note("attempts, refused")
        elif answer.is_busy:
            self.note("attempts, turned away as too many")
        else:
            self.fail(f"was answered {answer.status}: {answer.error_detail()[:200]}")


def is_shared(owner: Possession, link: str | None, sent: float) -> bool:
    """Return whether a link that was sent at this time may share a run of this owner."""
    return any(each.secret == link and (each.ended is None or each.ended > sent) for each in owner.links)


def _kind(owner: Possession, word: str) -> str:
    names = {owner.canary: "the canary", owner.token: "the token", owner.owner: "the hash of the token"}
    return names.get(word, "the id of a run")


async def retry_while_busy(request: Callable[[], Awaitable[ResponseT]]) -> ResponseT:
    """Repeat a request while the app is busy; return the last answer after `_TRIES`."""
    for number in range(_TRIES):
        answer = await request()
        if not answer.is_busy:
            return answer
        await asyncio.sleep(min(2.0, 0.25 * (number + 1)))
    return answer


def unpack(body: bytes) -> Iterator[bytes]:
    """Yield a body, and its files if it is a zip."""
    yield body
    if body.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            yield from (archive.read(name) for name in archive.namelist())
