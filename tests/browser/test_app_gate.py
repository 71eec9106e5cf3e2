"""Tests of the gate in front of the real app: pages, API and MCP clients pass and see only their own data."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from app_server import Server, serve
from conftest import PATIENCE
from gradio_client import Client
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult
from playwright.sync_api import BrowserContext, Route, expect
from processes import wait_for

from peft_core.access.visitors import TOKEN_HEADER, new_token

ALICE, MALLORY = ({TOKEN_HEADER: character * 64} for character in "ab")
API = "/gradio_api"
SMALL_ROOM = """
from functools import partial
from peft_core.access import upload_room
upload_room.RoomLimits = partial(upload_room.RoomLimits, total_bytes=3_000_000, min_free_bytes=0)
"""


THREE_SESSIONS = """
from functools import partial
from gradio.utils import LRUCache
from peft_core.access import session_messages
session_messages.SessionMessages = partial({table}, 3)
"""


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("gate") / "runs", "--public", "--mcp", "--proxies", "1") as server:
        yield server


def test_public_app_isolates_sessions_and_events(public: Server) -> None:
    with httpx.Client(base_url=public.url + API, timeout=60) as http:
        joined = http.post("/call/count", json={"data": [{}]}, headers=ALICE)
        event = joined.json()["event_id"]
        assert http.get(f"/call/count/{event}", headers=MALLORY).status_code == 404
        assert "74498" in http.get(f"/call/count/{event}", headers=ALICE).text
        files = {"files": ("a.csv", b"text,label\na,b\n")}
        uploaded = http.post("/upload?upload_id=u", files=files, headers=ALICE)
        assert uploaded.status_code == 200 and uploaded.json()[0].endswith("a.csv")
        assert http.post("/upload?upload_id=u", files=files, headers=MALLORY).status_code == 404


def test_public_app_answers_api_clients(public: Server) -> None:
    for headers in ({TOKEN_HEADER: new_token()}, {}):
        client = Client(public.url, verbose=False, headers=headers)
        assert client.predict({}, api_name="/count")["trainable"] == 74_498


def test_public_app_limits_rate_by_forwarded_address(public: Server) -> None:
    def ask(http: httpx.Client, address: str) -> httpx.Response:
        return http.get("/app_id", headers={"X-Forwarded-For": f"6.6.6.6, {address}"})

    with httpx.Client(base_url=public.url + API, timeout=60) as http:
        statuses = [ask(http, "203.0.113.9").status_code for _ in range(230)]
        assert statuses[:200] == [200] * 200 and statuses[-1] == 429
        assert "Try again in" in ask(http, "203.0.113.9").text
        assert ask(http, "203.0.113.10").status_code == 200


@pytest.mark.parametrize(("table", "status"), [("session_messages.SessionMessages", 200), ("LRUCache", 503)])
def test_app_with_dropped_session_of_waiting_event_answers(table: str, status: int, tmp_path: Path) -> None:
    """With gradio's own table, every later request is refused."""
    with (
        serve(tmp_path / "runs", patch=THREE_SESSIONS.format(table=table)) as server,
        httpx.Client(base_url=server.url + API, timeout=60) as http,
    ):
        for _ in range(8):  # each call opens a session
            http.post("/call/count", json={"data": [{}]})
        wait_for(lambda: http.post("/call/count", json={"data": [{}]}).status_code == status)
        if status == 200:
            event = http.post("/call/count", json={"data": [{}]}).json()["event_id"]
            assert "74498" in http.get(f"/call/count/{event}").text


def test_public_app_limits_stored_uploads(tmp_path: Path) -> None:
    with (
        serve(tmp_path / "runs", "--public", patch=SMALL_ROOM) as server,
        httpx.Client(base_url=server.url + API, timeout=60) as http,
    ):
        answers = [
            http.post("/upload", files={"files": ("a.csv", letter * 2_000_000)}, headers=ALICE)
            for letter in (b"a", b"b")
        ]
    assert [answer.status_code for answer in answers] == [200, 503]
    assert answers[1].text == "This demo has no room for more uploads. Try again in 10 minutes."


def test_public_app_answers_mcp_calls_of_several_visitors(public: Server) -> None:
    """Gradio forwards MCP calls through one session, with the visitor's token in every second request."""

    async def count(headers: dict[str, str]) -> CallToolResult:
        async with (
            httpx.AsyncClient(headers=headers, timeout=60) as http,
            streamable_http_client(f"{public.url}{API}/mcp/", http_client=http) as (reading, writing, _),
            ClientSession(reading, writing) as session,
        ):
            await session.initialize()
            name = next(tool.name for tool in (await session.list_tools()).tools if "count" in tool.name)
            return await session.call_tool(name, {"settings": {}})

    for headers in (ALICE, MALLORY, {}):
        answer = asyncio.run(count(headers))
        assert not answer.isError and "74498" in str(answer.content)


def test_page_shows_message_of_refused_request(public: Server, browser_context: BrowserContext) -> None:
    def send_as_another(route: Route) -> None:
        route.continue_(headers={**route.request.headers, TOKEN_HEADER: new_token()})

    page = browser_context.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(public.url)
    expect(page.get_by_test_id("cost")).to_contain_text("74,498", timeout=3 * PATIENCE)
    page.route("**/queue/join*", send_as_another)
    page.get_by_role("button", name="Train", exact=True).click()
    expect(page.get_by_text("This session was not found. Reload the page.").first).to_be_visible()
    page.close()
