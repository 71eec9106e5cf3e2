"""Requests of other sites to every route: raw requests with browser headers, and requests of a real browser.

Each request has a number in its URL, and the app under test logs for each number whether the guard let it
pass. The raw requests go to every route of the app, MCP and static files included. The browser visits pages
of other origins that send all kinds of requests (`foreign.js`) to each name of this machine; the host name of
one origin resolves to the app as well (DNS rebinding).
"""

import contextlib
import http.client
import json
import random
import re
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path

from app_server import Server, serve
from browser import FLAGS, find_chromium
from playwright.sync_api import Page, Route, sync_playwright

from batteries.recorded_routes import RECORD_ROUTES
from batteries.result import BatteryResult

NAME = "requests of other sites, over every route"
PASSES_WHEN = "0 answered"
REBOUND = "attacker.test"  # the browser resolves it to this machine
_NAMES = ("127.0.0.1", "localhost", "x.localhost", REBOUND)
PATHS = ("/", "/config", "/gradio_api/call/runs", "/gradio_api/upload", "/gradio_api/queue/join",
         "/gradio_api/mcp/", "/gradio_api/file=https://attacker.test/x.png")  # fmt: skip
# Chromium asks before a page reaches this machine, and blocks windows; other browsers do not.
_CHROMIUM_FLAGS = ("--disable-features=LocalNetworkAccessChecks", "--disable-popup-blocking")
_SCRIPT = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")
_PAGE = f"<!doctype html><title>Another site</title><body><script>{_SCRIPT}</script>"
_RECORD_REQUESTS = """
refuse = guard.RequestGuard._refuse
def record(self, scope):
    refusal = refuse(self, scope)
    with open(os.environ["REQUESTS"], "a") as file:
        file.write(json.dumps([scope["query_string"].decode("latin-1"), refusal is None]) + chr(10))
    return refusal
guard.RequestGuard._refuse = record
"""
_OWN = "own"
_MCP_PATHS = ("", "schema", "sse", "messages/")
_MAX_ANSWER_SECONDS = 2.0  # seconds
_MARK = "attempt="


@dataclass
class Attempts:
    """The attempts on one app, by number, and the file in which the app logs the guard's decisions."""

    server: Server
    log: Path
    routes: Path
    names: list[str] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.server.url.rpartition(":")[2])

    def query(self, name: str) -> str:
        """Add an attempt and return its number as a URL query."""
        self.names.append(name)
        return f"{_MARK}{len(self.names) - 1}"

    def passed_guard(self) -> dict[str, set[bool]]:
        """Return the guard's decisions for each query that the app received."""
        received: dict[str, set[bool]] = {}
        for line in self.log.read_text(encoding="utf-8").splitlines():
            query, passed = json.loads(line)
            for part in query.split("&"):
                received.setdefault(part, set()).add(passed)
        return received


def run(share: float = 1.0, seed: int = 0, *, broken: str = "") -> BatteryResult:
    """Try `share` of all requests; `broken` is Python that breaks the guard of the app under test."""
    start, rng = time.monotonic(), random.Random(seed)
    with _app(broken) as attempts:
        routes = _routes(attempts)
        raw = _sample([(route, headers) for route in routes for headers in foreign_headers(attempts.port)],
                      share, rng)  # fmt: skip
        for (method, path), headers in raw:
            _send(attempts.port, method, f"{path}?{attempts.query(f'{method} {path} {headers}')}", headers)
        sent_raw = len(attempts.names)
        _browse(attempts, share, rng)
        _ask_as_own_page(attempts, routes)
        received = attempts.passed_guard()
        queries = [f"{_MARK}{number}" for number in range(len(attempts.names))]
        failures = [
            f"answered: {name}"
            for name, query in zip(attempts.names, queries, strict=True)
            if True in received.get(query, ())
        ]
        failures += [
            f"refused its own page: {method} {path}"
            for number, (method, path) in enumerate(routes)
            if received.get(f"{_OWN}={number}") != {True}
        ]
    outcomes = Counter(
        f"{'raw' if number < sent_raw else 'of a browser'}, {'arrived' if query in received else 'not sent'}"
        for number, query in enumerate(queries)
    )
    failures += [
        f"did not arrive: {attempts.names[n]}" for n in range(sent_raw) if queries[n] not in received
    ]
    seconds = time.monotonic() - start
    return BatteryResult(
        NAME, len(queries), tuple(failures), tuple(sorted(outcomes.items())), PASSES_WHEN, seconds
    )


def foreign_headers(port: int) -> list[dict[str, str]]:
    """Return headers that mark requests of other sites; a Host alone is that of a rebound name."""
    own = {"Host": f"127.0.0.1:{port}"}
    hosts = (f"x.localhost:{port}", f"{REBOUND}:{port}", f"0.0.0.0:{port}", "")
    origins = ("null", f"http://{REBOUND}", f"http://localhost:{port}", f"http://127.0.0.1:{port + 1}")
    sites = ("cross-site", "same-site")
    return [
        *({"Host": host} for host in hosts),
        *({**own, "Origin": origin} for origin in origins),
        *({**own, "Sec-Fetch-Site": site} for site in sites),
        {"Host": f"{REBOUND}:{port}", "Origin": f"http://{REBOUND}:{port}", "Sec-Fetch-Site": "same-origin"},
        {**own, "Origin": f"http://{REBOUND}", "Access-Control-Request-Method": "POST"},
        {**own, "Origin": f"http://{REBOUND}", "Connection": "Upgrade", "Upgrade": "websocket",
         "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="},
    ]  # fmt: skip


