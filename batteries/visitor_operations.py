"""Operations of a visitor of the battery `visitors`: honest ones, which must succeed, and attempts.

An attempt tries to read or change data of another visitor, and must be refused.
"""

import json
import re
import time
from collections.abc import Collection
from dataclasses import replace

from batteries.demo_client import DemoClient, Function
from batteries.visitor_runs import Link, canary_csv
from batteries.visitor_session import VisitorSession, is_shared, retry_while_busy, unpack

HONEST = {
    "list_runs": 4, "status": 4, "stop": 2, "count": 2, "predict": 1, "download": 2, "upload": 2,
    "inspect": 2, "delete": 1, "share": 2, "end_sharing": 1, "poll": 4, "read_rows": 2, "follow_link": 4,
}  # fmt: skip
ATTEMPTS = {
    "name_run": 5, "name_upload": 3, "press_with_run": 5, "use_session": 3, "fetch_event": 2, "use_link": 2,
    "claim_owner": 1, "fetch_file": 2,
}  # fmt: skip
_SHORT = 10.0  # seconds; time limit of a stream that must not open
_TEXT = "The food was awful."


class BusyVisitor(VisitorSession):
    """A visitor who does one operation after another; each is a method of the same name."""

    async def open(self) -> None:
        """Open a page, which binds its session to this visitor."""
        self.operation = "poll"
        await self.poll()

    async def work(self, operations: int, only: Collection[str] = ()) -> None:
        """Do so many operations, drawn from `only` or from all."""
        weights = {name: weight for name, weight in (HONEST | ATTEMPTS).items() if not only or name in only}
        for name in self.random.choices(list(weights), list(weights.values()), k=operations):
            self.operation = name
            self.demo.count += 1
            await getattr(self, name)()

    # Honest operations

    async def list_runs(self) -> None:
        data = await self.expect_served(lambda: self.client.call("runs"), self.own.canary)
        listed = {each["run_id"] for each in data[0]} if data else {self.own.main_run_id}
        if not {self.own.main_run_id} <= listed <= set(self.own.runs):
            self.fail(f"listed {sorted(listed)}")

    async def status(self) -> None:
        await self.expect_served(lambda: self.client.call("status", self.own.main_run_id), self.own.canary)

    async def stop(self) -> None:
        """Stop a finished run; the error says that it has ended."""
        reply = await retry_while_busy(lambda: self.client.call("stop", self.own.main_run_id))
        if "has ended already" in reply.error:
            self.note("honest, served")
        elif not reply.is_busy:
            self.fail(f"was answered: {reply.text}")

    async def count(self) -> None:
        settings = {"r": self.random.choice((4, 8, 16))}
        await self.expect_served(lambda: self.client.call("count", settings), "trainable")

    async def predict(self) -> None:
        run_id = self.own.main_run_id
        await self.expect_served(
            lambda: self.client.call("predict", _TEXT, run_id, "adapter", ""), self.own.canary
        )

    async def download(self) -> None:
        """Zip an adapter and download it; a script would need the data set, which these runs do not have."""
        data = await self.expect_served(lambda: self.client.call("download", self.own.main_run_id, "adapter"))
        if data:
            answer = await self.client.get(f"/gradio_api/file={data[0]['path']}")
            if not any(self.own.canary.encode() in body for body in unpack(answer.body)):
                self.fail(f"the adapter was answered {answer.status} without what it should hold")

    async def upload(self) -> None:
        """Upload a file and use it as a data set, as the page does."""
        content = canary_csv(self.own.canary, self.random.randrange(3))
        response = await retry_while_busy(lambda: self.client.upload("rows.csv", content))
        if response.status != 200:
            self.note("honest, turned away as too many") if response.is_busy else self.fail(
                f"{response.status}"
            )
            return
        take = self.demo.page.with_input("upload")[0]
        file = {
            "path": json.loads(response.body)[0],
            "orig_name": "rows.csv",
            "meta": {"_type": "gradio.FileData"},
        }
        data = await self.expect_served(
            lambda: self.client.press(take, take.arguments({"upload": [file]})), '"upload:rows-'
        )
        self.own.uploads += [
            each["value"]
            for each in data
            if isinstance(each, dict) and str(each.get("value")).startswith("upload:rows-")
        ]

    async def inspect(self) -> None:
        """Inspect an upload in the data card of the page."""
        show = self.demo.page.updating("data-facts")
        upload = self.random.choice(self.own.uploads)
        data = show.opened({"dataset_name": upload})
        await self.expect_served(lambda: self.client.press(show, data), self.own.canary)

    async def delete(self) -> None:
        """Delete the spare run; a second deletion is refused."""
        if self.own.has_deleted:
            await self.expect_refused(
                lambda: self.client.call("delete", self.own.spare_run_id), "There is no run"
            )
            return
        self.own.has_deleted = None
        data = await self.expect_served(lambda: self.client.call("delete", self.own.spare_run_id), "true")
        self.own.has_deleted = bool(data) or None

    async def share(self) -> None:
        """Create a share link on the page, or show the existing one."""
        await self._change_link("share-run")
        data = await self.expect_served(
            lambda: self.client.press(self._panel_function(), [self.own.main_run_id])
        )
        secrets = re.findall(r"#key=([0-9a-f]{64})", json.dumps(data))
        existing = [each.secret for each in self.own.links]
        self.own.links += [Link(secret) for secret in secrets if secret not in existing]
        if data and not secrets and self.own.is_sharing:  # else the click was refused as too many
            self.fail("the page shows no link")

    async def end_sharing(self) -> None:
        await self._change_link("revoke-link")

    async def _change_link(self, button: str) -> None:
        change = self.demo.page.on_element("click", button)
        before, self.own.is_sharing = self.own.is_sharing, None
        reply = await retry_while_busy(lambda: self.client.press(change, [self.own.main_run_id]))
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

    def _panel_function(self) -> Function:
        """Return the function that draws the panel of the selected run."""
        poll = self.demo.page.triggered_by("tick")
        return self.demo.page.triggered_by("change", poll.input_ids[1])

    async def poll(self) -> None:
        """Poll as a page does each second."""
        poll = self.demo.page.triggered_by("tick")
        request = lambda: self.client.run(poll, [self.own.main_run_id, "", None])  # noqa: E731
        await self.expect_served(request)

    async def read_rows(self) -> None:
        """Read the test rows of the run in the Inference tab."""
        search = self.demo.page.updating("rows")
        await self.expect_served(
            lambda: self.client.press(search, search.arguments({"runs": self.own.main_run_id})),
            self.own.canary,
        )

    async def follow_link(self) -> None:
        """Read a shared run, which must succeed while its link works."""
        sharers = [each.own for each in self.demo.visitors if each.own.links and each is not self]
        if not sharers:
            self.note("no link to follow yet")
            return
        other = self.random.choice(sharers)
        link, start = other.links[-1], time.monotonic()
        self.mention(other.main_run_id)
        reply = await retry_while_busy(
            lambda: self.client.call("status", other.main_run_id, link=link.secret)
        )
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
        """Call an endpoint with the id of another visitor's run."""
        run_id = self.mention(self.random.choice(self.other().own.runs))
        endpoint, data = self.random.choice(
            [(each, (run_id,)) for each in ("status", "stop", "merge", "delete")]
            + [("predict", (_TEXT, run_id, "adapter", ""))]
            + [("download", (run_id, kind)) for kind in ("adapter", "script")]
        )
        await self.expect_refused(lambda: self.client.call(endpoint, *data), "There is no run")

    async def name_upload(self) -> None:
        """Use another visitor's upload in settings, by one of its names or paths."""
        other = self.other().own
        folder = other.uploads[0].removeprefix("upload:")
        names = [
            other.uploads[0], f"upload:../{other.owner}/{folder}", f"upload:{other.owner}/{folder}",
            str(self.demo.runs_dir / ".uploads" / other.owner / folder),
            str(self.demo.runs_dir / other.main_run_id),
        ]  # fmt: skip
        self.mentioned |= {other.owner, other.main_run_id}
        own = {each.rpartition(":")[2] for each in self.own.uploads}
        name = self.random.choice(names)
        if folder in own and name == other.uploads[0]:
            return
        for endpoint in ("count", "train"):
            settings = {"dataset_name": name}
            await self.expect_refused(
                lambda endpoint=endpoint, settings=settings: self.client.call(endpoint, settings),
                "There is no upload", "is not on this public demo's list",
            )  # fmt: skip

    async def press_with_run(self) -> None:
        """Run any function of the page with the id of another visitor's run; its answer is searched."""
        function = self.random.choice(self.demo.page.with_input("runs"))
        run_id = self.mention(self.random.choice(self.other().own.runs))
        texts = dict.fromkeys(("text", "why-text", "neighbours-query"), _TEXT)
        reply = await self.client.press(function, function.arguments({"runs": run_id, **texts}))
        self.note("attempts, answered with nothing" if reply.is_served else "attempts, refused")

    async def use_session(self) -> None:
        """Use another visitor's session: its messages, its queue, its heartbeat."""
        session, page = self.other().client.session, self.demo.page
        join = {
            "data": [self.own.main_run_id],
            "fn_index": self._panel_function().number,
            "session_hash": session,
        }
        poll = {"data": [self.own.main_run_id, "", None], "fn_index": page.triggered_by("tick").number}
        await self.expect_unknown_session(
            self.random.choice(
                [
                    lambda: self.client.get(f"/gradio_api/queue/data?session_hash={session}", seconds=_SHORT),
                    lambda: self.client.get(f"/gradio_api/heartbeat/{session}", seconds=_SHORT),
                    lambda: self.client.post("/gradio_api/queue/join", join),
                    lambda: self.client.post("/gradio_api/run/predict", {**poll, "session_hash": session}),
                    lambda: self.client.post(
                        "/gradio_api/cancel", {"session_hash": session, "fn_index": 1, "event_id": "x"}
                    ),
                ]
            )
        )

    async def fetch_event(self) -> None:
        """Fetch the answer of a call that another visitor has just made."""
        other = self.other()
        joined = await retry_while_busy(
            lambda: other.client.post("/gradio_api/call/status", {"data": [other.own.main_run_id]})
        )
        if joined.status != 200:
            self.note("attempts, turned away as too many")
            return
        event = json.loads(joined.body)["event_id"]
        path = f"/gradio_api/call/status/{event}"
        await self.expect_unknown_session(lambda: self.client.get(path, seconds=_SHORT))
        await self.expect_unknown_session(lambda: self.client.post("/gradio_api/reset", {"event_id": event}))
        mine = await other.client.get(path)
        if other.own.canary.encode() not in mine.body:
            self.fail(f"the caller did not get the answer: {mine.status}")

    async def use_link(self) -> None:
        """Open a run by another run's link, a made-up link or a revoked one."""
        other = self.other().own
        ended = [each.secret for each in other.links if each.ended is not None]
        foreign = [each.own.links[-1].secret for each in self.demo.visitors
                   if each.own.links and each.own is not other]  # fmt: skip
        link = self.random.choice([f"{self.random.getrandbits(256):064x}", other.owner, *ended, *foreign])
        self.mention(other.main_run_id)
        await self.expect_refused(
            lambda: self.client.call("status", other.main_run_id, link=link), "There is no run"
        )

    async def claim_owner(self) -> None:
        """Send the hash of another visitor's token, as stored on disk, instead of a token."""
        other = self.other().own
        client = DemoClient(self.demo.port, other.owner, "192.0.2.1", "", self.check_answer)
        self.mention(other.main_run_id)
        await self.expect_refused(lambda: client.call("status", other.main_run_id), "There is no run")
        client.close()

    async def fetch_file(self) -> None:
        """Download another visitor's file by its path on the server."""
        other = self.other().own
        upload = f".uploads/{other.owner}/{other.uploads[0].removeprefix('upload:')}/rows.csv"
        name = self.random.choice(
            (f"{other.main_run_id}/config.json", f"{other.main_run_id}/owner.json", upload)
        )
        self.mentioned |= {other.main_run_id, other.owner}
        answer = await retry_while_busy(
            lambda: self.client.get(f"/gradio_api/file={self.demo.runs_dir}/{name}")
        )
        if answer.status == 200:
            self.fail(f"read: {name.rpartition('/')[2]} of another")
        self.note("attempts, refused")
