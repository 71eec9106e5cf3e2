"""The gate of a public demo: rate limits, limits of request bodies, and ownership of sessions."""

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio.route_utils import GradioMultiPartParser, MultiPartException
from starlette.datastructures import Headers
from starlette.requests import Request

from peft_core.access.address import CLIENT_ADDRESS, client_address
from peft_core.access.bodies import BodyLimits
from peft_core.access.gate import GateLimits, PublicGate
from peft_core.access.guard import PagePolicy, RequestGuard
from peft_core.access.hosts import AllowedHosts
from peft_core.access.rates import Rate
from peft_core.access.sessions import Sender, Sessions
from peft_core.access.visitors import TOKEN_HEADER, new_token
from peft_core.service.limits import Limits

ALICE, MALLORY = ({TOKEN_HEADER: character * 64} for character in "ab")
MCP = {"x-gradio-user": "mcp"}
API = "/gradio_api"
BOUNDARY = "a5b1c8"
UPLOAD_TYPE = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
PART = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="a.csv"\r\n\r\n'.encode()


@dataclass
class FakeApp:
    """A substitute for Gradio that reads the body and responds with an event."""

    bodies: list[bytes] = field(default_factory=list)
    events: Iterator[str] = field(default_factory=lambda: (f"event-{number}" for number in itertools.count()))
    before: Callable[[], Awaitable[None]] | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self.before:
            await self.before()
        self.bodies.append(await Request(scope, receive).body())
        body = json.dumps({"event_id": next(self.events)}).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})


class Gate:
    """A gate in front of a fake app, with a clock that the test sets."""

    def __init__(self, limits: GateLimits | None = None, app: Any = None, **options: Any) -> None:
        self.app = app or FakeApp()
        self.now = 0.0
        demo = Limits(max_upload_bytes=1_000)
        self.asgi = PublicGate(self.app, demo, limits, clock=lambda: self.now, **options)

    def ask(
        self, path: str, *, method: str = "GET", address: str = "192.0.2.1", **kwargs: Any
    ) -> httpx.Response:
        return asyncio.run(self.ask_async(path, method=method, address=address, **kwargs))

    async def ask_async(self, path: str, *, method: str, address: str, **kwargs: Any) -> httpx.Response:
        CLIENT_ADDRESS.set(address)
        transport = httpx.ASGITransport(app=self.asgi)
        async with httpx.AsyncClient(transport=transport, base_url="http://demo.example") as client:
            return await client.request(method, path, **kwargs)

    def post(self, path: str, **kwargs: Any) -> httpx.Response:
        return self.ask(API + path, method="POST", **kwargs)


def with_rates(**rates: Rate) -> GateLimits:
    return GateLimits(**rates)


def error_message(response: httpx.Response) -> str:
    """Return the message that the Gradio page shows for a refused request."""
    if response.headers.get("content-type") != "application/json":
        return response.text
    fields = response.json()
    assert fields["detail"] == fields["error"]
    return fields["detail"]


# Addresses


@pytest.mark.parametrize(
    ("forwarded", "proxies", "expected"),
    [
        (["203.0.113.9"], 0, "10.0.0.1"),
        (["203.0.113.9"], 1, "203.0.113.9"),
        (["6.6.6.6, 203.0.113.9"], 1, "203.0.113.9"),  # the client wrote the first
        (["6.6.6.6", "203.0.113.9"], 1, "203.0.113.9"),  # as two headers
        (["6.6.6.6, 203.0.113.9, 10.0.0.7"], 2, "203.0.113.9"),
        (["203.0.113.9:5000"], 1, "203.0.113.9"),
        (["[2001:db8::9]:5000"], 1, "2001:db8::9"),
        (["2001:db8::9"], 1, "2001:db8::9"),
        (["6.6.6.6, nonsense"], 1, "10.0.0.1"),
        (["203.0.113.9"], 2, "10.0.0.1"),
        ([""], 1, "10.0.0.1"),
        ([], 1, "10.0.0.1"),
        (["10.0.0.1"], 2, "unknown"),  # uvicorn read the address from the header
    ],
)
def test_client_address_behind_proxies_trusts_only_their_entries(
    forwarded: list[str], proxies: int, expected: str
) -> None:
    headers = [(b"x-forwarded-for", value.encode()) for value in forwarded]
    scope = {"type": "http", "client": ("10.0.0.1", 5), "headers": headers}
    assert client_address(scope, proxies) == expected