@contextlib.contextmanager
def _app(broken: str) -> Iterator[Attempts]:
    with tempfile.TemporaryDirectory(prefix="foreign-") as folder:
        log, routes = Path(folder) / "requests.jsonl", Path(folder) / "routes.json"
        log.touch()
        files = {"REQUESTS": str(log), "ROUTES": str(routes)}
        patch = "\n".join((RECORD_ROUTES, broken, _RECORD_REQUESTS))
        with serve(Path(folder) / "runs", "--mcp", patch=patch, **files) as server:
            yield Attempts(server, log, routes)


def _routes(attempts: Attempts) -> list[tuple[str, str]]:
    """Return every method and path of the app, with values for path parameters."""
    paths: Mapping[str, list[str]] = json.loads(attempts.routes.read_text(encoding="utf-8"))
    documented = [(method.upper(), _fill_path(path)) for path, methods in paths.items() for method in methods]
    of_mcp = [(method, f"/gradio_api/mcp/{path}") for method in ("GET", "POST") for path in _MCP_PATHS]
    unknown = [(method, "/nothing/here") for method in ("GET", "OPTIONS", "PUT", "DELETE", "PATCH")]
    return sorted({*documented, *of_mcp, *unknown})


def _fill_path(path: str) -> str:
    return re.sub(r"\{[^}]*\}", "x", path)


def _send(port: int, method: str, path: str, headers: Mapping[str, str]) -> int:
    """Send a request with exactly these headers; return its status, or 0 if the app closed the connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_MAX_ANSWER_SECONDS)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        body = b'{"data":[{}]}' if method in ("POST", "PUT", "PATCH") else b""
        for name, header in {**headers, "Content-Length": str(len(body))}.items():
            connection.putheader(name, header)
        connection.endheaders(body)
        return connection.getresponse().status
    except (http.client.HTTPException, OSError):  # also the timeout of a stream
        return 0
    finally:
        connection.close()


def _ask_as_own_page(attempts: Attempts, routes: Sequence[tuple[str, str]]) -> None:
    """Send a request of the app's own page to each route, which the guard must let pass."""
    headers = {
        "Host": f"localhost:{attempts.port}",
        "Origin": f"http://localhost:{attempts.port}",
        "Sec-Fetch-Site": "same-origin",
    }
    for number, (method, path) in enumerate(routes):
        _send(attempts.port, method, f"{path}?{_OWN}={number}", headers)


def _browse(attempts: Attempts, share: float, rng: random.Random) -> None:
    """Let pages of other origins send all kinds of requests."""
    with _other_site() as other, sync_playwright() as playwright:
        flags = [*FLAGS, *_CHROMIUM_FLAGS, f"--host-resolver-rules=MAP {REBOUND} 127.0.0.1"]
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=flags)
        for origin in _origins(attempts.port, other):
            page = browser.new_context().new_page()
            page.route(f"{origin}/attack", _answer_attack)  # the page of the name before it is rebound
            page.goto(f"{origin}/attack")
            _attack(page, attempts, share, rng)
            page.context.close()
        page = browser.new_context().new_page()
        for target, path in _sample(list(product(_targets(attempts.port), PATHS[1:])), share, rng):
            query = attempts.query(f"typed address that is redirected to {target}{path}")
            page.goto(f"http://{REBOUND}:{other}/?{target}{path}?{query}")
        browser.close()


def _targets(port: int) -> list[str]:
    return [f"http://{name}:{port}" for name in _NAMES]


def _origins(port: int, other: int) -> list[str]:
    return [*(f"http://{name}:{other}" for name in _NAMES), f"http://{REBOUND}:{port}"]


def _answer_attack(route: Route) -> None:
    route.fulfill(body=_PAGE, content_type="text/html")


def _attack(page: Page, attempts: Attempts, share: float, rng: random.Random) -> None:
    kinds = page.evaluate("Object.keys(window.attacks)")
    targets = [
        f"http://{name}:{attempts.port}" for name in ("127.0.0.1", "localhost", "x.localhost", REBOUND)
    ]
    for kind, target in _sample([(kind, target) for kind in kinds for target in targets], share, rng):
        path = rng.choice(PATHS)
        query = attempts.query(f"{kind} of {page.url} to {target}{path}")
        call = "([kind, url]) => Promise.resolve(window.attacks[kind](url)).then(() => {}, () => {})"
        page.evaluate(call, [kind, f"{target}{path}?{query}"])


class _Redirects(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(302)
        self.send_header("Location", self.path.removeprefix("/?"))
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def _other_site() -> Iterator[int]:
    """Serve another site that redirects, and yield its port; the browser's routes answer its pages."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Redirects) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def _sample(items: list, share: float, rng: random.Random) -> list:
    return items if share >= 1 else rng.sample(items, max(1, round(len(items) * share)))
