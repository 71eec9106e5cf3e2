"""What a visitor of the battery `visitors` does: honest operations, which must work, and attempts."""

import asyncio
import io
import json
import random
import re
import time
import zipfile
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from batteries.demo_client import Answer, DemoClient, Function, PageFunctions, Reply
from batteries.visitor_runs import Link, Possession, rows_with

HONEST = {
    "list_runs": 4, "status": 4, "stop": 2, "count": 2, "predict": 1, "download": 2, "upload": 2,
    "inspect": 2, "delete": 1, "share": 2, "end_sharing": 1, "look": 4, "read_rows": 2, "follow_link": 4,
}  # fmt: skip
ATTEMPTS = {
    "name_run": 5, "name_upload": 3, "press_with_run": 5, "use_session": 3, "fetch_event": 2, "use_link": 2,
    "claim_owner": 1, "fetch_file": 2,
}  # fmt: skip
_TRIES = 40
_SHORT = 10.0  # seconds, of a stream that must not open
_TEXT = "The food was awful."
_KNOWN = re.compile(rb"cnry[0-9a-f]{12}|[0-9a-f]{64}|run-[0-9a-f]{12}")
Taken = TypeVar("Taken", Answer, Reply)


@dataclass
class Demo:
    """The app under test, its visitors, and what was noted about them."""

    port: int
    runs_dir: Path
    page: PageFunctions
    visitors: "list[BusyVisitor]" = field(default_factory=list)
    owner_of: dict[str, Possession] = field(default_factory=dict)  # canaries, tokens, their hashes, run ids
    failures: list[str] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    count: int = 0

    def add(self, possession: Possession, numbers: random.Random) -> None:
        known = (*possession.secrets, *possession.runs)
        self.owner_of |= dict.fromkeys(known, possession)
        self.visitors.append(BusyVisitor(self, possession, numbers, len(self.visitors)))