def test_client_address_without_connection_is_unknown() -> None:
    assert client_address({"type": "http", "client": None, "headers": []}, 0) == "unknown"


def test_guard_spoofed_address_shares_rate_limit() -> None:
    gate = PublicGate(FakeApp(), Limits(), with_rates(address=Rate(60, 3)))
    guard = RequestGuard(gate, AllowedHosts("127.0.0.1"), PagePolicy(), proxies=1)

    async def ask_spoofed() -> list[int]:
        transport = httpx.ASGITransport(app=guard, client=("10.0.0.1", 5))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            forwarded = [f"198.51.100.{number}, 203.0.113.9" for number in range(5)]
            return [
                (await client.get("/", headers={"X-Forwarded-For": value})).status_code for value in forwarded
            ]

    assert asyncio.run(ask_spoofed()) == [200, 200, 200, 429, 429]


# Rates


def test_gate_visitor_above_rate_gets_retry_after() -> None:
    gate = Gate(with_rates(visitor=Rate(30, 3)))
    statuses = [gate.post("/queue/join", json={}, headers=ALICE).status_code for _ in range(3)]
    refused = gate.post("/queue/join", json={}, headers=ALICE)
    assert statuses == [200, 200, 200]
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "2")
    assert error_message(refused) == "Too many requests in a short time. Try again in 2 seconds."
    assert gate.post("/queue/join", json={}, headers=MALLORY).status_code == 200
    gate.now += 2
    assert gate.post("/queue/join", json={}, headers=ALICE).status_code == 200


def test_gate_new_tokens_do_not_reset_address_limit() -> None:
    gate = Gate(with_rates(address=Rate(60, 5)))
    statuses = [gate.ask("/config", headers={TOKEN_HEADER: new_token()}).status_code for _ in range(7)]
    assert statuses == [200] * 5 + [429] * 2
    assert gate.ask("/config", address="192.0.2.2").status_code == 200


def test_gate_addresses_of_one_ipv6_network_share_a_limit() -> None:
    gate = Gate(with_rates(address=Rate(60, 2)))
    statuses = [gate.ask("/", address=f"2001:db8::{number}").status_code for number in range(1, 4)]
    assert statuses == [200, 200, 429]


def test_gate_page_loading_and_polling_is_not_refused() -> None:
    gate = Gate()
    paths = ["/", *(f"/assets/{number}.js" for number in range(150)), "/theme.css", "/favicon.ico"]
    for _ in range(5):  # five tabs
        assert {gate.ask(path, headers=ALICE).status_code for path in paths} == {200}
    for _ in range(300):
        gate.now += 1
        polls = {
            gate.post("/run/look", json={"session_hash": "tab"}, headers=ALICE).status_code for _ in range(4)
        }
        assert polls == {200}


def test_gate_flood_of_static_files_is_refused() -> None:
    gate = Gate(with_rates(static=Rate(60, 2)))
    assert [gate.ask("/assets/index.js").status_code for _ in range(3)] == [200, 200, 429]
    assert gate.ask("/").status_code == 200


def test_gate_uploads_have_separate_rate() -> None:
    gate = Gate(with_rates(visitor_uploads=Rate(6, 2)))
    upload = {"content": PART + b"a\r\n", "headers": {**ALICE, **UPLOAD_TYPE}}
    assert [gate.post("/upload", **upload).status_code for _ in range(3)] == [200, 200, 429]
    assert error_message(gate.post("/upload", **upload)) == (
        "Too many uploads in a short time. Try again in 10 seconds."
    )
    assert gate.ask("/config", headers=ALICE).status_code == 200


# Open requests


@pytest.mark.parametrize(("per_address", "total", "status"), [(2, 9, 429), (9, 2, 503)])
def test_gate_too_many_open_streams_are_refused_until_one_closes(
    per_address: int, total: int, status: int
) -> None:
    async def ask_while_two_are_open() -> list[int]:
        finish = asyncio.Event()
        gate = Gate(GateLimits(open_per_address=per_address, open_total=total), FakeApp(before=finish.wait))
        request = {"method": "GET", "address": "192.0.2.1"}
        streams = [asyncio.create_task(gate.ask_async(f"/{number}", **request)) for number in range(2)]
        await asyncio.sleep(0.05)
        refused = await gate.ask_async("/3", **request)
        assert "again in" in error_message(refused) and "retry-after" in refused.headers
        finish.set()
        await asyncio.gather(*streams)
        return [refused.status_code, (await gate.ask_async("/4", **request)).status_code]

    assert asyncio.run(ask_while_two_are_open()) == [status, 200]


