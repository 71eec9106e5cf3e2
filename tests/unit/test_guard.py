"""The request guard: foreign hosts, origins and pages are refused before the app runs."""

import asyncio
import logging
from typing import Any

import pytest

from peft_core.access.address import CLIENT_ADDRESS
from peft_core.access.guard import HUGGING_FACE, PagePolicy, RequestGuard
from peft_core.access.hosts import AllowedHosts, is_loopback, is_network_address
from peft_core.errors import ConfigError

OWN = {"host": "127.0.0.1:7860"}
VISIT = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}


class FakeApp:
    """An app behind the guard that records the client address of each request that reaches it."""

    def __init__(self) -> None:
        self.reached: list[str] = []

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        self.reached.append(CLIENT_ADDRESS.get())
        headers = [(b"access-control-allow-origin", b"*"), (b"access-control-allow-credentials", b"true")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"a secret"})


def ask(
    headers: dict[str, str] | list[tuple[str, str]],
    *,
    hosts: AllowedHosts | None = None,
    policy: PagePolicy | None = None,
    **scope: Any,
) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body of the response; status 0 if a WebSocket is closed unaccepted."""
    app, sent = FakeApp(), []
    guard = RequestGuard(app, hosts or AllowedHosts("127.0.0.1"), policy or PagePolicy())
    pairs = headers.items() if isinstance(headers, dict) else headers
    request = {
        "type": "http", "method": "GET", "path": "/", "server": ("127.0.0.1", 7860), "client": None,
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in pairs], **scope,
    }  # fmt: skip

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(guard(request, None, send))
    if sent[0]["type"] == "websocket.close":
        assert not app.reached
        return 0, {}, b""
    assert (sent[0]["status"] == 200) == bool(app.reached)
    response_headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], response_headers, b"".join(message.get("body", b"") for message in sent[1:])


@pytest.mark.parametrize(
    "headers",
    [
        OWN,
        {"host": "localhost"},
        {"host": "[::1]:7860"},
        {"host": "LOCALHOST:7860", "origin": "http://localhost:7860", "sec-fetch-site": "same-origin"},
        {"host": "127.0.0.1", "origin": "http://127.0.0.1"},
    ],
    ids=str,
)
def test_guard_own_page_and_programs_are_allowed(headers: dict[str, str]) -> None:
    status, response_headers, body = ask(headers, method="POST")
    assert (status, body) == (200, b"a secret")
    assert not [name for name in response_headers if name.startswith("access-control-")]
    assert response_headers["x-content-type-options"] == "nosniff"
    assert "frame-ancestors 'self'" in response_headers["content-security-policy"]


FOREIGN = [
    {"host": "attacker.example"},
    {"host": "x.localhost:7860"},
    {"host": "localhost.attacker.example:7860"},
    {"host": "localhost.:7860"},
    {"host": "127.0.0.1:7860@attacker.example"},
    {"host": "127.0.0.2:7860"},
    {"host": "0.0.0.0:7860"},
    {"host": "192.0.2.1:7860"},
    {"host": "[::2]:7860"},
    {"host": ""},
    {},
    {**OWN, "origin": "http://attacker.example"},
    {**OWN, "origin": "http://attacker.example:7860"},
    {**OWN, "origin": "http://localhost:7860"},
    {**OWN, "origin": "http://127.0.0.1:7861"},
    {**OWN, "origin": "https://127.0.0.1"},
    {**OWN, "origin": "https://127.0.0.1:7860"},
    {**OWN, "origin": "http://127.0.0.1:7860.attacker.example"},
    {**OWN, "origin": "http://127.0.0.1:7860@attacker.example"},
    {**OWN, "origin": "null"},
    {**OWN, "origin": ""},
    {**OWN, "origin": "file://127.0.0.1:7860"},
    {**OWN, "origin": "chrome-extension://127.0.0.1:7860"},
    {**OWN, "sec-fetch-site": "cross-site"},
    {**OWN, "sec-fetch-site": "same-site"},
    {**OWN, "sec-fetch-site": "anything"},
    {**OWN, "sec-fetch-site": "none"},
    {**OWN, "sec-fetch-site": "none", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"},
    {**OWN, **VISIT},
]


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_guard_foreign_request_is_refused(headers: dict[str, str], method: str) -> None:
    preflight = {"access-control-request-method": "POST"} if method == "OPTIONS" else {}
    status, response_headers, body = ask({**headers, **preflight}, method=method)
    assert status == 403
    assert body.startswith(b"This app does not accept ") and b"secret" not in body
    assert not [name for name in response_headers if name.startswith("access-control-")]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_guard_foreign_websocket_is_closed(headers: dict[str, str]) -> None:
    assert ask(headers, type="websocket")[0] == 0


@pytest.mark.parametrize("name", ["host", "origin"])
def test_guard_duplicate_header_is_refused(name: str) -> None:
    pairs = [("host", "127.0.0.1:7860"), ("origin", "http://127.0.0.1:7860")]
    twice = {"host": ("host", "attacker.example"), "origin": ("origin", "http://attacker.example")}[name]
    assert ask([*pairs, twice])[0] == 403


def test_guard_network_address_is_allowed_as_host() -> None:
    hosts = AllowedHosts("0.0.0.0")
    for address in ("192.0.2.7", "2001:db8::7"):
        name = f"[{address}]" if ":" in address else address
        assert ask({"host": f"{name}:7860"}, hosts=hosts, server=(address, 7860))[0] == 200
        assert ask({"host": f"{name}:7860"}, hosts=hosts, server=("192.0.2.8", 7860))[0] == 403
    assert ask({"host": "0.0.0.0:7860"}, hosts=hosts)[0] == 200  # as gradio prints it


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1:7860", False), ("[::1]", False), ("localhost", False), ("demo.example.org", False),
     ("192.0.2.7:7860", True), ("[2001:db8::7]:7860", True), ("", False)],
)  # fmt: skip
def test_is_network_address_excludes_loopback_and_names(host: str, expected: bool) -> None:
    assert is_network_address(host) is expected


def test_guard_insecure_origin_omits_opener_policy() -> None:
    lan = ask({"host": "192.0.2.7:7860"}, hosts=AllowedHosts("0.0.0.0"), server=("192.0.2.7", 7860))
    assert "cross-origin-opener-policy" not in lan[1]
    assert ask(OWN)[1]["cross-origin-opener-policy"] == "same-origin"


def test_guard_added_host_is_allowed_behind_a_proxy() -> None:
    hosts = AllowedHosts("127.0.0.1", ["demo.example.org", "other.example.org:8443"])
    assert ask({"host": "demo.example.org", "origin": "https://demo.example.org"}, hosts=hosts)[0] == 200
    assert ask({**OWN, "origin": "https://demo.example.org"}, hosts=hosts)[0] == 200
    assert ask({**OWN, "origin": "https://other.example.org:8443"}, hosts=hosts)[0] == 200
    for origin in (
        "https://demo.example.org:8443",
        "https://other.example.org",
        "https://x.demo.example.org",
    ):
        assert ask({**OWN, "origin": origin}, hosts=hosts)[0] == 403
    assert ask({"host": "other.example.org:7860"}, hosts=hosts)[0] == 403


def test_allowed_hosts_add_url_allows_tunnel() -> None:
    hosts = AllowedHosts("127.0.0.1")
    shared = {"host": "0123.share.example", "origin": "https://0123.share.example"}
    assert ask(shared, hosts=hosts)[0] == 403
    hosts.add_url("https://0123.share.example")
    assert ask(shared, hosts=hosts)[0] == 200


@pytest.mark.parametrize("name", ["http://demo.example.org", "demo.example.org/", "*", "", "a b", "x:port"])
def test_allowed_hosts_invalid_name_raises(name: str) -> None:
    with pytest.raises(ConfigError, match="is not the name of a host"):
        AllowedHosts("127.0.0.1", [name])


def test_guard_typed_address_opens_only_the_page() -> None:
    """The site whose address was typed may have redirected the browser to this app."""
    typed = {**OWN, "sec-fetch-site": "none", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert ask(typed)[0] == 200
    assert ask(typed, path="/gradio_api/file=https://attacker.example/x.png")[0] == 403
    assert ask(typed, path="/config")[0] == 403
    assert ask(typed, method="POST")[0] == 403


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=https://attacker.example/x.png",
        "/gradio_api/file=HTTP://attacker.example/x.png",
        "/gradio_api/file/https://attacker.example/x.png",
        "/file=//attacker.example/x.png",
    ],
)
def test_guard_remote_file_is_refused(path: str) -> None:
    status, _, body = ask({**OWN, "sec-fetch-site": "same-origin"}, path=path)
    assert (status, body) == (403, b"This app does not fetch files from the internet. Upload the file.")


def test_guard_served_file_is_sandboxed() -> None:
    _, response_headers, _ = ask(OWN, path="/gradio_api/file=/tmp/gradio/x/page.html")
    assert response_headers["content-security-policy"] == "sandbox; default-src 'none'"


def test_guard_logout_requires_own_referrer() -> None:
    network = AllowedHosts("0.0.0.0")
    lan = {"host": "192.0.2.7:7860"}
    request = {"hosts": network, "server": ("192.0.2.7", 7860), "path": "/logout"}
    assert ask(lan, **request)[0] == 403
    for referrer in ("http://attacker.example/", "http://[", "http://192.0.2.7:7860@attacker.example/", "x"):
        assert ask({**lan, "referer": referrer}, **request)[0] == 403
    assert ask({**lan, "referer": "http://192.0.2.7:7860/"}, **request)[0] == 200
    assert ask({**OWN, "sec-fetch-site": "same-origin"}, path="/logout/")[0] == 200


def test_guard_unknown_forwarded_host_is_removed() -> None:
    received: list[dict[bytes, bytes]] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        received.append(dict(scope["headers"]))

    guard = RequestGuard(app, AllowedHosts("127.0.0.1", ["demo.example.org"]), PagePolicy())
    for name in (b"attacker.example", b"demo.example.org"):
        headers = [
            (b"host", b"127.0.0.1:7860"),
            (b"x-forwarded-host", name),
            (b"x-gradio-server", b"http://x"),
        ]
        asyncio.run(guard({"type": "http", "method": "GET", "path": "/", "headers": headers}, None, None))
    assert [headers.get(b"x-forwarded-host") for headers in received] == [None, b"demo.example.org"]
    assert not any(b"x-gradio-server" in headers for headers in received)


def test_guard_link_from_another_site_opens_only_the_page_of_a_demo() -> None:
    demo, space = PagePolicy(links=True), PagePolicy(links=True, frames=HUGGING_FACE)
    visit = {**OWN, **VISIT}
    frame = {**visit, "sec-fetch-dest": "iframe"}
    assert ask(visit, policy=demo)[0] == 200
    assert ask(visit, policy=demo, path="/gradio_api/info")[0] == 403
    assert ask(visit, policy=demo, method="POST")[0] == 403
    assert ask({**visit, "sec-fetch-mode": "no-cors"}, policy=demo)[0] == 403
    assert ask({**visit, "origin": "https://huggingface.co"}, policy=space)[0] == 403
    assert ask(frame, policy=demo)[0] == 403
    status, response_headers, _ = ask(frame, policy=space)
    assert status == 200
    assert "frame-ancestors 'self' https://huggingface.co" in response_headers["content-security-policy"]


def test_guard_logs_each_refusal_once_up_to_twenty(caplog: pytest.LogCaptureFixture) -> None:
    app = FakeApp()
    guard = RequestGuard(app, AllowedHosts("127.0.0.1"), PagePolicy())

    async def send(message: dict[str, Any]) -> None: ...

    async def ask_twice() -> None:
        for number in range(60):
            host = f"{number // 2}.example\r\n{'x' * 5000}".encode()
            scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", host)]}
            await guard(scope, None, send)

    with caplog.at_level(logging.WARNING):
        asyncio.run(ask_twice())
    assert len(caplog.messages) == 20
    assert all(len(message) < 300 and "\n" not in message for message in caplog.messages)


def test_guard_sets_client_address_for_the_app() -> None:
    app = FakeApp()
    guard = RequestGuard(app, AllowedHosts("127.0.0.1"), PagePolicy())

    async def send(message: dict[str, Any]) -> None: ...

    scope = {"type": "http", "method": "GET", "path": "/", "client": ("192.0.2.9", 5)}
    asyncio.run(guard({**scope, "headers": [(b"host", b"localhost")]}, None, send))
    assert app.reached == ["192.0.2.9"]


@pytest.mark.parametrize(
    ("bound", "expected"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("localhost", True), ("::1", True), ("[::1]", True),
     ("0.0.0.0", False), ("::", False), ("192.168.1.5", False), ("my-laptop", False), ("", False)],
)  # fmt: skip
def test_is_loopback_accepts_only_loopback_addresses(bound: str, expected: bool) -> None:
    assert is_loopback(bound) is expected