class BusyVisitor:
    """A visitor who does one operation after another; each is a method of its name."""

    def __init__(self, demo: Demo, own: Possession, numbers: random.Random, number: int) -> None:
        self.demo, self.own, self.random = demo, own, numbers
        address = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        session = f"{numbers.getrandbits(80):020x}"
        self.client = DemoClient(demo.port, own.token, address, session, self.examine)
        self.sent: set[str] = set()  # ids of others that were named: errors repeat them
        self.event = ""  # the newest event of this visitor
        self.operation = ""

    async def open(self) -> None:
        """Open a page: its session is this visitor's from now on."""
        self.operation = "look"
        await self.look()

    async def work(self, operations: int, only: Collection[str] = ()) -> None:
        """Do so many operations, drawn at random from these or from all."""
        weights = {name: weight for name, weight in (HONEST | ATTEMPTS).items() if not only or name in only}
        for name in self.random.choices(list(weights), list(weights.values()), k=operations):
            self.operation = name
            self.demo.count += 1
            await getattr(self, name)()

    def examine(self, answer: Answer, link: str | None) -> None:
        """Search an answer for what belongs to others, but for what the link that was sent shares."""
        for body in _unpacked(answer.body):
            for match in set(_KNOWN.findall(body)):
                word = match.decode()
                owner = self.demo.owner_of.get(word)
                if owner is None or owner is self.own or word in self.sent:
                    continue
                if not (word in (owner.canary, owner.kept) and is_shared(owner, link, answer.sent)):
                    self.fail(f"read: {_kind(owner, word)} of another")

    def fail(self, problem: str) -> None:
        self.demo.failures.append(f"{self.operation}: {problem}")

    def note(self, what: str) -> None:
        self.demo.outcomes[what] += 1

    def other(self) -> "BusyVisitor":
        """Another visitor, at random."""
        return self.random.choice([each for each in self.demo.visitors if each is not self])

    def name(self, run_id: str) -> str:
        """The id of a run of another, which the answer may repeat."""
        self.sent.add(run_id)
        return run_id

    async def served(self, ask: Callable[[], Awaitable[Reply]], holds: str = "") -> list[Any]:
        """What an honest call answers, which must hold a text; nothing if it was turned away each time."""
        reply = await _until_taken(ask)
        if reply.is_served and holds in json.dumps(reply.data):
            self.note("honest, served")
            return reply.data or []
        if reply.is_busy:
            self.note("honest, turned away as too many")
        else:
            text = reply.text if not reply.is_served else f"{json.dumps(reply.data)[:100]} lacks {holds!r}"
            self.fail(f"not served: {text}")
        return []

    async def refused(self, ask: Callable[[], Awaitable[Reply]], *sentences: str) -> None:
        """A call that must end with an error, of one of these sentences if any are given."""
        reply = await _until_taken(ask)
        if reply.is_busy:
            self.note("attempts, turned away as too many")
        elif reply.is_served or not any(each in reply.text for each in sentences or ("",)):
            self.fail(f"was answered: {reply.data or reply.text}"[:300])
        else:
            self.note("attempts, refused")

    # Honest operations

    async def list_runs(self) -> None:
        data = await self.served(lambda: self.client.call("runs"), self.own.canary)
        listed = {each["run_id"] for each in data[0]} if data else {self.own.kept}
        if not {self.own.kept} <= listed <= set(self.own.runs):
            self.fail(f"listed {sorted(listed)}")

    async def status(self) -> None:
        await self.served(lambda: self.client.call("status", self.own.kept), self.own.canary)

    async def stop(self) -> None:
        """The run has ended, and the answer says so."""
        reply = await _until_taken(lambda: self.client.call("stop", self.own.kept))
        if "has ended already" in reply.error:
            self.note("honest, served")
        elif not reply.is_busy:
            self.fail(f"was answered: {reply.text}")

    async def count(self) -> None:
        settings = {"r": self.random.choice((4, 8, 16))}
        await self.served(lambda: self.client.call("count", settings), "trainable")

    async def predict(self) -> None:
        run_id = self.own.kept
        await self.served(lambda: self.client.call("predict", _TEXT, run_id, "adapter", ""), self.own.canary)

    async def download(self) -> None:
        """Have an adapter zipped, and fetch it; a script needs the data, which these runs never had."""
        data = await self.served(lambda: self.client.call("download", self.own.kept, "adapter"))
        if data:
            answer = await self.client.get(f"/gradio_api/file={data[0]['path']}")
            if not any(self.own.canary.encode() in body for body in _unpacked(answer.body)):
                self.fail(f"the adapter was answered {answer.status} without what it should hold")

    async def upload(self) -> None:
        """Upload a file and take it as a data set, as the page does."""
        content = rows_with(self.own.canary, self.random.randrange(3))
        sent = await _until_taken(lambda: self.client.upload("rows.csv", content))
        if sent.status != 200:
            self.note("honest, turned away as too many") if sent.is_busy else self.fail(f"{sent.status}")
            return
        take = self.demo.page.with_input("upload")[0]
        file = {
            "path": json.loads(sent.body)[0],
            "orig_name": "rows.csv",
            "meta": {"_type": "gradio.FileData"},
        }
        data = await self.served(
            lambda: self.client.press(take, take.arguments({"upload": [file]})), '"upload:rows-'
        )
        self.own.uploads += [
            each["value"]
            for each in data
            if isinstance(each, dict) and str(each.get("value")).startswith("upload:rows-")
        ]

    async def inspect(self) -> None:
        """Look at an upload on the page's second card."""
        show = self.demo.page.filling("data-facts")
        upload = self.random.choice(self.own.uploads)
        data = show.opened({"dataset_name": upload})
        await self.served(lambda: self.client.press(show, data), self.own.canary)

    async def delete(self) -> None:
        """Delete the spare run; a second time it is not there."""
        if self.own.has_deleted:
            await self.refused(lambda: self.client.call("delete", self.own.spare), "There is no run")
            return
        self.own.has_deleted = None
        data = await self.served(lambda: self.client.call("delete", self.own.spare), "true")
        self.own.has_deleted = bool(data) or None

    async def share(self) -> None:
        """Make a link, or show the one that there is, by the page."""
        await self._change_link("share-run")
        data = await self.served(lambda: self.client.press(self._show(), [self.own.kept]))
        secrets = re.findall(r"#key=([0-9a-f]{64})", json.dumps(data))
        known = [each.secret for each in self.own.links]
        self.own.links += [Link(secret) for secret in secrets if secret not in known]
        if data and not secrets and self.own.is_sharing:  # else the click was turned away
            self.fail("the page shows no link")

    async def end_sharing(self) -> None:
        await self._change_link("revoke-link")

    async def _change_link(self, button: str) -> None:
        change = self.demo.page.of("click", button)
        before, self.own.is_sharing = self.own.is_sharing, None
        reply = await _until_taken(lambda: self.client.press(change, [self.own.kept]))
        if reply.is_served:
            self.note("honest, served")
            self.own.is_sharing = button == "share-run"
            if not self.own.is_sharing:
                ended = time.monotonic()
                self.own.links = [replace(each, ended=each.ended or ended) for each in self.own.links]
        elif reply.is_busy:
            self.note("honest, turned away as too many")
            self.own.is_sharing = before
        else:
            self.fail(f"{button}: {reply.text}")

    def _show(self) -> Function:
        """What draws the panel of the picked run."""
        look = self.demo.page.triggered_by("tick")
        return self.demo.page.triggered_by("change", look.input_ids[1])

    async def look(self) -> None:
        """What a page asks each second."""
        look = self.demo.page.triggered_by("tick")
        ask = lambda: self.client.run(look, [self.own.kept, "", None])  # noqa: E731
        await self.served(ask)

    async def read_rows(self) -> None:
        """The test rows of the run, on the Inference tab."""
        search = self.demo.page.filling("rows")
        await self.served(
            lambda: self.client.press(search, search.arguments({"runs": self.own.kept})), self.own.canary
        )

    async def follow_link(self) -> None:
        """Read a run that is shared, which must work for as long as the link does."""
        sharers = [each.own for each in self.demo.visitors if each.own.links and each is not self]
        if not sharers:
            self.note("no link to follow yet")
            return
        other = self.random.choice(sharers)
        link, start = other.links[-1], time.monotonic()
        self.name(other.kept)
        reply = await _until_taken(lambda: self.client.call("status", other.kept, link=link.secret))
        works = is_shared(other, link.secret, time.monotonic()) and other.is_sharing
        if reply.is_served and other.canary in json.dumps(reply.data):
            self.note("links, followed")
        elif reply.is_busy:
            self.note("honest, turned away as too many")
        elif works:
            self.fail(f"not served after {time.monotonic() - start:.1f} s: {reply.text}")
        else:
            self.note("links that had ended, refused")

    # Attempts

    async def name_run(self) -> None:
        """Name a run of another to an endpoint."""
        run_id = self.name(self.random.choice(self.other().own.runs))
        endpoint, data = self.random.choice(
            [(each, (run_id,)) for each in ("status", "stop", "merge", "delete")]
            + [("predict", (_TEXT, run_id, "adapter", ""))]
            + [("download", (run_id, kind)) for kind in ("adapter", "script")]
        )
        await self.refused(lambda: self.client.call(endpoint, *data), "There is no run")

    async def name_upload(self) -> None:
        """Name an upload of another in settings, in all forms that its name has."""
        other = self.other().own
        folder = other.uploads[0].removeprefix("upload:")
        names = [
            other.uploads[0], f"upload:../{other.owner}/{folder}", f"upload:{other.owner}/{folder}",
            str(self.demo.runs_dir / ".uploads" / other.owner / folder), str(self.demo.runs_dir / other.kept),
        ]  # fmt: skip
        self.sent |= {other.owner, other.kept}
        own = {each.rpartition(":")[2] for each in self.own.uploads}
        name = self.random.choice(names)
        if folder in own and name == other.uploads[0]:
            return
        for endpoint in ("count", "train"):
            settings = {"dataset_name": name}
            await self.refused(
                lambda endpoint=endpoint, settings=settings: self.client.call(endpoint, settings),
                "There is no upload", "is not on this public demo's list",
            )  # fmt: skip

    async def press_with_run(self) -> None:
        """Have any function of the page run with the id of another's run; what it answers is searched."""
        function = self.random.choice(self.demo.page.with_input("runs"))
        run_id = self.name(self.random.choice(self.other().own.runs))
        texts = dict.fromkeys(("text", "why-text", "neighbours-query"), _TEXT)
        reply = await self.client.press(function, function.arguments({"runs": run_id, **texts}))
        self.note("attempts, answered with nothing" if reply.is_served else "attempts, refused")

    async def use_session(self) -> None:
        """Use the session of another: its messages, its queue, its life."""
        session, page = self.other().client.session, self.demo.page
        join = {"data": [self.own.kept], "fn_index": self._show().number, "session_hash": session}
        look = {"data": [self.own.kept, "", None], "fn_index": page.triggered_by("tick").number}
        await self._expect_unknown(
            self.random.choice(
                [
                    lambda: self.client.get(f"/gradio_api/queue/data?session_hash={session}", seconds=_SHORT),
                    lambda: self.client.get(f"/gradio_api/heartbeat/{session}", seconds=_SHORT),
                    lambda: self.client.post("/gradio_api/queue/join", join),
                    lambda: self.client.post("/gradio_api/run/predict", {**look, "session_hash": session}),
                    lambda: self.client.post(
                        "/gradio_api/cancel", {"session_hash": session, "fn_index": 1, "event_id": "x"}
                    ),
                ]
            )
        )

    async def fetch_event(self) -> None:
        """Fetch the answer of a call that another has just made."""
        other = self.other()
        joined = await _until_taken(
            lambda: other.client.post("/gradio_api/call/status", {"data": [other.own.kept]})
        )
        if joined.status != 200:
            self.note("attempts, turned away as too many")
            return
        event = json.loads(joined.body)["event_id"]
        path = f"/gradio_api/call/status/{event}"
        await self._expect_unknown(lambda: self.client.get(path, seconds=_SHORT))
        await self._expect_unknown(lambda: self.client.post("/gradio_api/reset", {"event_id": event}))
        mine = await other.client.get(path)
        if other.own.canary.encode() not in mine.body:
            self.fail(f"the caller did not get the answer: {mine.status}")

    async def _expect_unknown(self, ask: Callable[[], Awaitable[Answer]]) -> None:
        """A request that must be answered as one of a session that there is not."""
        answer = await _until_taken(ask)
        if answer.status == 404:
            self.note("attempts, refused")
        elif answer.is_busy:
            self.note("attempts, turned away as too many")
        else:
            self.fail(f"was answered {answer.status}: {answer.sentence()[:200]}")

    async def use_link(self) -> None:
        """Open a run by a link of another run, one that was made up, or one that has ended."""
        other = self.other().own
        ended = [each.secret for each in other.links if each.ended is not None]
        foreign = [each.own.links[-1].secret for each in self.demo.visitors
                   if each.own.links and each.own is not other]  # fmt: skip
        link = self.random.choice([f"{self.random.getrandbits(256):064x}", other.owner, *ended, *foreign])
        self.name(other.kept)
        await self.refused(lambda: self.client.call("status", other.kept, link=link), "There is no run")

    async def claim_owner(self) -> None:
        """Send the hash of another's token for a token: that is what the disk holds."""
        other = self.other().own
        client = DemoClient(self.demo.port, other.owner, "192.0.2.1", "", self.examine)
        self.name(other.kept)
        await self.refused(lambda: client.call("status", other.kept), "There is no run")
        client.close()

    async def fetch_file(self) -> None:
        """Open a file of another by its place on this machine."""
        other = self.other().own
        upload = f".uploads/{other.owner}/{other.uploads[0].removeprefix('upload:')}/rows.csv"
        name = self.random.choice((f"{other.kept}/config.json", f"{other.kept}/owner.json", upload))
        self.sent |= {other.kept, other.owner}
        answer = await _until_taken(lambda: self.client.get(f"/gradio_api/file={self.demo.runs_dir}/{name}"))
        if answer.status == 200:
            self.fail(f"read: {name.rpartition('/')[2]} of another")
        self.note("attempts, refused")


def is_shared(owner: Possession, link: str | None, sent: float) -> bool:
    """Whether a link that was sent then may share a run of this owner."""
    return any(each.secret == link and (each.ended is None or each.ended > sent) for each in owner.links)


def _kind(owner: Possession, word: str) -> str:
    names = {owner.canary: "the canary", owner.token: "the token", owner.owner: "the hash of the token"}
    return names.get(word, "the id of a run")


async def _until_taken(ask: Callable[[], Awaitable[Taken]]) -> Taken:
    """The answer once the app is not too busy for it; after many tries the last one."""
    for number in range(_TRIES):
        answer = await ask()
        if not answer.is_busy:
            return answer
        await asyncio.sleep(min(2.0, 0.25 * (number + 1)))
    return answer


def _unpacked(body: bytes) -> Iterator[bytes]:
    """A body, and the files in it if it is a zip."""
    yield body
    if body.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            yield from (archive.read(name) for name in archive.namelist())