# Bodies


async def body_chunks(*parts: bytes, seconds: float = 0.0) -> Any:
    for part in parts:
        yield part
        await asyncio.sleep(seconds)


@pytest.mark.parametrize("chunked", [True, False])
def test_gate_large_call_is_refused(chunked: bool) -> None:
    gate = Gate()
    body = b" " * 100_001
    refused = gate.post("/queue/join", content=body_chunks(body[:9], body[9:]) if chunked else body)
    assert refused.status_code == 413
    assert error_message(refused) == "This request is larger than the limit of 0.1 MB. Send less."
    assert not gate.app.bodies
    assert gate.post("/queue/join", content=body[:-1]).status_code == 200


def test_gate_call_reaches_the_app_with_its_body() -> None:
    gate = Gate()
    gate.post("/queue/join", content=body_chunks(b'{"data": ', b"[1]}"))
    assert gate.app.bodies == [b'{"data": [1]}']


def test_gate_large_upload_is_refused() -> None:
    gate = Gate()
    half = b"x" * 600_000
    headers = {**ALICE, **UPLOAD_TYPE}
    assert gate.post("/upload", content=body_chunks(PART, half), headers=headers).status_code == 200
    refused = gate.post("/upload", content=body_chunks(PART, half, half), headers=headers)
    assert refused.status_code == 413
    assert error_message(refused) == "This request is larger than the limit of 1.0 MB. Send less."


def test_gate_upload_of_too_many_files_is_refused() -> None:
    gate = Gate()
    headers = {**ALICE, **UPLOAD_TYPE}
    end = f"--{BOUNDARY}--\r\n".encode()
    bodies = {count: (PART + b"a\r\n") * count + end for count in (20, 21)}
    split = [bodies[21][start : start + 5] for start in range(0, len(bodies[21]), 5)]
    assert gate.post("/upload", content=bodies[20], headers=headers).status_code == 200
    for content in (bodies[21], body_chunks(*split)):
        refused = gate.post("/upload", content=content, headers=headers)
        assert (refused.status_code, error_message(refused)) == (413, "Upload at most 20 files at once.")


@pytest.mark.parametrize("path", ["/queue/join", "/upload"])
def test_gate_slow_body_is_refused(path: str) -> None:
    gate = Gate(GateLimits(bodies=BodyLimits(call_seconds=0.05, upload_seconds=0.05)))
    headers = UPLOAD_TYPE if path == "/upload" else {}
    refused = gate.post(path, content=body_chunks(PART, b"a", b"b", seconds=0.2), headers=headers)
    assert refused.status_code == 408
    assert "did not arrive within" in error_message(refused)


@pytest.mark.parametrize("upto", range(len(PART) + 1))
@pytest.mark.parametrize("ending", ["client leaves", "too slow"])
def test_upload_interrupted_leaves_no_file(tmp_path: Path, ending: str, upto: int) -> None:
    outcomes: list[str] = []

    async def gradio(scope: Any, receive: Any, send: Any) -> None:
        stream = Request(scope, receive).stream()
        parser = GradioMultiPartParser(Headers(scope=scope), stream, upload_dir=tmp_path, max_file_size=100)
        try:
            await parser.parse()
        except MultiPartException:
            outcomes.append("unparsable")

    async def upload() -> list[Any]:
        messages = [{"type": "http.request", "body": PART + b"a\r\n" + PART[:upto], "more_body": True}]
        sent: list[Any] = []

        async def receive() -> Any:
            if messages:
                return messages.pop()
            if ending == "too slow":
                await asyncio.sleep(5)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        limits = GateLimits(bodies=BodyLimits(upload_seconds=0.05))
        headers = [(name.encode(), value.encode()) for name, value in UPLOAD_TYPE.items()]
        scope = {"type": "http", "method": "POST", "path": f"{API}/upload", "headers": headers}
        await PublicGate(gradio, Limits(), limits)(scope, receive, send)
        return sent

    sent = asyncio.run(upload())
    assert outcomes == ["unparsable"] and not list(tmp_path.iterdir())
    assert [message.get("status") for message in sent[:1]] == ([408] if ending == "too slow" else [])


@pytest.mark.parametrize(
    "content_type", ["multipart/form-data; boundary=x", "Multipart/Form-DataX; boundary=x"]
)
@pytest.mark.parametrize("path", ["/component_server", "/process_recording"])
def test_gate_files_outside_upload_endpoint_are_refused(path: str, content_type: str) -> None:
    refused = Gate().post(path, content=b"", headers={"content-type": content_type})
    assert refused.status_code == 415
    assert error_message(refused) == "This address does not accept files. Upload them at /gradio_api/upload."


# Sessions

USES = {
    "join": ("POST", f"{API}/queue/join", {"session_hash": "s"}),
    "run": ("POST", f"{API}/run/count", {"session_hash": "s"}),
    "api": ("POST", f"{API}/api/count/", {"session_hash": "s"}),
    "call": ("POST", f"{API}/call/count", {"session_hash": "s"}),
    "cancel": ("POST", f"{API}/cancel", {"session_hash": "s", "fn_index": 0, "event_id": "mine"}),
    "component": ("POST", f"{API}/component_server", {"session_hash": "s"}),
    "data": ("GET", f"{API}/queue/data?session_hash=s", None),
    "twice": ("GET", f"{API}/queue/data?session_hash=own&session_hash=s", None),
    "heartbeat": ("GET", f"{API}/heartbeat/s", None),
    "stream": ("GET", f"{API}/stream/s/1/2/playlist.m3u8", None),
    "escaped": ("GET", f"{API}/heartbeat/%73", None),
    "upload": ("POST", f"{API}/upload?upload_id=s", None),
    "progress": ("GET", f"{API}/upload_progress?upload_id=s", None),
    "reset": ("POST", f"{API}/reset", {"event_id": "s"}),
    "result": ("GET", f"{API}/call/count/s", None),
    "result v2": ("GET", f"{API}/call/v2/count/s", None),
    "odd result": ("GET", f"{API}/call/v2/s", None),
    "more data": ("POST", f"{API}/stream/s", {"data": []}),
    "close": ("POST", f"{API}/stream/s/close", {}),
}  # fmt: skip


def use(gate: Gate, name: str, headers: dict[str, str]) -> httpx.Response:
    method, path, body = USES[name]
    if name == "upload":
        return gate.ask(path, method=method, content=PART, headers={**headers, **UPLOAD_TYPE})
    return gate.ask(path, method=method, headers=headers, **({} if body is None else {"json": body}))


@pytest.mark.parametrize("name", USES)
@pytest.mark.parametrize("other_headers", [MALLORY, {}, MCP], ids=["visitor", "program", "mcp"])
def test_gate_session_of_another_visitor_is_not_found(name: str, other_headers: dict[str, str]) -> None:
    gate = Gate()
    assert gate.ask(f"{API}/heartbeat/s", headers=ALICE).status_code == 200
    refused = use(gate, name, other_headers)
    assert (refused.status_code, error_message(refused)) == (
        404,
        "This session was not found. Reload the page.",
    )
    assert use(gate, name, ALICE).status_code == 200


@pytest.mark.parametrize("name", USES)
def test_gate_first_use_claims_a_session(name: str) -> None:
    gate = Gate()
    assert use(gate, name, ALICE).status_code == 200
    assert gate.ask(f"{API}/heartbeat/s", headers=MALLORY).status_code == 404


def test_gate_programs_without_a_token_share_sessions() -> None:
    gate = Gate()
    assert [use(gate, name, {}).status_code for name in USES] == [200] * len(USES)


def test_gate_endpoint_and_file_names_are_not_sessions() -> None:
    gate = Gate()
    paths = ["/call/count", "/call/v2/count", "/run/count", "/call/count/"]
    for headers in (ALICE, MALLORY):
        assert {gate.post(path, json={"data": []}, headers=headers).status_code for path in paths} == {200}
        assert gate.ask(f"{API}/file=/tmp/stream/s/a.csv", headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/queue/join", "/call/count", "/call/v2/count"])
def test_gate_event_is_accessible_only_to_its_visitor(path: str) -> None:
    gate = Gate()
    event = gate.post(path, json={"data": []}, headers=ALICE).json()["event_id"]
    cancel = {"session_hash": "own", "fn_index": 0, "event_id": event}
    assert gate.post("/cancel", json=cancel, headers=MALLORY).status_code == 404
    for url in (f"/call/count/{event}", f"/queue/data?session_hash={event}"):
        assert gate.ask(API + url, headers=MALLORY).status_code == 404
        assert gate.ask(API + url, headers=ALICE).status_code == 200


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (5, "session_hash must be text, not int."),
        (["s"], "session_hash must be text, not list."),
        ("s" * 101, "session_hash has 101 characters; use at most 100, at random."),
    ],
)
def test_gate_invalid_session_hash_is_refused(name: Any, message: str) -> None:
    refused = Gate().post("/queue/join", json={"session_hash": name}, headers=ALICE)
    assert (refused.status_code, error_message(refused)) == (400, message)


@pytest.mark.parametrize(
    "body", [b"", b"null", b"[1]", b'{"session_hash": null}', b"{", b"[" * 100_000, b"\xff"]
)
def test_gate_body_without_session_reaches_the_app(body: bytes) -> None:
    assert Gate().post("/queue/join", content=body).status_code == 200


def test_gate_session_in_another_encoding_is_checked() -> None:
    gate = Gate()
    gate.ask(f"{API}/heartbeat/s", headers=ALICE)
    for encoding in ("utf-16", "utf-32"):
        body = json.dumps({"session_hash": "s"}).encode(encoding)
        assert gate.post("/queue/join", content=body, headers=MALLORY).status_code == 404


def test_gate_mcp_calls_with_and_without_token_share_a_session() -> None:
    gate = Gate()
    joined = gate.post("/queue/join", json={"session_hash": "s"}, headers={**ALICE, **MCP})
    assert joined.status_code == 200
    assert gate.ask(f"{API}/queue/data?session_hash=s", headers=MCP).status_code == 200
    assert gate.post("/queue/join", json={"session_hash": "s"}, headers={**MALLORY, **MCP}).status_code == 200


def test_sessions_above_max_names_drop_least_recently_used() -> None:
    sessions, alice, mallory = Sessions(max_names=10), Sender("alice", "one"), Sender("mallory", "two")
    for number in range(1000):
        sessions.check([f"name {number}", "page"], alice)
    assert len(sessions) == 10
    sessions.check(["name 0"], mallory)
    with pytest.raises(Exception, match="was not found"):
        sessions.check(["page"], mallory)


def test_gate_deep_links_are_refused() -> None:
    gate = Gate()
    for url in (f"{API}/deep_link?session_hash=s", "/?deep_link=abc", "/config?deep_link=abc"):
        refused = gate.ask(url)
        assert refused.status_code == 404 and "keeps no copies of pages" in refused.text


def test_gate_visitor_above_pending_limit_is_refused_and_others_are_not() -> None:
    waiting: list[str] = []
    limits = GateLimits(visitor_pending=3, address_pending=5)
    gate = Gate(limits, pending=lambda: waiting)
    for number in range(3):
        gate.post("/queue/join", json={"session_hash": f"of alice {number}"}, headers=ALICE)
        waiting.append(f"of alice {number}")
    refused = gate.post("/queue/join", json={"session_hash": "of alice 0"}, headers=ALICE)
    assert refused.status_code == 429 and "still being processed" in error_message(refused)
    assert gate.ask(f"{API}/queue/data?session_hash=of%20alice%200", headers=ALICE).status_code == 200
    for number in range(2):
        answer = gate.post("/queue/join", json={"session_hash": f"of mallory {number}"}, headers=MALLORY)
        assert answer.status_code == 200
        waiting.append(f"of mallory {number}")
    assert gate.post("/queue/join", json={"session_hash": "more"}, headers=MALLORY).status_code == 429
    waiting.clear()
    assert gate.post("/queue/join", json={"session_hash": "of alice 0"}, headers=ALICE).status_code == 200


def test_gate_new_sessions_above_rate_are_refused_and_existing_ones_are_not() -> None:
    gate = Gate(GateLimits(visitor_sessions=Rate(1, 2)))
    join = {name: {"session_hash": name} for name in ("first", "second", "third")}
    codes = [gate.post("/queue/join", json=body, headers=ALICE).status_code for body in join.values()]
    assert codes == [200, 200, 429]
    assert gate.post("/queue/join", json=join["first"], headers=ALICE).status_code == 200
    assert gate.post("/queue/join", json={"session_hash": "another"}, headers=MALLORY).status_code == 200
    gate.now += 60
    assert gate.post("/queue/join", json=join["third"], headers=ALICE).status_code == 200
